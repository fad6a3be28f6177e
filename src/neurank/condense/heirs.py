"""Parameters of a large network, and what is left of each in the small one.

What an optimizer keeps for a parameter is told from its shape, and what cannot be told is refused.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from neurank.condense.slices import by_tensor, cuts_under, kept_of, shape_after, tied_names
from neurank.condense.surgery import Cut, named_tensors
from neurank.errors import CondenseError

_OWN = frozenset({"param_groups", "state"})
"""Where an optimizer keeps parameters that can be exchanged."""

_DEPTH = 4
"""How far into nested attributes of an optimizer is looked for parameters."""


@dataclass(frozen=True, eq=False)
class Heir:
    """A parameter of the large network and what is left of it in the small one."""

    name: str
    old: nn.Parameter
    new: nn.Parameter
    cuts: tuple[Cut, ...]

    def inherits(self, value: Any, key: str) -> Any:
        """Cut what the optimizer keeps for the parameter; `key` says where it was found."""
        if isinstance(value, Tensor):
            return self._tensor(value, key)
        if isinstance(value, dict):
            twin = copy.copy(value)
            for name, part in value.items():
                twin[name] = self.inherits(part, f"{key}.{name}" if key else str(name))
            return twin
        if type(value) in {list, tuple}:
            parts = (self.inherits(part, f"{key}[{i}]") for i, part in enumerate(value))
            return type(value)(parts)
        return value

    def gradient(self) -> Tensor | None:
        """Return a copy of the gradient that is there, cut."""
        return None if self.old.grad is None else self._tensor(self.old.grad, "grad").clone()

    def _tensor(self, tensor: Tensor, key: str) -> Tensor:
        if not self.cuts or tensor.numel() == 1:
            return tensor
        shape = tuple(self.old.shape)
        if tensor.ndim != len(shape) or any(
            size not in {1, whole} for size, whole in zip(tensor.shape, shape, strict=True)
        ):
            raise CondenseError(
                f"the optimizer keeps {key!r} of shape {tuple(tensor.shape)} for the parameter "
                f"{self.name!r} of shape {shape}, and which of its entries belong to the units "
                "removed cannot be told: delete it from optimizer.state before condensing, if the "
                "optimizer can start it anew, or build a new optimizer for the condensed network"
            )
        return kept_of(tensor, shape, self.cuts)


def heirs_of(old: nn.Module, small: nn.Module, cuts: Sequence[Cut]) -> dict[Tensor, Heir]:
    """Pair the parameters of the networks, tied ones once, and check that the cuts relate them."""
    unknown = [cut.tensor for cut in cuts if cut.tensor not in named_tensors(old)]
    if unknown:
        raise CondenseError(
            f"the cuts are of a tensor {unknown[0]!r}, which the large network does not have: give "
            "the network that was condensed, and the cuts of that condensation"
        )
    before = dict(old.named_parameters(remove_duplicate=False))
    after = dict(small.named_parameters(remove_duplicate=False))
    cuts_of = by_tensor(cuts)
    heirs = [
        Heir(names[0], before[names[0]], _one_of(after, names), cuts_under(names, cuts_of))
        for names in tied_names(before)
    ]
    for heir in heirs:
        _check_heir(heir)
    return {heir.old: heir for heir in heirs}


def check_holds(optimizer: Optimizer, heirs: Mapping[Tensor, Heir]) -> None:
    """Refuse an optimizer whose parameters cannot all be exchanged."""
    kind = type(optimizer).__name__
    for attribute, value in vars(optimizer).items():
        if attribute in _OWN or not _holds(value, heirs, _DEPTH):
            continue
        if isinstance(value, Optimizer):
            raise CondenseError(
                f"{kind} wraps another optimizer, in its attribute {attribute!r}, which holds "
                "parameters of the large network, too: carry over that one, and build the "
                f"{kind} anew around it"
            )
        raise CondenseError(
            f"{kind} keeps parameters of the large network in its attribute {attribute!r}, beside "
            "its groups (LBFGS does, and its state is one flat vector of all of them), so they "
            f"cannot be exchanged: build a new {kind} for the condensed network"
        )
    held = held_by(optimizer)
    if not any(parameter in held for parameter in heirs):
        raise CondenseError(
            f"the {kind} holds no parameter of the large network, so it would go on training "
            "something else: give the optimizer that trained it, and the network itself, not a "
            "copy. An optimizer can be carried over once per condensation"
        )
    twice = [heir.name for heir in heirs.values() if heir.new is not heir.old and heir.new in held]
    if twice:
        raise CondenseError(
            f"the {kind} holds the parameter {twice[0]!r} of the small network already: carry it "
            "over before adding parameters of the small network"
        )


def held_by(optimizer: Optimizer) -> set[Tensor]:
    """Return the parameters in all groups of an optimizer."""
    return {parameter for group in optimizer.param_groups for parameter in group["params"]}


def _one_of(after: Mapping[str, nn.Parameter], names: Sequence[str]) -> nn.Parameter:
    """Return the one parameter that the small network has under all these names."""
    found = {after.get(name) for name in names}
    (heir, *others) = found
    if heir is None or others:
        raise CondenseError(
            f"the large network's parameter {' = '.join(names)} is not one parameter of the small "
            "network: give the network that was condensed, and what came of it"
        )
    return heir


def _check_heir(heir: Heir) -> None:
    wanted = shape_after(tuple(heir.old.shape), heir.cuts, heir.name)
    found = tuple(heir.new.shape)
    if wanted != found:
        raise CondenseError(
            f"the cuts make {wanted} of the parameter {heir.name!r}, which is {found} in the small "
            "network: give the network that was condensed, what came of it, and the cuts of that "
            "condensation"
        )
    if (heir.old.dtype, heir.old.device) != (heir.new.dtype, heir.new.device):
        raise CondenseError(
            f"the parameter {heir.name!r} is {heir.old.dtype} on {heir.old.device} in the large "
            f"network and {heir.new.dtype} on {heir.new.device} in the small one, where the "
            "optimizer's state would not fit: carry the optimizer over first, or build a new one"
        )


def _holds(value: Any, parameters: Mapping[Tensor, Heir], depth: int) -> bool:
    """Whether a value is, or has in it, one of the parameters."""
    if isinstance(value, Tensor):
        return value in parameters
    if depth == 0:
        return False
    return any(_holds(part, parameters, depth - 1) for part in _parts(value))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Optimizer):
        yield value.param_groups
    elif isinstance(value, Mapping):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
