"""How the loss changes as units fade: derivatives with respect to all units, in one pass.

Think of every read of a unit as ``off + m (h - off)`` with m = 1. Then d loss / d m of an example
is ``sum of g (h - off)`` over the unit's places, with g the gradient of the example's loss there:
``sum of g h - off * sum of g``. Both sums are kept example by example, so that a mean, which is
known only when all examples have been seen, needs no pass of its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from neurank.observe.examples import Examples
from neurank.observe.execution import Runner
from neurank.observe.removal import (
    Gathered,
    Place,
    Position,
    Removal,
    gathering,
    is_before,
    statistic_of,
    statistics,
)
from neurank.observe.taps import Seen, Tap, Tapped, seen, tapped
from neurank.units.space import UnitSpace


@dataclass(frozen=True)
class Slopes:
    """Sums over the examples of each class of one layer, float64.

    Attributes
    ----------
    examples : (classes,), how many.
    sizes : (classes, units), the sum of |d loss / d m|.
    squares : (classes, units), the sum of their squares.
    """

    examples: Tensor
    sizes: Tensor
    squares: Tensor


def slopes(
    names: Iterable[str],
    runner: Runner,
    space: UnitSpace,
    examples: Examples,
    removal: Removal,
    classes: int,
    memory: int,
) -> Mapping[str, Slopes]:
    """Compute the slopes of all layers in one pass over the data.

    Means are taken in the same pass; medians and extremes in one before it.

    Parameters
    ----------
    names : the layers whose units fade.
    runner, space : the network.
    examples : the data; the loss is the cross-entropy of the logits.
    removal : what is received for a unit that has faded.
    classes : number of logits.
    memory : about how many bytes the results of a forward pass may take.

    Raises
    ------
    ModelError
        If a slope is NaN or infinite.
    """
    at: Position = "pre" if is_before(removal) else "post"
    tapping = tapped(space, names, runner, examples, at)
    sums = Sums.of(tapping, removal, runner, examples)
    targets = []
    for piece in seen(tapping, examples, memory):
        sums.add(piece)
        targets.append(piece.targets.cpu())
    labels = torch.cat(targets)
    return {
        name: _by_class(sums.slopes(name, space[name].width), labels, classes) for name in names
    }


@dataclass(frozen=True)
class Sums:
    """The two sums of each example at each tap, and the statistic that units are replaced by.

    Attributes
    ----------
    taps : where.
    constants : the statistic by key, gathered here if it is a mean; None where units become 0.
    gathers : whether it is gathered here.
    products : for each tap, pieces of ``sum of g h``, (examples, entries).
    gradients : for each tap, pieces of ``sum of g``.
    """

    taps: tuple[Tap, ...]
    constants: Mapping[str, Gathered] | None
    gathers: bool
    products: list[list[Tensor]]
    gradients: list[list[Tensor]]

    @classmethod
    def of(cls, tapping: Tapped, removal: Removal, runner: Runner, examples: Examples) -> "Sums":
        """Begin, with the statistic that units are replaced by at the taps."""
        statistic = statistic_of(removal)
        constants: Mapping[str, Gathered] | None = None
        if statistic == "mean":
            constants = {tap.key: gathering("mean") for tap in tapping.taps}
        elif statistic is not None:
            places = tuple(
                dict.fromkeys(Place(tap.key, tap.tensor, axis=tap.axis) for tap in tapping.taps)
            )
            constants = statistics(statistic, places, runner, examples)
        empty: list[list[Tensor]] = [[] for _ in tapping.taps]
        return cls(tapping.taps, constants, statistic == "mean", empty, [[] for _ in tapping.taps])

    def add(self, piece: Seen) -> None:
        """Take what a piece of the data showed."""
        gathered: set[tuple[str, str, int]] = set()
        count = len(piece.targets)
        for place, tap in enumerate(self.taps):
            value, gradient = piece.values[tap.name], piece.gradients[tap.name]
            self.products[place].append(tap.by_example(value * gradient, count))
            if self.constants is None:
                continue
            self.gradients[place].append(tap.by_example(gradient, count))
            where = (tap.key, tap.tensor, tap.axis)
            if self.gathers and where not in gathered:
                gathered.add(where)
                self.constants[tap.key].add(value.movedim(tap.axis, 0))

    def slopes(self, layer: str, width: int) -> Tensor:
        """Compute d loss / d m of each example and unit of a layer, (examples, units), float64."""
        total = torch.zeros(0)
        for place, tap in enumerate(self.taps):
            if tap.layer != layer:
                continue
            by_entry = torch.cat(self.products[place]).to(torch.float64)
            if self.constants is not None:
                off = self.constants[tap.key].pooled(tap.cells)
                by_entry -= off * torch.cat(self.gradients[place]).to(torch.float64)
            found = by_unit(by_entry, tap.units, width)
            total = found if not len(total) else total + found
        return total.cpu()


def by_unit(by_entry: Tensor, units: tuple[int, ...], width: int) -> Tensor:
    """Sum over the entries of each unit, (examples, units)."""
    if units == tuple(range(width)):
        return by_entry
    index = torch.tensor(units, device=by_entry.device)
    own = index >= 0
    start = by_entry.new_zeros(len(by_entry), width)
    return start.index_add(1, index[own], by_entry[:, own])


def _by_class(values: Tensor, targets: Tensor, classes: int) -> Slopes:
    empty = torch.zeros(classes, values.shape[1], dtype=torch.float64)
    return Slopes(
        torch.zeros(classes).index_add(0, targets, torch.ones(len(targets))),
        empty.index_add(0, targets, values.abs()),
        empty.index_add(0, targets, values.square()),
    )
