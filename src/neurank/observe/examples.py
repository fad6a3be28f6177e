"""The user's data, checked at the door: labelled, not empty, and the same at every pass."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neurank.errors import DataError

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Examples:
    """Batches of `(inputs, targets)` that are known to repeat.

    Attributes
    ----------
    source : the loader or iterable itself; it is iterated once per pass and never kept.
    digests : one digest per batch; every later pass is compared with them.
    sizes : how many examples each batch has.
    largest_label : the largest target.
    device : where the batches are wanted.
    """

    source: Iterable[Batch]
    digests: tuple[str, ...]
    sizes: tuple[int, ...]
    largest_label: int
    device: torch.device

    @property
    def count(self) -> int:
        """Number of examples."""
        return sum(self.sizes)

    @property
    def digest(self) -> str:
        """One digest of all the data, in order."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.digests)

    def __iter__(self) -> Iterator[Batch]:
        """Yield every batch on the device, refusing one that is not what it was."""
        number = 0
        for number, batch in enumerate(self.source, start=1):
            inputs, targets = _checked(batch, number)
            same = number <= len(self) and _digest(inputs, targets) == self.digests[number - 1]
            if not same:
                raise DataError(_not_repeatable(number))
            yield inputs.to(self.device), targets.to(self.device)
        if number != len(self):
            raise DataError(_not_repeatable(number + 1))


def check_examples(data: Iterable[Batch], device: torch.device) -> Examples:
    """Go through the data twice and compare.

    Raises
    ------
    DataError
        If the data is empty, has no labels, holds NaN, or differs between two passes.

    Example
    -------
    >>> batches = [(torch.zeros(2, 3), torch.tensor([0, 1]))]
    >>> check_examples(batches, torch.device("cpu")).count
    2
    """
    if not isinstance(data, Iterable):
        raise DataError(
            f"the data is a {type(data).__name__}, which cannot be iterated: pass a DataLoader, "
            "a split from neurank.data.load, or a list of (inputs, targets) batches"
        )
    digests: list[str] = []
    sizes: list[int] = []
    largest = -1
    for number, batch in enumerate(data, start=1):
        inputs, targets = _checked(batch, number)
        _check_finite(inputs, number)
        digests.append(_digest(inputs, targets))
        sizes.append(len(targets))
        largest = max(largest, int(targets.max()))
    if not digests:
        raise DataError(
            "the data gives no batch at all: it is empty, or shorter than one batch of a loader "
            "with drop_last=True. Check the dataset, or set drop_last=False"
        )
    examples = Examples(data, tuple(digests), tuple(sizes), largest, device)
    for _ in examples:  # the second pass compares every batch with the first
        pass
    return examples


def _checked(batch: object, number: int) -> Batch:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError(
            f"batch {number} of the data is {_describe(batch)}, where a pair (inputs, targets) is "
            "needed: labels are what units are ranked by"
        )
    inputs, targets = batch
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        raise DataError(
            f"batch {number} holds {_describe(inputs)} and {_describe(targets)}, where two tensors "
            "are needed: convert them in the dataset or in collate_fn"
        )
    if targets.ndim != 1 or targets.is_floating_point() or targets.dtype == torch.bool:
        raise DataError(
            f"the targets of batch {number} have shape {tuple(targets.shape)} and type "
            f"{targets.dtype}, where one class index per example is needed: an integer tensor of "
            f"shape ({len(inputs)},)"
        )
    if len(inputs) != len(targets) or len(targets) == 0:
        raise DataError(
            f"batch {number} has {len(inputs)} inputs and {len(targets)} targets: it needs the "
            "same number of both, at least one"
        )
    if int(targets.min()) < 0:
        raise DataError(
            f"batch {number} has the label {int(targets.min())}: labels count from 0. Leave "
            "unlabelled examples out of the data"
        )
    return inputs, targets.to(torch.int64)


def _check_finite(inputs: Tensor, number: int) -> None:
    if not bool(torch.isfinite(inputs).all()):
        raise DataError(
            f"batch {number} has inputs that are NaN or infinite: clean the data, or leave those "
            "examples out"
        )


def _digest(inputs: Tensor, targets: Tensor) -> str:
    digest = hashlib.blake2b(f"{inputs.dtype}{tuple(inputs.shape)}".encode(), digest_size=16)
    for tensor in (inputs, targets):
        flat = tensor.detach().contiguous().cpu().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _describe(thing: object) -> str:
    if isinstance(thing, tuple | list):
        return f"a {type(thing).__name__} of {len(thing)}"
    return f"a {type(thing).__name__}"


def _not_repeatable(number: int) -> str:
    return (
        f"the data is not the same at every pass: batch {number} differs from what it was, or is "
        "missing. Turn shuffling and random augmentation off (shuffle=False), or pass list(loader) "
        "to keep one pass of it; a generator can be read once only"
    )
