"""The paper's own procedure: sample the characteristic function, then permutations over it."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from neurank.errors import MethodError
from neurank.observe.observer import Arrays, Observer
from neurank.rankers.draws import share_of_coalitions
from neurank.rankers.measure import MAX_UNITS, Measured, check_width, measure
from neurank.rankers.method import Scored
from neurank.rankers.moments import undefined
from neurank.rankers.value_table import ValueTable, check_share
from neurank.ranking import LayerRanking


@dataclass(frozen=True)
class TwoStageShapley:
    """Shapley values by the neuron-ranking paper's own procedure, §3.2.1.

    "Thus, we first sample the characteristic function and then sample the permutations needed":
    a share of all coalitions of the layer is measured over all examples, and random permutations
    are walked over the table. What a unit adds counts where both coalitions are known.

    With ``share=1`` the table is exact, the score is the mean of eq. 1 over the permutations, and
    ``stderr`` follows from their spread. With less, each of `tables` tables draws its share anew,
    the score is the mean over the sizes of the mean at each size (see
    `ValueTable.permutation_shapley`), and ``stderr`` follows from the spread of the tables.
    `PermutationShapley` is closer for less: there the examples do not share their permutations.

    Parameters
    ----------
    share : the probability with which each coalition is measured; those of no unit, one, all but
        one and all are always measured.
    permutations : random permutations walked over each table.
    tables : independent tables, where `share` is below 1.
    max_operations : refuse a layer that would cost more additions and multiply-adds than this.

    Raises
    ------
    MethodError
        If a parameter is out of range, the layer has more than 25 units or would cost too much, or
        too few pairs of coalitions are known.

    Example
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(2, 3, 6, 4, seed=0)
    >>> data = nr.data.load("digits").validation.first(50)
    >>> method = TwoStageShapley(share=0.7, permutations=500, tables=4)
    >>> ranking = nr.rank(model, data, method, layers=["fc1"], progress=False)
    >>> ranking["fc1"].status, ranking["fc1"].stderr_of
    ('sampled', 'estimator')
    """

    share: float = 1.0
    permutations: int = 1000
    tables: int = 2
    max_operations: float = 1e13

    def __post_init__(self) -> None:
        check_share(self.share)
        for name in ("permutations", "tables"):
            count = getattr(self, name)
            if not isinstance(count, int) or count < 2:
                raise MethodError(
                    f"{name}={count!r}: a whole number from 2 on is needed, so that their spread "
                    "tells the error"
                )

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        check_width(layer, observer.width(layer), MAX_UNITS)
        found = observer.once(f"{layer} / two stages", partial(self._sampled, observer, layer))
        record = {
            "way": observer.ways(layer)[0],
            "value_none": _number(found.arrays["ends"][0]),
            "value_all": _number(found.arrays["ends"][1]),
            "coalitions": int(found.arrays["coalitions"]),
            "coalitions_by_table": found.arrays["known"].astype(int).tolist(),
        }
        if np.isnan(found.arrays["ends"]).any():
            return Scored(undefined(observer.width(layer)), record)
        return Scored(_ranking(found.arrays), record)

    def _sampled(self, observer: Observer, layer: str) -> Arrays:
        """Measure all tables in one go over the examples, then walk each."""
        units = observer.width(layer)
        drawn = [
            share_of_coalitions(observer.seed, table, units, self.share)
            for table in range(self.tables if self.share < 1 else 1)
        ]
        asked = None if self.share == 1 else np.logical_or.reduce(drawn)
        found = measure(observer, layer, asked, max_operations=self.max_operations)
        walked = [
            _table(layer, found, known).permutation_shapley(
                self.permutations, observer.seed, repetition=repetition
            )
            for repetition, known in enumerate(drawn if found.examples else [])
        ]
        return {
            "scores": np.array([one.scores.numpy() for one in walked]),
            "stderr": np.array([one.stderr.numpy() for one in walked]),
            "counts": np.array([one.counts.numpy() for one in walked], np.float64),
            "freedom": np.full(
                units, (self.permutations if len(drawn) == 1 else self.tables) - 1.0
            ),
            "ends": found.values[[0, -1]],
            "coalitions": np.array(float(found.coalitions)),
            "known": np.array([known.sum() for known in drawn], np.float64),
        }


def _table(layer: str, found: Measured, known: NDArray[np.bool_]) -> ValueTable:
    values = np.where(known, found.values, np.nan)
    return ValueTable(layer, torch.from_numpy(values), found.examples)


def _ranking(arrays: Arrays) -> LayerRanking:
    """Mean over the tables, with the error of a complete one, or that which their spread tells."""
    scores = torch.from_numpy(arrays["scores"])
    single = len(scores) == 1
    return LayerRanking(
        scores=scores.mean(dim=0),
        stderr=torch.from_numpy(arrays["stderr"][0])
        if single
        else scores.std(dim=0) / len(scores) ** 0.5,
        counts=torch.from_numpy(arrays["counts"].sum(axis=0)).long(),
        status="sampled",
        freedom=torch.from_numpy(arrays["freedom"]),
    )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
