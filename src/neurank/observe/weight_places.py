"""Where a weight is read, and how little of the forward pass a change of it has to run again."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from neurank.units.channelwise import ELEMENTWISE, FLATTENING, is_channelwise
from neurank.units.graph import Graph, Operation, Ref, Weight
from neurank.units.rules import CONVOLUTIONS, GROUPS_PLACE

ADDITIVE = "additive"
SUFFIX = "suffix"
RERUN = "one pass of what is below the weight, per weight"
FULL = "one full forward per weight"
NOTHING = "never read"
"""How changes of the loss are computed, in the words of the records."""

_KEEP_SIGNS = FLATTENING | {"max_pool1d", "max_pool2d", "max_pool3d", "dropout", "feature_dropout"}
"""They pick numbers and change none; what is nowhere above 0 stays so."""


@dataclass(frozen=True)
class Place:
    """A weight and the operations that have to run again when a part of it changes.

    Attributes
    ----------
    weight : dotted name.
    way : one of `ADDITIVE`, `SUFFIX`, `RERUN`, `NOTHING`.
    layer : the convolution or linear layer that reads it; None where `way` is neither of the
        first two.
    axis : the axis of the layer's result along which its rows lie.
    bridge : in `ADDITIVE`, the operations behind the layer that leave its units apart.
    consumer : in `ADDITIVE`, the layer that sums what the units give it.
    start : the result from which the suffix starts; a weight in `RERUN` has none.
    suffix : the operations that run again, in execution order.
    side : results that they read besides, which a change of the weight leaves as they are.
    """

    weight: str
    way: str
    layer: Operation | None
    axis: int
    bridge: tuple[Operation, ...]
    consumer: Operation | None
    start: str
    suffix: tuple[Operation, ...]
    side: tuple[str, ...]

    @property
    def before(self) -> str:
        """Name of the result that the layer reads."""
        assert self.layer is not None
        return str(self.layer.args[0].name)

    @property
    def positions(self) -> int:
        """How many numbers of its result one unit of the layer has."""
        assert self.layer is not None
        assert self.layer.shape is not None
        units = self.layer.shape[self.axis] or 1
        return prod(size or 1 for size in self.layer.shape) // units

    @property
    def silences(self) -> bool:
        """Whether a channel that is nowhere above 0 is read as one that is 0 everywhere."""
        for operation in self.bridge:
            if operation.kind == "relu":
                return True
            if operation.kind not in _KEEP_SIGNS:
                return False
        return False

    @property
    def floats(self) -> int:
        """About how many numbers the largest results of one changed example have together."""
        shapes = (operation.shape or () for operation in self.suffix)
        sizes = [prod(size or 1 for size in shape) for shape in shapes]
        own = self.layer.shape if self.layer is not None and self.way == SUFFIX else ()
        sizes.append(prod(size or 1 for size in own or ()))
        if self.layer is not None:
            sizes.append(self.positions)
        if self.consumer is not None:
            sizes.append(prod(size or 1 for size in self.consumer.shape or ()))
        return 2 * max(sizes)


def place_of(weight: str, graph: Graph) -> Place:
    """Find where a weight is read, and the cheapest way to run a change of it.

    Example:
    -------
    >>> import torch
    >>> from torch import nn
    >>> from neurank.units.trace import trace
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> graph = trace(model, torch.zeros(4, 2))
    >>> place_of("0.weight", graph).way, place_of("2.weight", graph).way
    ('additive', 'suffix')
    """
    needed = graph.needed_for((graph.output,))
    readers = [operation for operation in needed if weight in operation.weights]
    if not readers:
        return Place(weight, NOTHING, None, 1, (), None, "", (), ())
    layer = readers[0]
    if len(readers) == 1 and _is_layer(layer, weight):
        axis = 1 if layer.kind in CONVOLUTIONS else len(layer.shape or ()) - 1
        for bridge, consumer in _ahead(graph, layer, axis):
            below = _suffix(graph, consumer.name)
            if _examples_first(graph, below[1]):
                return Place(weight, ADDITIVE, layer, axis, bridge, consumer, consumer.name, *below)
        below = _suffix(graph, layer.name)
        if _examples_first(graph, below[1]):
            return Place(weight, SUFFIX, layer, axis, (), None, layer.name, *below)
    return rerun_place(weight, graph)


def rerun_place(weight: str, graph: Graph) -> Place:
    """Run all that depends on the weight again: right for any weight, and once for each."""
    return Place(weight, RERUN, None, 1, (), None, "", *_affected(graph, weight))


def _is_layer(operation: Operation, weight: str) -> bool:
    """Whether it is a linear layer or a 1-D or 2-D convolution of a result by this weight."""
    arguments = operation.args
    return (
        operation.kind in CONVOLUTIONS - {"conv3d"} | {"linear"}
        and isinstance(arguments[0], Ref)
        and arguments[1] == Weight(weight)
        and Weight(weight) not in arguments[2:]
        and operation.refs == (arguments[0].name,)
        and operation.shape is not None
        and operation.shape[:1] == (None,)
        and None not in operation.shape[1:]
        and not operation.kwargs
    )


def _ahead(
    graph: Graph, layer: Operation, axis: int
) -> Iterator[tuple[tuple[Operation, ...], Operation]]:
    """Yield the bridge and the consumer behind it, if one layer alone sums what the units give."""
    bridge: list[Operation] = []
    current = layer
    while current.name != graph.output and len(graph.readers[current.name]) == 1:
        (reader,) = graph.readers[current.name]
        if _sums(reader, current, axis):
            yield tuple(bridge), reader
            return
        if not _keeps_apart(reader, current, graph, axis):
            return
        bridge.append(reader)
        current = reader


def _keeps_apart(operation: Operation, before: Operation, graph: Graph, axis: int) -> bool:
    if axis == 1:
        return is_channelwise(operation, before.name, graph)
    # units on the last axis: only what leaves every number where it is
    return (
        operation.kind in ELEMENTWISE
        and operation.args[:1] == (Ref(before.name),)
        and operation.refs == (before.name,)
        and operation.shape == before.shape
    )


def _sums(operation: Operation, before: Operation, axis: int) -> bool:
    """Whether an operation is linear in each unit of `before` and adds the units up."""
    arguments, shape = operation.args, before.shape
    if shape is None or operation.shape is None or operation.shape[:1] != (None,):
        return False
    stored = (
        operation.refs == (before.name,)
        and arguments[:1] == (Ref(before.name),)
        and len(arguments) > 1
        and isinstance(arguments[1], Weight)
        and not operation.kwargs
    )
    if operation.kind == "linear":
        return stored and (axis == len(shape) - 1 or len(shape) == 2)
    groups = arguments[GROUPS_PLACE] if len(arguments) > GROUPS_PLACE else 1
    unbatched = len(shape) != len(operation.shape)
    return stored and operation.kind in CONVOLUTIONS and axis == 1 and groups == 1 and not unbatched


def _suffix(graph: Graph, start: str) -> tuple[tuple[Operation, ...], tuple[str, ...]]:
    """Return what runs from a result to the logits, and what is read there besides."""
    depend_on_start = {start, *(operation.name for operation in graph.below(start))}
    side = _side(graph, graph.needed_for((graph.output,), known=(start,)), depend_on_start)
    return graph.needed_for((graph.output,), known=(start, *side)), side


def _affected(graph: Graph, weight: str) -> tuple[tuple[Operation, ...], tuple[str, ...]]:
    """Return what runs again when a weight changes that is read anywhere, and what is not."""
    reached = {operation.name for operation in graph.operations if weight in operation.weights}
    for operation in graph.operations:
        if reached.intersection(operation.refs):
            reached.add(operation.name)
    needed = graph.needed_for((graph.output,))
    side = _side(graph, needed, reached)
    return graph.needed_for((graph.output,), known=side), side


def _side(graph: Graph, needed: tuple[Operation, ...], changed: set[str]) -> tuple[str, ...]:
    """List results of the network's input that changed operations read and that do not change."""
    of_input = {graph.input, *(operation.name for operation in graph.below(graph.input))}
    side = dict.fromkeys(
        name
        for operation in needed
        if operation.name in changed
        for name in operation.refs
        if name in of_input - changed
    )
    return tuple(side)


def _examples_first(graph: Graph, side: tuple[str, ...]) -> bool:
    """Whether what is read besides can be picked example by example."""
    shapes = ((None,) if name == graph.input else graph.by_name[name].shape or () for name in side)
    return all(shape[:1] == (None,) for shape in shapes)
