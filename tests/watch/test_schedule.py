"""Shares on a schedule, and the widths they come to."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurank.errors import MethodError
from neurank.watch.schedule import Schedule, widths_between

THESIS = {2: 0.1, 3: 0.2, 4: 0.4, 5: 0.6}


def test_the_thesis_arithmetic():
    schedule, wide = Schedule(THESIS), {"conv1": 8, "conv2": 16, "fc1": 64}
    now, found = dict(wide), []
    for epoch in schedule.shares:
        now = {
            layer: schedule.width(layer, epoch, original=wide[layer], current=width)
            for layer, width in now.items()
        }
        found.append(tuple(now.values()))
    assert found == [(8, 15, 58), (7, 13, 52), (5, 10, 39), (4, 7, 26)]


def test_shares_of_what_is_left():
    schedule = Schedule({1: 0.5, 2: 0.5, 3: 0.9}, "current")
    assert schedule.width("fc1", 1, original=64, current=64) == 32
    assert schedule.width("fc1", 2, original=64, current=32) == 16
    assert schedule.width("fc1", 3, original=64, current=5) == 1


def test_the_decimal_counts_not_its_binary_neighbour():
    assert Schedule({1: 0.29}).width("fc1", 1, original=100, current=100) == 71


def test_shares_by_layer():
    schedule = Schedule({4: {"fc1": 0.5}, 1: {"conv1": 0.25, "fc1": 0.25}})
    assert list(schedule.shares) == [1, 4]
    assert schedule.layers() == ("conv1", "fc1")
    assert Schedule(THESIS).layers() is None
    assert schedule.width("conv2", 1, original=7, current=7) == 7
    # a layer that an epoch does not name stays as it is
    assert schedule.width("conv1", 4, original=8, current=6) == 6


@given(
    before=st.integers(1, 60),
    gone=st.integers(0, 59),
    rounds=st.integers(1, 9),
)
def test_rounds_fall_evenly_to_the_width(before, gone, rounds):
    after = max(1, before - gone)
    steps = (before, *widths_between(before, after, rounds))
    falls = [high - low for high, low in pairwise(steps)]
    assert steps[-1] == after
    assert len(falls) == rounds
    assert max(falls) - min(falls) <= 1
    assert min(falls) >= 0


@given(
    share=st.floats(0, 1, exclude_max=True),
    original=st.integers(1, 200),
    gone=st.integers(0, 199),
    counted=st.sampled_from(["original", "current"]),
)
def test_a_layer_keeps_a_unit_and_gains_none(share, original, gone, counted):
    current = max(1, original - gone)
    width = Schedule({1: share}, counted).width("a", 1, original=original, current=current)
    assert 1 <= width <= current


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({}, "names no epoch"),
        ([0.1, 0.2], "names no epoch"),
        ({-1: 0.1}, "the epoch -1"),
        ({True: 0.1}, "the epoch True"),
        ({1: 1.0}, "share of epoch 1 is 1.0"),
        ({1: "0.1"}, "share of epoch 1 is '0.1'"),
        ({1: {"fc1": -0.1}}, "share of epoch 1, layer 'fc1' is -0.1"),
        ({1: float("nan")}, "share of epoch 1 is nan"),
        ({1: 0.4, 2: 0.3}, "falls from 0.4 after epoch 1 to 0.3 after epoch 2"),
        ({2: {"a": 0.3}, 1: {"a": 0.4}}, "the share of layer 'a' falls from 0.4 after epoch 1"),
    ],
)
def test_what_is_no_schedule_is_refused(shares, message):
    with pytest.raises(MethodError, match=message):
        Schedule(shares)


def test_an_unknown_count_is_refused():
    with pytest.raises(MethodError, match="counted_from='now' is unknown"):
        Schedule(THESIS, "now")
