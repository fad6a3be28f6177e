from collections import Counter
from itertools import combinations
from math import comb, sqrt

import numpy as np
import pytest

from neurank.rankers.draws import coalitions_of_others, share_of_coalitions

BOTH = ("size-uniform", "subset-uniform")
UNITS = 5


def draw(kind, examples=4000, seed=0, repetition=0, active=None):
    numbers = np.arange(examples)
    units = np.tile(np.arange(UNITS), (examples, 1))
    active = np.ones((examples, UNITS), bool) if active is None else active
    return coalitions_of_others(seed, repetition, numbers, units, active, kind)


def as_sets(drawn, unit):
    return Counter(frozenset(np.flatnonzero(one).tolist()) for one in drawn[:, unit])


@pytest.mark.parametrize("kind", BOTH)
def test_every_coalition_of_the_others_is_as_likely_as_promised(kind):
    examples = 20_000
    drawn = draw(kind, examples)
    for unit in range(UNITS):
        found = as_sets(drawn, unit)
        others = [other for other in range(UNITS) if other != unit]
        for size in range(UNITS):
            by_size = 1 / (UNITS * comb(UNITS - 1, size))
            chance = by_size if kind == "size-uniform" else 0.5 ** (UNITS - 1)
            for members in combinations(others, size):
                share = found.pop(frozenset(members)) / examples
                assert abs(share - chance) < 4.5 * sqrt(chance / examples)
        assert not found


@pytest.mark.parametrize("kind", BOTH)
def test_nobody_is_drawn_who_is_not_active(kind):
    rng = np.random.default_rng(0)
    active = rng.random((500, UNITS)) < 0.6
    drawn = draw(kind, 500, active=active)
    assert not (drawn & ~active[:, None, :]).any()
    assert drawn.any(axis=(0, 1)).all()


def test_sizes_are_uniform_among_the_active_ones():
    active = np.tile([True, False, True, True, False], (6000, 1))
    sizes = draw("size-uniform", 6000, active=active)[:, 0].sum(axis=1)
    assert np.abs(np.bincount(sizes) / 6000 - 1 / 3).max() < 0.03


@pytest.mark.parametrize("kind", BOTH)
def test_a_draw_depends_on_seed_repetition_example_and_unit_alone(kind):
    whole = draw(kind, 60)
    some, units = np.array([41, 7]), np.array([[3, 0], [2, 4]])
    found = coalitions_of_others(0, 0, some, units, np.ones((2, UNITS), bool), kind)
    for row, number in enumerate(some):
        for slot in range(2):
            np.testing.assert_array_equal(found[row, slot], whole[number, units[row, slot]])
    for other in (draw(kind, 60, seed=1), draw(kind, 60, repetition=1)):
        agree = (other == whole)[:, ~np.eye(UNITS, dtype=bool)].mean()
        assert 0.4 < agree < 0.65


def test_units_of_an_example_draw_independently():
    drawn = draw("subset-uniform", 8000).astype(float)
    assert abs(np.corrcoef(drawn[:, 0, 2], drawn[:, 1, 2])[0, 1]) < 0.05


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_share_is_drawn_and_the_ends_always(share):
    units = 17  # more than one block
    drawn = share_of_coalitions(3, 0, units, share)
    sizes = np.array([index.bit_count() for index in range(1 << units)])
    ends = np.isin(sizes, [0, 1, units - 1, units])
    assert drawn[ends].all()
    others = drawn[~ends]
    assert abs(others.mean() - share) < 4.5 * sqrt(share * (1 - share) / len(others))
    assert abs(others[: 1 << 16].mean() - others[1 << 16 :].mean()) < 0.01
    for size in (5, 8, 11):
        here = drawn[sizes == size]
        assert abs(here.mean() - share) < 4.5 * sqrt(share * (1 - share) / len(here))


def test_shares_differ_between_repetitions_and_seeds_and_nest_between_shares():
    base = share_of_coalitions(0, 0, 12, 0.4)
    np.testing.assert_array_equal(base, share_of_coalitions(0, 0, 12, 0.4))
    assert (base != share_of_coalitions(0, 1, 12, 0.4)).mean() > 0.4
    assert (base != share_of_coalitions(1, 0, 12, 0.4)).mean() > 0.4
    assert not (base & ~share_of_coalitions(0, 0, 12, 0.6)).any()
    assert share_of_coalitions(0, 0, 12, 1.0).all()


def test_a_single_unit_has_its_two_coalitions():
    assert share_of_coalitions(0, 0, 1, 0.01).tolist() == [True, True]
