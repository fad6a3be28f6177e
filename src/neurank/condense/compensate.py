"""What removed units leave behind, made up for in the layers that read them.

A unit that is off gives its readers a constant (``neurank.observe.removal``). Where the unit is cut
away, a linear layer lacks W[:, removed] · constant, which is the same for every example and goes
into its bias. So it is for a convolution without padding. Behind zero padding the border sees the
constant fewer times than the middle: what is lacking there is a convolution of ones with the one
kernel sum over removed r of W[:, r] · constant[r], which ``neurank.condense.parts`` adds at run
time, at any resolution. A normalisation over units goes on counting those that are gone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from neurank.condense.kept import Plan
from neurank.condense.narrowed import beside, reduced_name, removed_name
from neurank.condense.surgery import bias_of, cut_layers
from neurank.errors import CondenseError, MethodError
from neurank.observe.execution import Runner
from neurank.units.graph import Operation, Ref, Weight
from neurank.units.rules import TRANSPOSED, groups_of
from neurank.units.space import UnitSpace

Border = Literal["exact", "folded"]
"""How constants behind zero padding are made up for: everywhere, or in the middle only."""


def check_border(border: str) -> Border:
    """Return how borders are dealt with, or say which ways there are."""
    for known in get_args(Border):
        if border == known:
            return known  # type: ignore[no-any-return]
    raise MethodError(f"border={border!r} is unknown: it is 'exact' or 'folded'")


@dataclass(frozen=True)
class Compensation:
    """What is added to a network so that cutting units away equals switching them off.

    Attributes
    ----------
    shifts : by dotted name of a bias, what is added to it, (features,) in float64, for the
        features before they are cut themselves.
    made : new tensors by dotted name: the ``constant`` kernel of a convolution, (1, channels left,
        ...) or (channels left, 1, ...), or what a normalisation still counts as ``removed``.
    """

    shifts: Mapping[str, Tensor]
    made: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Lost:
    """What an operation reads no more: which entries, and what each gave."""

    operation: Operation
    axis: int
    kind: str
    layer: str
    removed: Tensor
    constants: Tensor


def compensation(
    plan: Plan,
    space: UnitSpace,
    off: Mapping[str, Sequence[Tensor]],
    runner: Runner,
    model: nn.Module,
    gone: Tensor,
    border: Border = "exact",
) -> Compensation:
    """Work out what must be added to which bias, and which layers need a tensor more.

    Parameters
    ----------
    plan : what is removed.
    space, runner, model : the network before surgery.
    off : by layer, for each of its reads what entries that are off give, (entries,).
    gone : (classes,) bool, which classes are removed.
    border : what to do where a constant lies behind zero padding.

    Raises
    ------
    CondenseError
        If there is no bias to add a constant to, it is another layer's too, one layer would need
        two, or a constant goes into a product of units.
    """
    shifts: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    for lost in _losses(plan, space, off):
        if lost.kind == "norm":
            _keep_one(made, removed_name(lost.operation), _counted(lost, runner), lost)
        elif lost.kind == "product":
            _refuse_product(lost)
        elif lost.kind == "reduction":
            _keep_one(made, reduced_name(lost.operation), _reduced(lost, space, runner), lost)
        elif bool(lost.constants.any()):
            _make_up(lost, space, runner, model, gone, border, shifts, made)
    _refuse_shared(shifts, space)
    return Compensation(shifts, made)


def _refuse_shared(shifts: Mapping[str, Tensor], space: UnitSpace) -> None:
    """Refuse to shift a bias that layers with other weights read, too."""
    for name in shifts:
        weights = {
            operation.args[1]
            for operation in space.graph.operations
            if name in operation.weights and len(operation.args) > 1
        }
        if len(weights) > 1:
            raise CondenseError(
                f"{name!r} would have to change for one layer and stay for another layer that "
                "shares it: give each layer a bias of its own, or use removal='zero'"
            )


def _losses(plan: Plan, space: UnitSpace, off: Mapping[str, Sequence[Tensor]]) -> list[_Lost]:
    """Bring together, operation by operation, what all layers of the plan take away from it."""
    found: dict[tuple[str, str, int], _Lost] = {}
    for layer in cut_layers(plan, space):
        out = torch.zeros(layer.width + 1, dtype=torch.bool)  # the last place is unit -1
        out[list(plan.removed(layer.name))] = True
        for read, constants in zip(layer.reads, off[layer.name], strict=True):
            removed = out[list(read.units)]
            values = torch.where(removed, constants.cpu(), torch.zeros_like(constants.cpu()))
            key = (read.operation, read.tensor, read.axis)
            before = found.get(key)
            if before is not None:
                removed, values = removed | before.removed, values + before.constants
            operation = space.graph.by_name[read.operation]
            found[key] = _Lost(operation, read.axis, read.kind, layer.name, removed, values)
    return [lost for lost in found.values() if bool(lost.removed.any())]


def _make_up(
    lost: _Lost,
    space: UnitSpace,
    runner: Runner,
    model: nn.Module,
    gone: Tensor,
    border: Border,
    shifts: dict[str, Tensor],
    made: dict[str, Tensor],
) -> None:
    operation = lost.operation
    if operation.kind == "linear":
        weight = _matrix(operation.args[1], runner, space)
        _keep_one(shifts, bias_of(operation, model), weight @ lost.constants, lost)
        return
    kernel = _kernel(lost, runner)
    if not _sees_constant_everywhere(operation, kernel) and border == "exact":
        rows = _rows_left(operation, space, gone)
        dtype = runner.tensors[operation.weights[0]].dtype
        transposed = operation.kind in TRANSPOSED
        left = kernel[rows][None] if transposed else kernel[rows][:, None]
        _keep_one(made, beside(operation.weights[0], "constant"), left.to(dtype), lost)
        return
    middle = kernel.flatten(1).sum(dim=1)
    _keep_one(shifts, bias_of(operation, model), middle, lost)


def _matrix(weight: Any, runner: Runner, space: UnitSpace) -> Tensor:
    """Return a linear layer's weight in float64, which may be the transpose of a parameter."""
    if isinstance(weight, Weight):
        return runner.tensors[weight.name].cpu().to(torch.float64)
    assert isinstance(weight, Ref)
    return _matrix(space.graph.by_name[weight.name].args[0], runner, space).T


def _kernel(lost: _Lost, runner: Runner) -> Tensor:
    """Sum the removed channels' weights times their constants: (channels, kernel...)."""
    operation = lost.operation
    weight = runner.tensors[operation.weights[0]].cpu().to(torch.float64)
    groups = groups_of(operation)
    constants = lost.constants.reshape(groups, -1)
    if operation.kind in TRANSPOSED:
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        return torch.einsum("gi,gio...->go...", constants, by_group).flatten(0, 1)
    by_group = weight.reshape(groups, -1, *weight.shape[1:])
    return torch.einsum("gi,goi...->go...", constants, by_group).flatten(0, 1)


def _sees_constant_everywhere(operation: Operation, kernel: Tensor) -> bool:
    """Whether each place of the result sees the whole kernel."""
    if operation.kind in TRANSPOSED:
        is_point = prod(kernel.shape[1:]) == 1
        return is_point and not _differs(operation, 3, 1) and not _differs(operation, 4, 0)
    padding = operation.args[4] if len(operation.args) > 4 else operation.kwargs.get("padding", 0)
    if padding == "same":
        return prod(kernel.shape[1:]) == 1
    if isinstance(padding, str):
        return True
    return not (any(padding) if isinstance(padding, list | tuple) else padding)


def _differs(operation: Operation, place: int, usual: int) -> bool:
    """Whether a setting of a transposed convolution differs from the usual."""
    given = operation.args[place] if len(operation.args) > place else usual
    return any(it != usual for it in (given if isinstance(given, list | tuple) else [given]))


def _rows_left(operation: Operation, space: UnitSpace, gone: Tensor) -> Tensor:
    """Return which channels of an operation's result are left, (channels,) bool."""
    labels = space.coupling.labels[operation.name]
    for axis in range(2, labels.ndim):
        labels = labels.narrow(axis, 0, 1)
    return ~gone[space.coupling.classes[labels.reshape(-1)]]


def _counted(lost: _Lost, runner: Runner) -> Tensor:
    """Count and sum the entries, and their squares, that a normalisation goes on counting."""
    operation = lost.operation
    parts = torch.stack([lost.removed.to(torch.float64), lost.constants, lost.constants.square()])
    weights = [runner.tensors[name] for name in operation.weights]
    dtype = weights[0].dtype if weights else _counting_dtype(runner)
    if operation.kind == "group_norm":
        return parts.reshape(3, operation.args[1], -1).sum(dim=2).T.to(dtype)
    shape = operation.args[1]
    others = prod(shape) // len(lost.removed)
    counted: Tensor = others * parts.sum(dim=1)
    return counted.to(dtype)


def _reduced(lost: _Lost, space: UnitSpace, runner: Runner) -> Tensor:
    """Find number, sum, least and largest of the entries that a reduction goes on counting."""
    argument = lost.operation.args[0]
    assert isinstance(argument, Ref)
    shape = space.coupling.labels[argument.name].shape
    dims = lost.operation.args[1]
    over = [it % len(shape) for it in ([dims] if isinstance(dims, int) else dims)]
    others = prod(shape[it] for it in over) // len(lost.removed)
    gave = lost.constants[lost.removed]
    found = torch.stack(
        [torch.tensor(float(others * len(gave))), others * gave.sum(), gave.min(), gave.max()]
    )
    return found.to(_counting_dtype(runner))


def _counting_dtype(runner: Runner) -> torch.dtype:
    """Return the type of the network's numbers, or float32 where that is more precise."""
    dtypes = {it.dtype for it in runner.tensors.values() if it.is_floating_point()}
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _keep_one(found: dict[str, Tensor], name: str, value: Tensor, lost: _Lost) -> None:
    """Note a value under a name, refusing two different ones."""
    before = found.get(name)
    same = before is not None and before.shape == value.shape
    if before is not None and not (same and torch.allclose(before, value, rtol=1e-9, atol=0)):
        raise CondenseError(
            f"the removed units of layer {lost.layer!r} leave different constants in front of "
            f"{lost.operation.module!r}, which runs more than once: no one tensor makes up for "
            "both. Use removal='zero', or leave the layer out of the plan"
        )
    found[name] = value


def _refuse_product(lost: _Lost) -> None:
    if bool(lost.constants.any()):
        raise CondenseError(
            f"the removed units of layer {lost.layer!r} leave constants that are multiplied with "
            f"each other in {lost.operation.kind} ({lost.operation.line}), which no bias makes up "
            "for. Use removal='zero', or leave the layer out of the plan"
        )
