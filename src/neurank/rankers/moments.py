"""From per-example scores to scores with standard errors."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from neurank.files import Json
from neurank.ranking import LayerRanking

Array = NDArray[np.float64]


@dataclass
class Moments:
    """Running sums over examples, one entry per unit, in float64.

    Attributes
    ----------
    units : number of units.
    examples : examples seen so far.
    """

    units: int
    examples: int = 0
    _sum: Array = field(init=False)
    _squares: Array = field(init=False)
    _within: Array = field(init=False)
    _ends: Array = field(init=False)

    def __post_init__(self) -> None:
        self._sum = np.zeros(self.units)
        self._squares = np.zeros(self.units)
        self._within = np.zeros(self.units)
        self._ends = np.zeros(2)

    def add(self, scores: Array, ends: Array, within: Array | None = None) -> None:
        """Add a batch.

        Parameters
        ----------
        scores : (examples, units), each example's own score.
        ends : (examples, 2), its value with no unit and with all.
        within : (examples, units), the estimator's variance of `scores`, if there is one.
        """
        self.examples += len(scores)
        self._sum += scores.sum(axis=0)
        self._squares += (scores**2).sum(axis=0)
        self._ends += ends.sum(axis=0)
        if within is not None:
            self._within += within.sum(axis=0)

    @property
    def mean(self) -> Array:
        """Mean score per unit; NaN without examples."""
        return self._sum / self.examples if self.examples else np.full(self.units, np.nan)

    @property
    def ends(self) -> tuple[float, float]:
        """Mean value with no unit and with all."""
        if not self.examples:
            return float("nan"), float("nan")
        return float(self._ends[0] / self.examples), float(self._ends[1] / self.examples)

    def record(self, way: str, coalitions: int) -> dict[str, Json]:
        """Say for the provenance how the scores came about."""
        none, everything = self.ends
        return {
            "way": way,
            "value_none": none,
            "value_all": everything,
            "coalitions": coalitions,
        }

    @property
    def total_variance(self) -> Array:
        """Variance of the mean over examples, whatever makes the examples differ."""
        if self.examples < 2:
            return np.full(self.units, np.nan)
        spread = self._squares / self.examples - self.mean**2
        return np.maximum(spread, 0) / (self.examples - 1)

    @property
    def estimator_variance(self) -> Array:
        """Variance of the mean given the data."""
        if not self.examples:
            return np.full(self.units, np.nan)
        return self._within / self.examples**2

    @property
    def data_variance(self) -> Array:
        """Variance of the mean that the choice of examples makes, the estimator's taken off."""
        return np.maximum(self.total_variance - self.estimator_variance, 0)


def undefined(units: int) -> LayerRanking:
    """Return the ranking of a layer for which there is not one example to count."""
    nothing = torch.full((units,), torch.nan, dtype=torch.float64)
    counts = torch.zeros(units, dtype=torch.int64)
    return LayerRanking(nothing, nothing, counts, "undefined", stderr_of="none")
