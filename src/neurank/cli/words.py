"""The small languages of the options: values, counts per layer, names of layers."""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from neurank.errors import MethodError, PlanError
from neurank.observe.value import Accuracy, Margin, NegativeLoss, Recall, Value
from neurank.rankers.stopping import Seconds, StderrBelow, Stop, TopCertain

T = TypeVar("T", int, float)

_STOPS: Mapping[str, Callable[[str], Stop]] = {
    "stderr": lambda number: StderrBelow(float(number)),
    "top": lambda number: TopCertain(int(number)),
    "seconds": lambda number: Seconds(float(number)),
}

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


def stop(text: str) -> Stop:
    """Read when to stop sampling: ``stderr:0.001``, ``top:5`` or ``seconds:60``.

    Raises
    ------
    MethodError
        It is none of these, or the number is out of range.

    Examples
    --------
    >>> stop("top:5"), stop("seconds:60")
    (TopCertain(k=5, confidence=0.95), Seconds(seconds=60.0))
    """
    name, _, number = text.partition(":")
    try:
        if name in _STOPS:
            return _STOPS[name](number)
    except MethodError:
        raise
    except ValueError:
        pass  # the number is none
    raise MethodError(
        f"--stop {text!r} is unknown: give stderr:0.001 (no larger standard error), top:5 (the top "
        "5 are certain) or seconds:60 (per layer)"
    )


def memory(text: str) -> int:
    """Read a number of bytes: ``500000``, or with one of the letters k, M and G (1024³) behind it.

    Raises
    ------
    MethodError
        It is no such number.

    Examples
    --------
    >>> memory("2G"), memory("512")
    (2147483648, 512)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)B?", text)
    if found is None:
        raise MethodError(f"--max-memory {text!r} is no number of bytes: give one as in 500M or 2G")
    return int(float(found[1]) * 1024 ** " kMG".index(found[2] or " "))


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
