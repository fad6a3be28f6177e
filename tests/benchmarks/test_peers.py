"""The peers come with `pip install '.[bench]'`; without them these tests say so and are skipped."""

import math

import numpy as np
import pytest

pytest.importorskip("shapiq", reason="shapiq is not installed: pip install '.[bench]'")
pytest.importorskip("captum", reason="captum is not installed: pip install '.[bench]'")

from benchmarks.peers import peers
from benchmarks.values import Counted

UNITS = 6
BUDGET = {"Owen": 4000, "stratified": 4000}
"""These draw each marginal contribution anew; for the others 600 are plenty in a game of 64."""


def value(masks):
    """A game with interactions: members' weights, and the square of how many there are."""
    masks = np.atleast_2d(masks)
    weights = np.array([0.5, -0.25, 1.0, 0.0, 0.125, 0.75])
    return 0.3 + masks @ weights + 0.05 * masks.sum(axis=1) ** 2 + masks[:, 0] * masks[:, 2]


def exact():
    """Eq. 2 of the neuron-ranking paper, over all coalitions."""
    scores = np.zeros(UNITS)
    for number in range(2**UNITS):
        mask = np.array([(number >> unit) & 1 for unit in range(UNITS)], dtype=bool)
        size = int(mask.sum())
        for unit in np.flatnonzero(~mask):
            weight = math.factorial(size) * math.factorial(UNITS - size - 1)
            with_unit = mask.copy()
            with_unit[unit] = True
            gain = float(value(with_unit)[0] - value(mask)[0])
            scores[unit] += weight / math.factorial(UNITS) * gain
    return scores


@pytest.mark.parametrize("peer", peers(UNITS), ids=lambda peer: peer.name)
def test_each_estimates_the_shapley_values_in_unit_order(peer):
    truth = exact()
    budget = BUDGET.get(peer.name, 600)
    runs = np.array([peer.estimate(value, UNITS, budget, seed) for seed in range(3)])
    assert runs.shape == (3, UNITS)
    assert np.abs(runs.mean(axis=0) - truth).max() < 0.05
    assert np.corrcoef(runs.mean(axis=0), truth)[0, 1] > 0.99


@pytest.mark.parametrize("peer", peers(UNITS), ids=lambda peer: peer.name)
def test_each_keeps_its_budget_and_follows_its_seed(peer):
    counted = Counted(value)
    first = peer.estimate(counted, UNITS, 50, 3)
    assert 25 <= counted.coalitions <= 50
    assert np.array_equal(first, peer.estimate(value, UNITS, 50, 3))
