"""The peers come with `pip install '.[bench]'`; without them these tests say so and are skipped."""

import numpy as np
import pytest

pytest.importorskip("shapiq", reason="shapiq is not installed: pip install '.[bench]'")
pytest.importorskip("captum", reason="captum is not installed: pip install '.[bench]'")

from benchmarks.against_peers import Truth, agreement, black_box_run, peer_curves
from benchmarks.peers import Peer

UNITS = 4
TRUTH = Truth(np.arange(UNITS) / 10, 0.0, "exact", 16, 0.0)


def asks_for_all_it_may(value, units, budget, seed):
    """Ask for `budget` coalitions and be off by the seed's amount and what the values are."""
    values = value(np.ones((budget, units), dtype=bool))
    return TRUTH.scores + seed / 100 + (values.mean() - 1)


PEER = Peer("all", "own", asks_for_all_it_may)


def always_one(masks):
    return np.ones(len(masks))


def test_a_replayed_run_is_charged_for_every_coalition():
    (given, replayed), _ = peer_curves(PEER, always_one, TRUTH, 2, (10, 30), per_coalition=5.0)
    assert [point.coalitions for point in replayed.points] == [10, 30, 10, 30]
    assert all(0 < point.seconds < 1 for point in given.points)
    charged = [point.seconds for point in replayed.points]
    assert charged == pytest.approx([50, 150, 50, 150], abs=0.5)
    assert [point.rmse for point in given.points] == pytest.approx([0, 0, 0.01, 0.01])


def test_a_value_function_that_disagrees_with_the_black_box_is_found_out():
    agreed = black_box_run(PEER, always_one, always_one, 10, UNITS)
    assert (agreed.off_by, agreed.coalitions) == (0.0, 10)
    off = black_box_run(PEER, lambda masks: np.full(len(masks), 1.25), always_one, 10, UNITS)
    assert off.off_by == pytest.approx(0.25)


@pytest.mark.parametrize(("bias", "least", "most"), [(0.0, 0.8, 1.2), (0.05, 4.0, 12.0)])
def test_a_bias_shows_as_a_distance_that_the_spread_does_not_explain(bias, least, most):
    units = 400
    truth = Truth(np.zeros(units), 0.0, "exact", 0, 0.0)
    runs = bias + 0.01 * np.random.default_rng(0).standard_normal((3, units))
    assert least < agreement(runs, truth) < most
