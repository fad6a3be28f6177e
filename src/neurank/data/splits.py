"""Labelled examples in memory, and the three parts that a data set comes in."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from neurank.errors import DataError

Channels = float | Sequence[float]


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled examples in memory: an iterable of ``(inputs, targets)`` batches in a fixed order.

    Every pass gives the same batches. Each batch is a copy, so that a network that works in place
    on its input leaves the data as they were; the tensors handed in are kept, not copied.

    Parameters
    ----------
    inputs : Tensor, shape (examples, ...)
        The network's inputs, finite.
    targets : Tensor of int64, shape (examples,)
        The class of each example, 0 or more.
    name
        What messages and provenance call it, such as ``"mnist/validation"``.
    batch_size
        Examples per batch; the last batch may have fewer.
    classes
        The classes' names in the order of their labels; by default "0", "1" and so on as far as
        the labels go.

    Raises
    ------
    DataError
        There are no examples, inputs and targets differ in number, a label has no class, a value
        is NaN or infinite, or the batch size is not positive.

    Examples
    --------
    >>> split = Split(torch.zeros(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1]), "five", batch_size=2)
    >>> split.examples, len(split), split.classes
    (5, 3, ('0', '1', '2'))
    >>> [len(targets) for _, targets in split]
    [2, 2, 1]
    """

    inputs: Tensor
    targets: Tensor
    name: str
    batch_size: int = 200
    classes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        _check_batch_size(self.batch_size)
        _check_targets(self.inputs, self.targets, self.name)
        if not self.classes:
            labels = range(int(self.targets.max()) + 1)
            object.__setattr__(self, "classes", tuple(str(label) for label in labels))
        _check_labels(self.targets, self.classes, self.name)
        _check_finite(self.inputs, self.name)

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(self.targets)

    def __len__(self) -> int:
        """Give the number of batches."""
        return math.ceil(self.examples / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches, each a copy."""
        for start in range(0, self.examples, self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.inputs[rows].clone(), self.targets[rows].clone()

    def __repr__(self) -> str:
        shape = " x ".join(str(size) for size in self.inputs.shape[1:])
        return (
            f"Split({self.name}: {self.examples:,} examples of {shape}, "
            f"{len(self.classes)} classes, batches of {self.batch_size})"
        )

    def subset(self, rows: slice | Sequence[int] | Tensor) -> "Split":
        """Pick the examples at `rows`, in that order: a slice, or indices from 0.

        Raises
        ------
        DataError
            Nothing is picked, or an index is negative or too large.

        Examples
        --------
        >>> split = Split(torch.zeros(4, 2), torch.tensor([0, 1, 2, 1]), "four")
        >>> split.subset([3, 0]).targets.tolist(), split.subset(slice(0, 4, 2)).targets.tolist()
        ([1, 0], [0, 2])
        """
        if not isinstance(rows, slice):
            index = _row_index(rows, self.examples, self.name)
            return self._picked(self.inputs[index], self.targets[index], f"{len(index)} rows")
        if rows.step is not None and rows.step < 0:  # which tensors do not take
            backwards = torch.tensor(range(self.examples)[rows], dtype=torch.int64)
            return self._picked(self.inputs[backwards], self.targets[backwards], _text(rows))
        return self._picked(self.inputs[rows], self.targets[rows], _text(rows))

    def first(self, examples: int) -> "Split":
        """Keep the first `examples` examples.

        Raises
        ------
        DataError
            There are fewer, or `examples` is not positive.
        """
        if not 1 <= examples <= self.examples:
            raise DataError(
                f"the first {examples:,} examples of {self.name} were asked for, which has "
                f"{self.examples:,}: ask for 1 to {self.examples:,}"
            )
        return self.subset(slice(examples))

    def rebatched(self, batch_size: int) -> "Split":
        """Give the same examples in batches of `batch_size`."""
        return replace(self, batch_size=batch_size)

    def normalized(self, mean: Channels, std: Channels) -> "Split":
        """Give ``(inputs - mean) / std``, with one mean and std per channel (axis 1) or for all.

        Raises
        ------
        DataError
            There are neither one nor as many numbers as channels, or a std is not positive.

        Examples
        --------
        >>> split = Split(torch.ones(1, 2, 1, 1), torch.tensor([0]), "one")
        >>> split.normalized((0.5, 1.0), (0.5, 2.0)).inputs.flatten().tolist()
        [1.0, 0.0]
        """
        means = _per_channel(mean, self.inputs, "mean")
        stds = _per_channel(std, self.inputs, "std")
        if not bool((stds > 0).all()):
            raise DataError(f"std {std} is not positive: give the standard deviation per channel")
        return replace(self, inputs=(self.inputs - means) / stds)

    def _picked(self, inputs: Tensor, targets: Tensor, rows: str) -> "Split":
        if not len(targets):
            raise DataError(f"[{rows}] picks none of the {self.examples:,} rows of {self.name}")
        return replace(self, inputs=inputs, targets=targets, name=f"{self.name}[{rows}]")


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set in its three disjoint parts.

    Attributes
    ----------
    train : what weights are fitted on.
    validation : what units are scored and networks chosen on.
    test : what a final error is measured on, and nothing else.
    name : the data set.
    classes : the classes' names in the order of their labels.

    Examples
    --------
    >>> from neurank.data import load
    >>> digits = load("digits")
    >>> digits.train.examples, digits.validation.examples, digits.test.examples
    (1197, 300, 300)
    """

    train: Split
    validation: Split
    test: Split
    name: str
    classes: tuple[str, ...]

    def normalized(self, mean: Channels, std: Channels) -> "Splits":
        """Give all three parts as `Split.normalized` does, with the same numbers."""
        return replace(
            self,
            train=self.train.normalized(mean, std),
            validation=self.validation.normalized(mean, std),
            test=self.test.normalized(mean, std),
        )


def _check_batch_size(batch_size: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise DataError(f"batch size {batch_size!r} is not a whole number of 1 or more")


def _check_targets(inputs: Tensor, targets: Tensor, name: str) -> None:
    if targets.dtype != torch.int64 or targets.ndim != 1:
        raise DataError(
            f"the targets of {name} are {targets.dtype} of shape {tuple(targets.shape)}: "
            "give one int64 label per example"
        )
    if inputs.ndim < 1 or len(inputs) != len(targets):
        raise DataError(
            f"{name} has inputs of shape {tuple(inputs.shape)} and {len(targets):,} targets: "
            "give one target per row of the inputs"
        )
    if not len(targets):
        raise DataError(f"{name} has no examples: nothing can be computed from it")


def _check_labels(targets: Tensor, classes: tuple[str, ...], name: str) -> None:
    lowest, highest = int(targets.min()), int(targets.max())
    if lowest < 0 or highest >= len(classes):
        label = lowest if lowest < 0 else highest
        raise DataError(
            f"{name} has the label {label}, outside its {len(classes)} classes: "
            f"labels must be 0 to {len(classes) - 1}"
        )


def _check_finite(inputs: Tensor, name: str) -> None:
    """Refuse NaN and infinity; their sum betrays them, so a sound tensor costs one cheap pass."""
    if not inputs.is_floating_point() or bool(inputs.sum().isfinite()):
        return
    sound = inputs.flatten(1).isfinite().all(dim=1) if inputs.ndim > 1 else inputs.isfinite()
    if not bool(sound.all()):
        row = int(sound.logical_not().nonzero()[0])
        raise DataError(f"{name} has a NaN or infinite value in row {row:,}: clean the data")


def _row_index(rows: Sequence[int] | Tensor, examples: int, name: str) -> Tensor:
    index = torch.as_tensor(rows)
    if index.numel() and (index.is_floating_point() or index.dtype == torch.bool):
        raise DataError(f"rows are picked by whole numbers, not by {index.dtype}: give indices")
    index = index.to(torch.int64)
    outside = index[(index < 0) | (index >= examples)]
    if len(outside):
        raise DataError(
            f"row {int(outside[0])} is not in {name}, whose rows are 0 to {examples - 1:,}"
        )
    return index


def _text(rows: slice) -> str:
    bounds = (rows.start, rows.stop) if rows.step is None else (rows.start, rows.stop, rows.step)
    return ":".join("" if bound is None else str(bound) for bound in bounds)


def _per_channel(values: Channels, inputs: Tensor, what: str) -> Tensor:
    """Shape the numbers so that they broadcast along the channels of `inputs`."""
    numbers = torch.as_tensor(values, dtype=inputs.dtype).reshape(-1)
    channels = inputs.shape[1] if inputs.ndim > 1 else 1
    if len(numbers) not in {1, channels}:
        raise DataError(
            f"{what} has {len(numbers)} numbers for {channels} channels: give one, or one each"
        )
    return numbers.reshape(1, -1, *(1,) * (inputs.ndim - 2)) if inputs.ndim > 1 else numbers
