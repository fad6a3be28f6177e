"""Networks without some of their units, run as operations: for sweeps over many of them.

Nothing is copied but the tensors that are cut, no module is built, and what the removed units do
not touch is computed once for all networks that share it. The results are those of masked networks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from neurank.condense.compensate import compensation
from neurank.condense.given import whole
from neurank.condense.kept import Plan
from neurank.condense.narrowed import Narrowing, narrowed_graph
from neurank.condense.nested import (
    FirstReader,
    PartialSum,
    RunningSums,
    are_nested,
    first_readers,
    numbers,
    partial_sums,
)
from neurank.condense.surgery import changed_tensors, cuts_for, gone_classes, named_tensors
from neurank.errors import CondenseError, PlanError
from neurank.observe.execution import Program, Runner
from neurank.observe.lowering import lowered
from neurank.observe.masking import switched_off
from neurank.observe.observer import MEMORY, TracedObserver
from neurank.units.graph import Graph, Operation, leaves
from neurank.units.space import UnitSpace

Removed = Mapping[str, Sequence[int]]
"""Layer name to the units that are off; layers that are not named are whole."""
Off = Mapping[str, Sequence[Tensor]]
"""Layer name to what each of its reads receives for entries that are off, see `off_constants`."""


@dataclass(frozen=True)
class Thin:
    """What is left to run of a network without some units.

    Attributes
    ----------
    program : its operations.
    start : names of the results of the whole network that they begin with.
    given : results that are the same for all examples, such as switches.
    output : name of the logits.
    sums : the operations that are no part of the program, because they add to sums over results
        of the whole network.
    """

    program: Program
    start: tuple[str, ...]
    given: Mapping[str, Tensor]
    output: str
    sums: tuple[PartialSum, ...] = ()

    def logits(
        self, start: Mapping[str, Tensor], examples: int, running: RunningSums, batch: int
    ) -> Tensor:
        """Run on some examples, (examples, classes).

        Parameters
        ----------
        start : the results that it begins with.
        examples : how many there are.
        running : the sums of the network before.
        batch : the number under which it knows those of these examples.
        """
        summed = {
            it.reader.operation.name: running.result(it, batch, start[it.reader.read])
            for it in self.sums
        }
        found: Tensor = self.program.run({**self.given, **start, **summed}, examples)[self.output]
        return found


def sweep(
    points: Sequence[Removed],
    watching: TracedObserver,
    batches: Sequence[Tensor],
    off: Off | None = None,
    memory: int = MEMORY,
) -> Iterator[tuple[int, Tensor]]:
    """Run a network again and again, each time without other units.

    Networks that begin with the same results of the whole network follow each other, and these
    results are kept for them if they fit into memory. Where each keeps all that the one before it
    keeps, sums over the units of the first layer are not started again, see
    `neurank.condense.nested`.

    Parameters
    ----------
    points : for each run, which units are off; all of a layer may be.
    watching : the network, in evaluation mode.
    batches : inputs, some examples each.
    off : what is received for units that are off; None is 0.
    memory : how many bytes results of the whole network, and sums over them, may take.

    Yields
    ------
    tuple
        The place of a point, each once but in any order, and its logits, (examples, classes).
    """
    prefix: _Prefix | None = None
    for places, readers in _turns(points, watching, batches, memory):
        running = RunningSums()
        for place in places:
            thin = thinned(points[place], watching, off, readers)
            if prefix is None or prefix.names != thin.start:
                prefix = _Prefix(thin.start, watching.runner, batches, memory)
            with torch.inference_mode():
                parts = [
                    thin.logits(found, count, running, batch)
                    for batch, (found, count) in enumerate(prefix.results())
                ]
            yield place, torch.cat(parts)


def _turns(
    points: Sequence[Removed], watching: TracedObserver, batches: Sequence[Tensor], memory: int
) -> Iterator[tuple[Sequence[int], tuple[FirstReader, ...]]]:
    """Put points in order, those that lose units of the same layers behind each other.

    With them come the operations whose sums they can share; they are in growing order then.
    """
    in_turn = sorted(range(len(points)), key=lambda place: _touched(points[place]))
    for touched, group in groupby(in_turn, key=lambda place: _touched(points[place])):
        places, space = tuple(group), watching.space
        layers = [space[name] for name in touched] if len(places) > 1 else []
        readers = first_readers(layers, space.graph)
        needed = numbers(readers, space.graph) * sum(len(it) * it.element_size() for it in batches)
        if readers and needed <= memory:
            growing = sorted(places, key=lambda place: _kept(points[place], readers))
            if are_nested(readers, [points[place] for place in growing]):
                yield growing, readers
                continue
        yield places, ()


def thinned(
    removed: Removed,
    watching: TracedObserver,
    off: Off | None = None,
    readers: Sequence[FirstReader] = (),
) -> Thin:
    """Get ready to run a network without some units.

    Where a whole layer is off, or the forward pass cannot be given the numbers of what is left,
    units are switched off instead, and every operation runs at its whole size. Sums at `readers`
    are left to be shared with other networks, where this one has such sums.

    Raises
    ------
    UnitError, PlanError
        A layer is not in the network, holds its outputs, or has not these units.
    """
    gone = _checked(removed, watching.space)
    if not gone:
        return _whole(watching.runner, {})
    widths = {name: watching.space[name].width for name in gone}
    keep = {name: _others(units, widths[name]) for name, units in gone.items()}
    if all(keep.values()):
        try:
            return _cut(Plan(keep, widths), watching, off, readers)
        except CondenseError:
            pass
    return _whole(*switched(gone, watching, off))


def _checked(removed: Removed, space: UnitSpace) -> Removed:
    """Leave out the layers that lose nothing, and refuse what cannot be off."""
    for name, units in removed.items():
        layer = space[name]
        if layer.name != name:
            raise PlanError(
                f"the units of layer {name!r} are tied to those of {layer.name!r}: name "
                f"{layer.name!r}, which stands for {', '.join(layer.members)}"
            )
        if layer.is_output and len(units):
            raise PlanError(
                f"the units of layer {name!r} are the network's outputs, its classes: none of "
                "them can be off. Leave the layer out"
            )
        outside = [it for it in units if whole(it) not in range(layer.width)]
        if outside:
            raise PlanError(
                f"layer {name!r} has no unit {outside[0]}, only 0 to {layer.width - 1}: what is "
                "to be off was chosen for another network"
            )
    return {name: tuple(map(int, units)) for name, units in removed.items() if len(units)}


class _Prefix:
    """What all examples give at some places of the whole network, kept if there is room."""

    def __init__(
        self, names: tuple[str, ...], runner: Runner, batches: Sequence[Tensor], memory: int
    ) -> None:
        self.names = names
        self._batches = batches
        needed = runner.graph.needed_for(names)
        self._program = runner.program(needed, names)
        self._input = runner.graph.input
        self._memory = memory
        self._kept: list[dict[str, Tensor]] | None = []

    def results(self) -> Iterator[tuple[dict[str, Tensor], int]]:
        """Yield batch by batch what is there, and how many examples it is of."""
        if self._kept:
            yield from zip(self._kept, map(len, self._batches), strict=True)
            return
        size = 0
        for inputs in self._batches:
            found = self._program.run({self._input: inputs}, len(inputs))
            size += sum(it.nbytes for it in leaves(found) if isinstance(it, Tensor))
            if self._kept is not None:
                self._kept = [*self._kept, found] if size <= self._memory else None
            yield found, len(inputs)
        self._kept = self._kept or []


def _touched(removed: Removed) -> tuple[str, ...]:
    return tuple(sorted(name for name, units in removed.items() if len(units)))


def _kept(removed: Removed, readers: Sequence[FirstReader]) -> int:
    return sum(int(it.left(removed).sum()) for it in readers)


def _others(units: Sequence[int], width: int) -> tuple[int, ...]:
    gone = set(units)
    return tuple(unit for unit in range(width) if unit not in gone)


def _cut(
    plan: Plan,
    watching: TracedObserver,
    off: Off | None,
    readers: Sequence[FirstReader],
) -> Thin:
    """Cut weights, make up for what is gone, and run what hangs on them."""
    space, runner, model = watching.space, watching.runner, watching.model
    cuts, gone = cuts_for(plan, space, model), gone_classes(plan, space)
    added = compensation(plan, space, off or _zeros(plan.keep, watching), runner, model, gone)
    before = {**space.graph.constants, **named_tensors(model)}
    biases = tuple(name for name in added.shifts if name not in before)
    narrowing = Narrowing(space.coupling, gone, before, frozenset((*biases, *added.made)))
    graph = narrowed_graph(narrowing, biases)
    device = next(iter(runner.tensors.values())).device
    made = {name: it.detach().to(device) for name, it in {**graph.constants, **added.made}.items()}
    tensors = {
        **runner.tensors,
        **changed_tensors(runner.tensors, cuts, added.shifts),
        **made,
    }
    touched = {*(cut.tensor for cut in cuts), *added.shifts, *added.made}
    changed = _changed(graph, space.graph, touched)
    removed = {name: plan.removed(name) for name in plan.keep}
    sums = partial_sums(readers, removed, graph, runner.tensors, tensors, cuts)
    known = {it.reader.operation.name for it in sums}
    needed = {operation.name for operation in graph.needed_for((graph.output,), known=known)}
    left = tuple(operation for operation in changed if operation.name in needed)
    begin = {name for operation in left for name in operation.refs}
    begin = begin - known - {operation.name for operation in left}
    start = tuple(sorted(begin.union(it.reader.read for it in sums)))
    operations, running = lowered(left, Runner(graph, tensors))
    program = running.program(operations, (graph.output,))
    return Thin(program, start, {}, graph.output, sums)


def _zeros(layers: Iterable[str], watching: TracedObserver) -> Off:
    return {
        name: tuple(
            torch.zeros(len(read.units), dtype=torch.float64) for read in watching.space[name].reads
        )
        for name in layers
    }


def _changed(graph: Graph, whole: Graph, cut: set[str]) -> tuple[Operation, ...]:
    """Find the operations whose results are not those of the whole network."""
    found: dict[str, Operation] = {}
    for operation in graph.operations:
        is_same = whole.by_name.get(operation.name) == operation
        touched = cut.intersection(operation.weights) or found.keys() & set(operation.refs)
        if touched or not is_same:
            found[operation.name] = operation
    return tuple(found.values())


def switched(
    removed: Removed, watching: TracedObserver, off: Off | None = None
) -> tuple[Runner, dict[str, Tensor]]:
    """Switch units off wherever they are read; nothing is cut.

    Returns
    -------
    tuple
        The forward pass with switches, and the results by name that it needs beside the input.

    Raises
    ------
    UnitError, PlanError
        As for `thinned`.
    """
    space = watching.space
    gone = _checked(removed, space)
    layers = [space[name] for name in gone]
    return switched_off(watching.runner, layers, gone, off or _zeros(gone, watching))


def _whole(runner: Runner, given: Mapping[str, Tensor]) -> Thin:
    graph = runner.graph
    operations, running = lowered(graph.needed_for((graph.output,), known=tuple(given)), runner)
    program = running.program(operations, (graph.output,))
    return Thin(program, (graph.input,), given, graph.output)
