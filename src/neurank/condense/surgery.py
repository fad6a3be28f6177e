"""Carrying a plan out on a copy of the model: the only place where a module is edited.

A removed unit takes with it everything that `Coupling` says belongs to it: its rows of the weights
and biases of all layers it is computed by, its entries in normalisations, its columns in the
layers that read it. Everything that can be refused is refused in `cuts_for`, before anything is
changed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from neurank.condense.kept import Plan
from neurank.condense.parts import PARTS
from neurank.errors import CondenseError, PlanError
from neurank.units.graph import Operation, Weight
from neurank.units.space import Layer, UnitSpace


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


@dataclass(frozen=True)
class Changes:
    """What becomes of a module's tensors and settings.

    Attributes
    ----------
    cuts : what is cut.
    shifts : by dotted name of a bias, what is added to it before it is cut; a bias that is not
        there is made.
    made : tensors that are not there before, by dotted name, cut already: the ``constant`` of a
        convolution, a parameter, and the ``removed`` of a normalisation, a buffer.
    groups : by dotted name of a convolution or GroupNorm, how many groups are left.
    shapes : by dotted name of a norm without parameters, over what shape it goes on normalising.
    """

    cuts: tuple[Cut, ...]
    shifts: Mapping[str, Tensor]
    made: Mapping[str, Tensor]
    groups: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def gone_classes(plan: Plan, space: UnitSpace) -> Tensor:
    """Say of each class of elements (see `Coupling`) whether the plan removes it; (classes,) bool.

    Raises
    ------
    UnitError
        If a layer is not in the network, or its units cannot be removed.
    PlanError
        If a layer has another width than the plan says, holds the network's outputs, or is tied
        to one that comes before it.
    """
    gone = torch.zeros(int(space.coupling.classes.max()) + 1, dtype=torch.bool)
    for name in plan.keep:
        layer = space[name]
        if layer.name != name:
            raise PlanError(
                f"the units of layer {name!r} are tied to those of {layer.name!r}: plan for "
                f"{layer.name!r}, which stands for {', '.join(layer.members)}"
            )
        _check_width(layer, plan)
        gone[[layer.classes[unit] for unit in plan.removed(name)]] = True
    return gone


def cuts_for(plan: Plan, space: UnitSpace, model: nn.Module) -> tuple[Cut, ...]:
    """Work out every cut that a plan asks for, and refuse what cannot be cut; change nothing.

    Raises
    ------
    UnitError, PlanError
        As for `gone_classes`.
    CondenseError
        If a tensor that would be cut is parametrized, or would be left empty.
    """
    gone = gone_classes(plan, space)
    cuts = []
    for slots in space.coupling.slots:
        stays = ~gone[space.coupling.classes[slots.atoms]]
        if bool(stays.all()):
            continue
        if not bool(stays.any()):
            raise CondenseError(
                f"the plan leaves nothing of {slots.tensor!r}: layers that are tied to others may "
                "lose all their own units while the others keep some. Keep at least one of them"
            )
        _refuse_parametrized(slots.tensor, model)
        cuts.append(Cut(slots.tensor, slots.axis, tuple(torch.nonzero(stays)[:, 0].tolist())))
    return tuple(cuts)


def cut_layers(plan: Plan, space: UnitSpace) -> tuple[Layer, ...]:
    """Return the layers that lose units, in execution order."""
    return tuple(
        layer
        for name, layer in space.layers.items()
        if name in plan.keep and len(plan.keep[name]) < layer.width
    )


def operate(model: nn.Module, changes: Changes) -> None:
    """Edit `model` in place: shift biases while the weights are whole, cut, then add what is new.

    Parameters
    ----------
    model : a copy that nobody else holds.
    changes : what to do.
    """
    tensors = named_tensors(model)
    changed = changed_tensors(tensors, changes.cuts, changes.shifts)
    for name, tensor in changed.items():
        _install(model, name, tensor, tensors)
    for name, groups in changes.groups.items():
        _regroup(model.get_submodule(name), groups)
    for name, shape in changes.shapes.items():
        _note_shape(model.get_submodule(name), shape)
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in changed):
        _note_widths(model.get_submodule(owner))
    for name, tensor in changes.made.items():
        _add(model, name, tensor)


def changed_tensors(
    tensors: Mapping[str, Tensor], cuts: Iterable[Cut], shifts: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Shift biases while the weights are whole, and then cut.

    Parameters
    ----------
    tensors : by dotted name; they stay as they are.
    cuts, shifts : see `Changes`.

    Returns
    -------
    dict
        The tensors that are shifted or cut, by dotted name, without gradients.

    Raises
    ------
    CondenseError
        If a tensor that is to be cut is not there.
    """
    cuts = tuple(cuts)
    with torch.no_grad():
        changed = {name: _shifted(tensors, name, shift) for name, shift in shifts.items()}
        for cut in (*cuts, *_cuts_of_made(cuts, shifts, tensors)):
            before = changed.get(cut.tensor, tensors.get(cut.tensor))
            if before is None:
                raise CondenseError(f"the model has no tensor {cut.tensor!r} that could be cut")
            keep = torch.tensor(cut.keep, device=before.device)
            changed[cut.tensor] = before.index_select(cut.axis, keep).contiguous()
    return changed


def replace_rows(model: nn.Module, weight: tuple[str, Tensor], bias: tuple[str, Tensor]) -> None:
    """Give a layer other rows, in place: a weight with another number of rows, and its bias.

    Both keep whether they require a gradient; a bias that was not there is made.

    Parameters
    ----------
    model : a copy that nobody else holds.
    weight : dotted name of the layer's weight, and the new one, (rows, columns, ...).
    bias : dotted name of its bias, and the new one, (rows,).
    """
    tensors = named_tensors(model)
    for name, tensor in (weight, bias):
        _install(model, name, tensor, tensors)
    _note_widths(model.get_submodule(weight[0].rpartition(".")[0]))


def parts_fit(model: nn.Module, made: Iterable[str]) -> bool:
    """Whether every tensor that is made belongs to a layer of torch's own, which can take it."""
    return all(
        (type(model.get_submodule(owner)), attribute) in PARTS
        for owner, _, attribute in (name.rpartition(".") for name in made)
    )


def swap_parts(model: nn.Module, made: Iterable[str]) -> None:
    """Let layers of torch's own use the tensors that were made for them."""
    for name in made:
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        module.__class__ = PARTS[type(module), attribute]


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
    cuts: Iterable[Cut], shifts: Iterable[str], tensors: Mapping[str, Tensor]
) -> Sequence[Cut]:
    """Cut a bias that is made as the weight beside it, where the consumer loses units, too."""
    rows = {cut.tensor: cut for cut in cuts if cut.axis == 0}
    found = []
    for name in shifts:
        cut = rows.get(f"{name.rpartition('.')[0]}.weight")
        if name not in tensors and cut is not None:
            found.append(Cut(name, 0, cut.keep))
    return found


def _install(model: nn.Module, name: str, tensor: Tensor, before: Mapping[str, Tensor]) -> None:
    """Put a tensor in its place, under each name that the one before had: ties stay ties."""
    old = before.get(name)
    if old is None:
        trains = model.get_submodule(name.rpartition(".")[0]).get_parameter("weight").requires_grad
        new: Tensor = nn.Parameter(tensor, requires_grad=trains)
        names = [name]
    else:
        is_parameter = isinstance(old, nn.Parameter)
        new = nn.Parameter(tensor, requires_grad=old.requires_grad) if is_parameter else tensor
        names = [other for other, it in before.items() if it is old]
    for each in names:
        path, _, attribute = each.rpartition(".")
        owner = model.get_submodule(path)
        if isinstance(new, nn.Parameter):
            owner.register_parameter(attribute, new)
        else:
            setattr(owner, attribute, new)


def _add(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Give a layer a tensor that it did not have: a kernel to train, or counts to keep."""
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    tensor = tensor.to(next((it.device for it in model.parameters()), tensor.device))
    if attribute.endswith("constant"):
        weight = attribute.removesuffix("constant").removesuffix("_") or "weight"
        trains = owner.get_parameter(weight).requires_grad
        owner.register_parameter(attribute, nn.Parameter(tensor, requires_grad=trains))
    else:
        owner.register_buffer(attribute, tensor)


def _regroup(module: nn.Module, groups: int) -> None:
    if isinstance(module, nn.GroupNorm):
        module.num_groups = groups
    elif isinstance(getattr(module, "weight", None), Tensor) and hasattr(module, "groups"):
        module.groups = groups  # type: ignore[assignment]  # a number, as it was


_CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d
_TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def _note_widths(module: nn.Module) -> None:
    """Bring the numbers that torch's own layers keep beside their weights up to date."""
    weight = getattr(module, "weight", None)
    if isinstance(module, _CONVOLUTIONS):
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, _TRANSPOSED):
        module.in_channels = module.weight.shape[0]
        module.out_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        kept = module.running_mean if module.running_mean is not None else weight
        module.num_features = module.num_features if kept is None else len(kept)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_channels = len(weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]


def _note_shape(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Bring the number up to date that a norm without parameters keeps."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = shape
    elif isinstance(module, nn.GroupNorm):
        (module.num_channels,) = shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        (module.num_features,) = shape


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
    name = consumer.weights[0].rpartition(".")[0] if consumer.weights else consumer.module
    owner = model.get_submodule(name)
    torchs_own = isinstance(owner, nn.Linear | _CONVOLUTIONS | _TRANSPOSED)
    without = getattr(owner, "bias", None) is None
    if bias is not None or not (torchs_own and without and consumer.module == name):
        raise CondenseError(
            f"the removed units leave a constant that belongs into the bias of {name!r}, which "
            f"has none and cannot be given one ({consumer.line}): use removal='zero', or build "
            "the layer with a bias"
        )
    return f"{name}.bias"
