"""Residual pruning: units that have nothing left to read once others are gone.

The paper calls a filter residually pruned if its "input becomes 0 on average" after the direct
step (section 3.1.1, Figure 4). What a unit reads is taken here as the mean absolute input that it
weighs, ``a_i = sum over c of |W_ic| mean |x_c|`` with |W_ic| summed over the kernel and the mean
over examples and positions. A unit goes if a_i is at most a threshold times what it is in the whole
network. At a threshold of 0, to the letter, that takes all that a unit reads to be gone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neurank.classes.selection import Selection, refuse_other_network
from neurank.condense.thinned import switched
from neurank.condense.trials import watched
from neurank.errors import DataError, MethodError
from neurank.modes import evaluating, threads_as_torch
from neurank.observe.examples import Batch
from neurank.observe.execution import Runner, weight_and_bias
from neurank.observe.observer import TracedObserver
from neurank.progress import reporting
from neurank.units.graph import Operation, Ref, Weight
from neurank.units.rules import CONVOLUTIONS


@dataclass(frozen=True, eq=False)
class Residual:
    """What goes of each layer, directly and as a consequence.

    Attributes
    ----------
    selection : the direct step.
    threshold : the share of its mean absolute input at which a unit counts as having none.
    residual : layer name to (units,) bool, the units that the direct step keeps and that go.
    left : layer name to (units,), the share of its mean absolute input that each unit has left
        after both steps; 1 where it reads what no layer can lose.
    """

    selection: Selection
    threshold: float
    residual: Mapping[str, Tensor]
    left: Mapping[str, Tensor]

    @property
    def shares(self) -> dict[str, tuple[float, float]]:
        """By layer, the share of units that goes directly, and residually: Figure 4."""
        return {
            name: (
                float((~kept).to(torch.float64).mean()),
                float(self.residual[name].to(torch.float64).mean()),
            )
            for name, kept in self.selection.kept.items()
        }


def residual_pruning(
    model: nn.Module,
    data: Iterable[Batch],
    selections: Sequence[Selection],
    *,
    threshold: float = 0.0,
    progress: bool = True,
) -> tuple[Residual, ...]:
    """Find the units that have nothing left to read after each direct step, layer by layer.

    A layer's residual units are off when the layers behind it are looked at. Each selection is
    looked at on the pictures of its own class.

    Parameters
    ----------
    model
        The network; it comes back as it was.
    data
        Pictures of all classes that `selections` are for; held in memory.
    selections
        The direct steps.
    threshold
        The share of its mean absolute input in the whole network, 0 to below 1, at or below which a
        unit counts as having no input.
    progress
        Show a bar on a terminal.

    Raises
    ------
    MethodError
        The threshold is out of range.
    DataError
        A class has no pictures.
    PlanError, UnitError
        A selection is for another network.

    Examples
    --------
    >>> import neurank as nr
    >>> model, digits = nr.zoo.digits_net(seed=0), nr.data.load("digits").validation
    >>> responses = nr.rank(model, digits, nr.ClassResponse(), progress=False)
    >>> direct = nr.classes.select(responses, 3, "NWP-50")
    >>> (found,) = residual_pruning(model, digits, [direct], progress=False)
    >>> sorted(found.shares) == sorted(direct.kept)
    True
    """
    if isinstance(threshold, bool) or not 0 <= threshold < 1:
        raise MethodError(f"threshold={threshold!r} is no share of an input: give 0 to below 1")
    found = []
    with evaluating(model), threads_as_torch(), torch.inference_mode():
        watching = watched(model, data, progress=progress)
        refuse_other_network(selections, watching.space)
        parts = list(watching.examples)
        inputs, targets = (torch.cat(it) for it in zip(*parts, strict=True))
        size = max(watching.examples.sizes)
        whole: dict[int, Mapping[str, Tensor]] = {}
        with reporting("residual pruning", len(selections), show=progress) as advance:
            for selection in selections:
                own = inputs[targets == selection.label]
                if not len(own):
                    raise DataError(
                        f"class {selection.label} has no pictures in the data, so nothing is known "
                        "of what its units read: give some, or leave the class out"
                    )
                reading = _Reading(watching, torch.split(own, size))
                if selection.label not in whole:
                    whole[selection.label] = reading.inputs({})
                found.append(_settled(selection, reading, whole[selection.label], threshold))
                advance("")
    return tuple(found)


def _settled(
    selection: Selection, reading: "_Reading", whole: Mapping[str, Tensor], threshold: float
) -> Residual:
    """Go on until no layer loses more; those in front first, for they take input from the rest."""
    gone = {name: ~kept for name, kept in selection.kept.items()}
    residual = {name: torch.zeros_like(off) for name, off in gone.items()}
    while True:
        now = reading.inputs({name: gone[name] | residual[name] for name in gone})
        left = {name: _share(now[name], whole[name]) for name in gone}
        for name, off in gone.items():
            fresh = (left[name] <= threshold) & ~off & ~residual[name]
            if bool(fresh.any()):
                residual[name] = residual[name] | fresh
                break
        else:
            return Residual(selection, threshold, residual, left)


def _share(now: Tensor, whole: Tensor) -> Tensor:
    """Return what is left of an input; all of it where there was none."""
    return torch.where(whole > 0, now / whole, torch.ones_like(whole))


@dataclass(frozen=True)
class _Reading:
    """What the units of a network read of some examples."""

    watching: TracedObserver
    batches: Sequence[Tensor]

    def inputs(self, off: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the mean absolute input of each unit of each layer, some units being off."""
        space, runner = self.watching.space, self.watching.runner
        removed = {name: torch.nonzero(it)[:, 0].tolist() for name, it in off.items()}
        running, given = switched(removed, self.watching)
        producers = [it for name in space.hidden for it in space[name].producers]
        read = {it.name: _read(running.graph.by_name[it.name]) for it in producers}
        means = self._means(running, given, tuple(dict.fromkeys(read.values())), read, producers)
        found = {}
        for name in space.hidden:
            total = torch.zeros(space[name].width, dtype=torch.float64)
            for at in space.given(name):
                operation = runner.graph.by_name[at.tensor]
                weighed = _weighed(operation, means[read[at.tensor]], runner)
                for entry, unit in enumerate(at.units):
                    if unit >= 0:
                        total[unit] += weighed[entry]
            found[name] = total
        return found

    def _means(
        self,
        running: Runner,
        given: Mapping[str, Tensor],
        names: tuple[str, ...],
        read: Mapping[str, str],
        producers: Sequence[Operation],
    ) -> dict[str, Tensor]:
        """Compute the mean of |x| over examples and positions for each channel that is read."""
        axes = {read[it.name]: 1 if it.kind in CONVOLUTIONS else -1 for it in producers}
        sums: dict[str, Tensor] = {}
        counts = dict.fromkeys(names, 0)
        graph = running.graph
        program = running.program(graph.needed_for(names, known=tuple(given)), names)
        for inputs in self.batches:
            results = program.run({**given, graph.input: inputs}, len(inputs))
            for name in names:
                along = results[name].abs().movedim(axes[name], 0).flatten(1)
                found = along.sum(dim=1).to(torch.float64).cpu()
                sums[name] = sums[name] + found if name in sums else found
                counts[name] += along.shape[1]
        return {name: sums[name] / counts[name] for name in names}


def _read(operation: Operation) -> str:
    source = operation.args[0]
    assert isinstance(source, Ref)
    return source.name


def _weighed(operation: Operation, means: Tensor, runner: Runner) -> Tensor:
    """Weigh the inputs of each row of a producer by the size of its weights."""
    is_stored = isinstance(operation.args[1], Weight)
    if not is_stored or operation.kind not in {*CONVOLUTIONS, "linear"}:
        return means.sum().expand(_rows(operation))
    weight, _ = weight_and_bias(operation, runner)
    sizes = weight.abs().flatten(2).sum(dim=2) if weight.ndim > 2 else weight.abs()
    sizes = sizes.to(torch.float64).cpu()
    groups = len(means) // sizes.shape[1]
    rows = len(sizes) // groups
    parts = zip(sizes.split(rows), means.split(sizes.shape[1]), strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([part @ mean for part, mean in parts])


def _rows(operation: Operation) -> int:
    shape = operation.shape or ()
    found = shape[1] if operation.kind in CONVOLUTIONS else shape[-1]
    assert found is not None
    return found
