"""When a sampled ranking has been sampled enough.

A rule looks at the estimate after 2, 4, 8, 16 ... repetitions, and at the last. Looking often is
paid for: a rule that speaks of certainty spends its risk over the looks, ``risk * 6 / (pi² look²)``
at each, which sums to the risk however many there are.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from scipy import stats

from neurank.errors import MethodError
from neurank.rankers.moments import Estimate


@runtime_checkable
class Stop(Protocol):
    """A rule that says when to stop."""

    def reached(self, found: Estimate, look: int) -> bool:
        """Whether the estimate is good enough at the look of that number, from 1 on."""
        ...


@dataclass(frozen=True)
class StderrBelow:
    """Stop as soon as no unit's standard error, given the data, is larger than `stderr`.

    Example:
    -------
    >>> StderrBelow(0.001)
    StderrBelow(stderr=0.001)
    """

    stderr: float

    def __post_init__(self) -> None:
        _check_positive("StderrBelow", "stderr", self.stderr)

    def reached(self, found: Estimate, look: int) -> bool:
        """Whether every unit's standard error is that small."""
        del look
        return bool(np.sqrt(found.within).max() <= self.stderr)


@dataclass(frozen=True)
class Seconds:
    """Stop when so many seconds have been spent on a layer.

    The repetitions that fit into the time are made; a round that is not finished in time is
    dropped. If not even one round of two fits, fewer examples are looked at, from the first on, and
    the counts say so. The clock is read after each chunk of examples.

    Example:
    -------
    >>> Seconds(60)
    Seconds(seconds=60)
    """

    seconds: float

    def __post_init__(self) -> None:
        _check_positive("Seconds", "seconds", self.seconds)

    def reached(self, found: Estimate, look: int) -> bool:
        """Whether to stop whatever the clock says: never."""
        del found, look
        return False


@dataclass(frozen=True)
class TopCertain:
    """Stop as soon as it is certain which units are the top `k` of the layer on these data.

    All units have intervals that hold at once, and at all looks together, with probability
    `confidence` (Bonferroni over units, risk spent over looks); the top k are certain when the
    lowest of their lower ends is above the highest upper end of the others. The order among the
    top k is not claimed.

    The intervals are Student's, from standard errors that `neurank.rankers.moments.estimate` keeps
    from being 0 where nothing has changed so far: a unit in which no difference has been seen yet
    is not taken for settled.

    Parameters
    ----------
    k : how many units.
    confidence : the probability that what is called certain is true.

    Example
    -------
    >>> TopCertain(5)
    TopCertain(k=5, confidence=0.95)
    """

    k: int
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise MethodError(f"TopCertain(k={self.k!r}): a positive whole number is needed")
        if not 0 < self.confidence < 1:
            raise MethodError(
                f"TopCertain(confidence={self.confidence!r}): a number between 0 and 1 is needed"
            )

    def reached(self, found: Estimate, look: int) -> bool:
        """Whether the top k are set apart from all others."""
        units = len(found.mean)
        if self.k >= units:
            return True
        risk = (1 - self.confidence) * 6 / (math.pi * look) ** 2
        reach = stats.t.isf(risk / (2 * units), found.freedom) * np.sqrt(found.within)
        order = np.argsort(-found.mean, kind="stable")
        top, others = order[: self.k], order[self.k :]
        lowest = (found.mean - reach)[top].min()
        return bool(lowest > (found.mean + reach)[others].max())


def check_stop(stop: object, repetitions: int) -> None:
    """Refuse what is no rule, and a rule where there would be nothing to look at.

    Raises
    ------
    MethodError
        As said.
    """
    if stop is None:
        return
    if isinstance(stop, type) or not isinstance(stop, Stop):
        raise MethodError(
            f"stop={stop!r} is no rule: pass StderrBelow(0.001), TopCertain(5) or Seconds(60)"
        )
    if repetitions < 2:
        raise MethodError(
            f"stop={stop!r} looks at the spread of repetitions, of which there is {repetitions}: "
            "allow more passes, which it ends as soon as it may"
        )


def _check_positive(rule: str, name: str, number: float) -> None:
    if not 0 < number < float("inf"):
        raise MethodError(f"{rule}({name}={number!r}): a positive number is needed")
