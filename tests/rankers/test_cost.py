from types import SimpleNamespace

import pytest
import torch

from neurank.errors import MethodError
from neurank.rankers.cost import check_cost

OBSERVER = SimpleNamespace(examples=SimpleNamespace(count=100))
GAME = SimpleNamespace(
    layer="fc", units=9, active=torch.ones(5, 7, dtype=torch.bool), operations_per_coalition=10
)


def check(limit, coalitions=50, seen=5):
    check_cost(
        "the table", OBSERVER, GAME, coalitions=coalitions, seen=seen, max_operations=limit,
        remedy="Wait",
    )  # fmt: skip


def test_the_rate_so_far_is_taken_for_the_whole():
    check(10_000)
    message = r"the table of layer 'fc' .* 1\.0e\+03 coalitions, 1\.0e\+04 .*1e\+04: up to 7 of 9"
    with pytest.raises(MethodError, match=message):
        check(9_999)


def test_no_examples_yet_cost_nothing():
    check(1, coalitions=0, seen=0)


def test_numbers_beyond_floats():
    with pytest.raises(MethodError, match=r"1e\+603 coalitions, 1e\+604 operations"):
        check(1e13, coalitions=2**2000)
