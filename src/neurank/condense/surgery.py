"""Carrying a plan out on a copy of the model: the only place where a module is edited.

A removed unit takes with it its row of the layer's weight and bias, its entry in every BatchNorm
between the layer and its consumers, and its slice of the consumers' weights on their input side.
Everything that can be refused is refused in `cuts_for`, before anything is changed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from neurank.condense.plan import Plan
from neurank.errors import CondenseError, PlanError
from neurank.units.graph import Operation, Ref, Weight
from neurank.units.space import CONVOLUTIONS, Layer, UnitSpace


@dataclass(frozen=True)
class Cut:
    """One tensor that keeps some entries along one axis.

    Attributes
    ----------
    tensor : dotted name of the parameter or buffer.
    axis : where it is cut.
    keep : which entries stay, ascending.
    """

    tensor: str
    axis: int
    keep: tuple[int, ...]


def cuts_for(plan: Plan, space: UnitSpace, model: nn.Module) -> tuple[Cut, ...]:
    """Work out every cut that a plan asks for, and refuse what cannot be cut; change nothing.

    Raises
    ------
    UnitError
        If a layer is not in the network, or its units cannot be removed.
    PlanError
        If a layer has another width than the plan says, or holds the network's outputs.
    CondenseError
        If a tensor that would be cut is shared, parametrized or grouped.
    """
    cuts: list[Cut] = []
    for name in plan.keep:
        if name not in space.layers:  # a tied weight may be traced under its other name
            refuse_shared(f"{name}.weight", space, model)
        layer = space[name]
        _check_width(layer, plan)
        if plan.removed(name):
            cuts.extend(_cuts_of(layer, plan.keep[name]))
            _refuse_computed_bias(layer)
            for operation in (layer.producer, *layer.consumers):
                _refuse_groups(operation, name)
    for cut in cuts:
        refuse_shared(cut.tensor, space, model)
        _refuse_parametrized(cut.tensor, model)
    return tuple(cuts)


def cut_layers(plan: Plan, space: UnitSpace) -> tuple[Layer, ...]:
    """Return the layers that lose units, in execution order."""
    return tuple(
        layer
        for name, layer in space.layers.items()
        if name in plan.keep and len(plan.keep[name]) < layer.width
    )


def operate(model: nn.Module, cuts: Sequence[Cut], shifts: Mapping[str, Tensor]) -> None:
    """Edit `model` in place: shift biases while the weights are whole, then cut.

    Parameters
    ----------
    model : a copy that nobody else holds.
    cuts : from `cuts_for`.
    shifts : by dotted name of a bias, what is added to it; a bias that is not there is made.
    """
    tensors = named_tensors(model)
    changed: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, shift in shifts.items():
            changed[name] = _shifted(tensors, name, shift)
        for cut in (*cuts, *_cuts_of_made(cuts, shifts, tensors)):
            before = changed.get(cut.tensor, tensors.get(cut.tensor))
            if before is None:
                raise CondenseError(f"the model has no tensor {cut.tensor!r} that could be cut")
            keep = torch.tensor(cut.keep, device=before.device)
            changed[cut.tensor] = before.index_select(cut.axis, keep).contiguous()
    for name, tensor in changed.items():
        _install(model, name, tensor)
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in changed):
        _note_widths(model.get_submodule(owner))


def refuse_shared(name: str, space: UnitSpace, model: nn.Module) -> None:
    """Refuse to change a tensor that has a second name or a second reader."""
    tensors = named_tensors(model)
    names = {other for other, tensor in tensors.items() if tensor is tensors.get(name)}
    readers = [operation for operation in space.graph.operations if name in operation.weights]
    if len(names) > 1 or len(readers) > 1:
        shared = ", ".join(sorted(names)) + f", read by {len(readers)} operations"
        raise CondenseError(
            f"{name!r} would have to change for one layer and stay for another ({shared}): give "
            "each layer a tensor of its own, or leave the layer out of the plan"
        )


def _check_width(layer: Layer, plan: Plan) -> None:
    planned = plan.widths[layer.name]
    if planned != layer.width:
        raise PlanError(
            f"the plan is for {planned} units of layer {layer.name!r}, which has {layer.width}: "
            "it was made for another network"
        )
    if layer.is_output and plan.removed(layer.name):
        raise PlanError(
            f"the units of layer {layer.name!r} are the network's outputs, its classes: none of "
            "them can be removed. Leave the layer out of the plan"
        )


def _cuts_of(layer: Layer, keep: tuple[int, ...]) -> Iterator[Cut]:
    for name in (layer.weight, layer.bias):
        if name is not None:
            yield Cut(name, 0, keep)
    for operation in layer.bridge:
        channels = (operation.shape or ())[1]
        assert channels is not None
        for name in operation.weights:
            yield Cut(name, 0, in_blocks(keep, channels // layer.width))
    for consumer in layer.consumers:
        yield Cut(consumer.weights[0], 1, in_blocks(keep, _positions(layer, consumer)))


def _positions(layer: Layer, consumer: Operation) -> int:
    """How many inputs of the consumer belong to one unit: more than one behind a flattening."""
    if consumer.kind in CONVOLUTIONS or not layer.bridge:
        return 1
    features = (layer.bridge[-1].shape or ())[1]
    assert features is not None
    return features // layer.width


def in_blocks(keep: Sequence[int], positions: int) -> tuple[int, ...]:
    """Return the indices of the kept units' blocks where every unit has `positions` entries.

    Example
    -------
    >>> in_blocks((0, 2), 3)
    (0, 1, 2, 6, 7, 8)
    """
    return tuple(unit * positions + place for unit in keep for place in range(positions))


def _refuse_groups(operation: Operation, layer: str) -> None:
    if operation.kind not in CONVOLUTIONS:
        return
    groups = operation.args[6] if len(operation.args) > 6 else operation.kwargs.get("groups", 1)
    if groups != 1:
        name = operation.weights[0].rpartition(".")[0]
        raise CondenseError(
            f"the units of layer {layer!r} cannot be removed: {name!r} is a convolution in "
            f"{groups} groups, whose channels belong together group by group. Leave {layer!r} "
            "out of the plan"
        )


def _refuse_computed_bias(layer: Layer) -> None:
    if isinstance((*layer.producer.args, None, None)[2], Ref):
        raise CondenseError(
            f"the bias of layer {layer.name!r} is computed in the forward pass "
            f"({layer.producer.line}), so it cannot be cut: make it a parameter of the layer"
        )


def _refuse_parametrized(tensor: str, model: nn.Module) -> None:
    owner, found, _ = tensor.partition(".parametrizations.")
    if found and parametrize.is_parametrized(model.get_submodule(owner)):
        raise CondenseError(
            f"a tensor of {owner!r} is parametrized (by a weight or spectral norm, say), so that a "
            "cut would change what is left: make the parametrization permanent first, with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer under each of its dotted names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _shifted(tensors: Mapping[str, Tensor], name: str, shift: Tensor) -> Tensor:
    """Add in float64 and round once."""
    bias = tensors.get(name)
    like = tensors[name.rpartition(".")[0] + ".weight"] if bias is None else bias
    whole = shift.to(device=like.device, dtype=torch.float64)
    return (whole if bias is None else bias.to(torch.float64) + whole).to(like.dtype).clone()


def _cuts_of_made(
    cuts: Sequence[Cut], shifts: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> Iterator[Cut]:
    """Cut a bias that is made as the weight beside it, where the consumer loses units, too."""
    rows = {cut.tensor: cut for cut in cuts if cut.axis == 0}
    for name in shifts:
        cut = rows.get(f"{name.rpartition('.')[0]}.weight")
        if name not in tensors and cut is not None:
            yield Cut(name, 0, cut.keep)


def _install(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    before = getattr(owner, attribute)
    if before is None:
        trains = owner.get_parameter("weight").requires_grad
        owner.register_parameter(attribute, nn.Parameter(tensor, requires_grad=trains))
    elif isinstance(before, nn.Parameter):
        setattr(owner, attribute, nn.Parameter(tensor, requires_grad=before.requires_grad))
    else:
        setattr(owner, attribute, tensor)


def _note_widths(module: nn.Module) -> None:
    """Bring the numbers that torch's own layers keep beside their weights up to date."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        assert isinstance(weight, Tensor)
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
        module.num_features = len(module.running_mean)


def bias_of(consumer: Operation, model: nn.Module) -> str:
    """Return the dotted name of a consumer's bias, one that can be made if there is none.

    Raises
    ------
    CondenseError
        If there is none and the consumer is no module of torch's that can be given one.
    """
    bias = consumer.args[2] if len(consumer.args) > 2 else consumer.kwargs.get("bias")
    if isinstance(bias, Weight):
        return bias.name
    name = consumer.weights[0].rpartition(".")[0]
    owner = model.get_submodule(name)
    torchs_own = isinstance(owner, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    without = getattr(owner, "bias", None) is None
    if bias is not None or not (torchs_own and without and consumer.module == name):
        raise CondenseError(
            f"the removed units leave a constant that belongs into the bias of {name!r}, which "
            f"has none and cannot be given one ({consumer.line}): use removal='zero', or build "
            "the layer with a bias"
        )
    return f"{name}.bias"
