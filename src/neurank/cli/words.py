"""The small languages of the options: values, counts per layer, names of layers."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from neurank.errors import MethodError, PlanError
from neurank.observe.value import Accuracy, Margin, NegativeLoss, Recall, Value

T = TypeVar("T", int, float)

VALUES: Mapping[str, Callable[[], Value]] = {
    "accuracy": Accuracy,
    "loss": NegativeLoss,
    "margin": Margin,
}


def value(text: str) -> Value:
    """Read what a coalition is worth: ``accuracy``, ``recall:3``, ``loss`` or ``margin``.

    Raises
    ------
    MethodError
        It is none of these.

    Examples
    --------
    >>> value("recall:3"), value("loss")
    (Recall(label=3), NegativeLoss())
    """
    name, _, label = text.partition(":")
    if name == "recall" and label.isdecimal():
        return Recall(int(label))
    if text not in VALUES:
        raise MethodError(
            f"--value {text!r} is unknown: give {', '.join(VALUES)}, or recall:3 for class 3"
        )
    return VALUES[text]()


def layer_names(text: str | None) -> list[str] | None:
    """Read names of layers with commas between them; None stays None.

    Examples
    --------
    >>> layer_names("conv1, fc1")
    ['conv1', 'fc1']
    """
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def per_layer(text: str, read: Callable[[str], T], option: str) -> dict[str, T]:
    """Read ``conv1=5,fc1=45`` into numbers by layer.

    Raises
    ------
    PlanError
        The text has another form, or names a layer twice.

    Examples
    --------
    >>> per_layer("conv1=5,fc1=45", int, "--keep")
    {'conv1': 5, 'fc1': 45}
    """
    entries = [_entry(entry) for entry in text.split(",")]
    names = [name for name, _ in entries]
    try:
        numbers = {name: read(number) for name, number in entries}
    except ValueError:
        numbers = {}
    if "" in names or len(numbers) != len(names):
        raise PlanError(
            f"{option} {text!r} is not of the form conv1=5,fc1=45: each layer's name once, an "
            "equals sign and a number"
        )
    return numbers


def _entry(text: str) -> tuple[str, str]:
    name, _, number = text.rpartition("=")
    return name.strip(), number.strip()


def number_or_per_layer(text: str, read: Callable[[str], T], option: str) -> T | dict[str, T]:
    """Read one number for all layers, or numbers by layer.

    Examples
    --------
    >>> number_or_per_layer("0.5", float, "--ratio"), number_or_per_layer("fc1=3", int, "-k")
    (0.5, {'fc1': 3})
    """
    try:
        return read(text)
    except ValueError:
        return per_layer(text, read, option)
