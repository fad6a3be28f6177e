"""Shapley sums cut off at small coalitions, or at large ones."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, islice
from math import comb
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from neurank.errors import MethodError
from neurank.observe.game import Ends, Game, PerUnit
from neurank.observe.observer import Arrays, Observer
from neurank.rankers.cost import check_cost
from neurank.rankers.exact_shapley import ExactShapley
from neurank.rankers.indices import coalition_sizes, member_sums
from neurank.rankers.method import Scored
from neurank.rankers.moments import Round, Tally, layer_ranking, record, tally

_Weights = NDArray[np.float64]
_BLOCK = 1 << 14  # coalitions handed over at once


@dataclass(frozen=True)
class TruncatedShapley:
    """Eq. 2 of the neuron-ranking paper over small coalitions only, or over large ones, §3.2.1.

    ``score(i) = sum over C without i of |C|! (n - |C| - 1)! / n! * (v(C + i) - v(C))``

    over the coalitions for which C + i has at most `k` units (``side="empty"``), or for which C
    lacks at most `k` (``side="full"``); n counts all units of the layer. "The larger the coalition,
    the less information is to be obtained": a network with few units on guesses, however, and
    where that is so the full side says more.

    The sum leaves terms out and keeps the weights as they are, so it is not an estimate of the
    Shapley value but another, smaller index: biased, and its scores do not sum to v(all) - v(none).
    It has no sampling error, and how far it is from the Shapley value nobody can say, so ``stderr``
    is NaN; ``data_stderr`` says how much the choice of examples matters. If `k` is at least n,
    nothing is left out, and the scores are those of `ExactShapley`.

    A unit whose consumers receive the same on and off is a null player of the example's game. It
    drops out: only coalitions of active units are evaluated, with the weights of all the
    coalitions that they stand for.

    Parameters
    ----------
    k : number of units in the largest coalitions, or missing from the smallest.
    side : "empty" for small coalitions, "full" for large ones.
    max_operations : refuse a layer that would cost more additions and multiply-adds than this.

    Raises
    ------
    MethodError
        If `k` is not a positive whole number or `side` neither of the two, or if a layer would
        cost more, with the cost.

    Example
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(2, 3, 6, 4, seed=0)
    >>> data = nr.data.load("digits").validation.first(50)
    >>> ranking = nr.rank(model, data, TruncatedShapley(k=2), layers=["fc1"], progress=False)
    >>> ranking["fc1"].status, ranking["fc1"].stderr_of
    ('computed', 'none')
    """

    k: int = 2
    side: Literal["empty", "full"] = "empty"
    max_operations: float = 1e13

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise MethodError(f"k={self.k!r}: a positive whole number is needed")
        if self.side not in {"empty", "full"}:
            raise MethodError(
                f"side={self.side!r}: give 'empty' for coalitions of at most k units or 'full' for "
                "those that lack at most k"
            )

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        notes = {"side": self.side, "k": self.k}
        if self.k >= observer.width(layer):
            exact = ExactShapley(self.max_operations).score(observer, layer)
            return Scored(exact.ranking, {**exact.record, **notes})
        done = Tally.zero(observer.classes, observer.width(layer))

        def compute(game: Game) -> Arrays:
            coalitions = self._coalitions(game)
            check_cost(
                f"TruncatedShapley(k={self.k})",
                observer,
                game,
                coalitions=int(done.coalitions) + coalitions,
                seen=int(done.examples.sum()) + game.examples,
                max_operations=self.max_operations,
                remedy="Use a smaller k, or PermutationShapley(), which leaves nothing out",
            )
            scores, ends = self._sums(game)
            return tally(game, observer.classes, scores, ends, coalitions=coalitions).arrays()

        for chunk in observer.gather(layer, "truncated", compute):
            done += Tally(**chunk.arrays)
        rounds = [Round(0, done)]
        ranking = layer_ranking(rounds, "computed")
        if ranking.status == "computed":
            nothing = torch.full_like(ranking.stderr, torch.nan)
            ranking = replace(
                ranking, stderr=nothing, stderr_of="none", freedom=None, by_class_stderr=None
            )
        return Scored(ranking, {**record(rounds, observer.ways(layer)[0]), **notes})

    def _coalitions(self, game: Game) -> int:
        """How many coalitions of active units are within reach, the far end included."""
        players, examples = torch.unique(game.active.sum(dim=1), return_counts=True)
        pairs = zip(players.tolist(), examples.tolist(), strict=True)
        return sum(count * (_subsets(k, self.k) + (k > self.k)) for k, count in pairs)

    def _sums(self, game: Game) -> tuple[PerUnit, Ends]:
        """Sum eq. 2 up for each example, and give its ends."""
        scores = np.zeros((game.examples, game.units))
        ends = np.zeros((game.examples, 2))
        active = game.active.cpu().numpy()
        for row in range(game.examples):
            players = np.flatnonzero(active[row])
            whole = len(players) <= self.k
            sums = self._over_table if whole else self._over_subsets
            scores[row, players], ends[row] = sums(game, row, players)
        return scores, ends

    def _over_table(
        self, game: Game, row: int, players: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sum up where every coalition of the active units is within reach."""
        values = torch.cat(list(game.power_set(row))).cpu().numpy()
        joined, left = self._weights(game.units, len(players))
        sizes = coalition_sizes(len(players))
        near = values if self.side == "empty" else values[::-1]
        scores = member_sums((joined + left)[sizes] * near) - left[sizes] @ near
        return self._sign * scores, values[[0, -1]]

    def _over_subsets(
        self, game: Game, row: int, players: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sum up over the subsets within reach, block by block."""
        joined, left = self._weights(game.units, len(players))
        gained, lost = np.zeros(len(players)), 0.0
        near, far = np.nan, np.nan
        for chosen in _blocks_of_subsets(len(players), self.k):
            masks = torch.zeros(len(chosen), game.units, dtype=torch.bool)
            masks[:, players] = torch.from_numpy(chosen if self.side == "empty" else ~chosen)
            values = game.values_of(row, masks.to(game.active.device)).cpu().numpy()
            sizes = chosen.sum(axis=1)
            gained += chosen.T @ ((joined + left)[sizes] * values)
            lost += float(left[sizes] @ values)
            near, far = (values[0] if np.isnan(near) else near), values[-1]
        ends = np.array([near, far] if self.side == "empty" else [far, near])
        return self._sign * (gained - lost), ends

    @property
    def _sign(self) -> int:
        """The full side is minus the empty side of the dual game, v*(R) = v(all but R)."""
        return 1 if self.side == "empty" else -1

    def _weights(self, units: int, players: int) -> tuple[_Weights, _Weights]:
        """Per size: what a coalition's value adds to its members, and takes from the others."""
        left = np.zeros(players + 1)
        left[:players] = collapsed_weights(units, players, self.k)
        return np.concatenate([[0.0], left[:-1]]), left


def collapsed_weights(units: int, players: int, k: int) -> _Weights:
    """Weight of v(A + i) - v(A) by the size of A, in a layer of which few units are players.

    A stands for itself with any of the ``m = units - players`` null players beside it:

    ``W(a) = sum over z of binom(m, z) * w(a + z),  w(s) = s! (n - s - 1)! / n!``

    as long as ``a + z + 1 <= k``. Each term is a rational multiple of the one before it, and all
    are positive, so the sum is good to a few units in the last place. Without the limit it is eq.
    2's weight for a layer of `players` units, as it must be: null players change nothing.

    Returns
    -------
    NDArray
        (players,).

    Example
    -------
    >>> collapsed_weights(3, 2, 1).tolist()  # A is empty: w(0); no larger one is within reach
    [0.3333333333333333, 0.0]
    >>> collapsed_weights(3, 2, 3).tolist()  # eq. 2's weights for two units
    [0.5, 0.5]
    """
    nulls = units - players
    weights = np.zeros(players)
    for size in range(min(players, k)):
        if k - 1 - size >= nulls:
            weights[size] = 1 / (players * comb(players - 1, size))
            continue
        beside = np.arange(k - 1 - size)
        ratios = (nulls - beside) * (size + beside + 1) / (beside + 1) / (units - 1 - size - beside)
        terms = np.cumprod(np.concatenate([[1.0], ratios]))
        weights[size] = terms.sum() / (units * comb(units - 1, size))
    return weights


def _subsets(players: int, k: int) -> int:
    return sum(comb(players, size) for size in range(min(players, k) + 1))


def _blocks_of_subsets(players: int, k: int) -> Iterator[NDArray[np.bool_]]:
    """Yield the subsets of at most `k` of the players, and all players last, (subsets, players)."""
    sizes = [*range(k + 1), players]
    for size in sizes:
        found = combinations(range(players), size)
        while block := list(islice(found, _BLOCK)):
            chosen = np.zeros((len(block), players), np.bool_)
            np.put_along_axis(chosen, np.array(block, np.int64), values=True, axis=1)
            yield chosen
