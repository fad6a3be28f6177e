"""The masked network: a graph in which every read of a layer's units passes a switch.

The switch stands between a result and an operation that mixes its units; what only passes units on
(sums of branches, activations, views) is left alone, since what is off is never read behind it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from neurank.observe.execution import Runner
from neurank.units.coupling import Coupling
from neurank.units.graph import Graph, Operation, Ref, Weight, map_leaves
from neurank.units.space import Layer, UnitRead


@dataclass(frozen=True)
class Switch:
    """Hands units on, or what is received for those that are off.

    Attributes
    ----------
    axis : along which the units lie.
    units : for each entry along the axis, which unit it belongs to; -1 for none.
    batch : the axis of the examples.
    inner : whether examples vary fastest where the batch axis holds more than examples.
    """

    axis: int
    units: tuple[int, ...]
    batch: int = 0
    inner: bool = False

    __name__: ClassVar[str] = "switch"  # an operation is known by its target's name

    def __call__(self, read: Tensor, on: Tensor, off: Tensor) -> Tensor:
        """Switch units.

        Parameters
        ----------
        read : what the operation would read.
        on : (examples, units); bool, True = on; or numbers from 0, off, to 1, on.
        off : (entries along the axis,), what is received for an entry that is off.
        """
        units = torch.tensor(self.units, device=on.device)
        by_entry = on[:, units.clamp(min=0)]
        by_entry = torch.where(units >= 0, by_entry, torch.ones_like(by_entry))
        shape = [1] * read.ndim
        shape[self.axis] = len(self.units)
        if len(on) > 1:
            times = read.shape[self.batch] // len(on)
            by_entry = (
                by_entry.repeat(times, 1) if self.inner else by_entry.repeat_interleave(times, 0)
            )
            shape[self.batch] = len(by_entry)
            if self.axis < self.batch:
                by_entry = by_entry.T
        factors = by_entry.reshape(shape)
        constants = off.to(read.dtype).reshape(
            [-1 if it == self.axis else 1 for it in range(read.ndim)]
        )
        if factors.dtype == torch.bool:
            return torch.where(factors, read, constants)
        return constants + factors.to(read.dtype) * (read - constants)


def on_name(layer: Layer) -> str:
    """Name of the result that says which units of a layer are on, (examples, units)."""
    return f"{layer.name} on"


def off_name(layer: Layer, place: int) -> str:
    """Name of the tensor that says what is received at the layer's read number `place`."""
    return f"{layer.name} off at {place}"


def masked(graph: Graph, layers: Iterable[Layer], inner: Mapping[str, bool] | None = None) -> Graph:
    """Put a switch before every read of the layers' units.

    Parameters
    ----------
    graph : the forward pass.
    layers : the layers whose units can be off.
    inner : for results whose batch axis holds more than examples, whether examples vary fastest.

    Returns
    -------
    Graph
        It reads the results `on_name` and the tensors `off_name` of each layer besides.
    """
    switches: dict[str, list[tuple[Layer, int, UnitRead]]] = {}
    for layer in layers:
        for place, read in enumerate(layer.reads):
            switches.setdefault(read.operation, []).append((layer, place, read))
    operations: list[Operation] = []
    for operation in graph.operations:
        reader = operation
        for layer, place, read in switches.get(operation.name, ()):
            made = _switch(
                graph, reader, (layer, place, read), (inner or {}).get(read.tensor, False)
            )
            operations.append(made)
            reader = reading(reader, made.args[0], Ref(made.name))
        operations.append(reader)
    return replace(graph, operations=tuple(operations))


def _switch(
    graph: Graph, reader: Operation, where: tuple[Layer, int, UnitRead], inner: bool
) -> Operation:
    layer, place, read = where
    shape = graph.shape_of(read.tensor)
    assert shape is not None
    batch = shape.index(None) if None in shape else 0
    # A switch of another layer may stand there already.
    current = next(
        (
            name
            for name in reader.refs
            if name == read.tensor or name.startswith(f"{read.tensor} for ")
        ),
        read.tensor,
    )
    return Operation(
        name=f"{read.tensor} for {reader.name}, {layer.name} {place}",
        target=Switch(read.axis, read.units, batch, inner),
        args=(Ref(current), Ref(on_name(layer)), Weight(off_name(layer, place))),
        kwargs={},
        module="",
        shape=shape,
        line=reader.line,
    )


def reading(operation: Operation, before: Ref, after: Ref) -> Operation:
    """Let an operation read another result."""

    def renamed(leaf: object) -> object:
        return after if leaf == before else leaf

    return replace(
        operation,
        args=map_leaves(renamed, operation.args),
        kwargs=map_leaves(renamed, dict(operation.kwargs)),
    )


def off_tensors(layer: Layer, constants: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name what is received at each read of a layer, for the weights of the masked graph."""
    return {off_name(layer, place): found for place, found in enumerate(constants)}


def switched_off(
    runner: Runner,
    layers: Sequence[Layer],
    removed: Mapping[str, Sequence[int]],
    off: Mapping[str, Sequence[Tensor]],
) -> tuple[Runner, dict[str, Tensor]]:
    """Switch the same units off for all examples.

    Parameters
    ----------
    runner : the forward pass.
    layers : the layers that lose units.
    removed : by layer, which.
    off : by layer, for each of its reads what is received for entries that are off.

    Returns
    -------
    tuple
        The forward pass with switches, and the results by name that it needs beside the input.
    """
    device = next(iter(runner.tensors.values())).device
    tensors, given = dict(runner.tensors), {}
    for layer in layers:
        on = torch.ones(1, layer.width, dtype=torch.bool, device=device)
        on[:, list(removed[layer.name])] = False
        given[on_name(layer)] = on
        tensors.update(off_tensors(layer, off[layer.name]))
    return Runner(masked(runner.graph, layers), tensors), given


@dataclass(frozen=True)
class MaskedSuffix:
    """What must be run again for every coalition of a layer whose units are read in many places.

    Attributes
    ----------
    layer : the layer.
    graph : the forward pass with the layer's switches.
    suffix : the operations that hang on which units are on, in execution order.
    side : results that they read besides, (examples, ...), computed once per example.
    """

    layer: Layer
    graph: Graph
    suffix: tuple[Operation, ...]
    side: tuple[str, ...]


def masked_suffix(layer: Layer, runner: Runner, coupling: Coupling, inputs: Tensor) -> MaskedSuffix:
    """Split the forward pass where the units of a layer are first read.

    Parameters
    ----------
    layer : the layer.
    runner : the forward pass without switches.
    coupling : what is known about its results.
    inputs : some examples, by which it is found out where results keep examples.
    """
    reads = [read.tensor for read in layer.reads]
    graph = masked(runner.graph, (layer,), examples_inside(reads, runner, coupling, inputs))
    on = on_name(layer)
    from_input = {graph.input, *(operation.name for operation in graph.below(graph.input))}
    again = {operation.name for operation in graph.below(on)}
    side: set[str] = set()
    waiting = set(again)
    while waiting:
        operation = graph.by_name[waiting.pop()]
        for name in operation.refs:
            if name in again or name in side or name not in from_input:
                continue
            if _keeps_examples_first(name, graph, coupling):
                side.add(name)
            else:
                again.add(name)
                waiting.add(name)
    needed = graph.needed_for((graph.output,), known=(on, *side))
    read_again = {name for operation in needed for name in operation.refs}
    return MaskedSuffix(layer, graph, needed, tuple(sorted(side & read_again)))


def examples_inside(
    names: Iterable[str], runner: Runner, coupling: Coupling, inputs: Tensor
) -> dict[str, bool]:
    """Say of results whether examples vary fastest where they share an axis with something else."""
    return {
        name: _varies_inside(name, runner, coupling, inputs)
        for name in dict.fromkeys(names)
        if not _keeps_examples_first(name, runner.graph, coupling)
    }


def _keeps_examples_first(name: str, graph: Graph, coupling: Coupling) -> bool:
    """Whether a result has one row per example on axis 0."""
    shape = graph.shape_of(name)
    labels = coupling.labels.get(name)
    if shape is None or not isinstance(labels, Tensor):
        return False
    return shape[:1] == (None,) and labels.shape[0] == 1


def _varies_inside(name: str, runner: Runner, coupling: Coupling, inputs: Tensor) -> bool:
    """Whether examples vary fastest along a batch axis that holds more than examples.

    Two examples are run, and one of them twice: the rows that differ are the other's.
    """
    shape = runner.graph.by_name[name].shape or ()
    axis = shape.index(None) if None in shape else 0
    if coupling.labels[name].shape[axis] == 1 or len(inputs) < 2:
        return False
    pair = inputs[:2]
    with torch.inference_mode():
        (both,) = runner.forward(pair, name)
        (same,) = runner.forward(pair[:1].expand_as(pair).contiguous(), name)
    differs = (both != same).movedim(axis, 0).flatten(1).any(dim=1)
    half = len(differs) // 2
    return bool(differs[:half].any())
