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
from typing import Any

from neurank.errors import NeurankError
from neurank.ranking import legible


def names_code(spec: str) -> bool:
    """Whether `spec` has the form of a factory in the user's code.

    Examples
    --------
    >>> names_code("nets.py:small"), names_code("mnist:/data"), names_code("torch.nn:ReLU")
    (True, False, True)
    """
    source, _, name = spec.rpartition(":")
    return bool(source) and name.isidentifier() and (source.endswith(".py") or "." in source)


def load_factory(spec: str, error: type[NeurankError]) -> Callable[[], Any]:
    """Run the module that `spec` names and return the factory in it, a function of no arguments.

    Parameters
    ----------
    spec
        ``file.py:factory`` or ``package.module:factory``. The file's folder, or the current one,
        is where its own imports are looked for first.
    error
        What to raise.

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

    def failed(what: str, reason: Exception) -> NeurankError:
        return error(
            f"{what} failed with {type(reason).__name__}: {reason}; mend the code, "
            "'neurank --traceback' in front of the command shows where"
        )

    with _importable(folder):
        try:
            module = importlib.import_module(source) if path is None else _module_of(path)
        except Exception as reason:
            raise failed(f"importing {source!r}", reason) from reason
    factory = getattr(module, name, None)
    if not callable(factory) or not _is_called(factory):
        known = [key for key, item in vars(module).items() if _offered(item, module)]
        raise error(
            f"{source!r} has no function {name!r} that builds something"
            + (f": it has {', '.join(map(legible, known))}" if known else ": write def factory()")
        )

    def call() -> Any:
        with _importable(folder):
            try:
                return factory()
            except NeurankError:
                raise
            except Exception as reason:
                raise failed(f"{spec!r}, called without arguments,", reason) from reason

    return call


def _is_called(factory: Any) -> bool:
    """Whether it is a function or a class; a network itself can be called too, but builds none."""
    return isinstance(factory, type) or hasattr(factory, "__name__") or hasattr(factory, "func")


def _offered(item: Any, module: ModuleType) -> bool:
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
