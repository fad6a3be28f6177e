"""What a game is worth to its players, from the table of all its values.

A table has 2^n values; bit j of an index says whether player j is in the coalition. Sums over the
coalitions that hold a player are made by folding the table, half after half, so that all players
together cost 2 * 2^n steps, and all pairs of players 4 * 2^n.
"""

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from neurank.rankers.exact_shapley import shapley_of_table
from neurank.rankers.orders import own_orders

Table = NDArray[np.float64]
Scores = NDArray[np.float64]
_BLOCK = 1 << 14  # permutations walked side by side


def banzhaf_of_table(values: Table) -> Scores:
    """Banzhaf values: what a player adds, averaged over every coalition of the others.

    ``BZ(i) = 2^-(n-1) * sum over C without i of (v(C + i) - v(C))``

    Example:
    -------
    >>> banzhaf_of_table(np.array([0.0, 1.0, 0.0, 3.0])).tolist()
    [2.0, 1.0]
    """
    others = max(1, len(values) // 2)
    banzhaf: Scores = (2 * member_sums(values) - values.sum()) / others
    return banzhaf


def interactions_of_table(values: Table) -> NDArray[np.float64]:
    """Shapley interaction indices of pairs (Grabisch and Roubens 1999), (players, players).

    ``I(ij) = sum over C without i, j of |C|! (n - |C| - 2)! / (n - 1)! *
    (v(C + i + j) - v(C + i) - v(C + j) + v(C))``

    Positive where two players are worth more together than apart. The diagonal has the same index
    of a single player, which is its Shapley value.

    Example:
    -------
    >>> interactions_of_table(np.array([0.0, 1.0, 0.0, 3.0])).tolist()
    [[2.0, 2.0], [2.0, 1.0]]
    """
    players = len(values).bit_length() - 1
    sizes = coalition_sizes(players)
    # The weight of v(C) in terms of pairs outside C, and of those of which one or both are in C.
    none, one, both = np.zeros((3, players + 1))
    for size in range(players - 1):
        weight = 1 / ((players - 1) * comb(players - 2, size))
        none[size] = one[size + 1] = both[size + 2] = weight
    members = member_sums((none + one)[sizes] * values)
    pairs = pair_sums((none + 2 * one + both)[sizes] * values)
    indices = pairs - members[:, None] - members + none[sizes] @ values
    np.fill_diagonal(indices, shapley_of_table(values))
    return indices


def coalition_sizes(players: int) -> NDArray[np.uint8]:
    """Count the players of each coalition, (2^players,)."""
    sizes = np.zeros(1, np.uint8)
    for _ in range(players):
        sizes = np.concatenate([sizes, sizes + np.uint8(1)])
    return sizes


def member_sums(table: Table) -> Scores:
    """Sum over the coalitions that hold each player, (players,).

    Example:
    -------
    >>> member_sums(np.array([1.0, 2.0, 4.0, 8.0])).tolist()
    [10.0, 12.0]
    """
    sums = np.empty(len(table).bit_length() - 1)
    for player in reversed(range(len(sums))):
        without, having = table[: 1 << player], table[1 << player :]
        sums[player] = having.sum()
        table = without + having
    return sums


def pair_sums(table: Table) -> NDArray[np.float64]:
    """Sum over the coalitions that hold each pair, (players, players), the diagonal 0.

    Example:
    -------
    >>> pair_sums(np.array([1.0, 2.0, 4.0, 8.0])).tolist()
    [[0.0, 8.0], [8.0, 0.0]]
    """
    players = len(table).bit_length() - 1
    sums = np.zeros((players, players))
    for player in reversed(range(players)):
        without, having = table[: 1 << player], table[1 << player :]
        sums[player, :player] = sums[:player, player] = member_sums(having)
        table = without + having
    return sums


@dataclass(frozen=True)
class Walked:
    """What players add along random permutations of a table; entry (i, s) is i joining s others.

    Attributes
    ----------
    counts : (players, places), how often both coalitions were known.
    sums : (players, places), what the player then added, in all.
    squares : (players,), the sum of the squares.
    """

    counts: NDArray[np.int64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]

    @property
    def by_size(self) -> Scores:
        """Mean over the places of the mean at each place, (players,); NaN where one is empty."""
        with np.errstate(invalid="ignore"):
            means: Scores = (self.sums / self.counts).mean(axis=1)
        return means

    @property
    def mean(self) -> Scores:
        """Mean over all that was known, (players,)."""
        mean: Scores = self.sums.sum(axis=1) / self.counts.sum(axis=1)
        return mean

    @property
    def variance(self) -> Scores:
        """Variance of `mean` if every coalition was known: permutations are independent."""
        count = self.counts.sum(axis=1)
        variance: Scores = np.maximum(self.squares / count - self.mean**2, 0) / (count - 1)
        return variance


def walk(values: Table, permutations: int, seed: int, repetition: int = 0) -> Walked:
    """Let the players join in random orders, eq. 1; NaN in the table is a value not known.

    The p-th permutation is a function of `(seed, repetition, p)` alone.
    """
    players = len(values).bit_length() - 1
    cells = players * players
    counts, sums = np.zeros(cells, np.int64), np.zeros(cells)
    squares = np.zeros(players)
    for first in range(0, permutations, _BLOCK):
        numbers = np.arange(first, min(first + _BLOCK, permutations))
        orders = own_orders(seed, repetition, numbers, np.ones((len(numbers), players), np.bool_))
        coalitions = np.cumsum(np.int64(1) << orders, axis=1)
        chain = np.concatenate(
            [np.broadcast_to(values[0], (len(orders), 1)), values[coalitions]], axis=1
        )
        added = np.diff(chain, axis=1)  # (permutations, places)
        known = np.isfinite(added)
        cell = (orders * players + np.arange(players))[known]
        counts += np.bincount(cell, minlength=cells)
        sums += np.bincount(cell, added[known], minlength=cells)
        squares += np.bincount(orders[known], added[known] ** 2, minlength=players)
    shape = players, players
    return Walked(counts.reshape(shape), sums.reshape(shape), squares)
