"""What budgets are measured by: the accuracy of masked networks, and the time of condensed ones."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neurank.condense.condensed import carried_out
from neurank.condense.kept import Plan
from neurank.modes import evaluating
from neurank.observe.door import device_of
from neurank.observe.examples import Batch
from neurank.observe.execution import Runner
from neurank.observe.masking import masked, off_tensors, on_name
from neurank.observe.observer import MEMORY, TracedObserver, observe
from neurank.observe.removal import Removal, off_constants
from neurank.observe.value import Accuracy
from neurank.units.graph import Operation

REPEATS, LEAST_SECONDS, WARM_UP = 9, 0.2, 2
"""A network is timed so often at least, and for so long; runs before that do not count."""

Kept = Mapping[str, Sequence[int]]
"""Layer name to the units that are on; other layers are whole."""


def watched(
    model: nn.Module, data: Iterable[Batch], *, progress: bool, any_output: bool = False
) -> TracedObserver:
    """Check model and data at the door, and trace the model, which is in evaluation mode."""
    watching = observe(
        model,
        data,
        value=Accuracy(),
        removal="zero",
        seed=0,
        device=device_of(model),
        progress=progress,
        any_output=any_output,
    )
    assert isinstance(watching, TracedObserver)  # only removal="parameters" goes without a trace
    return watching


class MaskedAccuracy:
    """Counts the examples that the network gets right with units of several layers off.

    What does not hang on the units that are varied is computed once and kept, if it fits.

    Parameters
    ----------
    watching : the network and the data.
    removal : what off means.
    layers : names of the layers whose units may be off.
    memory : how many bytes may be kept.
    """

    def __init__(
        self,
        watching: TracedObserver,
        removal: Removal,
        layers: Sequence[str],
        memory: int = MEMORY,
    ) -> None:
        self.evaluations = 0
        self._watching = watching
        self._memory = memory
        self._layers = [watching.space[layer] for layer in layers]
        off = off_constants(removal, self._layers, watching.runner, watching.examples)
        tensors = dict(watching.runner.tensors)
        for layer in self._layers:
            tensors.update(off_tensors(layer, off[layer.name]))
        self._runner = Runner(masked(watching.space.graph, self._layers), tensors)

    @property
    def examples(self) -> int:
        """The number of examples."""
        return self._watching.examples.count

    def varying(self, layers: Sequence[str], others: Kept) -> Callable[[Kept], int]:
        """Return a function that counts right answers when units of some layers vary.

        Parameters
        ----------
        layers : the layers whose units will vary.
        others : which units of the other layers are on, now and then.
        """
        rerun = _rerun(self._runner, [on_name(self._watching.space[it]) for it in layers])
        kept = _Kept(self, rerun, others)

        def correct(units: Kept) -> int:
            self.evaluations += 1
            return kept.correct({**others, **units})

        return correct

    def switches(self, kept: Kept) -> dict[str, Tensor]:
        """Return for each layer which units are on, (1, units) bool, by the name it is read by."""
        found = {}
        for layer in self._layers:
            on = torch.ones(1, layer.width, dtype=torch.bool)
            if layer.name in kept:
                on[:] = False
                on[:, list(kept[layer.name])] = True
            found[on_name(layer)] = on.to(self._watching.examples.device)
        return found

    def side(self, rerun: "_Rerun", others: Kept) -> list[tuple[dict[str, Any], Tensor]] | None:
        """Compute for every batch what need not be run again; None if that is too much to keep."""
        kept = []
        size = 0
        with torch.inference_mode():
            for inputs, targets in self._watching.examples:
                known = {self._runner.graph.input: inputs, **self.switches(others)}
                found = self._runner.run(rerun.before, known, len(inputs), rerun.side)
                kept.append((found, targets))
                size += sum(map(_bytes, found.values()))
                if size > self._memory:
                    return None
        return kept

    def whole(self, rerun: "_Rerun", units: Kept) -> int:
        """Run everything, and count right answers."""
        right = 0
        operations = (*rerun.before, *rerun.after)
        with torch.inference_mode():
            for inputs, targets in self._watching.examples:
                known = {self._runner.graph.input: inputs, **self.switches(units)}
                right += self._right(operations, known, targets)
        return right

    def rest(
        self, rerun: "_Rerun", side: Sequence[tuple[dict[str, Any], Tensor]], units: Kept
    ) -> int:
        """Run what hangs on the units that vary, and count right answers."""
        switches = self.switches(units)
        with torch.inference_mode():
            return sum(
                self._right(rerun.after, {**found, **switches}, targets) for found, targets in side
            )

    def _right(
        self, operations: Sequence[Operation], known: Mapping[str, Any], targets: Tensor
    ) -> int:
        output = self._runner.graph.output
        logits = self._runner.run(operations, known, len(targets), (output,))[output]
        return int((logits.argmax(dim=1) == targets).sum())


@dataclass(frozen=True)
class _Rerun:
    """The forward pass in two parts.

    Attributes
    ----------
    before : what does not hang on the switches that vary.
    side : its results that are read afterwards.
    after : what does.
    """

    before: tuple[Operation, ...]
    side: tuple[str, ...]
    after: tuple[Operation, ...]


def _rerun(runner: Runner, switches: Sequence[str]) -> _Rerun:
    graph = runner.graph
    again = {operation.name for name in switches for operation in graph.below(name)}
    after = tuple(it for it in graph.needed_for((graph.output,)) if it.name in again)
    made = {graph.input, *(it.name for it in graph.operations)}
    side = {name for it in after for name in it.refs if name in made and name not in again}
    return _Rerun(graph.needed_for(tuple(side)), tuple(sorted(side)), after)


class _Kept:
    """One splitting of the forward pass, and what was computed of its first part."""

    def __init__(self, accuracy: MaskedAccuracy, rerun: _Rerun, others: Kept) -> None:
        self._accuracy = accuracy
        self._rerun = rerun
        self._side = accuracy.side(rerun, others)

    def correct(self, units: Kept) -> int:
        if self._side is None:
            return self._accuracy.whole(self._rerun, units)
        return self._accuracy.rest(self._rerun, self._side, units)


def _bytes(found: Any) -> int:
    if isinstance(found, tuple | list):
        return sum(map(_bytes, found))
    return found.numel() * found.element_size() if isinstance(found, Tensor) else 0


def latency_of(plan: Plan, watching: TracedObserver, removal: Removal) -> float:
    """Condense, and return the median of the seconds that the first batch takes."""
    inputs, _ = next(iter(watching.examples))
    return seconds_of(carried_out(plan, watching, removal).model, inputs)


def seconds_of(model: nn.Module, inputs: Tensor) -> float:
    """Return the median of the seconds that some inputs take, in evaluation mode."""
    times: list[float] = []
    on_device = inputs.device.type == "cuda"
    with evaluating(model), torch.inference_mode():
        for _ in range(WARM_UP):
            model(inputs)
        while len(times) < REPEATS or sum(times) < LEAST_SECONDS:
            started = time.perf_counter()
            model(inputs)
            if on_device:
                torch.cuda.synchronize(inputs.device)
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def farthest(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return a number that holds though the next one does not, in strides that double, then halve.

    Parameters
    ----------
    low : a number that is known to hold.
    high : the largest number to ask for.
    holds : what is asked.

    Examples
    --------
    >>> farthest(0, 100, lambda number: number <= 37), farthest(0, 9, lambda number: True)
    (37, 9)
    """
    stride = 1
    while low < high and holds(min(low + stride, high)):
        low, stride = min(low + stride, high), stride * 2
    beyond = min(low + stride, high + 1)
    while beyond - low > 1:
        middle = (low + beyond) // 2
        low, beyond = (middle, beyond) if holds(middle) else (low, middle)
    return low


def last_of(count: int, holds: Callable[[int], bool]) -> int:
    """Return a number below `count` that holds though the next one does not, by bisection.

    0 is taken to hold.

    Examples
    --------
    >>> last_of(100, lambda number: number <= 37), last_of(5, lambda number: True)
    (37, 4)
    """
    low, beyond = 0, count
    while beyond - low > 1:
        middle = (low + beyond) // 2
        low, beyond = (middle, beyond) if holds(middle) else (low, middle)
    return low
