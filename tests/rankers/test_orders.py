from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

from neurank.rankers.orders import own_orders, reversed_orders

masks = npst.arrays(bool, st.tuples(st.integers(0, 5), st.integers(1, 7)))


def everyone(examples, units):
    return np.ones((examples, units), bool)


def numbers(examples, first=0):
    return np.arange(first, first + examples)


@settings(deadline=None)
@given(masks, st.integers(0, 2**40), st.integers(0, 9), st.integers(0, 10**6))
def test_each_order_holds_the_active_units_and_then_nothing(active, seed, repetition, first):
    orders = own_orders(seed, repetition, numbers(len(active), first), active)
    assert orders.shape == active.shape
    for order, mask in zip(orders, active, strict=True):
        players = int(mask.sum())
        assert sorted(order[:players]) == np.flatnonzero(mask).tolist()
        assert (order[players:] == -1).all()


@settings(deadline=None)
@given(masks, st.integers(0, 2**40), st.integers(0, 9))
def test_an_example_draws_the_same_in_whatever_company(active, seed, repetition):
    together = own_orders(seed, repetition, numbers(len(active)), active)
    for number in range(len(active)):
        alone = own_orders(seed, repetition, np.array([number]), active[number : number + 1])
        assert (alone[0] == together[number]).all()


def counts(orders):
    seen = Counter(map(tuple, orders.tolist()))
    return [seen[order] for order in permutations(range(orders.shape[1]))]


def over_examples(count, units):
    return own_orders(11, 0, numbers(count), everyone(count, units))


def over_repetitions(count, units):
    one = everyone(1, units)
    return np.concatenate([own_orders(11, r, np.array([7]), one) for r in range(count)])


def over_seeds(count, units):
    one = everyone(1, units)
    return np.concatenate([own_orders(seed, 0, np.array([7]), one) for seed in range(count)])


@pytest.mark.parametrize(
    ("draw", "count", "units"),
    [
        (over_examples, 60_000, 2),
        (over_examples, 60_000, 3),
        (over_examples, 120_000, 4),
        (over_repetitions, 6_000, 3),
        (over_seeds, 6_000, 3),
    ],
)
def test_every_order_is_as_likely(draw, count, units):
    assert stats.chisquare(counts(draw(count, units))).pvalue > 1e-3


def test_the_test_above_notices_a_lazy_shuffle():
    """Swapping each place with any place at all, a classic mistake, is not uniform."""
    draw = np.random.default_rng(0)
    orders = np.tile(np.arange(3), (60_000, 1))
    for place in range(3):
        other = draw.integers(3, size=len(orders))
        rows = np.arange(len(orders))
        orders[rows, place], orders[rows, other] = orders[rows, other], orders[rows, place].copy()
    assert stats.chisquare(counts(orders)).pvalue < 1e-9


@pytest.mark.parametrize("lag", [1, 200])
def test_neighbours_draw_independently(lag):
    orders = over_examples(60_000, 3)
    names = {order: at for at, order in enumerate(permutations(range(3)))}
    drawn = np.array([names[order] for order in map(tuple, orders.tolist())])
    table = np.zeros((6, 6))
    np.add.at(table, (drawn[:-lag], drawn[lag:]), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_repetitions_and_seeds_draw_anew():
    orders = [own_orders(seed, r, numbers(50), everyone(50, 6)) for seed in (0, 1) for r in (0, 1)]
    for one in range(4):
        for other in range(one):
            assert (orders[one] != orders[other]).any(axis=1).mean() > 0.9


@settings(deadline=None)
@given(masks)
def test_reversing_turns_the_players_round_and_leaves_the_rest(active):
    orders = own_orders(0, 0, numbers(len(active)), active)
    for order, turned in zip(orders, reversed_orders(orders), strict=True):
        players = int((order >= 0).sum())
        assert turned[:players].tolist() == order[:players][::-1].tolist()
        assert (turned[players:] == -1).all()
