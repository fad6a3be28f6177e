"""In what order units go: every layer is a ladder of widths, and the least worthy step is next."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neurank.condense.choosing import best_units
from neurank.condense.kept import Plan
from neurank.condense.limits import Rules
from neurank.condense.unit_costs import Costs, Integers
from neurank.errors import PlanError
from neurank.files import Json
from neurank.ranking import Ranking
from neurank.units.space import UnitSpace

Reals = NDArray[np.float64]

Across = Literal["share", "score", "rank", "share per cost", "score per cost"]
"""How the scores of different layers are compared, see `neurank.condense.plan.plan`."""

ACROSS: Mapping[Across, tuple[str, bool]] = {
    "score": ("score", False),
    "share": ("share", False),
    "rank": ("rank", False),
    "score per cost": ("score", True),
    "share per cost": ("share", True),
}
"""What a unit is worth, and whether that is divided by what its removal saves."""


@dataclass(frozen=True)
class Ladder:
    """The widths that a layer may have, as rungs from the whole width down.

    Attributes
    ----------
    layer : its name.
    order : its units, best first, after those that its tensors need.
    widths : (rungs,), strictly falling.
    worth : (rungs - 1,), the mean worth of the units that go from one rung to the next.
    taken : (rungs, axes + 1), entries that are gone at each rung.
    """

    layer: str
    order: tuple[int, ...]
    widths: tuple[int, ...]
    worth: Reals
    taken: Integers

    def kept(self, rung: int) -> tuple[int, ...]:
        """Return the units that are kept at a rung, ascending."""
        return tuple(sorted(self.order[: self.widths[rung]]))


Rungs = tuple[int, ...]
"""How far every layer has come down."""


@dataclass(frozen=True)
class Descent:
    """The ladders of all layers, and how to come down them.

    Attributes
    ----------
    ladders : one per layer that may lose units.
    costs : of the network.
    per_cost : whether what is worth least per cost goes first, not what is worth least.
    """

    ladders: tuple[Ladder, ...]
    costs: Costs
    per_cost: bool

    @property
    def top(self) -> Rungs:
        """Every layer whole."""
        return (0,) * len(self.ladders)

    @cached_property
    def whole(self) -> dict[str, int]:
        """What the whole network costs."""
        return self.cost(self.top)

    def lengths(self, rungs: Rungs) -> Integers:
        """Return what is left of every axis, (axes + 1,)."""
        gone = [ladder.taken[rung] for ladder, rung in zip(self.ladders, rungs, strict=True)]
        left: Integers = self.costs.lengths - np.sum(gone, axis=0, dtype=np.int64)
        return left

    def cost(self, rungs: Rungs) -> dict[str, int]:
        """Return parameters and multiply-adds."""
        lengths = self.lengths(rungs)
        return {name: int(terms.of(lengths)) for name, terms in self.costs.terms.items()}

    def can_stand(self, rungs: Rungs) -> bool:
        """Whether every tensor keeps something: members of a tie may run empty one by one."""
        return bool((self.lengths(rungs) > 0).all())

    def down(self, start: Rungs, bounds: Mapping[str, float]) -> Iterator[Rungs]:
        """Come down one rung after another, to the bottom, beginning with `start`.

        Parameters
        ----------
        start : where to begin.
        bounds : by name of a cost, what it should fall to; while one of them is above its bound,
            savings count for those that are, and afterwards for all of them.
        """
        rungs, lengths = start, self.lengths(start)
        yield rungs
        while True:
            steps = self._steps(rungs, -1)
            after = lengths - np.array([it for _, it in steps]).reshape(-1, len(lengths))
            open_ = [place for place, left in enumerate(after) if (left > 0).all()]
            if not open_:
                return
            counted = self._counted(lengths, bounds)
            worth = [self.ladders[steps[place][0]].worth[rungs[steps[place][0]]] for place in open_]
            saved = self._saved(lengths, after[open_], counted)
            best = open_[int(np.argmin(self._priority(np.array(worth), saved)))]
            rungs = _moved(rungs, steps[best][0], 1)
            lengths = after[best]
            yield rungs

    def up(self, rungs: Rungs, bounds: Mapping[str, float]) -> Rungs:
        """Go back up, what is worth most first, as long as every cost is within its bound."""
        while True:
            lengths = self.lengths(rungs)
            fitting = []
            for place, given in self._steps(rungs, +1):
                left = lengths + given
                if all(self.costs.terms[it].of(left) <= bound for it, bound in bounds.items()):
                    worth = self.ladders[place].worth[rungs[place] - 1]
                    saved = self._saved(left, lengths[None], tuple(bounds))
                    priority = self._priority(np.array([worth]), saved)[0]
                    fitting.append((priority, -place))
            if not fitting:
                return rungs
            rungs = _moved(rungs, -max(fitting)[1], -1)

    def _steps(self, rungs: Rungs, direction: int) -> list[tuple[int, Integers]]:
        """For each layer that can go on: its number, and the entries of the next rung."""
        found = []
        for place, (ladder, rung) in enumerate(zip(self.ladders, rungs, strict=True)):
            other = rung - direction
            if 0 <= other < len(ladder.widths):
                found.append((place, np.abs(ladder.taken[other] - ladder.taken[rung])))
        return found

    def _counted(self, lengths: Integers, bounds: Mapping[str, float]) -> tuple[str, ...]:
        above = [it for it, bound in bounds.items() if self.costs.terms[it].of(lengths) > bound]
        return tuple(above or bounds)

    def _saved(self, before: Integers, after: Integers, counted: Sequence[str]) -> Reals:
        """Return what each of some steps saves, as shares of the whole network's costs, added."""
        terms = [(self.costs.terms[it], self.whole[it]) for it in counted]
        saved: Reals = np.sum(
            [(term.of(before) - term.of(after)) / max(whole, 1) for term, whole in terms], axis=0
        )
        return saved

    def _priority(self, worth: Reals, saved: Reals) -> Reals:
        """Return numbers the lowest of which goes first; harmful units go before all others."""
        if not self.per_cost:
            return worth
        with np.errstate(divide="ignore", invalid="ignore"):
            per_cost = np.where(worth > 0, worth / saved, np.where(worth < 0, worth * saved, 0.0))
        return np.where(saved > 0, per_cost, np.inf)

    def plan(self, rungs: Rungs, source: Mapping[str, Json]) -> Plan:
        """Return the plan that stops at these rungs."""
        keep = {
            ladder.layer: ladder.kept(rung)
            for ladder, rung in zip(self.ladders, rungs, strict=True)
        }
        return Plan(keep, {it.layer: it.widths[0] for it in self.ladders}, source)


def _moved(rungs: Rungs, place: int, by: int) -> Rungs:
    return (*rungs[:place], rungs[place] + by, *rungs[place + 1 :])


def descent(
    ranking: Ranking, space: UnitSpace, costs: Costs, rules: Rules, across: Across
) -> Descent:
    """Set up the ladders of the layers of a ranking that may lose units.

    Raises
    ------
    PlanError
        A layer has another width or name in the network, its scores are undefined, or no layer
        may lose units.
    """
    kind, per_cost = ACROSS[across]
    ladders = tuple(
        _ladder(ranking, layer, costs, rules, kind, per_cost)
        for layer in rules.layers(ranking)
        if _can_lose(ranking, layer, space)
    )
    if not ladders:
        raise PlanError(
            f"no layer of the ranking may lose units: it has {', '.join(ranking)}; rank hidden "
            "layers, and leave one out of ignored"
        )
    return Descent(ladders, costs, per_cost)


def _can_lose(ranking: Ranking, name: str, space: UnitSpace) -> bool:
    layer = space[name]
    if layer.name != name or layer.width != ranking[name].units:
        raise PlanError(
            f"the ranking has {ranking[name].units} units of layer {name!r}, the network "
            f"{layer.width} of {layer.name!r}: rank the network that is to be condensed"
        )
    return not layer.is_output


def _ladder(
    ranking: Ranking, layer: str, costs: Costs, rules: Rules, kind: str, per_cost: bool
) -> Ladder:
    order = _last_first(best_units(ranking, layer), layer, costs)
    widths = rules.widths(layer, len(order))
    taken = costs.taken[layer][list(order)].cumsum(axis=0)
    taken = np.concatenate([np.zeros_like(taken[:1]), taken])
    worth = _worth(ranking[layer].scores.numpy()[list(order)], kind)
    between = [
        worth[low:high].sum() if per_cost else worth[low:high].mean()
        for high, low in pairwise(widths)
    ]
    return Ladder(
        layer,
        order,
        widths,
        np.array(between, np.float64),
        taken[-1] - taken[list(widths)],
    )


def _last_first(order: tuple[int, ...], layer: str, costs: Costs) -> tuple[int, ...]:
    """Move those units to the front without which a tensor would run empty.

    Of a layer by itself that is the best unit. Where layers are tied in part, each has tensors
    that know some of the units only: of those the best one stays.
    """
    taken = costs.taken[layer]
    own = np.flatnonzero((taken.sum(axis=0) == costs.lengths) & (taken.sum(axis=0) > 0))
    needed: list[int] = []
    for knows in sorted(([it for it in order if taken[it, axis]] for axis in own), key=len):
        if not set(knows) & set(needed):  # one that few know may serve those that many do
            needed.append(knows[0])
    return (*(it for it in order if it in needed), *(it for it in order if it not in needed))


def _worth(scores: Reals, kind: str) -> Reals:
    """Make the scores of a layer, best first, comparable with those of others, (units,)."""
    if kind == "rank":
        return np.arange(len(scores), 0, -1) / len(scores)
    if kind == "share":
        left = np.abs(scores).cumsum()
        shares: Reals = np.divide(scores, left, out=np.zeros_like(scores), where=left > 0)
        return shares
    return np.asarray(scores, np.float64)
