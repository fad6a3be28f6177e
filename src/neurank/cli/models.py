"""MODEL on the command line: a network of the zoo, or one that the user's code builds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from neurank import zoo
from neurank.cli.user_code import load_factory, names_code
from neurank.errors import FileError, ModelError
from neurank.files import Json, read_tensors, write_tensors
from neurank.text import legible

WEIGHTS = "weights"
"""The kind of the files that `save_weights` writes."""

_PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar"}
_NAMED = 4


@dataclass(frozen=True)
class Architecture:
    """A network that can be built, its weights apart.

    Attributes
    ----------
    spec : as on the command line.
    factory : builds it.
    from_zoo : whether it is one of the zoo's, which come untrained.
    """

    spec: str
    factory: Callable[[], nn.Module]
    from_zoo: bool

    @property
    def in_python(self) -> str:
        """The factory as an expression, to show."""
        name, _, widths = self.spec.partition(":")
        if not self.from_zoo:
            return self.spec.rpartition(":")[2]
        return f"neurank.zoo.{name}" if not widths else f"lambda: neurank.zoo.{name}({widths})"


def architecture(spec: str, *, seed: int | None = None) -> Architecture:
    """Read MODEL: ``lenet``, ``lenet:10,20,100,25``, ``file.py:factory``, ``pack.mod:factory``.

    Raises
    ------
    ModelError
        There is no such network, or the code that builds it fails.

    Examples
    --------
    >>> architecture("lenet:5,7,45,20").factory().fc1.out_features
    45
    """
    name, _, widths = spec.partition(":")
    if name in zoo.FACTORIES:
        numbers = _widths(spec, widths)
        return Architecture(spec, lambda: zoo.by_name(name)(*numbers, seed=seed), from_zoo=True)
    if not names_code(spec):
        raise ModelError(
            f"no network is called {spec!r}: give {', '.join(zoo.FACTORIES)}, with widths as in "
            "lenet:10,20,100,25, or a function of your own as file.py:factory"
        )
    build = load_factory(spec, ModelError, ", ".join(zoo.FACTORIES))

    def factory() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            return _checked(build(), spec)

    return Architecture(spec, factory, from_zoo=False)


def trained_model(source: Architecture, weights: Path | None) -> nn.Module:
    """Build a network and give it its weights, from a file or by its own factory.

    Raises
    ------
    ModelError
        It comes untrained and there is no file, or the file's weights do not fit.
    FileError
        The file cannot be read.
    """
    if weights is None and source.from_zoo:
        raise ModelError(
            f"{source.spec} comes untrained: give --weights FILE, such as 'neurank train "
            f"{source.spec} DATA --out FILE' writes"
        )
    model = source.factory()
    if weights is not None:
        load_weights(model, weights)
    return model


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, Json]) -> None:
    """Write a network's weights as a sealed ``.safetensors`` file that any reader opens."""
    write_tensors(path, model.state_dict(), metadata, kind=WEIGHTS)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a network with the weights in a ``.safetensors`` file, a state dict by names.

    Raises
    ------
    FileError
        The file is missing, damaged, or of a format that can run code when it is opened.
    ModelError
        Names or shapes do not fit the network; the message names the first of them.
    """
    found = _read(path)
    wanted = model.state_dict()
    _check_names(model, wanted, found, path)
    _check_shapes(wanted, found, path)
    model.load_state_dict(found, strict=False)


def _widths(spec: str, text: str) -> tuple[int, ...]:
    if ":" not in spec:
        return ()
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    count = zoo.WIDTHS[spec.partition(":")[0]]
    if len(numbers) != count:
        raise ModelError(
            f"{spec!r} does not say the widths of its {count} layers of units: give {count} whole "
            "numbers, as in lenet:10,20,100,25, or the name alone"
        )
    return numbers


def _checked(model: object, spec: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{spec!r} returned a {type(model).__name__}: it must return a torch.nn.Module"
        )
    return model


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileError(f"there is no file {path}: check --weights")
    if path.suffix.lower() in _PICKLES:
        raise FileError(
            f"{path} is refused: files of that kind can run code when they are opened. Convert it "
            'once, where you trust it: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{path.name}', weights_only=True), "
            f"'{path.stem}.safetensors')\""
        )
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
        if "neurank" not in notes:
            return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise FileError(
            f"{path} cannot be read as safetensors ({error}): give a state dict saved with "
            "safetensors.torch.save_file"
        ) from error
    if '"kind":"condensed network"' in notes["neurank"]:
        raise FileError(
            f"{path} holds a condensed network, which needs the original's factory too: write "
            f"def small(): return neurank.load({path.name!r}, factory).model in a file of your "
            "own, give it as MODEL, file.py:small, and leave --weights out"
        )
    return read_tensors(path, kind=WEIGHTS)[0]


def _check_names(
    model: nn.Module, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path
) -> None:
    aliases = _aliases(model)
    missing = [
        name for name in wanted if name not in found and not aliases.get(name, set()) & set(found)
    ]
    unknown = [name for name in found if name not in wanted]
    if not missing and not unknown:
        return
    raise ModelError(
        f"the weights in {path} are not of this network: "
        + "; ".join(
            f"{words} {_listed(names)}"
            for words, names in (("it lacks", missing), ("the network has no", unknown))
            if names
        )
        + _prefix_hint(wanted, found)
    )


def _aliases(model: nn.Module) -> dict[str, set[str]]:
    """For the name of a tied tensor its other names; files keep one of them only."""
    by_tensor: dict[int, set[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        by_tensor.setdefault(id(tensor), set()).add(name)
    return {name: names - {name} for names in by_tensor.values() for name in names}


def _prefix_hint(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    for prefix in ("module.", "model.", "_orig_mod."):
        if {name.removeprefix(prefix) for name in found} == set(wanted):
            return f". All names begin with {prefix!r}: save the inner module's state dict instead"
    return ". Give the file that belongs to this network, or the network that it belongs to"


def _check_shapes(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    wrong = [
        f"{legible(name)} is {tuple(found[name].shape)} in the file and "
        f"{tuple(wanted[name].shape)} in the network"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    if wrong:
        raise ModelError(
            f"the weights in {path} are of a network of other widths: {'; '.join(wrong[:_NAMED])}. "
            "Give MODEL the widths that it was trained with"
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(legible, names[:_NAMED]))
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
