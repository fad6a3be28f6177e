"""How many units a specialist loses: by θ, within budgets, or as its F1 allows."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neurank.classes.quality import Quality, quality
from neurank.classes.selection import Scope, Selection, Setting, kept_units
from neurank.condense.heads import fit_head
from neurank.condense.kept import Plan
from neurank.condense.plan import Across
from neurank.condense.plan import plan as planned
from neurank.condense.thinned import Off, sweep
from neurank.condense.trials import last_of, watched
from neurank.condense.unit_costs import costs_of
from neurank.errors import MethodError, PlanError
from neurank.modes import evaluating, threads_as_torch
from neurank.observe.examples import Batch
from neurank.observe.observer import TracedObserver
from neurank.observe.removal import Removal, check_removal, off_constants
from neurank.progress import reporting
from neurank.ranking import Ranking

MAX_DROP = 0.01
"""How far F1 may fall if nobody says."""
STEP, STEPS = 0.85, 40
"""A search tries networks whose sizes are powers of this, down to 0.15 % of the whole."""


@dataclass(frozen=True)
class Evaluation:
    """A network that was tried.

    Attributes
    ----------
    parameters : how many it has.
    quality : on the data that units are chosen by.
    """

    parameters: int
    quality: Quality


@dataclass(frozen=True)
class Chosen:
    """Which units stay, and what was tried on the way."""

    plan: Plan
    tried: tuple[Evaluation, ...] = ()


@dataclass(frozen=True)
class Choice:
    """One rule by which units are chosen; exactly one of the three is there.

    Attributes
    ----------
    setting : semantic pruning.
    budgets : the most parameters and multiply-adds, of which one may be None.
    max_drop : how far F1 may fall.
    """

    setting: Setting | None
    budgets: tuple[int | None, int | None]
    max_drop: float | None

    @classmethod
    def of(
        cls,
        theta: float | None,
        scope: Scope,
        max_params: int | None,
        max_macs: int | None,
        max_drop: float | None,
    ) -> "Choice":
        """Read what the user gave.

        Raises
        ------
        MethodError
            More than one rule is given, or a number is out of range.
        """
        budgets = (max_params, max_macs)
        given = (theta is not None, budgets != (None, None), max_drop is not None)
        if sum(given) > 1:
            raise MethodError(
                f"theta={theta}, max_params={max_params}, max_macs={max_macs} and "
                f"max_drop={max_drop} are rules of which one can hold: give theta, or budgets, or "
                "max_drop"
            )
        if max_drop is not None and not 0 <= max_drop < 1:
            raise MethodError(f"max_drop={max_drop!r} is no share of F1: give 0 to below 1")
        setting = None if theta is None else Setting(scope, theta)
        return cls(setting, budgets, max_drop if sum(given) else MAX_DROP)

    def carried_out(
        self,
        model: nn.Module,
        data: Iterable[Batch],
        scores: Ranking,
        label: int,
        removal: str,
        across: Across,
        *,
        head: bool,
        progress: bool,
    ) -> Chosen:
        """Choose units by the scores.

        Raises
        ------
        PlanError
            A layer is left without units, or a budget cannot be met.
        """
        if self.setting is not None:
            (kept,) = kept_units(scores, (self.setting,))
            return Chosen(Selection(label, self.setting, kept).plan())
        if self.max_drop is None:
            params, macs = self.budgets
            found = planned(
                scores,
                max_params=params,
                max_macs=macs,
                model=model,
                data=data,
                across=across,
                progress=progress,
            )
            return Chosen(found)
        with evaluating(model), threads_as_torch():
            watching = watched(model, data, progress=progress)
            search = _Search(
                watching, data, scores, label, check_removal(removal), across, folds=head
            )
            return search.smallest(self.max_drop)


class _Search:
    """Looks for the smallest network whose F1 falls by no more than is allowed."""

    def __init__(
        self,
        watching: TracedObserver,
        data: Iterable[Batch],
        scores: Ranking,
        label: int,
        removal: Removal,
        across: Across,
        *,
        folds: bool,
    ) -> None:
        self._watching, self._data, self._scores = watching, data, scores
        self._label, self._across, self._folds = label, across, folds
        batches = list(watching.examples)
        self._inputs = [inputs for inputs, _ in batches]
        self._targets = torch.cat([targets for _, targets in batches]).cpu()
        self._costs = costs_of(watching.space, watching.model)
        self._off: Off | None = None
        if removal != "zero":
            layers = [watching.space[name] for name in scores]
            self._off = off_constants(removal, layers, watching.runner, watching.examples)
        self._plans: dict[int, Plan] = {}
        self._tried: list[Evaluation] = []

    def smallest(self, max_drop: float) -> Chosen:
        """Find it by bisection over sizes that fall by a constant factor."""
        least = quality(self._logits({}), self._targets, self._label).f1 - max_drop
        label = "searching for the smallest"
        with reporting(label, STEPS.bit_length(), show=self._watching.progress) as advance:

            def holds(step: int) -> bool:
                found = self._evaluated(step)
                advance("" if found is None else f"{found.parameters:,} F1 {found.quality.f1:.3f}")
                return found is not None and found.quality.f1 >= least

            step = last_of(STEPS + 1, holds)
        return Chosen(self._plan(step), tuple(self._tried))

    def _evaluated(self, step: int) -> Evaluation | None:
        """Try a size; None if no network is so small."""
        try:
            plan = self._plan(step)
        except PlanError:
            return None
        removed = {name: plan.removed(name) for name in plan.keep}
        logits = self._logits(removed)
        found = (
            cross_fitted(logits, self._targets, self._label)
            if self._folds
            else quality(logits, self._targets, self._label)
        )
        self._tried.append(Evaluation(self._costs.of(removed)["parameters"], found))
        return self._tried[-1]

    def _plan(self, step: int) -> Plan:
        if step not in self._plans:
            whole = self._costs.of({})["parameters"]
            self._plans[step] = planned(
                self._scores,
                max_params=int(whole * STEP**step),
                model=self._watching.model,
                data=self._data,
                across=self._across,
                progress=False,
            )
        return self._plans[step]

    def _logits(self, removed: dict[str, tuple[int, ...]]) -> Tensor:
        ((_, logits),) = sweep([removed], self._watching, self._inputs, self._off)
        return logits.cpu()


def cross_fitted(logits: Tensor, targets: Tensor, label: int) -> Quality:
    """Measure what a head would be worth, each half of the examples by a head fitted to the other.

    Halves are the even and the odd places of the class's examples, and of the rest.

    Raises
    ------
    DataError
        There are fewer than two examples of the class, or of the rest.
    """
    own = targets == label
    halves = torch.zeros(len(targets), dtype=torch.bool)
    for part in (own, ~own):
        halves[part.nonzero()[::2, 0]] = True
    answers = torch.zeros(len(targets), 2, dtype=torch.float64)
    for half in (halves, ~halves):
        head = fit_head(logits[half], targets[half], label)
        answers[~half] = head(logits[~half])
    return quality(answers, own.to(torch.int64), 1)
