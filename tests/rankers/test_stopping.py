import math

import numpy as np
import pytest
from scipy import stats
from tests.rankers.games import LAYERS, drawn_game, exact

import neurank as nr
from neurank.errors import MethodError
from neurank.rankers.moments import Estimate
from neurank.rankers.stopping import Seconds, StderrBelow, Stop, TopCertain, check_stop


def estimated(means, within=1.0, freedom=math.inf):
    means = np.array(means, dtype=float)
    ones = np.ones_like(means)
    return Estimate(100, means, within * ones, within * ones, freedom * ones, single=False)


def smallest_gap(rule, look, units, freedom=math.inf):
    """How far the best unit must be ahead of all others for the top 1 to be certain."""
    low, high = 0.0, 1e3
    for _ in range(45):
        middle = (low + high) / 2
        means = [middle, *[0.0] * (units - 1)]
        enough = rule.reached(estimated(means, freedom=freedom), look)
        low, high = (low, middle) if enough else (middle, high)
    return high


def spent(rule, look, units, freedom=math.inf):
    """Probability that one of all intervals at this look fails: all have the same reach."""
    reach = smallest_gap(rule, look, units, freedom) / 2
    return 2 * units * stats.t.sf(reach, freedom)


@pytest.mark.parametrize("units", [2, 7])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_all_looks_together_spend_the_risk_and_no_more(units, confidence):
    rule = TopCertain(1, confidence)
    looks = np.array([spent(rule, look, units) for look in range(1, 30)])
    assert (np.diff(looks) < 0).all()
    rest = looks[-1] * 29**2 * sum(1 / look**2 for look in range(30, 10**6))
    assert looks.sum() + rest == pytest.approx(1 - confidence, rel=1e-4)


def test_few_degrees_of_freedom_ask_for_more():
    rule = TopCertain(1)
    assert spent(rule, 3, 4, freedom=5) == pytest.approx(spent(rule, 3, 4), rel=1e-6)
    assert smallest_gap(rule, 3, 4, freedom=5) > 1.5 * smallest_gap(rule, 3, 4)


def test_the_top_is_set_apart_from_all_others():
    assert TopCertain(2).reached(estimated([9, 50, 0, 30]), 1)
    assert not TopCertain(2).reached(estimated([29, 50, 0, 30]), 1)
    assert not TopCertain(2).reached(estimated([30, 50, 30, 0], within=1e-9), 1)  # a tie
    assert TopCertain(2).reached(estimated([30, 30, 0, 0]), 1)  # their order is not claimed
    assert TopCertain(4).reached(estimated([1, 1, 1, 1]), 1)
    uneven = Estimate(
        9, np.array([30.0, 0.0]), np.array([1e-6, 800.0]), *[np.full(2, 9.0)] * 2, False
    )
    assert not TopCertain(1).reached(uneven, 1)


def test_the_largest_error_counts():
    found = estimated([0, 1, 2])
    found.within[:] = [0.04, 0.09, 0.01]
    assert StderrBelow(0.3).reached(found, 1)
    assert not StderrBelow(0.299).reached(found, 1)


def test_seconds_do_not_look_at_the_estimate():
    assert not Seconds(1e-9).reached(estimated([0, 1], within=0), 1)


@pytest.mark.parametrize("number", [0, -1, math.inf, math.nan])
@pytest.mark.parametrize(("rule", "name"), [(StderrBelow, "stderr"), (Seconds, "seconds")])
def test_a_positive_number_is_needed(rule, name, number):
    with pytest.raises(MethodError, match=rf"{rule.__name__}\({name}=.*positive"):
        rule(number)


@pytest.mark.parametrize("k", [0, -1, True, 1.5, "2", None])
def test_the_top_is_a_positive_whole_number(k):
    with pytest.raises(MethodError, match=r"TopCertain\(k=.*positive whole number"):
        TopCertain(k)


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 95, math.nan])
def test_confidence_is_between_0_and_1(confidence):
    with pytest.raises(MethodError, match="between 0 and 1"):
        TopCertain(1, confidence)


@pytest.mark.parametrize("stop", ["stderr:0.1", 0.01, StderrBelow, 60])
def test_what_is_no_rule_is_refused(stop):
    with pytest.raises(MethodError, match="is no rule"):
        check_stop(stop, 100)


@pytest.mark.parametrize("stop", [StderrBelow(0.1), TopCertain(1), Seconds(1)], ids=repr)
def test_a_rule_needs_repetitions_to_look_at(stop):
    assert isinstance(stop, Stop)
    check_stop(stop, 2)
    check_stop(None, 1)
    with pytest.raises(MethodError, match="allow more passes"):
        check_stop(stop, 1)
    with pytest.raises(MethodError, match="allow more passes"):
        nr.PermutationShapley(passes=2, antithetic=True, stop=stop)


def claims(games, examples=60, k=2):
    """Over drawn games: of the tops that are called certain, how many are wrong."""
    method = nr.PermutationShapley(passes=64, stop=TopCertain(k))
    made = wrong = looks = 0
    for seed in range(games):
        game = drawn_game(seed, examples)
        for layer in LAYERS:
            found = method.score(game, layer)
            if found.record["stopped"].endswith("reached"):
                made += 1
                looks += found.record["repetitions"] > 2
                wanted = exact(game, layer)
                top = list(found.ranking.order()[:k])
                others = [unit for unit in range(len(wanted)) if unit not in top]
                wrong += bool(wanted[top].min() < wanted[others].max() - 1e-12)
    return made, wrong, looks


def check_claims(games):
    made, wrong, looks = claims(games)
    print(f"{made} tops called certain, {wrong} wrong, {looks} after several looks")
    assert made > games / 4
    assert looks > made / 2
    assert wrong <= 0.05 * made


def test_what_is_called_certain_is_true():
    check_claims(30)


@pytest.mark.slow
def test_what_is_called_certain_is_true_in_hundreds_of_games():
    check_claims(400)
