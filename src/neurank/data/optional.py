"""Packages that only some data sets need."""

from importlib import import_module
from typing import Any

from neurank.errors import DataError


def optional(module: str, needed_by: str, remedy: str) -> Any:
    """Import a module that only `needed_by` needs.

    Raises
    ------
    DataError
        Its package is not installed; the message ends in the remedy.

    Examples
    --------
    >>> optional("json.decoder", "this example", "pip install python").__name__
    'json.decoder'
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(
            f"{needed_by} needs {module.partition('.')[0]}, which is not installed: {remedy}"
        ) from error
