"""Plans under budgets: as many units as must go, those of least importance first."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import torch
from torch import nn

from neurank.condense.descent import ACROSS, Across, Descent, Rungs, descent
from neurank.condense.kept import Plan
from neurank.condense.limits import Budgets, Rules
from neurank.condense.trials import (
    MaskedAccuracy,
    farthest,
    last_of,
    latency_of,
    watched,
)
from neurank.condense.unit_costs import costs_of
from neurank.errors import DataError, PlanError
from neurank.files import Json
from neurank.modes import evaluating
from neurank.observe.examples import Batch
from neurank.observe.observer import TracedObserver, model_digest
from neurank.observe.removal import Removal, check_removal
from neurank.progress import reporting
from neurank.ranking import Ranking
from neurank.units.space import UnitSpace, unit_space
from neurank.units.trace import trace

MEASURES = {"max_params": "parameters", "max_macs": "multiply_adds"}
"""Which cost each budget bounds."""
ROUNDS = 3
"""So often, at most, every layer is tried again after the bisection."""


@dataclass(frozen=True)
class Settings:
    """How units are chosen under budgets; see `neurank.condense.plan.plan`."""

    rules: Rules
    across: Across
    removal: Removal
    progress: bool

    def __post_init__(self) -> None:
        if self.across not in ACROSS:
            raise PlanError(
                f"across={self.across!r} is unknown: it is one of {', '.join(map(repr, ACROSS))}"
            )
        check_removal(self.removal)


def fitted(
    ranking: Ranking,
    budgets: Budgets,
    settings: Settings,
    model: nn.Module,
    data: Iterable[Batch],
) -> Plan:
    """Make a plan within budgets; see `neurank.condense.plan.plan`.

    Raises
    ------
    PlanError
        The ranking is of another network, or the budgets cannot be met.
    DataError, ModelError
        Data or model cannot be used.
    """
    _check_same(ranking, model)
    with evaluating(model):
        watching = None
        if {"max_drop", "max_latency"} & set(budgets.given):
            watching = watched(model, data, progress=settings.progress)
        space = _space(model, data) if watching is None else watching.space
        coming = descent(ranking, space, costs_of(space, model), settings.rules, settings.across)
        search = _Search(coming, budgets, settings)
        rungs, measured = search.static() if watching is None else search.measured(watching)
    search.check(rungs)
    source = {
        **ranking.provenance,
        "budget": {
            **budgets.given,
            "across": settings.across,
            **{name: [coming.whole[name], after] for name, after in coming.cost(rungs).items()},
            **measured,
        },
    }
    return coming.plan(rungs, source)


@dataclass(frozen=True)
class _Search:
    """A descent, and the budgets that say how far."""

    coming: Descent
    budgets: Budgets
    settings: Settings

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds of what a plan costs."""
        given = self.budgets.given
        return {MEASURES[it]: bound for it, bound in given.items() if it in MEASURES}

    def holds(self, rungs: Rungs) -> bool:
        """Whether the costs are within their bounds."""
        cost = self.coming.cost(rungs)
        return all(cost[name] <= bound for name, bound in self.bounds.items())

    def check(self, rungs: Rungs) -> None:
        """Refuse what is not within the bounds, and say how small it would have got."""
        cost = self.coming.cost(rungs)
        for name, bound in self.bounds.items():
            if cost[name] > bound:
                within = (
                    "with every layer as narrow as it may be"
                    if self.budgets.max_drop is None
                    else f"within max_drop={self.budgets.max_drop}"
                )
                least = ", ".join(f"{it:,} {word.replace('_', '-')}" for word, it in cost.items())
                raise PlanError(
                    f"the budget of {bound:,} {name.replace('_', '-')} cannot be met: {within}, "
                    f"{least} are left. Ask for no less, or let more units or layers go"
                )

    def static(self) -> tuple[Rungs, dict[str, Json]]:
        """Come down until the costs are within their bounds, then fill up what is to spare."""
        rungs = self.coming.top
        for rungs in self.coming.down(self.coming.top, self.bounds):
            if self.holds(rungs):
                return self.coming.up(rungs, self.bounds), {}
        return rungs, {}

    def measured(self, watching: TracedObserver) -> tuple[Rungs, dict[str, Json]]:
        """Come down as far as measurements say."""
        if self.budgets.max_drop is None:
            return self._within_latency(watching)
        rungs, notes = self._within_drop(watching, self.budgets.max_drop)
        if self.budgets.max_latency is not None:
            seconds = self._seconds(rungs, watching)
            _check_latency(
                seconds, self.budgets.max_latency, f"within max_drop={self.budgets.max_drop}"
            )
            notes["latency"] = _latency_notes(self._seconds(self.coming.top, watching), seconds)
        return rungs, notes

    def _within_drop(
        self, watching: TracedObserver, max_drop: float
    ) -> tuple[Rungs, dict[str, Json]]:
        layers = [ladder.layer for ladder in self.coming.ladders]
        accuracy = MaskedAccuracy(watching, self.settings.removal, layers)
        # The decimal that was written, not its binary neighbour: 0.29 of 100 examples is 29.
        allowed = floor(Fraction(str(max_drop)) * accuracy.examples)
        path = tuple(self.coming.down(self.coming.top, self.bounds or {"parameters": 0}))
        right = accuracy.varying(layers, {})
        before = right({})
        with reporting("measuring", len(path).bit_length(), show=self.settings.progress) as step:

            def holds(rungs: Rungs) -> bool:
                found = right(self._kept(rungs)) >= before - allowed
                step("")
                return found

            rungs = path[last_of(len(path), lambda number: holds(path[number]))]
        bisected = accuracy.evaluations
        rungs = self._refined(rungs, accuracy, before - allowed)
        after = right(self._kept(rungs))
        return rungs, {
            "accuracy": [before / accuracy.examples, after / accuracy.examples],
            "examples": accuracy.examples,
            "evaluations": accuracy.evaluations,
            "of_which_bisection": bisected,
            "removal": self.settings.removal,
        }

    def _refined(self, rungs: Rungs, accuracy: MaskedAccuracy, least: int) -> Rungs:
        """Let single layers come down further, those first in which it saves most."""
        for _ in range(ROUNDS):
            start = rungs
            for place in sorted(range(len(rungs)), key=lambda it: -self._to_save(start, it)):
                rung = self._lowest(rungs, place, accuracy, least)
                rungs = (*rungs[:place], rung, *rungs[place + 1 :])
            if rungs == start:
                break
        return rungs

    def _lowest(self, rungs: Rungs, place: int, accuracy: MaskedAccuracy, least: int) -> int:
        """Return how far one layer can come down while the others stay where they are."""
        ladder = self.coming.ladders[place]
        others = self._kept(rungs)
        del others[ladder.layer]
        right = accuracy.varying([ladder.layer], others)

        def holds(rung: int) -> bool:
            moved = (*rungs[:place], rung, *rungs[place + 1 :])
            return (
                self.coming.can_stand(moved) and right({ladder.layer: ladder.kept(rung)}) >= least
            )

        return farthest(rungs[place], len(ladder.widths) - 1, holds)

    def _to_save(self, rungs: Rungs, place: int) -> int:
        """Return how many parameters the rest of a layer has."""
        bottom = len(self.coming.ladders[place].widths) - 1
        lowered = (*rungs[:place], bottom, *rungs[place + 1 :])
        cost = self.coming.cost
        return cost(rungs)["parameters"] - cost(lowered)["parameters"]

    def _within_latency(self, watching: TracedObserver) -> tuple[Rungs, dict[str, Json]]:
        bound = self.budgets.max_latency
        assert bound is not None
        start = self.static()[0] if self.bounds else self.coming.top
        path = tuple(self.coming.down(start, {"multiply_adds": 0}))
        before = self._seconds(self.coming.top, watching)
        measured = {len(path): self._seconds(path[-1], watching)}
        _check_latency(measured[len(path)], bound, "with every layer as narrow as it may be")

        def too_slow(number: int) -> bool:
            measured[number] = self._seconds(path[number - 1], watching)
            return measured[number] > bound

        # Number 0 stands for what is before the path; the last is known to be fast enough.
        reached = last_of(len(path), too_slow) + 1
        return path[reached - 1], {"latency": _latency_notes(before, measured[reached])}

    def _seconds(self, rungs: Rungs, watching: TracedObserver) -> float:
        plan = self.coming.plan(rungs, {})
        return latency_of(plan, watching, self.settings.removal)

    def _kept(self, rungs: Rungs) -> dict[str, tuple[int, ...]]:
        pairs = zip(self.coming.ladders, rungs, strict=True)
        return {ladder.layer: ladder.kept(rung) for ladder, rung in pairs}


def _check_latency(seconds: float, bound: float, where: str) -> None:
    if seconds > bound:
        raise PlanError(
            f"the budget of {bound:.3g} s cannot be met: {where}, {seconds:.3g} s were measured. "
            "Ask for no less, or let more units or layers go"
        )


def _latency_notes(before: float, after: float) -> dict[str, Json]:
    return {
        "seconds": [before, after],
        "measured": "median of the condensed network's times for the first batch",
        "threads": torch.get_num_threads(),
    }


def _check_same(ranking: Ranking, model: nn.Module) -> None:
    ranked = ranking.provenance.get("model")
    if ranked is not None and ranked != model_digest(model):
        raise PlanError(
            "the ranking is of a network with other weights than the model: rank this model, or "
            "give the one that was ranked"
        )


def _space(model: nn.Module, data: Iterable[Batch]) -> UnitSpace:
    """Trace the model with the first batch."""
    for inputs, _ in data:
        where = next((it.device for it in model.parameters()), inputs.device)
        return unit_space(trace(model, inputs.to(where)), model)
    raise DataError("the data gives no batch, whose shape is needed: give at least one")
