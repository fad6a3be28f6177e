"""What the paper's other estimators converge to, term by term as they are printed.

A game is a function from a frozenset of players to a number; players are 0 .. n - 1.
"""

from fractions import Fraction
from itertools import combinations
from math import comb, factorial


def subsets(members):
    for size in range(len(members) + 1):
        for chosen in combinations(members, size):
            yield frozenset(chosen)


def truncated(value, players, k, side):
    """Eq. 2 over its terms with at most k players on (side "empty"), or k off (side "full")."""
    scores = []
    for player in range(players):
        score = 0.0
        for without in subsets([other for other in range(players) if other != player]):
            size = len(without)
            reached = size + 1 <= k if side == "empty" else players - size <= k
            if reached:
                weight = factorial(size) * factorial(players - size - 1) / factorial(players)
                score += weight * (value(without | {player}) - value(without))
        scores.append(score)
    return scores


def banzhaf(value, players):
    """What a player adds, averaged over every coalition of the others."""
    scores = []
    for player in range(players):
        others = [other for other in range(players) if other != player]
        added = [value(without | {player}) - value(without) for without in subsets(others)]
        scores.append(sum(added) / len(added))
    return scores


def interaction(value, players, one, two):
    """Shapley interaction index of two players (Grabisch and Roubens 1999)."""
    others = [other for other in range(players) if other not in {one, two}]
    total = 0.0
    for c in subsets(others):
        weight = factorial(len(c)) * factorial(players - len(c) - 2) / factorial(players - 1)
        total += weight * (value(c | {one, two}) - value(c | {one}) - value(c | {two}) + value(c))
    return total


def collapsed_weight(units, players, k, size):
    """Eq. 2's weights of all coalitions that only null players tell from one of `size` players."""
    return sum(
        comb(units - players, nulls)
        * Fraction(factorial(size + nulls) * factorial(units - size - nulls - 1), factorial(units))
        for nulls in range(units - players + 1)
        if size + nulls + 1 <= k
    )
