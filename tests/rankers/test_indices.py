from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles.shapley import by_subsets
from tests.oracles.truncated import banzhaf, interaction

from neurank.rankers.indices import (
    banzhaf_of_table,
    coalition_sizes,
    interactions_of_table,
    member_sums,
    pair_sums,
    walk,
)
from neurank.rankers.orders import own_orders

tables = st.integers(1, 6).flatmap(
    lambda k: st.lists(st.floats(-10, 10, width=32), min_size=2**k, max_size=2**k)
)


def game(table):
    return lambda coalition: table[sum(1 << player for player in coalition)]


def players_of(table):
    return len(table).bit_length() - 1


@settings(max_examples=30)
@given(tables)
def test_banzhaf_and_interactions_match_their_definitions(table):
    n, value = players_of(table), game(table)
    array = np.array(table, float)
    assert banzhaf_of_table(array).tolist() == pytest.approx(banzhaf(value, n), abs=1e-9)
    found = interactions_of_table(array)
    assert np.diag(found).tolist() == pytest.approx(by_subsets(value, n), abs=1e-9)
    np.testing.assert_allclose(found, found.T, atol=1e-9)
    for one, two in combinations(range(n), 2):
        expected = interaction(value, n, one, two)
        assert found[one, two] == pytest.approx(expected, abs=1e-8)


@given(st.integers(1, 7))
def test_sums_over_members_and_pairs(n):
    table = np.random.default_rng(n).normal(size=1 << n)
    bits = (np.arange(1 << n)[:, None] >> np.arange(n)) & 1
    np.testing.assert_allclose(member_sums(table), table @ bits, atol=1e-12)
    expected = (bits * table[:, None]).T @ bits
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(pair_sums(table), expected, atol=1e-12)
    assert coalition_sizes(n).tolist() == bits.sum(axis=1).tolist()


@pytest.mark.parametrize("block", [1 << 14, 7])
@pytest.mark.parametrize("gaps", [False, True])
def test_walks_are_the_chains_of_the_permutations(gaps, block, monkeypatch):
    monkeypatch.setattr("neurank.rankers.indices._BLOCK", block)
    rng = np.random.default_rng(4)
    table = rng.normal(size=32)
    if gaps:
        table[rng.choice(np.arange(1, 31), 8, replace=False)] = np.nan
    value = game(table)
    counts, sums, squares = np.zeros((5, 5)), np.zeros((5, 5)), np.zeros(5)
    for number in range(50):
        (order,) = own_orders(6, 2, np.array([number]), np.ones((1, 5), bool)).tolist()
        for place, player in enumerate(order):
            added = value(order[: place + 1]) - value(order[:place])
            if not np.isnan(added):
                counts[player, place] += 1
                sums[player, place] += added
                squares[player] += added**2
    found = walk(table, 50, seed=6, repetition=2)
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_allclose(found.sums, sums, atol=1e-12)
    np.testing.assert_allclose(found.squares, squares, atol=1e-12)
    np.testing.assert_allclose(found.mean, sums.sum(axis=1) / counts.sum(axis=1), atol=1e-12)
    if not gaps:
        each = squares / 50 - (sums.sum(axis=1) / 50) ** 2
        np.testing.assert_allclose(found.variance, each / 49, atol=1e-12)
    if counts.all():
        np.testing.assert_allclose(found.by_size, (sums / counts).mean(axis=1), atol=1e-12)
