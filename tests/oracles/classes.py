"""Counting by class, comparing sets of units: by their definitions, slowly."""

from fractions import Fraction
from itertools import product
from math import comb, exp, log, nan, sqrt

from tests.oracles.agreement import spearman

__all__ = [
    "area",
    "binomial_test",
    "called",
    "jaccard",
    "log_odds",
    "pearson",
    "spearman",
]


def area(scores, own):
    """Share of the pairs of an own and another picture that are in order; ties count a half."""
    pairs = [
        (mine, other)
        for (mine, is_mine), (other, is_other) in product(zip(scores, own, strict=True), repeat=2)
        if is_mine and not is_other
    ]
    if not pairs:
        return nan
    return sum((mine > other) + 0.5 * (mine == other) for mine, other in pairs) / len(pairs)


def called(logits):
    """The class with the highest logit, the lowest index winning ties."""
    return [row.index(max(row)) for row in logits]


def log_odds(row, label):
    """log of p / (1 - p), p the softmax's probability; for small logits only."""
    total = sum(exp(z) for z in row)
    p = exp(row[label]) / total
    return log(p) - log(sum(exp(z) for place, z in enumerate(row) if place != label) / total)


def binomial_test(gained, lost):
    """Chance that fair coins fall as unevenly, to either side, in whole numbers."""
    n = gained + lost
    at_most = sum(comb(n, k) for k in range(min(gained, lost) + 1))
    return min(Fraction(1), Fraction(2 * at_most, 2**n))


def jaccard(one, other):
    """Size of the intersection over that of the union."""
    return len(one & other) / len(one | other) if one | other else nan


def pearson(x, y):
    """Pearson's correlation; NaN where one side is constant."""
    n = len(x)
    dx, dy = ([Fraction(v) - Fraction(sum(side), n) for v in side] for side in (x, y))
    variances = sum(p * p for p in dx) * sum(q * q for q in dy)
    return (
        float(sum(p * q for p, q in zip(dx, dy, strict=True))) / sqrt(variances)
        if variances
        else nan
    )
