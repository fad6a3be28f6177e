"""DATA on the command line: a data set by name, or one that the user's code builds."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from neurank import data
from neurank.cli.user_code import load_factory, names_code
from neurank.data import Split, Splits
from neurank.data.splits import Channels
from neurank.errors import DataError
from neurank.observe.value import Recall, Value

PARTS = ("train", "validation", "test")
RANKED_ON = ("train", "validation")
"""What units may be scored on: never the part that the final error is measured on."""


def load_data(spec: str, *, batch_size: int = 200) -> Splits:
    """Read DATA: what `neurank.data.load` knows, or ``file.py:factory``.

    With ``@mean/std`` behind it, numbers for all channels or one for each, inputs are normalised:
    ``cifar10:DIR@0.49,0.48,0.45/0.25,0.24,0.26``.

    The factory returns a `Splits`, or three parts in the order train, validation, test, each a
    `Split` or batches of (inputs, targets). One pass over the batches is kept in memory.

    Raises
    ------
    DataError
        There is no such data set, the code that builds it fails, or it returns something else.

    Examples
    --------
    >>> load_data("digits", batch_size=50).validation
    Split(digits/validation: 300 examples of 1 x 8 x 8, 10 classes, batches of 50)
    >>> load_data("digits@0.5/0.25").validation.inputs.min().item()
    -2.0
    """
    source, mean, std = _normalisation(spec)
    splits = _load(source, batch_size)
    return splits if mean is None or std is None else splits.normalized(mean, std)


def _normalisation(spec: str) -> tuple[str, Channels | None, Channels | None]:
    """Take ``@mean/std`` off the end of a spec, if it is there."""
    found = re.fullmatch(r"(.*)@([\d.,+-]+)/([\d.,+-]+)", spec)
    if found is None:
        return spec, None, None
    return found[1], _channels(found[2], spec), _channels(found[3], spec)


def _channels(text: str, spec: str) -> Channels:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        raise DataError(
            f"{spec!r} ends in no mean and standard deviation: give numbers, one for all channels "
            "or one for each, as in @0.5/0.25 or @0.49,0.48,0.45/0.25,0.24,0.26"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers


def _load(spec: str, batch_size: int) -> Splits:
    name = spec.partition(":")[0]
    known = {entry.partition(":")[0].partition("[")[0] for entry in data.KNOWN}
    if name in known:
        return data.load(spec, batch_size=batch_size)
    if not names_code(spec):
        raise DataError(
            f"no data set is called {spec!r}: give one of {', '.join(data.KNOWN)}, or a function "
            "of your own as file.py:factory"
        )
    return _splits(load_factory(spec, DataError, ", ".join(data.KNOWN))(), spec, batch_size)


def part(splits: Splits, name: str) -> Split:
    """Return the part of the data that units are scored on.

    Raises
    ------
    DataError
        It is neither train nor validation.
    """
    if name not in RANKED_ON:
        raise DataError(
            f"--split {name} cannot be ranked on: give one of {', '.join(RANKED_ON)}; the test "
            "part is for final errors alone"
        )
    chosen: Split = getattr(splits, name)
    return chosen


def check_class(value: Value, splits: Splits) -> None:
    """Refuse the recall of a class that the data do not have.

    Raises
    ------
    DataError
        There is no such class.
    """
    if isinstance(value, Recall) and value.label >= len(splits.classes):
        raise DataError(
            f"there is no class {value.label} to recall: the classes of {splits.name} are 0 to "
            f"{len(splits.classes) - 1}"
        )


def _splits(made: object, spec: str, batch_size: int) -> Splits:
    if isinstance(made, Splits):
        return made
    if not isinstance(made, tuple | list) or len(made) != len(PARTS):
        raise DataError(
            f"{spec!r} returned {_described(made)}: it must return neurank.data.Splits, or three "
            "parts (train, validation, test), each a Split or batches of (inputs, targets)"
        )
    train, validation, test = (
        _split(one, f"{spec}/{name}", batch_size) for one, name in zip(made, PARTS, strict=True)
    )
    classes = max((train.classes, validation.classes, test.classes), key=len)
    return Splits(train, validation, test, name=spec, classes=classes)


def _split(made: Any, name: str, batch_size: int) -> Split:
    if isinstance(made, Split):
        return made
    if not isinstance(made, Iterable) or isinstance(made, Tensor):
        raise DataError(
            f"{name} is {_described(made)}: give a DataLoader, a Split, or a list of batches "
            "(inputs, targets)"
        )
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    for number, batch in enumerate(made, start=1):
        if not _is_batch(batch):
            raise DataError(
                f"batch {number} of {name} is {_described(batch)}: give pairs of tensors (inputs, "
                "targets), batched; a Dataset needs a DataLoader around it"
            )
        inputs.append(batch[0])
        targets.append(batch[1])
    if not inputs:
        raise DataError(f"{name} has no batches: give at least one")
    try:
        whole, labels = torch.cat(inputs), torch.cat(targets)
    except (RuntimeError, TypeError) as error:
        raise DataError(
            f"the batches of {name} do not fit together ({error}): give inputs of one shape"
        ) from error
    return Split(whole, labels.long(), name, batch_size)


def _is_batch(thing: object) -> bool:
    pair = isinstance(thing, tuple | list) and len(thing) == 2
    return pair and all(isinstance(one, Tensor) and one.ndim for one in thing)  # type: ignore[attr-defined]


def _described(thing: object) -> str:
    if isinstance(thing, tuple | list):
        return f"a {type(thing).__name__} of {len(thing)}"
    return f"a {type(thing).__name__}"
