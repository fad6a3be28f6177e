"""Which classes pruning helps and harms, and which changes are luck."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from tests.oracles import classes as slow

from neurank.classes.grouping import Group, as_printed, groups, paired_interval, sign_test
from neurank.errors import DataError, MethodError

THETAS = (0.0, 0.1, 0.2, 0.3)


def sorted_into(*changes, pictures=1000, whole=800, **options):
    """Group one class whose pictures are gained and lost as said at each ratio above 0."""
    gained = torch.tensor([[0, *(more for more, _ in changes)]])
    lost = torch.tensor([[0, *(fewer for _, fewer in changes)]])
    (group,) = groups(
        THETAS[: len(changes) + 1], [pictures], whole + gained - lost, gained, lost, **options
    )
    return group


def test_two_pictures_more_of_fifty_are_no_improvement():
    group = sorted_into((2, 0), (2, 0), (1, 0), pictures=50, whole=40)
    assert group.kind == "unaffected"
    assert group.gain == 0.02
    assert group.low < 0 < group.high
    assert as_printed([50], [[40, 42, 42, 41]]) == ("improved",)


def test_twenty_gained_of_a_thousand_and_none_lost_are_one():
    group = sorted_into((20, 0), (3, 3), (0, 90))
    assert (group.kind, group.theta, group.gain) == ("improved", 0.1, 0.02)
    assert 0 < group.low < 0.02 < group.high
    assert group.p_value == pytest.approx(3 * 2 * 0.5**20)


def test_an_improvement_shows_where_it_is_surest():
    assert sorted_into((20, 0), (60, 2), (60, 30)).theta == 0.2


def test_a_class_is_degraded_if_it_is_lower_at_every_ratio_from_the_least_on():
    group = sorted_into((3, 5), (0, 40), (2, 300))
    assert (group.kind, group.theta, group.gain) == ("degraded", 0.2, -0.04)
    assert group.high < 0
    assert sorted_into((3, 5), (20, 25), (2, 300)).kind == "unaffected"
    assert sorted_into((3, 5), (20, 25), (2, 300), least=0.3).kind == "degraded"
    assert sorted_into((3, 50), (3, 50), (2, 300)).theta == 0.1


def test_an_unaffected_class_is_so_up_to_the_last_ratio_before_the_first_fall():
    group = sorted_into((3, 5), (5, 4), (0, 100), least=0.2)
    assert (group.kind, group.theta, group.gain) == ("unaffected", 0.2, 0.001)
    assert sorted_into((0, 50), (5, 4), (0, 100)).theta == 0.0
    nothing = sorted_into((0, 50), (5, 4), (0, 100))
    assert (nothing.gain, nothing.low, nothing.high, nothing.p_value) == (0, 0, 0, 1)
    assert sorted_into((0, 0), (0, 0), (0, 0)).theta == 0.3


def test_more_ratios_ask_for_more():
    gained = [[0] + [7] * 3]
    few = groups(THETAS, [100], [[50, 57, 57, 57]], gained, [[0] * 4])
    assert few[0].kind == "improved"  # 3 · 2 / 2⁷ = 0.047
    thetas = [place / 10 for place in range(5)]
    many = groups(thetas, [100], [[50] + [57] * 4], [[0] + [7] * 4], [[0] * 5])
    assert many[0].kind == "unaffected"  # 4 · 2 / 2⁷ = 0.063
    assert groups(thetas, [100], [[50] + [57] * 4], [[0] + [7] * 4], [[0] * 5], confidence=0.9)[
        0
    ].kind == ("improved")


def test_a_class_without_pictures_is_undefined():
    found = groups([0, 0.2], [0, 10], [[0, 0], [5, 5]], [[0, 0], [0, 1]], [[0, 0], [0, 1]])
    assert [group.kind for group in found] == ["undefined", "unaffected"]
    assert all(
        math.isnan(value)
        for value in (found[0].theta, found[0].gain, found[0].low, found[0].p_value)
    )
    assert str(found[0]) == "undefined: no picture of the class"
    assert as_printed([0, 10], [[0, 0], [5, 5]]) == ("undefined", "unaffected")


def test_one_picture_is_never_significant():
    (group,) = groups([0, 0.2], [1], [[0, 1]], [[0, 1]], [[0, 0]])
    assert (group.kind, group.gain) == ("unaffected", 1.0)
    assert -1 <= group.low < group.high <= 1


def test_the_interval_holds_for_all_ratios_at_once():
    group = sorted_into((12, 3), (10, 6), (9, 11))
    assert (group.kind, group.theta) == ("unaffected", 0.3)
    corrected = paired_interval(1000, 9, 11, 1 - 0.05 / 3)
    assert (group.low, group.high) == tuple(float(end) for end in corrected)


def test_luck_is_seldom_called_an_improvement():
    """Pictures change sides at random: by point values most classes improve, by the test few."""
    random = np.random.default_rng(0)
    classes, thetas, pictures = 400, 13, 50
    changing = random.binomial(pictures // 2, 0.08, (classes, thetas))
    changing[:, 0] = 0
    gained = random.binomial(changing, 0.5)
    lost = changing - gained
    hits = 30 + gained - lost
    grid = [place / 20 for place in range(thetas)]
    found = [group.kind for group in groups(grid, [pictures] * classes, hits, gained, lost)]
    printed = as_printed([pictures] * classes, hits)
    assert found.count("improved") <= 0.05 * classes
    assert printed.count("improved") > 0.9 * classes


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_sign_test_is_that_of_whole_numbers(gained, lost):
    assert float(sign_test(gained, lost)) == pytest.approx(float(slow.binomial_test(gained, lost)))
    if gained + lost:
        twin = stats.binomtest(gained, gained + lost).pvalue
        assert float(sign_test(gained, lost)) == pytest.approx(twin)


def score(n, b, c, change):
    """Tango's statistic with the nuisance found by a search of the likelihood itself."""

    def unlikelihood(lost):
        cells = ((b, lost + change), (c, lost), (n - b - c, 1 - 2 * lost - change))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    least, most = max(0.0, -change), (1 - change) / 2
    lost = optimize.minimize_scalar(
        unlikelihood, bounds=(least, most), method="bounded", options={"xatol": 1e-12}
    ).x
    return (b - c - n * change) / math.sqrt(n * (2 * lost + change * (1 - change)))


@pytest.mark.parametrize(("n", "b", "c"), [(50, 12, 2), (30, 5, 5), (100, 0, 7), (40, 9, 0)])
def test_the_ends_of_the_interval_are_where_the_score_test_turns(n, b, c):
    low, high = paired_interval(n, b, c, 0.9)
    z = stats.norm.ppf(0.95)
    assert score(n, b, c, float(low)) == pytest.approx(z, abs=1e-3)
    assert score(n, b, c, float(high)) == pytest.approx(-z, abs=1e-3)


def test_where_no_picture_changes_sides_the_interval_is_wilsons_of_none():
    low, high = paired_interval(200, 0, 0)
    z2 = stats.norm.ppf(0.975) ** 2
    assert float(high) == pytest.approx(z2 / (200 + z2))
    assert float(low) == pytest.approx(-float(high))


@settings(max_examples=30)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_the_interval_holds_the_change_and_mirrors(b, c, rest):
    n = b + c + rest
    low, high = paired_interval(n, b, c)
    other_low, other_high = paired_interval(n, c, b)
    if not n:
        assert math.isnan(low)
        assert math.isnan(high)
        return
    assert -1 <= low <= (b - c) / n + 1e-12
    assert (b - c) / n - 1e-12 <= high <= 1
    assert float(low) == pytest.approx(-float(other_high), abs=1e-9)
    assert float(high) == pytest.approx(-float(other_low), abs=1e-9)


@pytest.mark.parametrize(
    ("n", "gain", "loss"), [(50, 0.1, 0.1), (100, 0.05, 0.02), (400, 0.02, 0.01), (60, 0.3, 0.02)]
)
def test_the_interval_covers_the_true_change_as_often_as_it_says(n, gain, loss):
    draws = np.random.default_rng(3).multinomial(n, [gain, loss, 1 - gain - loss], 4000)
    low, high = paired_interval(n, draws[:, 0], draws[:, 1])
    covered = (low <= gain - loss) & (gain - loss <= high)
    assert 0.93 <= float(covered.double().mean()) <= 0.975


GOOD = {
    "thetas": [0, 0.2],
    "pictures": [10],
    "hits": [[5, 6]],
    "gained": [[0, 2]],
    "lost": [[0, 1]],
}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"thetas": [0.1, 0.2]}, MethodError, "do not ascend from 0"),
        ({"thetas": [0, 0]}, MethodError, "do not ascend from 0"),
        ({"thetas": [0]}, MethodError, "two or more"),
        ({"thetas": [0, 1.2]}, MethodError, "at most 1"),
        ({"thetas": [0, math.nan]}, MethodError, "ascend"),
        ({"thetas": [0, 0.2, 0.3]}, DataError, "2 pruning ratios beside 3"),
        ({"confidence": 1.0}, MethodError, r"confidence=1\.0"),
        ({"least": 0.3}, MethodError, r"least=0\.3 is above every pruning ratio"),
        ({"pictures": [5]}, DataError, "class 0 has 6 hits among 5 pictures"),
        ({"pictures": [10, 10]}, DataError, r"give \(classes,\) and \(classes, thetas\)"),
        ({"hits": [[5, 7]]}, DataError, "class 0 at ratio 1: 7 hits are not the 5"),
        ({"gained": [[0, 7]], "lost": [[0, 6]]}, DataError, "7 gained and 6 lost"),
        ({"gained": [[1, 2]], "lost": [[1, 1]]}, DataError, "at ratio 0"),
        ({"gained": [[0, 2, 3]]}, DataError, "gained has the shape"),
        ({"lost": [[0.0, 1.0]]}, DataError, "whole numbers"),
        ({"lost": [[0, -1]]}, DataError, "hold -1"),
    ],
)
def test_counts_that_do_not_fit_are_refused(changes, error, message):
    given = GOOD | changes
    with pytest.raises(error, match=message):
        groups(**given)


def test_bad_counts_of_the_parts_are_refused():
    assert groups(**GOOD)[0].kind == "unaffected"
    with pytest.raises(DataError, match="more pictures"):
        paired_interval(5, 3, 3)
    with pytest.raises(MethodError, match="confidence=0"):
        paired_interval(5, 3, 0, 0)
    with pytest.raises(MethodError, match="first=0"):
        as_printed([5], [[1, 2]], first=0)
    with pytest.raises(DataError, match="hits among"):
        as_printed([5], [[1, 6]])


def test_hardly_pruned_ratios_can_be_left_out_of_the_papers_reading():
    hits = [[40, 40, 30, 20]]
    assert as_printed([50], hits) == ("unaffected",)
    assert as_printed([50], hits, first=2) == ("degraded",)


def test_a_group_says_what_it_is():
    group = Group("unaffected", 0.3, -0.004, -0.02, 0.01, 1.0)
    assert str(group) == "unaffected up to θ = 0.3: -0.4 points (-2.0 to +1.0), p = 1"
