"""What a coalition is worth: the mean over examples of one number per example."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from neurank.errors import MethodError, ModelError


@runtime_checkable
class Value(Protocol):
    """A per-example value: `(outputs, targets) -> (examples,)`, higher is better."""

    def __call__(self, outputs: Tensor, targets: Tensor, /) -> Tensor:
        """Return one number per example."""
        ...


@dataclass(frozen=True)
class Accuracy:
    """1 where the largest output is the target's, else 0; ties go to the lowest class index.

    The characteristic function of the paper, ν(C) = acc(C).

    Example:
    -------
    >>> Accuracy()(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([1, 1]))
    tensor([0., 1.], dtype=torch.float64)
    """

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return 1.0 or 0.0 per example."""
        return (outputs.argmax(dim=1) == targets).to(torch.float64)


@dataclass(frozen=True)
class Recall:
    """Accuracy over the examples of one class: the share of them that is recognised.

    Example:
    -------
    >>> value = Recall(1)
    >>> value.counts(torch.tensor([0, 1, 1]))
    tensor([False,  True,  True])
    """

    label: int

    def __post_init__(self) -> None:
        if not isinstance(self.label, int) or self.label < 0:
            raise MethodError(f"Recall({self.label!r}): a class index from 0 on is needed")

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return 1.0 or 0.0 per example."""
        return Accuracy()(outputs, targets)

    def counts(self, targets: Tensor) -> Tensor:
        """Which examples the value is a mean over, (examples,) bool."""
        return targets == self.label


@dataclass(frozen=True)
class NegativeLoss:
    """The log probability of the target class, minus the cross-entropy.

    Example:
    -------
    >>> NegativeLoss()(torch.zeros(1, 2), torch.tensor([0])).exp()
    tensor([0.5000], dtype=torch.float64)
    """

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the log probability per example."""
        return -functional.cross_entropy(outputs.to(torch.float64), targets, reduction="none")


@dataclass(frozen=True)
class Margin:
    """The target's output minus the largest other output.

    Example:
    -------
    >>> Margin()(torch.tensor([[3.0, 1.0, 2.5]]), torch.tensor([0]))
    tensor([0.5000], dtype=torch.float64)
    """

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the margin per example."""
        outputs = outputs.to(torch.float64)
        own = outputs.gather(1, targets[:, None])
        others = outputs.scatter(1, targets[:, None], -torch.inf)
        return own[:, 0] - others.max(dim=1).values


def is_accuracy(value: Value) -> bool:
    """Whether the value depends on the outputs through the largest one alone."""
    return isinstance(value, Accuracy | Recall)


def counted(value: Value, targets: Tensor) -> Tensor:
    """Which examples the value is a mean over: all of them unless the value says otherwise."""
    counts: Callable[[Tensor], Tensor] | None = getattr(value, "counts", None)
    return torch.ones_like(targets, dtype=torch.bool) if counts is None else counts(targets)


def value_name(value: Value) -> str:
    """Describe a value for the records.

    Example:
    -------
    >>> value_name(Recall(3)), value_name(Margin())
    ('Recall(label=3)', 'Margin()')
    """
    if isinstance(value, Accuracy | Recall | NegativeLoss | Margin):
        return repr(value)
    return str(getattr(value, "__qualname__", repr(value)))


def evaluate(value: Value, outputs: Tensor, targets: Tensor, where: str) -> Tensor:
    """Apply a value and check what comes back: (examples,), finite, float64.

    Raises
    ------
    MethodError
        If the value returns another shape than one number per example.
    ModelError
        If outputs or values are NaN or infinite, naming `where`.
    """
    if not bool(torch.isfinite(outputs).all()):
        raise ModelError(
            f"the model's outputs are NaN or infinite {where}: nothing can be ranked by them. "
            "Check the weights and the scale of the inputs"
        )
    numbers = value(outputs, targets)
    if not isinstance(numbers, Tensor) or numbers.shape != targets.shape:
        shape = tuple(numbers.shape) if isinstance(numbers, Tensor) else type(numbers).__name__
        raise MethodError(
            f"the value {value_name(value)} returned {shape} where one number per example, "
            f"{tuple(targets.shape)}, is needed: do not average inside it"
        )
    if not bool(torch.isfinite(numbers).all()):
        raise ModelError(f"the value {value_name(value)} is NaN or infinite {where}")
    return numbers.to(torch.float64)
