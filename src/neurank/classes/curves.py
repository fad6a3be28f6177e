"""How well a pruned network still knows each class, over the pruning ratio θ, without retraining.

Figure 5 of "Semantic Pruning for Single Class Interpretability" (2020): every point is the network
that a class is left with at some θ. A class's recall asks for its own pictures alone; with `others`
the rest is run too, so that a network that always says "yes" is found out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from neurank.classes.quality import Quality, quality
from neurank.classes.selection import (
    Scope,
    Selection,
    Setting,
    refuse_other_network,
    selections,
    thetas,
)
from neurank.condense.given import whole
from neurank.condense.thinned import sweep
from neurank.condense.trials import watched
from neurank.condense.unit_costs import costs_of
from neurank.errors import DataError, MethodError, ModelError
from neurank.modes import evaluating, threads_as_torch
from neurank.observe.examples import Batch
from neurank.observe.observer import TracedObserver
from neurank.progress import reporting
from neurank.ranking import Ranking

RUN_AT_ONCE = 100
"""So many examples are run through a pruned network at a time, unless batches are smaller."""


@dataclass(frozen=True, eq=False)
class Curves:
    """Counts of pictures for every class and setting.

    A class without pictures has counts of 0 and shares of NaN.

    Attributes
    ----------
    labels : the classes, in the order of the first axis.
    settings : in the order of the second; the first removes nothing.
    pictures : (classes,), pictures of each class.
    hits : (classes, settings), those of them that are still called the class.
    gained, lost : (classes, settings), those that are and were not in the whole network, and the
        other way round.
    others : (classes,), pictures of other classes that were run; None if none were.
    false_alarms : (classes, settings), those of them that are called the class.
    auroc : (classes, settings), see `Quality`.
    parameters : (classes, settings), how many the network has left.
    selections : which units each class keeps, class by class.
    """

    labels: tuple[int, ...]
    settings: tuple[Setting, ...]
    pictures: Tensor
    hits: Tensor
    gained: Tensor
    lost: Tensor
    others: Tensor | None
    false_alarms: Tensor | None
    auroc: Tensor | None
    parameters: Tensor
    selections: tuple[tuple[Selection, ...], ...] = field(repr=False)

    @property
    def recall(self) -> Tensor:
        """The paper's accuracy: the share of a class's pictures that are called it."""
        return self.hits / self.pictures[:, None].to(torch.float64)

    @property
    def thetas(self) -> tuple[float, ...]:
        """The pruning ratios.

        Raises
        ------
        MethodError
            A setting goes by another rule.
        """
        found = [setting.theta for setting in self.settings]
        if any(isinstance(theta, str) for theta in found):
            raise MethodError("the settings are not all pruning ratios, so there is no axis of θ")
        return tuple(float(theta) for theta in found)

    @cached_property
    def qualities(self) -> tuple[tuple[Quality, ...], ...]:
        """What is known of each class and setting.

        Raises
        ------
        MethodError
            The other classes' pictures were not run.
        """
        if self.others is None or self.false_alarms is None or self.auroc is None:
            raise MethodError(
                "only each class's own pictures were run, of which neither false positives nor "
                "precision follow: give others=True"
            )
        return tuple(
            tuple(
                Quality(
                    label,
                    own=int(self.pictures[row]),
                    others=int(self.others[row]),
                    hits=int(self.hits[row, at]),
                    false_alarms=int(self.false_alarms[row, at]),
                    auroc=float(self.auroc[row, at]),
                )
                for at in range(len(self.settings))
            )
            for row, label in enumerate(self.labels)
        )

    def kept(self, at: int) -> tuple[Mapping[str, Tensor], ...]:
        """Return the units that each class keeps at one of the settings."""
        return tuple(row[at].kept for row in self.selections)

    def to_frame(self) -> pd.DataFrame:
        """Return a table with a row per class and setting."""
        rows: list[dict[str, Any]] = []
        recall = self.recall
        for row, label in enumerate(self.labels):
            for at, setting in enumerate(self.settings):
                found: dict[str, Any] = {
                    "class": label,
                    "setting": str(setting),
                    "theta": setting.theta,
                    "pictures": int(self.pictures[row]),
                    "recall": float(recall[row, at]),
                    "parameters": int(self.parameters[row, at]),
                }
                if self.others is not None:
                    one = self.qualities[row][at]
                    found |= {
                        name: getattr(one, name)
                        for name in ("false_positive_rate", "precision", "f1", "auroc")
                    }
                rows.append(found)
        return pd.DataFrame(rows)


def curves(
    model: nn.Module,
    data: Iterable[Batch],
    ranking: Ranking,
    *,
    labels: Sequence[int] | None = None,
    settings: Sequence[Setting | str | float] | None = None,
    scope: Scope = "layer",
    others: bool = False,
    progress: bool = True,
) -> Curves:
    """Prune a network for each class by every setting, and count what it still recognises.

    No network is built: weights are cut for each point, what the removed units do not touch is
    computed once, and a class's own pictures alone are run unless `others` says so. Consumers
    receive 0 for what is removed.

    Parameters
    ----------
    model
        The network; it comes back as it was.
    data
        Pictures to count, best others than those of the ranking. They are held in memory.
    ranking
        Scores by class, of `ClassResponse` in the paper.
    labels
        The classes; all that have pictures and scores if not given.
    settings
        Pruning ratios, `Setting` values or their names; by default 25 ratios from 0 to 0.6. The
        whole network is put in front if it is not there.
    scope
        What ratios that are plain numbers are taken of, see `Setting`.
    others
        Run the pictures of all classes for every class's networks.
    progress
        Show a bar on a terminal.

    Raises
    ------
    RankingError
        A class was not scored.
    DataError, ModelError, MethodError
        Data, model or settings cannot be used.
    PlanError, UnitError
        The ranking is of another network.

    Examples
    --------
    >>> import neurank as nr
    >>> model, digits = nr.zoo.digits_net(seed=0), nr.data.load("digits")
    >>> responses = nr.rank(model, digits.train, nr.ClassResponse(), progress=False)
    >>> found = nr.classes.curves(model, digits.validation, responses, settings=[0.25, 0.5])
    >>> found.recall.shape, found.settings[1].scope, found.thetas
    (torch.Size([10, 3]), 'layer', (0.0, 0.25, 0.5))
    """
    chosen = _settings(thetas() if settings is None else settings, scope)
    with evaluating(model), threads_as_torch():
        watching = watched(model, data, progress=progress)
        pictures = _Pictures.of(watching)
        wanted = _labels(labels, ranking, pictures, watching.classes)
        picked = tuple(selections(ranking, (label,), chosen) for label in wanted)
        refuse_other_network((row[0] for row in picked), watching.space)
        return _Counting(watching, pictures, picked, others=others).counted(progress=progress)


@dataclass(frozen=True)
class _Pictures:
    """The data, class by class.

    Attributes
    ----------
    inputs : (examples, ...).
    targets : (examples,).
    at_once : how many to run at a time.
    """

    inputs: Tensor
    targets: Tensor
    at_once: int

    @classmethod
    def of(cls, watching: TracedObserver) -> "_Pictures":
        parts = list(watching.examples)
        inputs, targets = (torch.cat(it) for it in zip(*parts, strict=True))
        return cls(inputs, targets, min(RUN_AT_ONCE, max(watching.examples.sizes)))

    def batches(self, label: int | None) -> tuple[Tensor, ...]:
        """Return the pictures of a class, or all."""
        own = self.inputs if label is None else self.inputs[self.targets == label]
        found: tuple[Tensor, ...] = torch.split(own, self.at_once)
        return found


@dataclass(frozen=True)
class _Counting:
    """A sweep over classes and settings."""

    watching: TracedObserver
    pictures: _Pictures
    picked: tuple[tuple[Selection, ...], ...]
    others: bool

    def counted(self, *, progress: bool) -> Curves:
        classes, settings = len(self.picked), len(self.picked[0])
        counts = torch.zeros(4, classes, settings, dtype=torch.int64)
        areas = torch.full((classes, settings), torch.nan, dtype=torch.float64)
        total = classes * settings
        with reporting("pruning class by class", total, show=progress) as advance:
            for row, chosen in enumerate(self.picked):
                for at, logits in self._answers(chosen):
                    targets = self._targets(chosen[0].label)
                    found = quality(logits.cpu(), targets.cpu(), chosen[0].label)
                    right = (logits.argmax(dim=1) == targets)[targets == chosen[0].label]
                    if at == 0:
                        whole = right
                    counts[0, row, at] = found.hits
                    counts[1, row, at] = int((right & ~whole).sum())
                    counts[2, row, at] = int((whole & ~right).sum())
                    counts[3, row, at] = found.false_alarms
                    areas[row, at] = found.auroc
                    advance("")
        return self._curves(counts, areas)

    def _answers(self, chosen: Sequence[Selection]) -> Iterable[tuple[int, Tensor]]:
        """Run the networks of a class, the whole one first."""
        label = chosen[0].label
        own = int((self.pictures.targets == label).sum())
        if not own and not self.others:
            return
        batches = self.pictures.batches(None if self.others else label)
        _, *rest = (selection.removed for selection in chosen)
        yield 0, self._whole if self.others else self._run_whole(batches)
        for place, logits in sweep(rest, self.watching, batches):
            if not bool(torch.isfinite(logits).all()):
                raise ModelError(
                    f"with the units of {chosen[place + 1].setting} for class {label} off, the "
                    "network's outputs are NaN or infinite"
                )
            yield place + 1, logits

    @cached_property
    def _whole(self) -> Tensor:
        """What the whole network says of all pictures, the same for every class."""
        return self._run_whole(self.pictures.batches(None))

    def _run_whole(self, batches: Sequence[Tensor]) -> Tensor:
        ((_, logits),) = sweep([{}], self.watching, batches)
        return logits

    def _targets(self, label: int) -> Tensor:
        targets = self.pictures.targets
        return targets if self.others else targets[targets == label]

    def _curves(self, counts: Tensor, areas: Tensor) -> Curves:
        labels = tuple(chosen[0].label for chosen in self.picked)
        targets = self.pictures.targets.cpu()
        own = torch.tensor([int((targets == label).sum()) for label in labels])
        costs = costs_of(self.watching.space, self.watching.model)
        parameters = [[costs.of(it.removed)["parameters"] for it in row] for row in self.picked]
        return Curves(
            labels=labels,
            settings=tuple(it.setting for it in self.picked[0]),
            pictures=own,
            hits=counts[0],
            gained=counts[1],
            lost=counts[2],
            others=len(targets) - own if self.others else None,
            false_alarms=counts[3] if self.others else None,
            auroc=areas if self.others else None,
            parameters=torch.tensor(parameters),
            selections=self.picked,
        )


def _settings(given: Sequence[Setting | str | float], scope: Scope) -> tuple[Setting, ...]:
    """Read settings, and put the whole network in front."""
    found = [
        it if isinstance(it, Setting)
        else Setting.named(it) if isinstance(it, str)
        else Setting(scope, it)
        for it in given
    ]  # fmt: skip
    if not found:
        raise MethodError("no setting is given: give some pruning ratios, or names such as LWP-33")
    if found[0].theta != 0:
        found.insert(0, Setting(found[0].scope, 0.0))
    return tuple(found)


def _labels(
    labels: Sequence[int] | None, ranking: Ranking, pictures: _Pictures, classes: int
) -> tuple[int, ...]:
    if labels is None:
        there = sorted(set(pictures.targets.tolist()))
        found = tuple(label for label in there if _is_scored(ranking, label))
        if not found:
            raise DataError("no class has both pictures and scores: rank on data of these classes")
        return found
    found = tuple(whole(label) for label in labels)
    for label, given in zip(found, labels, strict=True):
        if label not in range(classes):
            raise DataError(f"there is no class {given!r}: the network's are 0 to {classes - 1}")
    if not found:
        raise DataError("labels=[] names no class: name some, or leave it out for all")
    return tuple(label for label in found if label is not None)


def _is_scored(ranking: Ranking, label: int) -> bool:
    return all(layer.status != "undefined" for layer in ranking.of_class(label).layers.values())
