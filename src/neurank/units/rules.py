"""What each operation does to the labels of what it reads: one small rule per operation.

An operation without a rule is never guessed at: the units that it reads stay, and say why.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from neurank.units.graph import Operation, Ref, Weight, leaves, map_leaves, reads_only_shape
from neurank.units.labels import (
    Labelling,
    Shared,
    compact,
    tensors_in,
    varying,
    where,
)

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
TRANSPOSED = frozenset(f"conv_transpose{n}d" for n in (1, 2, 3))
GROUPS_PLACE = 6
"""Which argument of a convolution, transposed or not, is its number of groups."""
MATMULS = frozenset({"matmul", "bmm"})
PRODUCERS = CONVOLUTIONS | TRANSPOSED | {"linear"}
"""Operations whose weight's rows are units."""

MOVES = frozenset(
    {
        "alias", "broadcast_to", "cat", "channel_shuffle", "chunk", "clone", "concat", "contiguous",
        "detach", "diagonal", "expand", "expand_as", "flatten", "flip", "getitem", "index",
        "index_select", "lift_fresh_copy", "movedim", "narrow", "numpy_T", "permute",
        "pixel_shuffle", "pixel_unshuffle", "repeat", "repeat_interleave", "reshape", "reshape_as",
        "roll",
        "select", "slice", "split", "split_with_sizes", "squeeze", "stack", "swapaxes", "t",
        "tensor_split", "transpose", "unbind", "unflatten", "unfold", "unsafe_view", "unsqueeze",
        "view", "view_as",
    }
)  # fmt: skip
"""Numbers change places and nothing else: labels are moved by the operation itself."""

GATHERS = frozenset({"index", "index_select"})
VIEWS = frozenset({"view", "reshape", "unsafe_view"})

ELEMENTWISE = frozenset(
    {
        "abs", "add", "addcmul", "bitwise_not", "celu", "clamp", "clamp_max", "clamp_min", "div",
        "dropout", "elu", "eq", "erf", "exp", "feature_dropout", "ge", "gelu", "gt", "hardshrink",
        "hardsigmoid", "hardswish", "hardtanh", "le", "leaky_relu", "lerp", "log", "log1p",
        "log_sigmoid", "logical_not", "lt", "masked_fill", "maximum", "minimum", "mish", "mul",
        "ne", "neg", "pow", "prelu", "reciprocal", "relu", "relu6", "rsqrt", "rsub", "selu",
        "sigmoid", "silu", "sin", "cos", "softplus", "softshrink", "softsign", "sqrt", "square",
        "sub", "tanh", "tanhshrink", "threshold", "to", "type_as", "where", "_to_copy", "float",
        "double",
    }
)  # fmt: skip
"""Each number of the result comes from the numbers at the same place."""

POOLS = frozenset(
    f"{kind}_pool{n}d"
    for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg")
    for n in (1, 2, 3)
)
RESIZES = frozenset(
    {
        "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
        "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
        "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
        "replication_pad1d", "replication_pad2d", "replication_pad3d", "max_pool2d_with_indices",
    }
)  # fmt: skip
"""Channels on axis 1 stay apart; the axes behind change their sizes."""

REDUCTIONS = frozenset(
    {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "norm", "linalg_vector_norm"}
)
OVER_UNITS = frozenset({"mean", "sum", "amax", "amin"})
"""Reductions that can go on counting units that are gone."""
ALONG = frozenset({"softmax", "log_softmax", "cumsum", "normalize"})
"""Numbers along one axis are brought into relation."""
CONSTANTS = frozenset(
    {
        "zeros",
        "ones",
        "full",
        "new_zeros",
        "new_ones",
        "new_full",
        "zeros_like",
        "ones_like",
        "full_like",
    }
)
NUMBERS = frozenset(
    {
        "add",
        "sub",
        "mul",
        "floordiv",
        "truediv",
        "mod",
        "neg",
        "sym_max",
        "sym_min",
        "sym_int",
        "sym_float",
    }
)

Rule = Callable[[Labelling, Operation], Any]


def label(labelling: Labelling, operation: Operation) -> Any:
    """Return the labels of an operation's result, noting what it ties, reads and pins."""
    if reads_only_shape(operation):
        return 1  # the batch is all that varies in size
    if operation.kind in NUMBERS and _only_numbers(labelling, operation):
        return operation.target(*labelling.arguments(operation))
    rule = RULES.get(operation.kind, _unknown)
    return rule(labelling, operation)


def _only_numbers(labelling: Labelling, operation: Operation) -> bool:
    return not any(isinstance(leaf, Tensor) for leaf in labelling.arguments(operation))


def _unknown(labelling: Labelling, operation: Operation) -> Any:
    """Pin what is read; the result is fixed, of the shape that the trace shows."""
    reason = f"it is read by {where(operation)}, for which there is no rule"
    found: list[Tensor] = []
    map_leaves(
        lambda leaf: (
            found.extend(tensors_in([labelling.resolved(leaf)]))
            if isinstance(leaf, Ref | Weight)
            else None
        ),
        (operation.args, dict(operation.kwargs)),
    )
    for labels in found:
        labelling.pin(labels, reason)
    return _fixed(operation)


def _fixed(operation: Operation) -> Any:
    if operation.shape is None:
        return _Fixed()
    return torch.zeros((), dtype=torch.int64).expand([size or 1 for size in operation.shape])


class _Fixed:
    """The results of an operation that returns several, none of which has units."""


def _move(labelling: Labelling, operation: Operation) -> Any:
    arguments = labelling.arguments(operation)
    if operation.kind == "getitem" and isinstance(arguments[0], _Fixed):
        return _fixed(operation)
    if operation.kind in GATHERS:
        return _gather(labelling, operation)
    if operation.kind in {"reshape_as", "view_as"}:
        return arguments[0].reshape(arguments[1].shape)
    if operation.kind in VIEWS:  # labels that repeat lie in memory in another way than numbers
        return arguments[0].reshape(arguments[1])
    keywords = map_leaves(labelling.resolved, dict(operation.kwargs))
    return operation.target(*arguments, **keywords)


def _gather(labelling: Labelling, operation: Operation) -> Any:
    """Pick by index: the index is a constant of the network, its values count, not its labels."""
    indices = indices_of(labelling, operation)
    if indices is None:
        return _unknown(labelling, operation)
    return operation.target(labelling.arguments(operation)[0], *indices)


def indices_of(labelling: Labelling, operation: Operation) -> tuple[Any, ...] | None:
    """Return the values by which an operation picks, None if they hang on the network's input."""
    indices: tuple[Any, ...] = map_leaves(labelling.constant, operation.args[1:])
    given = [it for it in leaves(operation.args[1:]) if it is not None]
    found = [it for it in leaves(indices) if it is not None]
    return indices if len(given) == len(found) else None


def _flat(tree: Any) -> list[Any]:
    found: list[Any] = []
    map_leaves(found.append, tree)
    return found


def _pad(labelling: Labelling, operation: Operation) -> Any:
    """Pad with a constant: what is added is free to go with whatever it gets tied to."""
    read, amounts = _read(labelling, operation), operation.args[1]
    if operation.kind == "pad" and (*operation.args, "constant")[2] != "constant":
        return _pool(labelling, operation)
    padded = functional.pad(read + 1, amounts) - 1
    added = padded < 0
    padded[added] = labelling.fresh(int(added.sum()))
    return padded


def _elementwise(labelling: Labelling, operation: Operation) -> Any:
    """Tie the operands place by place; one that is stretched is dealt with when all is known."""
    operands = [it for it in tensors_in(_flat(labelling.arguments(operation))) if it.ndim]
    if not operands:
        return torch.zeros((), dtype=torch.int64)
    shape = torch.broadcast_shapes(*(it.shape for it in operands))  # type: ignore[no-untyped-call]
    padded = [it.reshape(*[1] * (len(shape) - it.ndim), *it.shape) for it in operands]
    whole = [it for it in padded if it.shape == shape]
    labelled = [it for it in whole if bool(compact(it).any())]
    base = (labelled or whole or [padded[0].expand(shape)])[0]
    reason = f"it is tied by {where(operation)} to something that cannot lose units"
    lone = f"it is stretched over several units by {where(operation)}"
    for other in padded:
        if other is not base:
            _tie_in_place(labelling, base, other, reason, lone)
    return base


def _tie_in_place(
    labelling: Labelling, base: Tensor, other: Tensor, reason: str, lone: str
) -> None:
    """Tie labels of the same shape now, and those of a stretched tensor when all is known."""
    if other.shape == base.shape:
        labelling.tie(base, other, reason)
    else:
        labelling.shared.append(Shared(base, other, lone))


def _prelu(labelling: Labelling, operation: Operation) -> Tensor:
    """Multiply by a slope for each channel on axis 1, or by one for all."""
    read = _read(labelling, operation)
    slope = operation.args[1]
    slopes = labelling.resolved(slope).numel() if isinstance(slope, Weight | Ref) else 1
    if slopes > 1:
        channels = labelling.tie_over(read, 1, f"it is read by {where(operation)}")
        _tie_vector(labelling, channels, slope, operation)
    return read


def _convolution(labelling: Labelling, operation: Operation) -> Any:
    weight = operation.args[1]
    if not isinstance(weight, Weight) or operation.shape is None:
        return _computed_weight(labelling, operation)
    transposed = operation.kind in TRANSPOSED
    read = _read(labelling, operation)
    if _mixes_positions_alone(labelling, operation, read):
        rows = labelling.axis_atoms(weight.name, 0)
        labelling.pin(rows, _across(operation))
        return read.narrow(1, 0, 1).expand(-1, len(rows), *read.shape[2:])
    given = labelling.tie_over(read, 1, f"it is read by {where(operation)}")
    ins, outs = (0, 1) if transposed else (1, 0)
    groups = groups_of(operation)
    columns, rows = (labelling.axis_atoms(weight.name, axis) for axis in (ins, outs))
    if groups == 1:
        labelling.tie(given, columns, _used_twice(operation))
        labelling.read(operation, _name(operation), 1, given, "sum")
        units = rows
    else:
        units = _grouped(labelling, operation, given, (columns, rows), groups)
    _bias(labelling, operation, units)
    return _on_axis_1(units, operation)


def _mixes_positions_alone(labelling: Labelling, operation: Operation, read: Tensor) -> bool:
    """Whether units lie behind axis 1 and the kernel is one place wide, so that they stay apart."""
    kernel = labelling.tensors[operation.weights[0]].shape[2:]
    along = varying(read)
    return bool(along) and 1 not in along and kernel.numel() == 1 and groups_of(operation) == 1


def _used_twice(operation: Operation) -> str:
    """Why units stay whose rows are the columns that read something fixed."""
    return (
        "its weight is shared or used more than once, and what it reads elsewhere cannot lose "
        f"units ({where(operation)})"
    )


def _across(operation: Operation) -> str:
    return f"its outputs lie across the units of another layer ({where(operation)})"


def _grouped(
    labelling: Labelling,
    operation: Operation,
    given: Tensor,
    weight_atoms: tuple[Tensor, Tensor],
    groups: int,
) -> Tensor:
    """Whole groups are units where there are many of few channels; else places within groups."""
    columns, rows = weight_atoms
    transposed = operation.kind in TRANSPOSED
    by_group = given.reshape(groups, -1)
    made = rows if not transposed else labelling.fresh(len(rows) * groups)
    made_by_group = made.reshape(groups, -1)
    reason = f"it is read by {where(operation)}, whose groups are fixed"
    if removes_whole_groups(operation, labelling.tensors):
        everything = torch.cat([by_group, made_by_group], dim=1)
        if transposed:
            everything = torch.cat([everything, columns.reshape(groups, -1)], dim=1)
        labelling.tie(everything[:, :1].expand_as(everything), everything, reason)
        return made
    labelling.tie(by_group[:1].expand_as(by_group), by_group, reason)
    labelling.tie(made_by_group[:1].expand_as(made_by_group), made_by_group, reason)
    if transposed:
        labelling.tie(made_by_group[0], rows, reason)
        labelling.tie(given, columns, reason)
    else:
        labelling.tie(by_group[0], columns, reason)
    labelling.read(operation, _name(operation), 1, given, "sum")
    return made


def removes_whole_groups(operation: Operation, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a grouped convolution loses groups, not places within each group.

    What gives more units is done: groups where there are at least as many as channels in one.
    """
    rows, columns, *_ = tensors[operation.weights[0]].shape
    return are_whole_groups(operation, rows, columns)


def are_whole_groups(operation: Operation, rows: int, columns: int) -> bool:
    """Whether groups are lost where the weight's first axes have these sizes."""
    groups = groups_of(operation)
    return groups > 1 and groups >= max(rows // groups, columns)


def groups_of(operation: Operation) -> int:
    """Return the number of groups of a convolution."""
    given = operation.args[GROUPS_PLACE] if len(operation.args) > GROUPS_PLACE else None
    return int(operation.kwargs.get("groups", 1) if given is None else given)


def _linear(labelling: Labelling, operation: Operation) -> Any:
    found = _weight_axes(labelling, operation.args[1])
    if found is None or operation.shape is None:
        return _computed_weight(labelling, operation)
    rows, columns = found
    read = _read(labelling, operation)
    *leading, _ = read.shape
    along = varying(read)
    if read.ndim - 1 not in along and along:
        # It mixes positions, or whatever lies on the last axis; units elsewhere pass through.
        labelling.pin(rows, _across(operation))
        return read.narrow(-1, 0, 1).expand(*leading, len(rows))
    given = labelling.tie_over(read, read.ndim - 1, f"it is read by {where(operation)}")
    labelling.tie(given, columns, _used_twice(operation))
    labelling.read(operation, _name(operation), read.ndim - 1, given, "sum")
    _bias(labelling, operation, rows)
    return rows.expand(*leading, len(rows))


def _weight_axes(labelling: Labelling, weight: Any) -> tuple[Tensor, Tensor] | None:
    """Return the atoms of a matrix's rows and columns; a transposed matrix has them swapped."""
    if isinstance(weight, Weight):
        return labelling.axis_atoms(weight.name, 0), labelling.axis_atoms(weight.name, 1)
    made = labelling.graph.by_name.get(weight.name) if isinstance(weight, Ref) else None
    if made is None or made.kind not in {"t", "numpy_T", "transpose", "permute"}:
        return None
    inner = _weight_axes(labelling, made.args[0])
    return None if inner is None else (inner[1], inner[0])


def _bias(labelling: Labelling, operation: Operation, units: Tensor) -> None:
    bias = operation.args[2] if len(operation.args) > 2 else operation.kwargs.get("bias")
    if isinstance(bias, Weight):
        labelling.tie(units, labelling.axis_atoms(bias.name, 0), "its bias is fixed")
    elif isinstance(bias, Ref):
        labelling.pin(units, f"its bias is computed in the forward pass ({operation.line})")


def _computed_weight(labelling: Labelling, operation: Operation) -> Any:
    read = _read(labelling, operation)
    reason = (
        f"the weight of {operation.module or operation.name!r} is computed in the forward pass or "
        f"is not a parameter ({operation.line})"
    )
    labelling.pin(read, f"it is read by {where(operation)}, and {reason}")
    for name in operation.weights:
        labelling.pin(labelling.axis_atoms(name, 0), reason)
    return _fixed(operation)


def _on_axis_1(units: Tensor, operation: Operation) -> Tensor:
    assert operation.shape is not None
    positions = [size or 1 for size in operation.shape[2:]]
    return units.reshape(1, -1, *[1] * len(positions)).expand(1, -1, *positions)


def _batch_norm(labelling: Labelling, operation: Operation) -> Tensor:
    """BatchNorm with fixed statistics, and InstanceNorm: each channel by itself."""
    read = _read(labelling, operation)
    channels = labelling.tie_over(read, 1, f"it is read by {where(operation)}")
    for argument in operation.args[1:5]:
        _tie_vector(labelling, channels, argument, operation)
    if operation.kind == "batch_norm" and operation.args[5]:
        labelling.pin(channels, f"{where(operation)} normalises by the batch")
    return read


def _layer_norm(labelling: Labelling, operation: Operation) -> Tensor:
    read = _read(labelling, operation)
    normalised = range(read.ndim - len(operation.args[1]), read.ndim)
    along = varying(read)
    over_units = [axis for axis in along if axis in normalised]
    if along and not over_units:
        return read
    axis = over_units[-1] if over_units else read.ndim - 1
    units = labelling.tie_over(read, axis, f"it is normalised by {where(operation)}")
    for argument in operation.args[2:4]:
        if len(operation.args[1]) == 1:
            _tie_vector(labelling, units, argument, operation)
        elif isinstance(argument, Weight | Ref):
            atoms = labelling.resolved(argument)
            labelling.tie(read[(0,) * (read.ndim - atoms.ndim)], atoms, "")
    labelling.read(operation, _name(operation), axis, units, "norm")
    return read


def _rms_norm(labelling: Labelling, operation: Operation) -> Tensor:
    """RMSNorm is LayerNorm without a mean and a bias."""
    return _layer_norm(labelling, operation)


def _tie_vector(labelling: Labelling, units: Tensor, vector: Any, operation: Operation) -> None:
    """Tie units to the entries of a parameter, or of what is computed from parameters."""
    if isinstance(vector, Weight):
        labelling.tie(units, labelling.axis_atoms(vector.name, 0), "")
    elif isinstance(vector, Ref):
        reason = f"it is read by {where(operation)} beside something that cannot lose units"
        labelling.tie(units, labelling.resolved(vector), reason)


def _group_norm(labelling: Labelling, operation: Operation) -> Tensor:
    """Tie groups of few channels as a whole; of many, each place in all groups at once."""
    read = _read(labelling, operation)
    groups = operation.args[1]
    channels = labelling.tie_over(read, 1, f"it is normalised by {where(operation)}")
    for argument in operation.args[2:4]:
        _tie_vector(labelling, channels, argument, operation)
    by_group = channels.reshape(groups, -1)
    if normalises_whole_groups(operation, len(channels)):
        labelling.tie(by_group[:, :1].expand_as(by_group), by_group, "its group is fixed")
    else:
        labelling.tie(by_group[:1].expand_as(by_group), by_group, "its group is fixed")
        labelling.read(operation, _name(operation), 1, channels, "norm")
    return read


def normalises_whole_groups(operation: Operation, channels: int) -> bool:
    """Whether a GroupNorm loses groups, not places within each group."""
    groups: int = operation.args[1]
    return groups > 1 and groups >= channels // groups


def _pool(labelling: Labelling, operation: Operation) -> Any:
    """Channels stay apart; the axes behind them change their sizes."""
    read = _read(labelling, operation)
    spatial = _spatial_axes(operation, read)
    if read.ndim != spatial + 2:
        return _unknown(labelling, operation)
    channels = labelling.tie_over(read, 1, f"it is pooled by {where(operation)}")
    results = operation.target(
        torch.zeros(1, 1, *read.shape[2:]), *operation.args[1:], **operation.kwargs
    )
    shape = (results if isinstance(results, Tensor) else results[0]).shape[2:]
    labels = channels.reshape(1, -1, *[1] * len(shape)).expand(1, -1, *shape)
    return labels if isinstance(results, Tensor) else (labels, labels)


def _spatial_axes(operation: Operation, read: Tensor) -> int:
    for count in (1, 2, 3):
        if f"{count}d" in operation.kind:
            return count
    return read.ndim - 2


def _reduce(labelling: Labelling, operation: Operation) -> Any:
    """Over positions each unit is reduced by itself; over units it is a mixture."""
    read = _read(labelling, operation)
    dims = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim")
    if operation.kind in {"norm", "linalg_vector_norm"}:
        dims = operation.args[2] if len(operation.args) > 2 else None
    if not isinstance(dims, int | list | tuple):
        return _unknown(labelling, operation)
    given = [dims] if isinstance(dims, int) else list(dims)
    over = [axis % read.ndim for axis in given]
    along = varying(read)
    apart = [axis for axis in along if axis not in over]
    keep = (operation.shape is not None and len(operation.shape) == read.ndim) or _keeps(operation)
    if set(along) & set(over):
        if not apart and len(along) == 1 and operation.kind in OVER_UNITS:
            labelling.read(
                operation, _name(operation), along[0], _places(read, along[0]), "reduction"
            )
            read = torch.zeros_like(read)
        elif len(apart) != 1:
            return _unknown(labelling, operation)
        else:
            labelling.tie_over(read, apart[0], f"it is reduced by {where(operation)}")
    for axis in sorted(over, reverse=True):
        read = read.narrow(axis, 0, 1) if keep else read.select(axis, 0)
    return (read, read) if operation.shape is None else read


def _places(read: Tensor, axis: int) -> Tensor:
    """Return the label at each place of the one axis along which labels differ."""
    return read.movedim(axis, 0).flatten(1)[:, 0]


def _keeps(operation: Operation) -> bool:
    return any(
        argument is True for argument in (*operation.args[2:], operation.kwargs.get("keepdim"))
    )


def _along(labelling: Labelling, operation: Operation) -> Any:
    read = _read(labelling, operation)
    axis = operation.args[1] % read.ndim
    along = varying(read)
    apart = [other for other in along if other != axis]
    if axis in along:
        if len(apart) != 1:
            return _unknown(labelling, operation)
        labelling.tie_over(read, apart[0], f"it is read by {where(operation)}")
        read = read.narrow(axis, 0, 1).expand_as(read)
    return read


def _attention(labelling: Labelling, operation: Operation) -> Any:
    """Tie the queries, keys and values of a head: it is a unit."""
    query, key, value = map(labelling.resolved, operation.args[:3])
    heads = query.shape[:-2]
    if key.shape[:-2] != heads or value.shape[:-2] != heads:
        return _unknown(labelling, operation)
    parts = [it.reshape(heads.numel(), -1) for it in (query, key, value)]
    together = torch.cat(parts, dim=1)
    reason = f"it is read by {where(operation)} beside something that cannot lose units"
    labelling.tie(together[:, :1].expand_as(together), together, reason)
    mask = labelling.resolved((*operation.args[3:], operation.kwargs.get("attn_mask"))[0])
    if isinstance(mask, Tensor):
        scores = together[:, 0].reshape(*heads, 1, 1).expand(*heads, query.shape[-2], key.shape[-2])
        stretched = mask.reshape(*[1] * (scores.ndim - mask.ndim), *mask.shape)
        _tie_in_place(labelling, scores, stretched, reason, reason)
    # The features of a head go as one, but each is a channel with a mean of its own.
    return value.narrow(-2, 0, 1).expand(*heads, query.shape[-2], value.shape[-1])


def _matmul(labelling: Labelling, operation: Operation) -> Any:
    """Multiply matrices: along heads each by itself, else over pairs of units."""
    one, other = map(labelling.resolved, operation.args[:2])
    if one.ndim < 3 or one.ndim != other.ndim or one.shape[:-2] != other.shape[:-2]:
        return _unknown(labelling, operation)
    batch = set(range(one.ndim - 2))
    if batch & {*varying(one), *varying(other)}:
        return _by_head(labelling, operation, one, other)
    return _contract(labelling, operation, one, other)


def _by_head(labelling: Labelling, operation: Operation, one: Tensor, other: Tensor) -> Tensor:
    heads = one.shape[:-2]
    together = torch.cat([it.reshape(heads.numel(), -1) for it in (one, other)], dim=1)
    reason = f"it is read by {where(operation)} beside something that cannot lose units"
    labelling.tie(together[:, :1].expand_as(together), together, reason)
    return other.narrow(-2, 0, 1).expand(*heads, one.shape[-2], other.shape[-1])


def _contract(labelling: Labelling, operation: Operation, one: Tensor, other: Tensor) -> Any:
    """Without heads: units may lie along the axis that is summed over, or pass through."""
    left, right = varying(one), varying(other)
    last, before = one.ndim - 1, one.ndim - 2
    shape = [*one.shape[:-1], other.shape[-1]]
    reason = f"it is read by {where(operation)}"
    if last in left or before in right:
        if set(left) - {last} or set(right) - {before}:
            return _unknown(labelling, operation)
        pairs = labelling.tie_over(one, last, reason), labelling.tie_over(other, before, reason)
        labelling.tie(*pairs, f"{reason} beside something that cannot lose units")
        labelling.read(operation, _name(operation, 0), last, pairs[0], "product")
        labelling.read(operation, _name(operation, 1), before, pairs[1], "product")
        return torch.zeros((), dtype=torch.int64).expand(shape)
    if left and right:
        return _unknown(labelling, operation)
    if right:  # units on the last axis of the second factor: a mixture of positions
        return other.narrow(before, 0, 1).expand(shape)
    return one.narrow(last, 0, 1).expand(shape)


def _embedding(labelling: Labelling, operation: Operation) -> Any:
    weight = operation.args[0]
    if not isinstance(weight, Weight) or operation.shape is None:
        return _unknown(labelling, operation)
    features = labelling.axis_atoms(weight.name, 1)
    return features.expand(*[size or 1 for size in operation.shape[:-1]], len(features))


def _constant(labelling: Labelling, operation: Operation) -> Any:
    """Make atoms that go with whatever they get tied to."""
    if operation.shape is None:
        return _unknown(labelling, operation)
    return labelling.fresh(*[size or 1 for size in operation.shape])


def _number(labelling: Labelling, operation: Operation) -> Any:
    del labelling
    return _fixed(operation)


def _read(labelling: Labelling, operation: Operation) -> Tensor:
    """Return the labels of the first argument."""
    labels: Tensor = labelling.resolved(operation.args[0])
    return labels


def _name(operation: Operation, place: int = 0) -> str:
    argument = operation.args[place]
    return argument.name if isinstance(argument, Ref) else ""


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(POOLS | RESIZES, _pool),
    **dict.fromkeys(CONVOLUTIONS | TRANSPOSED, _convolution),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(ALONG, _along),
    **dict.fromkeys(CONSTANTS, _constant),
    **dict.fromkeys(MATMULS, _matmul),
    **dict.fromkeys(("arange", "scalar_tensor", "linspace"), _number),
    "linear": _linear,
    "prelu": _prelu,
    "batch_norm": _batch_norm,
    "instance_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "constant_pad_nd": _pad,
    "pad": _pad,
    "scaled_dot_product_attention": _attention,
    "embedding": _embedding,
}
"""By the operation's bare name."""
