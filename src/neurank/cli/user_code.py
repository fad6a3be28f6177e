"""Finding what the user names in code of his own: ``file.py:factory``, ``package.module:factory``.

Such code is run, which is what naming it asks for.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from neurank.errors import NeurankError
from neurank.text import legible


def names_code(spec: str) -> bool:
    """Whether `spec` has the form of a factory in the user's code.

    Examples
    --------
    >>> names_code("nets.py:small"), names_code("torch.nn:ReLU"), names_code("lenet")
    (True, True, False)
    """
    source, _, name = spec.rpartition(":")
    module = all(part.isidentifier() for part in source.split("."))
    return bool(source) and name.isidentifier() and (source.endswith(".py") or module)


def load_factory(spec: str, error: type[NeurankError], known: str) -> Callable[[], Any]:
    """Run the module that `spec` names and return the factory in it, a function of no arguments.

    Parameters
    ----------
    spec
        ``file.py:factory`` or ``package.module:factory``. The file's folder, or the current one,
        is where its own imports are looked for first.
    error
        What to raise.
    known
        What can be named without code of one's own, for the message.

    Returns
    -------
    Callable
        Calls the factory; what it raises is raised as `error`, with the reason.
    """
    source, _, name = spec.rpartition(":")
    path = Path(source).expanduser() if source.endswith(".py") else None
    if path is not None and not path.is_file():
        raise error(f"there is no file {path}: check the path before the colon in {spec!r}")
    folder = Path.cwd() if path is None else path.resolve().parent
    with _importable(folder):
        if path is None and not _is_there(source):
            raise error(
                f"there is no module {source!r} here or installed: check {spec!r}, or give {known}"
            )
        with _reasoned(f"importing {source!r}", error):
            module = importlib.import_module(source) if path is None else _module_of(path)
    factory = getattr(module, name, None)
    if not _is_factory(factory):
        offered = [key for key, item in vars(module).items() if _is_own(item, module)]
        remedy = f"it has {', '.join(map(legible, offered))}" if offered else "write one"
        raise error(f"{source!r} has no function {name!r} that builds something: {remedy}")

    def call() -> Any:
        with _importable(folder), _reasoned(f"{spec!r}, called without arguments,", error):
            return factory()

    return call


@contextmanager
def _reasoned(what: str, error: type[NeurankError]) -> Iterator[None]:
    """Raise what the user's code raises as `error`, with the reason."""
    try:
        yield
    except NeurankError:
        raise
    except Exception as reason:
        raise error(
            f"{what} failed with {type(reason).__name__}: {reason}; mend the code, "
            "'neurank --traceback' in front of the command shows where"
        ) from reason


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent that is missing or no package
        return False


def _is_factory(thing: Any) -> TypeGuard[Callable[[], Any]]:
    """Whether it is a function or a class; a network itself can be called too, but builds none."""
    return callable(thing) and (hasattr(thing, "__name__") or hasattr(thing, "func"))


def _is_own(item: Any, module: ModuleType) -> bool:
    return callable(item) and getattr(item, "__module__", None) == module.__name__


def _module_of(path: Path) -> ModuleType:
    """Run a file as a module of its own, once per process."""
    whole = path.resolve()
    name = f"neurank_user_{whole.stem}_{sha256(str(whole).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, whole)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Look for imports in `folder` first, as Python does for a script that it runs."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
