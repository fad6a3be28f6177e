"""The agreement of two rankings by its definitions, slowly."""

from fractions import Fraction
from itertools import combinations
from math import nan, sqrt


def chance_of_overlap(units, k, overlap):
    """Share of the k-subsets that have at least `overlap` units in common with {0, ..., k-1}."""
    fixed = set(range(k))
    subsets = [set(subset) for subset in combinations(range(units), k)]
    hits = sum(len(fixed & subset) >= overlap for subset in subsets)
    return Fraction(hits, len(subsets))


def mean_rank(scores, unit):
    """Position among the scores from 1; tied scores share the mean of theirs."""
    below = sum(other < scores[unit] for other in scores)
    tied = sum(other == scores[unit] for other in scores)
    return Fraction(2 * below + tied + 1, 2)


def spearman(x, y):
    """Pearson's correlation of the mean ranks."""
    n = len(x)
    ranks = [[mean_rank(scores, unit) for unit in range(n)] for scores in (x, y)]
    (dx, dy) = ([rank - Fraction(sum(row), n) for rank in row] for row in ranks)
    covariance = sum(p * q for p, q in zip(dx, dy, strict=True))
    variances = sum(p * p for p in dx) * sum(q * q for q in dy)
    return float(covariance) / sqrt(variances) if variances else nan


def kendall_tau_b(x, y):
    """Concordant minus discordant pairs, over √(pairs untied in x × pairs untied in y)."""
    pairs = list(combinations(range(len(x)), 2))
    signs = [(sign(x[i] - x[j]), sign(y[i] - y[j])) for i, j in pairs]
    balance = sum(p * q for p, q in signs)
    untied = sum(p != 0 for p, _ in signs) * sum(q != 0 for _, q in signs)
    return balance / sqrt(untied) if untied else nan


def sign(number):
    return (number > 0) - (number < 0)
