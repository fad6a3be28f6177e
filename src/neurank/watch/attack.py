"""Learning-rate attacks: one unit's weights take larger steps than all others, for a few steps."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.optim import Optimizer

from neurank.errors import MethodError, UnitError


@dataclass(frozen=True)
class Hit:
    """One attacked step.

    Attributes
    ----------
    step : its number, counted from 0 where the attack was set up.
    unattacked : by name of a parameter, how far the optimizer moved the unit's entries, as an
        l2-norm.
    moved : the same as it came to be: `multiplier` times as far.
    """

    step: int
    unattacked: Mapping[str, float]
    moved: Mapping[str, float]


class Attack:
    """What an attack has done so far; it changes while the optimizer steps.

    Attributes
    ----------
    steps : how many steps the optimizer has taken since the attack was set up.
    hits : the attacked ones among them.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.hits: tuple[Hit, ...] = ()


@contextmanager
def attack(
    optimizer: Optimizer,
    model: nn.Module,
    layer: str,
    unit: int,
    *,
    multiplier: float,
    start: int,
    repeats: int,
    interval: int,
    weights_only: bool = True,
    norm: str | None = None,
) -> Iterator[Attack]:
    """Multiply the learning rate of one unit's weights on some steps, beside any training loop.

    The attack of the dead-units thesis (section 3.3): on the steps ``start``, ``start + interval``,
    and so on, `repeats` of them, the unit's incoming weights w become
    ``w + multiplier (step of the optimizer)``; nothing else and no other step is touched. Momenta
    and the like stay as the optimizer keeps them. That is a learning rate of its own for every
    optimizer whose step is proportional to the rate.

    Steps are those that the optimizer takes while the block runs, counted from 0: several backward
    passes for one step are one step, one in which a gradient scaler skips the update is none, and
    the closures of an optimizer that calls them are part of its step. When the block ends, in
    whatever way, the optimizer is as it was. Blocks can be nested, to attack several units.

    Parameters
    ----------
    optimizer
        What trains the network.
    model
        The network.
    layer
        Dotted name of a convolution or linear layer.
    unit
        The index of the unit.
    multiplier
        Of the learning rate, such as 100.
    start
        The first step that is attacked, from 0.
    repeats
        How many steps are attacked.
    interval
        How many steps lie between one attack and the next; 1 attacks every step.
    weights_only
        Leave the unit's bias and BatchNorm alone, as the thesis does. False attacks the bias, too.
    norm
        Dotted name of the unit's BatchNorm, whose scale and shift of the unit are attacked, too,
        where `weights_only` is False.

    Yields
    ------
    Attack
        The steps that were attacked, and how far the unit's weights moved.

    Raises
    ------
    UnitError
        The layer is none, or has no such unit.
    MethodError
        A setting is out of range; or the optimizer does not hold the weights, at the beginning or
        in a later step: a network that is condensed meanwhile has other ones.

    Notes
    -----
    The weight before a step and after it are compared, so that a weight w has a rounding error of
    about ``multiplier`` units in the last place of w.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> before = model[0].weight.detach().clone()
    >>> with attack(
    ...     optimizer, model, "0", 1, multiplier=10, start=0, repeats=1, interval=1
    ... ) as attacked:
    ...     model(torch.ones(1, 2)).sum().backward()
    ...     optimizer.step()
    >>> (model[0].weight.detach() - before)[:, 0].round(decimals=4)
    tensor([-0.5000, -5.0000, -0.5000])
    >>> [hit.step for hit in attacked.hits]
    [0]
    """
    _check_settings(multiplier, start, repeats, interval)
    if norm is not None and weights_only:
        raise MethodError(
            f"norm={norm!r} names parameters beside the weights, and weights_only=True leaves "
            "these alone: give weights_only=False, or leave norm out"
        )
    parts = _parts(model, layer, unit, weights_only=weights_only, norm=norm)
    _check_held(optimizer, parts)
    when = range(start, start + repeats * interval, interval)
    attacker = _Attacker(parts, float(multiplier), when)
    handles = []
    try:
        handles.append(optimizer.register_step_pre_hook(attacker.before_step))
        handles.append(optimizer.register_step_post_hook(attacker.after_step))
        yield attacker.record
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, eq=False)
class _Part:
    """The entries of one parameter that are the unit's."""

    name: str
    parameter: nn.Parameter
    axis: int
    unit: int

    def entries(self) -> Tensor:
        """Return them as a view."""
        return self.parameter.detach().select(self.axis, self.unit)


class _Attacker:
    """Compares the unit's entries before and after a step, and moves them further."""

    def __init__(self, parts: tuple[_Part, ...], multiplier: float, when: range) -> None:
        self._parts = parts
        self._multiplier = multiplier
        self._when = when
        self._before: list[Tensor] | None = None
        self.record = Attack()

    def before_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._before = None  # a step that failed leaves one
        if self.record.steps in self._when:
            _check_held(optimizer, self._parts)
            self._before = [part.entries().clone() for part in self._parts]

    def after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if was_skipped(optimizer):
            return
        step = self.record.steps
        self.record.steps += 1
        if self._before is None:
            return
        unattacked, moved = {}, {}
        for part, before in zip(self._parts, self._before, strict=True):
            entries = part.entries()
            change = entries - before
            entries.copy_(before + self._multiplier * change)
            unattacked[part.name] = _length(change)
            moved[part.name] = _length(entries - before)
        self._before = None
        self.record.hits += (Hit(step, unattacked, moved),)


def was_skipped(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler found an infinite gradient and a fused optimizer did nothing.

    Other optimizers are not called at all then.
    """
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.item())


def _length(change: Tensor) -> float:
    return float(torch.linalg.vector_norm(change.to(torch.float64)))


def _parts(
    model: nn.Module, layer: str, unit: int, *, weights_only: bool, norm: str | None
) -> tuple[_Part, ...]:
    owner = _module(model, layer)
    if not isinstance(owner, nn.Linear | _ConvNd):
        raise UnitError(
            f"layer {layer!r} is a {type(owner).__name__}: name a convolution or a linear layer"
        )
    axis = 1 if isinstance(owner, _ConvTransposeNd) else 0
    if axis and owner.groups != 1:
        raise UnitError(
            f"layer {layer!r} is a transposed convolution with {owner.groups} groups, each of "
            "which computes some of its units: only those with one group can be attacked"
        )
    width = owner.weight.shape[axis]
    if isinstance(unit, bool) or not isinstance(unit, int) or not 0 <= unit < width:
        raise UnitError(
            f"layer {layer!r} has no unit {unit!r}: its {width} units are 0 to {width - 1}"
        )
    wanted: list[tuple[str, Any, int]] = [(f"{layer}.weight", owner.weight, axis)]
    if not weights_only and owner.bias is not None:
        wanted.append((f"{layer}.bias", owner.bias, 0))
    if norm is not None:
        wanted.extend((name, it, 0) for name, it in _norm_parameters(model, norm, width, layer))
    for name, parameter, _ in wanted:
        if not isinstance(parameter, nn.Parameter):
            raise MethodError(
                f"{name!r} is computed from other parameters (by a parametrization, say), whose "
                "rates are not the unit's alone: make the parametrization permanent first"
            )
    return tuple(_Part(name, it, axis, unit) for name, it, axis in wanted)


def _norm_parameters(
    model: nn.Module, norm: str, width: int, layer: str
) -> Iterator[tuple[str, nn.Parameter]]:
    module = _module(model, norm)
    if not isinstance(module, _NormBase):
        raise UnitError(f"norm={norm!r} is a {type(module).__name__}: name a BatchNorm")
    if module.num_features != width:
        raise UnitError(
            f"norm={norm!r} normalises {module.num_features} channels and layer {layer!r} has "
            f"{width} units: name the BatchNorm of that layer"
        )
    yield from ((f"{norm}.{name}", it) for name, it in module.named_parameters())


def _module(model: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        known = ", ".join(
            path for path, it in modules.items() if isinstance(it, nn.Linear | _ConvNd)
        )
        raise UnitError(f"the model has no layer {name!r}: convolutions and linear are {known}")
    return modules[name]


def _check_held(optimizer: Optimizer, parts: tuple[_Part, ...]) -> None:
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for part in parts:
        if part.parameter not in held:
            raise MethodError(
                f"the {type(optimizer).__name__} does not hold {part.name!r}, so its steps are not "
                "that parameter's: give the optimizer that trains it, and end the attack before "
                "the network is condensed or wrapped"
            )


def _check_settings(multiplier: float, start: int, repeats: int, interval: int) -> None:
    is_number = isinstance(multiplier, int | float) and not isinstance(multiplier, bool)
    if not is_number or not math.isfinite(multiplier) or multiplier < 0:
        raise MethodError(f"multiplier={multiplier!r}: give a number of 0 or more, such as 100")
    for name, value, least in (
        ("start", start, 0),
        ("repeats", repeats, 1),
        ("interval", interval, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise MethodError(f"{name}={value!r}: give a whole number of {least} or more")
