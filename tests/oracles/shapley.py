"""The Shapley value as the neuron-ranking paper prints it, twice.

A game is a function from a frozenset of players to a number; players are 0 .. n - 1.
"""

from itertools import combinations, permutations
from math import factorial


def by_subsets(value, players):
    """Eq. 2: a weighted sum over every coalition without the player."""
    everyone = range(players)
    scores = []
    for player in everyone:
        others = [other for other in everyone if other != player]
        score = 0.0
        for size in range(players):
            weight = factorial(size) * factorial(players - size - 1) / factorial(players)
            for members in combinations(others, size):
                without = frozenset(members)
                score += weight * (value(without | {player}) - value(without))
        scores.append(score)
    return scores


def by_permutations(value, players):
    """Eq. 1: what a player adds to those before it, averaged over every order."""
    scores = [0.0] * players
    for order in permutations(range(players)):
        before = frozenset()
        for player in order:
            after = before | {player}
            scores[player] += value(after) - value(before)
            before = after
    return [score / factorial(players) for score in scores]
