"""The forward pass of the condensed network: the traced one, with the numbers that change.

A view that says how many channels there are, a split that says where, a LayerNorm that says over
how many: each is given the numbers of what is left. What the new numbers make of the labels is
compared with the labels that ought to be left, so that no operation is rewritten on a guess.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from neurank.condense.parts import (
    constant_term,
    group_norm_of_rest,
    layer_norm_of_rest,
    reduction_of_rest,
    rms_norm_of_rest,
)
from neurank.errors import CondenseError
from neurank.units.coupling import Coupling, Picked
from neurank.units.graph import Graph, Operation, Ref, Weight, leaves, map_leaves
from neurank.units.labels import compact, where
from neurank.units.rules import (
    CONSTANTS,
    CONVOLUTIONS,
    GROUPS_PLACE,
    MOVES,
    OVER_UNITS,
    TRANSPOSED,
    VIEWS,
    groups_of,
    normalises_whole_groups,
    removes_whole_groups,
)

aten = torch.ops.aten


@dataclass(frozen=True)
class Narrowing:
    """What is left of every result.

    Attributes
    ----------
    coupling : what belongs together in the whole network.
    gone : (classes,) bool, which classes are removed.
    tensors : parameters, buffers and constants of the whole network, by name.
    made : names of the tensors that condensing makes.
    """

    coupling: Coupling
    gone: Tensor
    tensors: Mapping[str, Tensor]
    made: Collection[str]

    def left(self, labels: Tensor) -> tuple[Tensor, ...]:
        """Return for each axis of a result which entries are left, (entries,) bool each."""
        stays = ~self.gone[self.coupling.classes[compact(labels)]]
        return tuple(
            stays.movedim(axis, 0).reshape(stays.shape[axis], -1).any(dim=1).expand(size)
            for axis, size in enumerate(labels.shape)
        )

    def narrowed(self, labels: Tensor) -> Tensor:
        """Return the labels that are left."""
        for axis, stays in enumerate(self.left(labels)):
            if not bool(stays.all()):
                labels = labels.index_select(axis, torch.nonzero(stays)[:, 0])
        return labels

    def sizes(self, name: str) -> tuple[int, ...]:
        """Return the shape of what is left of a result, for one example."""
        return tuple(int(stays.sum()) for stays in self.left(self.coupling.labels[name]))

    def removes_all(self, name: str) -> bool:
        """Whether nothing is left of a result."""
        labels = self.coupling.labels.get(name)
        if not isinstance(labels, Tensor) or not labels.numel():
            return False
        return bool(self.gone[self.coupling.classes[compact(labels)]].all())

    def changes(self, name: str) -> bool:
        """Whether a result loses anything."""
        labels = self.coupling.labels.get(name)
        return any(
            bool(self.gone[self.coupling.classes[compact(it)]].any())
            for it in leaves(labels)
            if isinstance(it, Tensor)
        )


def narrowed_graph(narrowing: Narrowing, biases: Collection[str] = ()) -> Graph:
    """Return the forward pass of the condensed network.

    Parameters
    ----------
    narrowing : what is left.
    biases : dotted names of the biases that condensing makes.

    Raises
    ------
    CondenseError
        If an operation cannot be given the numbers of what is left, naming it.
    """
    graph = narrowing.coupling.graph
    constants = dict(graph.constants)
    operations: list[Operation] = []
    for operation in graph.needed_for((graph.output,)):
        made = _narrowed(operation, narrowing, constants)
        operations.extend(_with_bias(it, biases) for it in made)
    short = replace(graph, operations=tuple(operations), constants=constants)
    return replace(short, operations=short.needed_for((graph.output,)))


def _narrowed(
    operation: Operation, narrowing: Narrowing, constants: dict[str, Tensor]
) -> tuple[Operation, ...]:
    """Return the operation, or those that take its place, for what is left."""
    if narrowing.removes_all(operation.name):
        return ()
    touched = [name for name in operation.refs if narrowing.changes(name)]
    own = narrowing.changes(operation.name)
    if not touched and not own:
        return (operation,)
    if operation.name in narrowing.coupling.passed:
        return ()
    picked = narrowing.coupling.shortcuts.get(operation.name)
    if picked is not None:
        return (_pick(operation, picked, narrowing, constants),)
    rule = _RULES.get(operation.kind)
    if rule is None:
        return (operation,)
    made = rule(operation, narrowing, constants)
    if operation.kind in MOVES:
        _check_moves(operation, made[-1], narrowing, constants)
    return made


Rule = Callable[[Operation, Narrowing, dict[str, Tensor]], tuple[Operation, ...]]


def _check_moves(
    operation: Operation, made: Operation, narrowing: Narrowing, constants: Mapping[str, Tensor]
) -> None:
    """Move the labels that are left by the new operation, and compare with what ought to be."""

    def resolve(leaf: Any) -> Any:
        if isinstance(leaf, Weight):
            return constants[leaf.name] if leaf.name in constants else _element(leaf, narrowing)
        if not isinstance(leaf, Ref):
            return leaf
        labels = narrowing.coupling.labels[leaf.name]
        if isinstance(labels, tuple | list):
            return [narrowing.narrowed(it) for it in labels]
        return narrowing.narrowed(labels) if isinstance(labels, Tensor) else labels

    arguments = map_leaves(resolve, made.args)
    if made is operation and operation.name in narrowing.coupling.indices:
        arguments = (arguments[0], *narrowing.coupling.indices[operation.name])
    wanted = narrowing.coupling.labels[operation.name]
    try:
        if made.kind in VIEWS:
            found = arguments[0].reshape(arguments[1])
        else:
            found = made.target(*arguments, **map_leaves(resolve, dict(made.kwargs)))
    except (RuntimeError, IndexError) as error:
        raise _refused(operation, str(error).splitlines()[0]) from error
    pairs = (
        zip(found, wanted, strict=True) if isinstance(wanted, tuple | list) else [(found, wanted)]
    )
    for moved, labels in pairs:
        left = narrowing.narrowed(labels)
        classes = narrowing.coupling.classes
        if moved.shape != left.shape or not torch.equal(classes[moved], classes[left]):
            raise _refused(operation, "it would move other units to other places")


def _element(leaf: Weight, narrowing: Narrowing) -> Tensor:
    """Return the labels left of a parameter whose elements are labelled one by one."""
    for slots in narrowing.coupling.slots_of.get(leaf.name, ()):
        shape = [1] * narrowing.tensors[leaf.name].ndim
        shape[slots.axis] = len(slots.atoms)
        whole = slots.atoms.reshape(shape).expand(narrowing.tensors[leaf.name].shape)
        return narrowing.narrowed(whole)
    return torch.zeros(narrowing.tensors[leaf.name].shape, dtype=torch.int64)


def _refused(operation: Operation, reason: str) -> CondenseError:
    return CondenseError(
        f"{where(operation)} cannot be told that units are gone: {reason}. Leave the layers whose "
        "units it reads out of the plan"
    )


def _with_bias(operation: Operation, biases: Collection[str]) -> Operation:
    """Read a bias that was made: arguments are input, weight, bias and what follows."""
    stored = [it for it in operation.args[1:2] if isinstance(it, Weight)]
    if not stored or operation.kind not in CONVOLUTIONS | TRANSPOSED | {"linear"}:
        return operation
    bias = f"{stored[0].name.rpartition('.')[0]}.bias"
    if bias not in biases:
        return operation
    return replace(operation, args=(*operation.args[:2], Weight(bias), *operation.args[3:]))


def _pick(
    operation: Operation, picked: Picked, narrowing: Narrowing, constants: dict[str, Tensor]
) -> Operation:
    """Replace a chain of moves by one that picks what is left by index."""
    before = narrowing.left(narrowing.coupling.labels[picked.source])[picked.axis]
    after = narrowing.left(narrowing.coupling.labels[operation.name])[picked.axis]
    rank = torch.cumsum(before, 0) - 1
    wanted = torch.tensor(picked.indices)[after]
    constants[f"{operation.name} picked"] = rank[wanted]
    arguments = (Ref(picked.source), picked.axis, Weight(f"{operation.name} picked"))
    return replace(operation, target=aten.index_select.default, args=arguments, kwargs={})


def _sized(sizes: Any, wanted: tuple[int, ...], before: tuple[int, ...]) -> list[Any]:
    """Replace the numbers among sizes; one that hangs on the batch is left to be worked out."""
    found: list[Any] = []
    for size, new, old in zip(sizes, wanted, before, strict=True):
        if new == old or size == -1:
            found.append(size)
        else:
            found.append(new if isinstance(size, int) else -1)
    return found


def _view(
    operation: Operation, narrowing: Narrowing, _: dict[str, Tensor]
) -> tuple[Operation, ...]:
    before = tuple(narrowing.coupling.labels[operation.name].shape)
    sizes = _sized(operation.args[1], narrowing.sizes(operation.name), before)
    return (replace(operation, args=(operation.args[0], sizes, *operation.args[2:])),)


def _unflatten(
    operation: Operation, narrowing: Narrowing, _: dict[str, Tensor]
) -> tuple[Operation, ...]:
    read, axis, sizes = operation.args[:3]
    before = tuple(narrowing.coupling.labels[operation.name].shape)
    first = axis % (len(before) - len(sizes) + 1)
    places = slice(first, first + len(sizes))
    new = _sized(sizes, narrowing.sizes(operation.name)[places], before[places])
    return (replace(operation, args=(read, axis, new)),)


def _split(
    operation: Operation, narrowing: Narrowing, _: dict[str, Tensor]
) -> tuple[Operation, ...]:
    """Say for each piece how long it is."""
    pieces = narrowing.coupling.labels[operation.name]
    given = (*operation.args[2:], operation.kwargs.get("dim", 0))
    axis = int(given[0]) % pieces[0].ndim
    sizes = [int(narrowing.left(piece)[axis].sum()) for piece in pieces]
    read = operation.args[0]
    return (
        replace(
            operation, target=aten.split_with_sizes.default, args=(read, sizes, axis), kwargs={}
        ),
    )


def _side_by_side(
    operation: Operation, narrowing: Narrowing, _: dict[str, Tensor]
) -> tuple[Operation, ...]:
    """Leave out pieces of which nothing is left."""
    pieces = [
        piece
        for piece in operation.args[0]
        if not (isinstance(piece, Ref) and narrowing.removes_all(piece.name))
    ]
    return (replace(operation, args=(pieces, *operation.args[1:])),)


def _slice(
    operation: Operation, narrowing: Narrowing, constants: dict[str, Tensor]
) -> tuple[Operation, ...]:
    """Take what is left of a stretch of an axis."""
    read, *rest = operation.args
    if not isinstance(read, Ref):
        return (operation,)
    usual: tuple[Any, ...] = (0, None, None, 1)
    axis, start, end, step = (*rest, *usual[len(rest) :])
    if operation.kind == "narrow":  # which gives a length
        end = start + end
    labels = narrowing.coupling.labels[read.name]
    axis %= labels.ndim
    stays = narrowing.left(labels)[axis]
    if bool(stays.all()):
        return (operation,)
    taken = torch.arange(len(stays))[slice(start, end, step)]
    rank = torch.cumsum(stays, 0) - 1
    return (_index(operation, read, axis, rank[taken[stays[taken]]], constants),)


def _index(
    operation: Operation, read: Ref, axis: int, places: Tensor, constants: dict[str, Tensor]
) -> Operation:
    """Pick places along an axis: a slice if they are next to each other."""
    count = len(places)
    first = int(places[0]) if count else 0
    if torch.equal(places, torch.arange(first, first + count)):
        arguments: tuple[Any, ...] = (read, axis, first, first + count)
        return replace(operation, target=aten.slice.Tensor, args=arguments, kwargs={})
    constants[f"{operation.name} picked"] = places
    arguments = (read, axis, Weight(f"{operation.name} picked"))
    return replace(operation, target=aten.index_select.default, args=arguments, kwargs={})


def _select(
    operation: Operation, narrowing: Narrowing, _: dict[str, Tensor]
) -> tuple[Operation, ...]:
    read, axis, place = operation.args
    if not isinstance(read, Ref):
        return (operation,)
    labels = narrowing.coupling.labels[read.name]
    stays = narrowing.left(labels)[axis % labels.ndim]
    if bool(stays.all()):
        return (operation,)
    rank = int(stays[: place % len(stays)].sum())
    return (replace(operation, args=(read, axis, rank)),)


def _gather(
    operation: Operation, narrowing: Narrowing, constants: dict[str, Tensor]
) -> tuple[Operation, ...]:
    """Pick by index what is left of what was picked by index along one axis."""
    read = operation.args[0]
    if not isinstance(read, Ref):
        return (operation,)
    labels = narrowing.coupling.labels[read.name]
    indices = narrowing.coupling.indices[operation.name]
    if operation.kind == "index_select":
        axis, places = indices[0] % labels.ndim, indices[1]
    else:
        given = [it for it, leaf in enumerate(indices[0]) if leaf is not None]
        axis, places = given[0], indices[0][given[0]]
        if len(given) > 1:
            return (operation,)
    stays = narrowing.left(labels)[axis]
    if bool(stays.all()):
        return (operation,)
    rank = torch.cumsum(stays, 0) - 1
    return (_index(operation, read, axis, rank[places[stays[places]]], constants),)


def _pad(operation: Operation, narrowing: Narrowing, _: dict[str, Tensor]) -> tuple[Operation, ...]:
    """Pad by what is left of the padding."""
    read, amounts, *rest = operation.args
    labels = narrowing.coupling.labels[operation.name]
    stays = narrowing.left(labels)
    new = []
    for pair in range(len(amounts) // 2):
        axis = labels.ndim - 1 - pair
        before, after = amounts[2 * pair : 2 * pair + 2]
        if min(before, after) < 0:
            new += [before, after]
            continue
        size = labels.shape[axis]
        new += [int(stays[axis][:before].sum()), int(stays[axis][size - after :].sum())]
    return (replace(operation, args=(read, new, *rest)),)


def _constant(
    operation: Operation, narrowing: Narrowing, _: dict[str, Tensor]
) -> tuple[Operation, ...]:
    if operation.kind.endswith("_like"):
        return (operation,)
    place = 1 if operation.kind.startswith("new_") else 0
    before = tuple(narrowing.coupling.labels[operation.name].shape)
    sizes = _sized(operation.args[place], narrowing.sizes(operation.name), before)
    if -1 in sizes:
        raise _refused(operation, "its size hangs on the batch")
    arguments = (*operation.args[:place], sizes, *operation.args[place + 1 :])
    return (replace(operation, args=arguments),)


def _convolution(
    operation: Operation, narrowing: Narrowing, _: dict[str, Tensor]
) -> tuple[Operation, ...]:
    """Say how many groups are left, and add what a padded border sees of removed constants."""
    groups = groups_left(operation, narrowing)
    if groups != groups_of(operation):
        operation = _with_groups(operation, groups)
    weight = operation.args[1]
    constant = beside(weight.name, "constant") if isinstance(weight, Weight) else ""
    if constant not in narrowing.made:
        return (operation,)
    transposed = operation.kind in TRANSPOSED
    settings = (
        *operation.args[3:],
        *(1, 0, 0 if transposed else 1, 1, 1)[len(operation.args[3:]) :],
    )
    stride, padding, third = settings[:3]
    dilation, output_padding = (settings[4], third) if transposed else (third, 0)
    bare = replace(operation, name=f"{operation.name} bare")
    kind = operation.kind

    def term(read: Tensor, kernel: Tensor) -> Tensor:
        return constant_term(kind, read, kernel, stride, padding, dilation, output_padding)

    term.__name__ = "constant_term"
    added = replace(
        operation,
        name=f"{operation.name} constant",
        target=term,
        args=(operation.args[0], Weight(constant)),
        kwargs={},
    )
    total = replace(
        operation, target=aten.add.Tensor, args=(Ref(bare.name), Ref(added.name)), kwargs={}
    )
    return bare, added, total


def groups_left(operation: Operation, narrowing: Narrowing) -> int:
    """Return in how many groups a convolution or GroupNorm still works."""
    if operation.kind == "group_norm":
        groups: int = operation.args[1]
        labels = narrowing.coupling.labels[operation.name]
        if not normalises_whole_groups(operation, labels.shape[1]):
            return groups
    else:
        groups = groups_of(operation)
        if not removes_whole_groups(operation, narrowing.tensors):
            return groups
        labels = narrowing.coupling.labels[operation.name]
    stays = narrowing.left(labels)[1]
    return int(stays.reshape(groups, -1)[:, 0].sum())


def _with_groups(operation: Operation, groups: int) -> Operation:
    if len(operation.args) > GROUPS_PLACE:
        arguments = list(operation.args)
        arguments[GROUPS_PLACE] = groups
        return replace(operation, args=tuple(arguments))
    return replace(operation, kwargs={**operation.kwargs, "groups": groups})


def _layer_norm(
    operation: Operation, narrowing: Narrowing, _: dict[str, Tensor]
) -> tuple[Operation, ...]:
    read, shape, *rest = operation.args
    left = list(narrowing.sizes(operation.name)[-len(shape) :])
    if left == list(shape):
        return (operation,)
    name = removed_name(operation)
    if name not in narrowing.made:
        return (replace(operation, args=(read, left, *rest)),)
    weight, bias, eps = (*rest, *(None, None, 1e-5)[len(rest) :])[:3]
    arguments = (read, left, weight, bias, eps, Weight(name))
    return (replace(operation, target=layer_norm_of_rest, args=arguments, kwargs={}),)


def _rms_norm(
    operation: Operation, narrowing: Narrowing, _: dict[str, Tensor]
) -> tuple[Operation, ...]:
    read, shape, *rest = operation.args
    name = removed_name(operation)
    if name not in narrowing.made:
        return (operation,)
    left = list(narrowing.sizes(operation.name)[-len(shape) :])
    weight, eps = (*rest, *(None, None)[len(rest) :])[:2]
    arguments = (read, left, weight, eps, Weight(name))
    return (replace(operation, target=rms_norm_of_rest, args=arguments, kwargs={}),)


def _reduction(
    operation: Operation, narrowing: Narrowing, _: dict[str, Tensor]
) -> tuple[Operation, ...]:
    """Go on counting the units that are gone in a mean or maximum of units."""
    name = reduced_name(operation)
    if name not in narrowing.made:
        return (operation,)
    read, dims, *rest = operation.args
    keep = bool(rest and rest[0]) or bool(operation.kwargs.get("keepdim"))
    given = [dims] if isinstance(dims, int) else list(dims)
    arguments = (operation.kind, read, given, keep, Weight(name))
    return (replace(operation, target=reduction_of_rest, args=arguments, kwargs={}),)


def reduced_name(operation: Operation) -> str:
    """Name of the tensor in which a mean or maximum of units keeps what it still counts."""
    return f"{operation.name}_removed"


def _group_norm(
    operation: Operation, narrowing: Narrowing, _: dict[str, Tensor]
) -> tuple[Operation, ...]:
    read, _groups, *rest = operation.args
    groups = groups_left(operation, narrowing)
    name = removed_name(operation)
    if name not in narrowing.made:
        return (replace(operation, args=(read, groups, *rest)),)
    weight, bias, eps = (*rest, *(None, None, 1e-5)[len(rest) :])[:3]
    arguments = (read, groups, weight, bias, eps, Weight(name))
    return (replace(operation, target=group_norm_of_rest, args=arguments, kwargs={}),)


def removed_name(operation: Operation) -> str:
    """Name of the tensor in which a normalisation keeps what it still counts."""
    if operation.weights:
        return beside(operation.weights[0], "removed")
    return f"{operation.module}.removed" if operation.module else f"{operation.name}_removed"


def beside(weight: str, attribute: str) -> str:
    """Name a tensor that belongs to a weight.

    Example
    -------
    >>> beside("conv.weight", "constant"), beside("block.filters", "constant")
    ('conv.constant', 'block.filters_constant')
    """
    owner, _, own = weight.rpartition(".")
    name = attribute if own == "weight" else f"{own}_{attribute}"
    return f"{owner}.{name}" if owner else name


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys((*VIEWS, "expand", "broadcast_to"), _view),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), _split),
    **dict.fromkeys(("slice", "narrow"), _slice),
    **dict.fromkeys(("cat", "concat", "stack"), _side_by_side),
    **dict.fromkeys(("index", "index_select"), _gather),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys(CONSTANTS, _constant),
    **dict.fromkeys(CONVOLUTIONS | TRANSPOSED, _convolution),
    **dict.fromkeys(
        MOVES - {*VIEWS, "expand", "broadcast_to", "split", "split_with_sizes", "chunk",
                 "tensor_split", "slice", "narrow", "index", "index_select", "select", "getitem",
                 "unflatten", "cat", "concat", "stack"},
        lambda operation, _narrowing, _constants: (operation,),
    ),
    "select": _select,
    "unflatten": _unflatten,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "rms_norm": _rms_norm,
    **dict.fromkeys(OVER_UNITS, _reduction),
}  # fmt: skip
"""By the operation's bare name; operations without a rule run as they are."""
