"""Networks without some of their units, run as operations: for sweeps over many of them.

Nothing is copied but the tensors that are cut, no module is built, and what the removed units do
not touch is computed once for all networks that share it. The results are those of masked networks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neurank.condense.compensate import compensation
from neurank.condense.given import whole
from neurank.condense.kept import Plan
from neurank.condense.narrowed import Narrowing, narrowed_graph
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
    """

    program: Program
    start: tuple[str, ...]
    given: Mapping[str, Tensor]
    output: str

    def logits(self, start: Mapping[str, Tensor], examples: int) -> Tensor:
        """Run on some examples, (examples, classes)."""
        found: Tensor = self.program.run({**self.given, **start}, examples)[self.output]
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
    results are kept for them if they fit into memory.

    Parameters
    ----------
    points : for each run, which units are off; all of a layer may be.
    watching : the network, in evaluation mode.
    batches : inputs, some examples each.
    off : what is received for units that are off; None is 0.
    memory : how many bytes the results of the whole network may take.

    Yields
    ------
    tuple
        The place of a point, each once but in any order, and its logits, (examples, classes).
    """
    in_turn = sorted(range(len(points)), key=lambda place: _touched(points[place]))
    prefix: _Prefix | None = None
    for place in in_turn:
        thin = thinned(points[place], watching, off)
        if prefix is None or prefix.names != thin.start:
            prefix = _Prefix(thin.start, watching.runner, batches, memory)
        with torch.inference_mode():
            parts = [thin.logits(found, count) for found, count in prefix.results()]
        yield place, torch.cat(parts)


def thinned(removed: Removed, watching: TracedObserver, off: Off | None = None) -> Thin:
    """Get ready to run a network without some units.

    Where a whole layer is off, or the forward pass cannot be given the numbers of what is left,
    units are switched off instead, and every operation runs at its whole size.

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
            return _cut(Plan(keep, widths), watching, off)
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


def _others(units: Sequence[int], width: int) -> tuple[int, ...]:
    gone = set(units)
    return tuple(unit for unit in range(width) if unit not in gone)


def _cut(plan: Plan, watching: TracedObserver, off: Off | None) -> Thin:
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
    begin = {name for operation in changed for name in operation.refs}
    start = tuple(sorted(begin - {operation.name for operation in changed}))
    operations, running = lowered(changed, Runner(graph, tensors))
    return Thin(running.program(operations, (graph.output,)), start, {}, graph.output)


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
