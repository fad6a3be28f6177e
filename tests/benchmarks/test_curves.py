import numpy as np
import pytest
from benchmarks.curves import Point, Spread, ratio, rmse, spread, start_and_step, time_to, times_to


def line(seed, *pairs):
    """Points at (seconds, rmse); a second is ten coalitions."""
    return [Point(seed, int(10 * seconds), seconds, error) for seconds, error in pairs]


def test_time_to_a_target_lies_on_the_line_between_two_runs():
    # With an error of 1 / sqrt(t) the line in log and log is the law itself.
    law = [(t, t**-0.5) for t in (1.0, 4.0, 16.0, 64.0)]
    reached = time_to(line(0, *law), 0.2)
    assert reached.how == "measured"
    assert reached.seconds == pytest.approx(25.0)


def test_time_to_a_target_beyond_the_last_run_follows_the_root_law():
    reached = time_to(line(0, (1.0, 0.5), (4.0, 0.25)), 0.05)
    assert reached.how == "extrapolated"
    assert reached.seconds == pytest.approx(100.0)


def test_a_first_run_that_is_good_enough_says_so():
    reached = time_to(line(0, (3.0, 0.01), (6.0, 0.005)), 0.02)
    assert (reached.how, reached.seconds) == ("first", 3.0)


def test_seeds_are_kept_apart_and_ordered_by_cost():
    points = line(0, (4.0, 0.5), (1.0, 1.0)) + line(1, (2.0, 0.5), (8.0, 0.25))
    assert [one.seconds for one in times_to(points, 0.5)] == pytest.approx([4.0, 2.0])


def test_a_ratio_spans_the_worst_and_the_best_pair():
    assert ratio(spread([10, 30, 20]), spread([1, 4, 2])) == Spread(10.0, 2.5, 30.0)


def test_rmse_is_over_the_units():
    assert rmse([1.0, 2.0, 3.0], np.array([1.0, 4.0, 3.0])) == pytest.approx((4 / 3) ** 0.5)


def test_start_and_step_recover_a_straight_line():
    assert start_and_step([1, 2, 8], [0.5, 0.6, 1.2]) == pytest.approx((0.4, 0.1))
