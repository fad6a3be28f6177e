"""The compiled loops against a head written out in numpy, one coalition after another.

Weights are small whole numbers, so that every order of summation gives the same bits, ties are
many, and the answer has to be the same in both precisions.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import comb
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurank.observe.kernels.chains import chain_marginals
from neurank.observe.kernels.perceptron import pack
from neurank.observe.kernels.power_set import coalition_weights, power_set_shapley
from neurank.rankers.exact_shapley import shapley_of_table
from neurank.rankers.orders import own_orders


@dataclass(frozen=True)
class Head:
    """Max over windows, then (relu?, matrix, bias) per stage, then perhaps a ReLU."""

    windows: Any
    stages: Any
    relu_at_end: bool

    def wins(self, start, target):
        """Whether the target's logit is the first among the largest, (coalitions,)."""
        x = start[:, self.windows].max(axis=2)  # (coalitions, inputs)
        for relu, matrix, bias in self.stages:
            x = (np.maximum(x, 0) if relu else x) @ matrix.T + bias
        x = np.maximum(x, 0) if self.relu_at_end else x
        return (x.argmax(axis=1) == target).astype(float)

    def packed(self, dtype):
        return pack(self.windows, self.stages, relu_at_end=self.relu_at_end, dtype=np.dtype(dtype))


def draw_head(draw, features, depth, *, widest=6, window=1, relu_at_end=False):
    windows = np.arange(features)[:, None]
    if window > 1:
        windows = draw.integers(features, size=(int(draw.integers(1, 6)), window))
    widths = [len(windows), *draw.integers(1, widest + 1, size=depth)]
    stages = [
        (
            bool(draw.integers(2)),
            draw.integers(-2, 3, size=(after, before)).astype(float),
            draw.integers(-2, 3, size=after).astype(float),
        )
        for before, after in pairwise(widths)
    ]
    return Head(windows, stages, relu_at_end), int(widths[-1])


def draw_game(draw, features, units, classes, examples=3):
    base = draw.integers(-2, 3, size=features).astype(float)
    added = draw.integers(-2, 3, size=(examples, units, features)).astype(float)
    targets = draw.integers(classes, size=examples)
    return base, added, targets


def table(head, base, added, target):
    """Values of every coalition of the units that add, player j at bit j."""
    coalitions = np.arange(2 ** len(added))
    masks = (coalitions[:, None] >> np.arange(len(added))) & 1
    return head.wins(base + masks @ added.reshape(len(added), len(base)), target)


def check_power_set(head, base, added, active, targets, dtype):
    shapley, ends = power_set_shapley(
        base.astype(dtype), added.astype(dtype), active, targets, head.packed(dtype)
    )
    for example, target in enumerate(targets):
        on = active[example]
        values = table(head, base, added[example][on], target)
        np.testing.assert_allclose(shapley[example][on], shapley_of_table(values), atol=1e-12)
        assert (shapley[example][~on] == 0).all()
        assert ends[example].tolist() == values[[0, -1]].tolist()


def check_chains(head, base, added, orders, targets, dtype):
    marginals, ends = chain_marginals(
        base.astype(dtype), added.astype(dtype), orders, targets, head.packed(dtype)
    )
    for example, target in enumerate(targets):
        order = orders[example][orders[example] >= 0]
        sums = base + np.cumsum([np.zeros(len(base)), *added[example][order]], axis=0)
        values = head.wins(sums, target)
        wanted = np.zeros(added.shape[1])
        wanted[order] = np.diff(values)
        assert marginals[example].tolist() == wanted.tolist()
        assert ends[example].tolist() == values[[0, -1]].tolist()


both = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@both
@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 10**6), st.integers(1, 7), st.integers(0, 3), st.integers(0, 6),
    st.sampled_from([1, 1, 2, 4]), st.booleans(),
)  # fmt: skip
def test_any_head_any_game(dtype, seed, features, depth, units, window, relu_at_end):
    draw = np.random.default_rng(seed)
    window = window if depth else 1  # pooling feeds a matrix
    head, classes = draw_head(draw, features, depth, window=window, relu_at_end=relu_at_end)
    base, added, targets = draw_game(draw, features, units, classes)
    active = draw.random((3, units)) < 0.8
    check_power_set(head, base, added, active, targets, dtype)
    orders = own_orders(seed, 0, np.arange(3), active)
    check_chains(head, base, added, orders, targets, dtype)


@both
@pytest.mark.parametrize("widest", [3, 300])
@pytest.mark.parametrize("units", [0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13])
def test_players_within_and_beyond_one_tile(units, widest, dtype):
    """The low units share a tile of 2^10 lanes at most, fewer where the head is wide."""
    draw = np.random.default_rng(units)
    head, classes = draw_head(draw, 4, 2)
    if widest > 6:
        wide = draw.integers(-1, 2, size=(widest, 4)).astype(float)
        narrow = draw.integers(-1, 2, size=(3, widest)).astype(float)
        stages = [(True, wide, np.zeros(widest)), (True, narrow, np.zeros(3))]
        head, classes = Head(np.arange(4)[:, None], stages, relu_at_end=False), 3
    base, added, targets = draw_game(draw, 4, units, classes, examples=2)
    active = np.ones((2, units), bool)
    check_power_set(head, base, added, active, targets, dtype)
    orders = own_orders(1, 0, np.arange(2), active)
    check_chains(head, base, added, orders, targets, dtype)


@both
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 11])
@pytest.mark.parametrize("depth", [0, 1])
def test_odd_and_even_numbers_of_outputs(classes, depth, dtype):
    draw = np.random.default_rng(classes)
    features = 5 if depth else classes
    stage = (True, draw.integers(-2, 3, size=(classes, 5)).astype(float), np.zeros(classes))
    head = Head(np.arange(features)[:, None], [stage][:depth], relu_at_end=False)
    base, added, _ = draw_game(draw, features, 5, classes, examples=classes)
    active = np.ones((classes, 5), bool)
    check_power_set(head, base, added, active, np.arange(classes), dtype)
    orders = own_orders(1, 0, np.arange(classes), active)
    check_chains(head, base, added, orders, np.arange(classes), dtype)


@both
def test_of_equal_logits_the_first_wins(dtype):
    """Three classes that tie in every coalition: only the first is ever right."""
    head = Head(np.arange(3)[:, None], [], relu_at_end=False)
    base, added = np.zeros(3), np.ones((3, 2, 3))
    active = np.ones((3, 2), bool)
    _, ends = power_set_shapley(
        base.astype(dtype), added.astype(dtype), active, np.arange(3), head.packed(dtype)
    )
    assert ends.tolist() == [[1, 1], [0, 0], [0, 0]]


@both
def test_rows_that_relu_silences_are_dropped_at_the_right_place(dtype):
    """A feature that just reaches 0 adds nothing, one that exceeds it by a hair does."""
    stages = [(True, np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([2.0**-10, 0.0]))]
    head = Head(np.arange(2)[:, None], stages, relu_at_end=False)
    base = np.array([-3.0, -3.0])
    for reach, right in ((3.0, 0.0), (3.0 + 2.0**-9, 1.0)):
        added = np.array([[[reach, 0.0], [0.0, 1.0]]])
        _, ends = power_set_shapley(
            base.astype(dtype), added.astype(dtype), np.ones((1, 2), bool), np.array([1]),
            head.packed(dtype),
        )  # fmt: skip
        assert ends.tolist() == [[0.0, right]]


def test_reals_agree_in_double_precision():
    draw = np.random.default_rng(5)
    for depth in range(4):
        head, classes = draw_head(draw, 6, depth)
        stages = [(relu, matrix + draw.normal(size=matrix.shape), bias + draw.normal(
            size=bias.shape)) for relu, matrix, bias in head.stages]  # fmt: skip
        head = Head(head.windows, stages, head.relu_at_end)
        base, added = draw.normal(size=6), draw.normal(size=(4, 8, 6))
        targets = draw.integers(classes, size=4)
        check_power_set(head, base, added, draw.random((4, 8)) < 0.7, targets, np.float64)


@pytest.mark.parametrize("players", range(1, 14))
def test_weights_are_those_of_eq_2(players):
    joined, left = coalition_weights(players)
    for size in range(players):
        wanted = 1 / (players * comb(players - 1, size))
        assert left[size] == pytest.approx(wanted, rel=1e-12)
        assert joined[size + 1] == pytest.approx(wanted, rel=1e-12)
