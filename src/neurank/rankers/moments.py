"""From per-example scores to scores with standard errors.

A chunk of examples is summed up in a `Tally`, which a journal can keep; tallies of all chunks make
up a `Round`; rounds, each with repetitions of its own, make up an estimate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    live : (classes, units), on how many examples a sample of the unit may be 1 away from another.
    ends : (classes, 2), the sums of the examples' values with no unit and with all.
    coalitions : (), how many were evaluated.
    """

    examples: Array
    scores: Array
    squares: Array
    within: Array
    within_squares: Array
    live: Array
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
        sums = (nothing,) * 5
        return cls(np.zeros(classes), *sums, ends, coalitions)

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
    live: NDArray[np.bool_] | None = None,
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
    live : (examples, units), whether samples of a unit may be 1 apart; none are, if not given.
    coalitions : how many were evaluated.
    """
    targets = game.targets.cpu().numpy()
    within = np.zeros_like(scores) if within is None else within
    live = np.zeros(scores.shape, bool) if live is None else live

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
        live=by_class(live.astype(np.float64)),
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
    group : how many samples a repetition is the mean of.
    """

    repetitions: int
    tally: Tally
    group: int = 1

    @property
    def samples(self) -> int:
        """Number of samples per example; 1 if the scores are exact."""
        return max(1, self.repetitions) * self.group


@dataclass(frozen=True)
class Estimate:
    """Scores of all examples together, or of one class, with their variances.

    Attributes
    ----------
    examples : number of examples.
    mean : (units,), NaN without examples.
    within : (units,), variance of the mean given the data; 0 if the scores are exact, and with a
        single repetition, which cannot tell.
    total : (units,), variance of the mean over examples, whatever makes the examples differ.
    freedom : (units,), degrees of freedom behind `error`.
    single : whether there was a single repetition.
    """

    examples: int
    mean: Array
    within: Array
    total: Array
    freedom: Array
    single: bool

    @property
    def error(self) -> Array:
        """Variance of the mean as far as it can be told: given the data, or else in total."""
        return self.total if self.single else self.within

    @property
    def of_data(self) -> Array:
        """Variance of the mean that the choice of examples makes, the estimator's taken off."""
        return np.maximum(self.total - self.within, 0)


def estimate(rounds: Sequence[Round], label: int | None = None) -> Estimate:
    """Combine rounds, each weighted by its repetitions.

    Within a round the repetitions of an example are independent, so its mean has the variance
    s² / repetitions; a mean over N examples has the sum of these over N². Rounds are independent.

    The degrees of freedom are ``2 (sum of s²)² / sum of s⁴`` over the examples, by Satterthwaite
    (1946) with the variance of an example's s² taken at its bound, the mean of s⁴. That holds for
    samples of any distribution: where K examples each differ once, there are 2 K, however many
    repetitions there were.

    Samples that are all alike do not prove that there is no error. Where a sample may be 1 away
    from another (`Tally.live`), the variance of the mean is taken to be at least what one such
    sample makes, with 2 degrees of freedom: a 95 % interval then reaches as far as 4.3 of them
    move the mean, and of 3 that are expected none is met with a probability of 5 %. The total
    variance from a single repetition is taken to be at least what one example makes that is 1 away
    from the others; that holds for null players too, which need not be so on other examples.

    Parameters
    ----------
    rounds : at least one; of exact scores, one.
    label : the class to look at; None is all of them.
    """
    chosen = slice(None) if label is None else slice(label, label + 1)
    single = len(rounds) == 1 and rounds[0].repetitions == 1
    count = rounds[0].tally.examples[chosen].sum()
    if not count:
        nothing = np.full(rounds[0].tally.scores.shape[1], np.nan)
        return Estimate(0, nothing, nothing, nothing, nothing, single)
    sums = [
        {name: array[chosen].sum(axis=0) for name, array in it.tally.arrays().items() if array.ndim}
        for it in rounds
    ]
    samples = np.array([it.samples for it in rounds], dtype=np.float64)
    weights = samples / samples.sum()
    mean = _weighted(weights, [it["scores"] / count for it in sums])
    within = _weighted(weights**2, [it["within"] / count**2 for it in sums])
    doubt = _weighted(weights**4, [it["within_squares"] / count**4 for it in sums]) / 2
    excess = _weighted(weights, [_spread(it, count) - it["within"] / count**2 for it in sums])
    total = np.maximum(excess + within, 0) if count > 1 else np.full_like(mean, np.nan)
    live = sums[0]["live"] > 0
    if single:
        least = live.any() / count**2
        freedom = np.where(total < least, 2.0, max(count - 1, 1))
        return Estimate(int(count), mean, within, np.maximum(total, least), freedom, single)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = np.where(doubt > 0, within**2 / doubt, np.where(live, 2.0, np.inf))
    within = np.maximum(within, live / (count * samples.sum()) ** 2)
    return Estimate(int(count), mean, within, total, freedom, single)


def _spread(sums: Mapping[str, Array], count: float) -> Array:
    """Variance of the mean over the examples, from how they differ, whatever the reason."""
    spread = sums["squares"] / count - (sums["scores"] / count) ** 2
    return np.asarray(np.maximum(spread, 0) / max(count - 1, 1))


def layer_ranking(rounds: Sequence[Round], status: Status) -> LayerRanking:
    """Make the layer's ranking: the estimator's error given the data and the data's own, apart.

    With a single repetition the two cannot be told apart, and `stderr` is the total.

    Parameters
    ----------
    rounds : at least one.
    status : how the scores came about.
    """
    found = estimate(rounds)
    units = len(found.mean)
    if not found.examples:
        return undefined(units)
    classes = [estimate(rounds, label) for label in range(len(rounds[0].tally.examples))]
    return LayerRanking(
        scores=torch.from_numpy(found.mean),
        stderr=torch.from_numpy(np.sqrt(found.error)),
        counts=torch.full((units,), found.examples * sum(it.samples for it in rounds)),
        status=status,
        stderr_of="total" if found.single else "estimator",
        data_stderr=None if found.single else torch.from_numpy(np.sqrt(found.of_data)),
        freedom=None if status == "exact" else torch.from_numpy(found.freedom),
        by_class=torch.from_numpy(np.stack([it.mean for it in classes])),
        by_class_stderr=torch.from_numpy(np.sqrt(np.stack([it.error for it in classes]))),
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


def error_of_mean(sums: Tensor, squares: Tensor, count: int) -> Tensor:
    """Return the standard error of a mean over examples, from their sum and that of their squares.

    NaN of a single example.

    Examples
    --------
    >>> error_of_mean(torch.tensor([6.0]), torch.tensor([20.0]), 2)  # of 2 and 4
    tensor([1.])
    """
    mean = sums / count
    variance = (squares / count - mean**2).clamp(min=0)
    return torch.sqrt(variance / (count - 1)) if count > 1 else torch.full_like(mean, torch.nan)


def undefined(units: int) -> LayerRanking:
    """Return the ranking of a layer for which there is not one example to count."""
    nothing = torch.full((units,), torch.nan, dtype=torch.float64)
    counts = torch.zeros(units, dtype=torch.int64)
    return LayerRanking(nothing, nothing, counts, "undefined", stderr_of="none")


def _weighted(weights: Array, numbers: Sequence[Array]) -> Array:
    return np.asarray(sum(w * it for w, it in zip(weights, numbers, strict=True)))
