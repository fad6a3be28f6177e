"""Taps: values of units and the gradients of the loss there, in one forward and one backward pass.

A tap is an identity that stands between a result and one operation that reads it, or right behind
the operation that computes units. The network computes what it did; what flows back through the tap
is the gradient along that way alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from neurank.errors import ModelError
from neurank.observe.examples import Examples
from neurank.observe.execution import Runner
from neurank.observe.masking import examples_inside, reading
from neurank.observe.removal import Position, reader
from neurank.units.graph import Graph, Operation, Ref
from neurank.units.space import Layer, UnitSpace


@dataclass(frozen=True)
class Identity:
    """Hands a value on, from where on its gradient is asked for."""

    __name__: ClassVar[str] = "tap"

    def __call__(self, value: Tensor) -> Tensor:
        """Return the same numbers as a result of its own."""
        return value.view_as(value) if value.requires_grad else value.detach().requires_grad_()


@dataclass(frozen=True)
class Tap:
    """Units of one layer at one tap.

    Attributes
    ----------
    layer : name of the layer.
    name : name of the result behind the tap.
    tensor : name of the result before it.
    key : places of the same key have their statistics in common, see `observe.removal.Place`.
    axis : the axis along which entries lie.
    units : for each entry, the unit that it belongs to; -1 for none.
    cells : for each entry, the number under which its statistic is taken.
    batch : the axis of the examples.
    inner : whether examples vary fastest where that axis holds more than examples.
    """

    layer: str
    name: str
    tensor: str
    key: str
    axis: int
    units: tuple[int, ...]
    cells: tuple[int, ...]
    batch: int = 0
    inner: bool = False

    def by_example(self, values: Tensor, examples: int) -> Tensor:
        """Sum over all places of an entry, (examples, entries)."""
        rest = tuple(it for it in range(values.ndim) if it not in {self.batch, self.axis})
        sums = values.sum(dim=rest) if rest else values
        if self.axis < self.batch:
            sums = sums.T
        if len(sums) == examples:
            return sums
        shape = (-1, examples) if self.inner else (examples, -1)
        return sums.reshape(*shape, sums.shape[1]).sum(dim=0 if self.inner else 1)


@dataclass(frozen=True)
class Tapped:
    """A forward pass with taps.

    Attributes
    ----------
    runner : its graph and weights.
    taps : in execution order.
    """

    runner: Runner
    taps: tuple[Tap, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The results behind the taps, each once."""
        return tuple(dict.fromkeys(tap.name for tap in self.taps))


@dataclass(frozen=True)
class Seen:
    """What a batch showed.

    Attributes
    ----------
    targets : (examples,).
    losses : (examples,), the cross-entropy.
    values : by name of a tap's result, what was there.
    gradients : the gradient of each example's own loss there.
    others : further results, by name.
    """

    targets: Tensor
    losses: Tensor
    values: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    others: Mapping[str, Tensor]


def tapped(
    space: UnitSpace, names: Iterable[str], runner: Runner, examples: Examples, at: Position
) -> Tapped:
    """Put taps where the units of some layers are read ("post"), or are computed ("pre")."""
    taps = taps_at(space, names, runner, examples, at)
    graph = space.graph
    graph = _behind(graph, taps) if at == "pre" else _before(graph, taps)
    return Tapped(Runner(graph, {n: plain(it) for n, it in runner.tensors.items()}), taps)


def taps_at(
    space: UnitSpace, names: Iterable[str], runner: Runner, examples: Examples, at: Position
) -> tuple[Tap, ...]:
    """Say where taps stand: where the units of some layers are read, or are computed."""
    layers = [space[name] for name in names]
    taps = _at_producers(space, layers) if at == "pre" else _at_reads(space, layers, runner)
    first, _ = next(iter(examples))
    inner = examples_inside((tap.tensor for tap in taps), runner, space.coupling, first)
    return tuple(
        replace(tap, batch=_batch_axis(tap, space.graph), inner=inner.get(tap.tensor, False))
        for tap in taps
    )


def _at_producers(space: UnitSpace, layers: Sequence[Layer]) -> tuple[Tap, ...]:
    return tuple(
        Tap(
            layer.name,
            f"{given.tensor} tapped",
            given.tensor,
            given.tensor,
            given.axis,
            given.units,
            tuple(range(len(given.units))),
        )
        for layer in layers
        for given in space.given(layer.name)
    )


def _at_reads(space: UnitSpace, layers: Sequence[Layer], runner: Runner) -> tuple[Tap, ...]:
    found = []
    for layer in layers:
        if layer.is_output:
            continue
        for read in layer.reads:
            name = f"{read.tensor} for {read.operation}"
            key = reader(read, runner)
            found.append(Tap(layer.name, name, read.tensor, key, read.axis, read.units, read.cells))
    order = {it.name: place for place, it in enumerate(space.graph.operations)}
    return tuple(sorted(found, key=lambda tap: order.get(tap.tensor, -1)))


def _batch_axis(tap: Tap, graph: Graph) -> int:
    shape = graph.shape_of(tap.tensor)
    assert shape is not None
    return shape.index(None) if None in shape else 0


def _identity(tap: Tap, graph: Graph) -> Operation:
    return Operation(
        name=tap.name,
        target=Identity(),
        args=(Ref(tap.tensor),),
        kwargs={},
        module="",
        shape=graph.shape_of(tap.tensor),
        line="",
    )


def _behind(graph: Graph, taps: Sequence[Tap]) -> Graph:
    """Let all that follows read what is behind the taps."""
    wanted = {tap.tensor: tap for tap in taps}
    renamed: dict[str, str] = {}
    operations: list[Operation] = []
    for operation in graph.operations:
        follower = operation
        for name in operation.refs:
            if name in renamed:
                follower = reading(follower, Ref(name), Ref(renamed[name]))
        operations.append(follower)
        if operation.name in wanted:
            tap = wanted[operation.name]
            operations.append(_identity(tap, graph))
            renamed[operation.name] = tap.name
    output = renamed.get(graph.output, graph.output)
    return replace(graph, operations=tuple(operations), output=output)


def _before(graph: Graph, taps: Sequence[Tap]) -> Graph:
    """Let the operations that read units, and no others, read what is behind the taps."""
    wanted: dict[str, Tap] = {tap.name: tap for tap in taps}
    operations: list[Operation] = []
    for operation in graph.operations:
        follower = operation
        for name in dict.fromkeys(operation.refs):
            tap = wanted.get(f"{name} for {operation.name}")
            if tap is not None:
                operations.append(_identity(tap, graph))
                follower = reading(follower, Ref(name), Ref(tap.name))
        operations.append(follower)
    return replace(graph, operations=tuple(operations))


def seen(
    tapping: Tapped, examples: Examples, memory: int, also: Sequence[str] = ()
) -> Iterator[Seen]:
    """Run forward and back, piece by piece of the data; `also` names further results to look at.

    Raises
    ------
    ModelError
        If a loss or a gradient is NaN or infinite.
    """
    for inputs, targets in _pieces(examples, tapping.runner, memory):
        yield _seen(tapping, inputs, targets, also)


def _seen(tapping: Tapped, inputs: Tensor, targets: Tensor, also: Sequence[str]) -> Seen:
    runner, names = tapping.runner, tapping.names
    graph = runner.graph
    with torch.enable_grad():
        wanted = (graph.output, *names, *also)
        needed = graph.needed_for(wanted)
        results = runner.run(needed, {graph.input: inputs}, len(inputs), wanted)
        losses = functional.cross_entropy(results[graph.output], targets, reduction="none")
        at = [results[name] for name in names]
        gradients = torch.autograd.grad(losses.sum(), at, allow_unused=True)
    _check_finite(losses, "the loss is")
    found = {}
    for name, value, gradient in zip(names, at, gradients, strict=True):
        found[name] = torch.zeros_like(value) if gradient is None else gradient
        layer = next(tap.layer for tap in tapping.taps if tap.name == name)
        _check_finite(
            found[name], f"the gradient of the loss with respect to the units of layer {layer!r} is"
        )
    values = {name: value.detach() for name, value in zip(names, at, strict=True)}
    others = {name: results[name].detach() for name in also}
    return Seen(targets, losses.detach(), values, found, others)


def _check_finite(numbers: Tensor, what: str) -> None:
    # A sum is finite where all numbers are, unless it overflows itself: then look at each.
    if not bool(torch.isfinite(numbers.sum())) and not bool(torch.isfinite(numbers).all()):
        raise ModelError(f"{what} NaN or infinite: check the weights and the scale of the inputs")


def _pieces(examples: Examples, running: Runner, memory: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut batches so that the results of a forward pass, kept for the backward pass, fit."""
    floats = sum(
        prod(size or 1 for size in operation.shape or ()) for operation in running.graph.operations
    )
    size = max(1, memory // (8 * floats))
    for inputs, targets in examples:
        for start in range(0, len(targets), size):
            rows = slice(start, start + size)
            yield plain(inputs[rows]), plain(targets[rows])


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may keep, which one made in inference mode is not."""
    return tensor.clone() if tensor.is_inference() else tensor
