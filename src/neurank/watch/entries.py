"""Some entries of a parameter along one axis, and what an optimizer keeps for them."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neurank.errors import CondenseError

_IN_DECAY = "weight_decay"


@dataclass(frozen=True, eq=False)
class Entries:
    """Some entries of a parameter or buffer along one axis.

    Attributes
    ----------
    name : of the tensor, in its network.
    tensor : the whole tensor.
    axis : along which the entries are.
    indices : which they are.
    """

    name: str
    tensor: Tensor
    axis: int
    indices: tuple[int, ...]

    def read(self, tensor: Tensor) -> Tensor:
        """Return a copy of these entries of a tensor of the same size along the axis."""
        return tensor.index_select(self.axis, self._where(tensor))

    def write(self, tensor: Tensor, values: Tensor) -> None:
        """Put values there, IN PLACE."""
        tensor.index_copy_(self.axis, self._where(tensor), values.to(tensor))

    def fit(self, tensor: Tensor) -> bool:
        """Whether a tensor has the parameter's axes, each of its size or 1."""
        return tensor.ndim == self.tensor.ndim and all(
            size in {1, whole} for size, whole in zip(tensor.shape, self.tensor.shape, strict=True)
        )

    def _where(self, tensor: Tensor) -> Tensor:
        return torch.tensor(self.indices, device=tensor.device)


@dataclass(frozen=True, eq=False)
class Written:
    """Values for entries of a tensor, not written yet."""

    entries: Entries
    tensor: Tensor
    values: Tensor

    def carry_out(self) -> None:
        """Write them."""
        self.entries.write(self.tensor, self.values)


def state_anew(optimizer: Optimizer, entries: Entries) -> Iterator[Written]:
    """Yield what an optimizer keeps for some entries of a parameter as if it had met none yet.

    What that is, is what an optimizer of the same kind and settings keeps for a parameter whose
    gradient is 0 in its first step, weight decay aside. Single numbers, such as step counts, and
    tensors that have one entry along the axis, are everyone's and stay.

    Raises
    ------
    CondenseError
        What it keeps cannot be told apart by entries; nothing is changed.
    """
    kept = optimizer.state.get(entries.tensor)
    if not kept:
        return
    fresh: Mapping[str, Any] | None = None
    for key, value in kept.items():
        if not _has_entries(value, key, entries, optimizer):
            continue
        if fresh is None:
            fresh = _first_state(optimizer, entries)
        found = fresh.get(key)
        if not isinstance(found, Tensor) or found.shape != value.shape:
            found = torch.zeros_like(value)
        yield Written(entries, value, entries.read(found))


def _has_entries(value: Any, key: str, entries: Entries, optimizer: Optimizer) -> bool:
    """Whether a part of the state has numbers of each entry; refuse what cannot be told."""
    known = isinstance(value, Tensor)
    if known and value.numel() == 1:
        return False
    if known and entries.fit(value):
        return bool(value.shape[entries.axis] == entries.tensor.shape[entries.axis])
    if known or any(True for _ in _tensors(value)):
        shape = tuple(value.shape) if known else type(value).__name__
        raise CondenseError(
            f"the {type(optimizer).__name__} keeps {key!r}, {shape}, for the parameter "
            f"{entries.name!r} of shape {tuple(entries.tensor.shape)}, and which of it belongs to "
            "the units cannot be told: delete it from optimizer.state before, if the optimizer can "
            "start it anew, or build a new optimizer afterwards"
        )
    return False


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of more than one number inside lists and mappings."""
    if isinstance(value, Tensor) and value.numel() > 1:
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _first_state(optimizer: Optimizer, entries: Entries) -> Mapping[str, Any]:
    kind = type(optimizer)
    group = next(
        it for it in optimizer.param_groups if any(one is entries.tensor for one in it["params"])
    )
    taken = inspect.signature(kind).parameters
    settings = {name: value for name, value in group.items() if name in taken and name != "params"}
    if _IN_DECAY in settings:
        settings[_IN_DECAY] = 0.0
    twin = nn.Parameter(entries.tensor.detach().clone())
    twin.grad = torch.zeros_like(twin)
    try:
        fresh = kind([twin], **settings)
        with torch.enable_grad():
            fresh.step()
    except Exception as error:  # whatever the user's class raises
        raise CondenseError(
            f"how a {kind.__name__} begins with the parameter {entries.name!r} cannot be found out "
            f"({error}): delete its state of that parameter from optimizer.state before, or build "
            "a new optimizer afterwards"
        ) from error
    return dict(fresh.state.get(twin, {}))
