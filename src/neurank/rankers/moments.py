"""From per-example scores to scores with standard errors.

A chunk of examples is summed up in a `Tally`, which a journal can keep; tallies of all chunks make
up a `Round`; rounds, each with repetitions of its own, make up an estimate.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from neurank.files import Json
from neurank.observe.game import Ends, Game, PerUnit
from neurank.ranking import LayerRanking, Status

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Tally:
    """Sums over some examples, kept apart by class; all in float64.

    Attributes
    ----------
    examples : (classes,), how many.
    scores : (classes, units), the sum of the examples' own scores.
    squares : (classes, units), the sum of their squares.
    within : (classes, units), the sum of the estimator's variances of these scores.
    within_squares : (classes, units), the sum of the squares of these variances.
    ends : (classes, 2), the sums of the examples' values with no unit and with all.
    coalitions : (), how many were evaluated.
    """

    examples: Array
    scores: Array
    squares: Array
    within: Array
    within_squares: Array
    ends: Array
    coalitions: Array

    def arrays(self) -> dict[str, Array]:
        """Return the sums by name, for a journal."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def zero(cls, classes: int, units: int) -> "Tally":
        """Return the tally of no examples."""
        nothing = np.zeros((classes, units))
        ends, coalitions = np.zeros((classes, 2)), np.zeros(())
        return cls(np.zeros(classes), nothing, nothing, nothing, nothing, ends, coalitions)

    def __add__(self, other: "Tally") -> "Tally":
        """Return the tally of the examples of both."""
        mine, others = self.arrays(), other.arrays()
        return Tally(**{name: np.asarray(mine[name] + others[name]) for name in mine})


def tally(
    game: Game,
    classes: int,
    scores: PerUnit,
    ends: Ends,
    within: PerUnit | None = None,
    coalitions: int = 0,
) -> Tally:
    """Sum up a batch.

    Parameters
    ----------
    game : the batch's game, for its targets.
    classes : how many classes there are.
    scores : (examples, units), each example's own score.
    ends : (examples, 2), its value with no unit and with all.
    within : (examples, units), the estimator's variance of `scores`, if there is one.
    coalitions : how many were evaluated.
    """
    targets = game.targets.cpu().numpy()
    within = np.zeros_like(scores) if within is None else within

    def by_class(numbers: Array) -> Array:
        sums = np.zeros((classes, *numbers.shape[1:]))
        np.add.at(sums, targets, numbers)
        return sums

    return Tally(
        examples=by_class(np.ones(len(targets))),
        scores=by_class(scores),
        squares=by_class(scores**2),
        within=by_class(within),
        within_squares=by_class(within**2),
        ends=by_class(ends),
        coalitions=np.array(float(coalitions)),
    )


@dataclass(frozen=True)
class Round:
    """One or more repetitions of an estimator on all examples.

    Attributes
    ----------
    repetitions : independent estimates per example; 0 if the scores are exact.
    tally : the sums over the examples of the means over the repetitions.
    """

    repetitions: int
    tally: Tally


@dataclass(frozen=True)
class Estimate:
    """Scores of all examples together, or of one class, with their variances.

    Attributes
    ----------
    examples : number of examples.
    mean : (units,), NaN without examples.
    within : (units,), variance of the mean given the data; 0 if the scores are exact.
    total : (units,), variance of the mean over examples, whatever makes the examples differ.
    freedom : (units,), degrees of freedom behind `within`, by Welch and Satterthwaite.
    """

    examples: int
    mean: Array
    within: Array
    total: Array
    freedom: Array

    @property
    def of_data(self) -> Array:
        """Variance of the mean that the choice of examples makes, the estimator's taken off."""
        return np.maximum(self.total - self.within, 0)


def gathered(arrays: Iterable[Mapping[str, Array]], classes: int, units: int) -> Tally:
    """Add tallies in the order in which they come."""
    total = Tally.zero(classes, units)
    for chunk in arrays:
        total += Tally(**chunk)
    return total


def estimate(rounds: Sequence[Round], label: int | None = None) -> Estimate:
    """Combine rounds, each weighted by its repetitions.

    Within a round the repetitions of an example are independent, so its mean has the variance
    s² / repetitions; a mean over N examples has the sum of these over N². Rounds are independent.

    Parameters
    ----------
    rounds : at least one; of exact scores, one.
    label : the class to look at; None is all of them.
    """
    chosen = slice(None) if label is None else slice(label, label + 1)
    count = rounds[0].tally.examples[chosen].sum()
    if not count:
        nothing = np.full(rounds[0].tally.scores.shape[1], np.nan)
        return Estimate(0, nothing, nothing, nothing, nothing)
    repetitions = np.array([max(1, it.repetitions) for it in rounds], dtype=np.float64)
    weights = repetitions / repetitions.sum()
    sums = [
        {name: array[chosen].sum(axis=0) for name, array in it.tally.arrays().items() if array.ndim}
        for it in rounds
    ]
    means = [it["scores"] / count for it in sums]
    mean = _weighted(weights, means)
    within = _weighted(weights**2, [it["within"] / count**2 for it in sums])
    others = max(count - 1, 1)
    spreads = [it["squares"] / count - own**2 for it, own in zip(sums, means, strict=True)]
    excess = [
        np.maximum(spread, 0) / others - it["within"] / count**2
        for it, spread in zip(sums, spreads, strict=True)
    ]
    total = _weighted(weights, excess) + within
    uncertainty = _weighted(
        weights**4 / np.maximum(repetitions - 1, 1),
        [it["within_squares"] / count**4 for it in sums],
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = np.where(uncertainty > 0, within**2 / uncertainty, np.inf)
    if count < 2:
        total = np.full_like(total, np.nan)
    return Estimate(int(count), mean, within, np.maximum(total, 0), freedom)


def layer_ranking(rounds: Sequence[Round], status: Status, group: int = 1) -> LayerRanking:
    """Make the layer's ranking: the estimator's error given the data and the data's own, apart.

    With a single repetition the two cannot be told apart, and `stderr` is the total.

    Parameters
    ----------
    rounds : at least one.
    status : how the scores came about.
    group : how many samples a repetition is made of, for the counts.
    """
    found = estimate(rounds)
    units = len(found.mean)
    if not found.examples:
        return undefined(units)
    repetitions = sum(it.repetitions for it in rounds)
    single = repetitions == 1
    classes = [estimate(rounds, label) for label in range(len(rounds[0].tally.examples))]
    errors = [it.total if single else it.within for it in classes]
    freedom = np.full(units, max(found.examples - 1.0, 1.0)) if single else found.freedom
    return LayerRanking(
        scores=torch.from_numpy(found.mean),
        stderr=torch.from_numpy(np.sqrt(found.total if single else found.within)),
        counts=torch.full((units,), found.examples * max(1, repetitions) * group),
        status=status,
        stderr_of="total" if single else "estimator",
        data_stderr=None if single else torch.from_numpy(np.sqrt(found.of_data)),
        freedom=None if status == "exact" else torch.from_numpy(freedom),
        by_class=torch.from_numpy(np.stack([it.mean for it in classes])),
        by_class_stderr=torch.from_numpy(np.sqrt(np.stack(errors))),
    )


def record(rounds: Sequence[Round], way: str) -> dict[str, Json]:
    """Say for the provenance how the scores came about."""
    examples = rounds[0].tally.examples.sum()
    none, everything = rounds[0].tally.ends.sum(axis=0) / examples if examples else (None, None)
    return {
        "way": way,
        "value_none": None if none is None else float(none),
        "value_all": None if everything is None else float(everything),
        "coalitions": int(sum(it.tally.coalitions for it in rounds)),
    }


def undefined(units: int) -> LayerRanking:
    """Return the ranking of a layer for which there is not one example to count."""
    nothing = torch.full((units,), torch.nan, dtype=torch.float64)
    counts = torch.zeros(units, dtype=torch.int64)
    return LayerRanking(nothing, nothing, counts, "undefined", stderr_of="none")


def _weighted(weights: Array, numbers: Sequence[Array]) -> Array:
    return np.asarray(sum(w * it for w, it in zip(weights, numbers, strict=True)))
