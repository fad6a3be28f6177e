from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

from neurank.rankers.orders import own_coins, own_orders, reversed_orders, turned_orders

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


@pytest.mark.parametrize(("players", "parts"), [(6, 1), (6, 2), (6, 3), (6, 6), (12, 4), (8, 2)])
def test_turned_orders_put_each_unit_once_into_each_part(players, parts):
    active = everyone(20, players + 3)
    active[:, [0, 2, 5]] = False
    orders = own_orders(4, 0, numbers(20), active)
    turned = [turned_orders(orders, turn, parts) for turn in range(parts)]
    assert (turned[0] == orders).all()
    for row in range(20):
        for unit in np.flatnonzero(active[row]):
            places = [int(np.flatnonzero(order[row] == unit)[0]) for order in turned]
            assert sorted(place * parts // players for place in places) == list(range(parts))


@settings(deadline=None)
@given(masks, st.integers(1, 9))
def test_turned_orders_hold_the_same_players_in_the_same_circle(active, parts):
    orders = own_orders(1, 0, numbers(len(active)), active)
    for turn in range(parts):
        for order, turned in zip(orders, turned_orders(orders, turn, parts), strict=True):
            players = int((order >= 0).sum())
            first = players * turn // parts
            assert turned[:players].tolist() == np.roll(order[:players], -first).tolist()
            assert (turned[players:] == -1).all()


@pytest.mark.parametrize(("turn", "parts"), [(1, 2), (2, 3), (4, 5)])
def test_every_turned_order_is_as_likely(turn, parts):
    orders = turned_orders(over_examples(60_000, 3), turn, parts)
    assert stats.chisquare(counts(orders)).pvalue > 1e-3


def flips(count, repetition=0, seed=5, start=0, end=8, first=0):
    of = np.full(count, start)
    return own_coins(seed, repetition, numbers(count, first), of, of + end - start)


def over_stretches(count):
    ends = np.arange(1, count + 1)
    return own_coins(5, 0, np.zeros(count, int), ends // 2, ends)


def over_repeated_coins(count):
    return np.array([flips(1, repetition)[0] for repetition in range(count)])


@pytest.mark.parametrize(
    ("draw", "count"), [(flips, 100_000), (over_stretches, 100_000), (over_repeated_coins, 4000)]
)
def test_coins_are_uniform_and_independent(draw, count):
    coins = draw(count)
    assert ((coins >= 0) & (coins < 1)).all()
    assert len(np.unique(coins)) == count
    assert stats.kstest(coins, "uniform").pvalue > 1e-3
    for lag in (1, 2, 64):
        link = np.corrcoef(coins[:-lag], coins[lag:])[0, 1]
        assert abs(link) < 4 / np.sqrt(count)


def test_coins_of_other_stretches_draws_and_seeds_are_others():
    some = [
        flips(20_000),
        flips(20_000, repetition=1),
        flips(20_000, seed=6),
        flips(20_000, start=4),
        flips(20_000, end=4),
        flips(20_000, start=8, end=16),
        flips(20_000, first=20_000),
    ]
    links = np.corrcoef(some) - np.eye(len(some))
    assert np.abs(links).max() < 4.5 / np.sqrt(20_000)


def test_coins_know_nothing_of_the_orders():
    first = own_orders(5, 0, numbers(60_000), everyone(60_000, 2))[:, 0]
    coins = flips(60_000)
    assert stats.ks_2samp(coins[first == 0], coins[first == 1]).pvalue > 1e-3


def test_coins_are_the_same_in_whatever_company():
    together = flips(50)
    mixed = np.random.default_rng(0).permutation(50)
    again = own_coins(5, 0, mixed, np.zeros(50, int), np.full(50, 8))
    assert (again == together[mixed]).all()
