import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import CASES, drawn, look, named, watch
from tests.oracles.game import Oracle
from tests.oracles.truncated import collapsed_weight, truncated
from tests.rankers.relabelled import Counting, first_layer, relabelled
from torch import nn

import neurank as nr
from neurank.errors import MethodError
from neurank.rankers.truncated_shapley import TruncatedShapley, collapsed_weights

SIDES = ("empty", "full")


def score(observer, layer, k, side="empty"):
    return TruncatedShapley(k, side).score(observer, layer)


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_matches_eq_2_over_the_terms_within_reach(case):
    for layer, readers in case.reads.items():
        oracle = Oracle(case.model(), case.batches(), layer, readers)
        for side in SIDES:
            for k in range(1, oracle.width + 2):
                found = score(watch(case), layer, k, side)
                expected = truncated(oracle, oracle.width, k, side)
                assert found.ranking.scores.tolist() == pytest.approx(expected, abs=1e-10)
                assert found.record["value_none"] == pytest.approx(oracle(()), abs=1e-10)
                everyone = range(oracle.width)
                assert found.record["value_all"] == pytest.approx(oracle(everyone), abs=1e-10)
                assert (found.record["side"], found.record["k"]) == (side, k)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("value", "name"), [(nr.Margin(), "margin"), (nr.Recall(1), None)])
@pytest.mark.parametrize("removal", ["mean", "parameters"])
def test_matches_eq_2_for_other_values_and_removals(value, name, removal, side):
    for case in (named("lenet, flatten"), named("skip"), named("norm behind the activation")):
        for layer, readers in case.reads.items():
            worth = name or ("recall", 1)
            oracle = Oracle(case.model(), case.batches(), layer, readers, removal, worth)
            found = score(watch(case, removal=removal, value=value), layer, 2, side)
            expected = truncated(oracle, oracle.width, 2, side)
            assert found.ranking.scores.tolist() == pytest.approx(expected, abs=1e-10)


def test_null_players_leave_the_weights_of_the_coalitions_they_would_join():
    for units in range(1, 10):
        for players in range(1, units + 1):
            for k in range(1, units + 1):
                expected = [
                    float(collapsed_weight(units, players, k, size)) for size in range(players)
                ]
                found = collapsed_weights(units, players, k)
                np.testing.assert_allclose(found, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("players", "k"), [(3, 4), (3, 60), (40, 300), (12, 4000)])
def test_weights_are_safe_in_a_layer_of_4096_units(players, k):
    for size in (0, players // 2, players - 1):
        expected = float(_by_recursion(4096, players, k, size))
        found = collapsed_weights(4096, players, k)[size]
        assert found == pytest.approx(expected, rel=1e-12)


def _by_recursion(units, players, k, size):
    """The same sum in whole numbers, over the common denominator units!."""
    from fractions import Fraction
    from math import comb, factorial

    numerator = factorial(size) * factorial(units - size - 1)
    total = 0
    for nulls in range(units - players + 1):
        if size + nulls + 1 > k:
            break
        total += comb(units - players, nulls) * numerator
        numerator = numerator * (size + nulls + 1) // max(units - size - nulls - 1, 1)
    return Fraction(total, factorial(units))


@pytest.mark.parametrize("side", SIDES)
def test_with_nothing_left_out_the_scores_are_the_exact_ones(side):
    for name in ("perceptron", "skip", "sigmoid"):
        observer = watch(named(name))
        for layer in named(name).reads:
            exact = nr.ExactShapley().score(observer, layer).ranking
            for k in (observer.width(layer), 50):
                assert score(observer, layer, k, side).ranking == exact


def test_status_and_errors_promise_nothing_about_the_shapley_value():
    case = named("perceptron")
    found = score(watch(case), "fc1", 2).ranking
    oracle = Oracle(case.model(), case.batches(), "fc1", ("fc2",))
    each = [truncated(oracle.example(e), oracle.width, 2, "empty") for e in range(12)]
    assert (found.status, found.stderr_of) == ("computed", "none")
    assert found.stderr.isnan().all()
    assert found.counts.tolist() == [12] * oracle.width
    expected = np.std(each, axis=0, ddof=1) / np.sqrt(12)
    np.testing.assert_allclose(found.data_stderr, expected, atol=1e-12)


@settings(max_examples=5)
@given(st.integers(0, 10**6), st.sampled_from(SIDES), st.integers(1, 3))
def test_relabelling_units_relabels_scores(network, side, k):
    case = drawn(network)
    layer, _ = first_layer(case)
    order = list(range(len(case.model().get_submodule(layer).weight)))
    random.Random(network).shuffle(order)
    turned = look(relabelled(case, order), case.batches())
    expected = score(look(case.model(), case.batches()), layer, k, side).ranking.scores[order]
    found = score(turned, layer, k, side).ranking.scores
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_units_that_can_be_exchanged_score_alike_and_null_players_nothing():
    for side in SIDES:
        model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)).double()
        with torch.no_grad():
            model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
            model[1].weight[:, 1] = model[1].weight[:, 0]
            model[1].weight[:, 3] = 0
        inputs, targets = torch.randn(20, 2).double(), torch.arange(20) % 2
        found = score(look(model, [(inputs, targets)]), "0", 2, side).ranking.scores
        assert found[0] == pytest.approx(float(found[1]), abs=1e-12)
        assert float(found[3]) == 0


@pytest.mark.parametrize("name", ["lenet, flatten", "skip", "sigmoid"])
@pytest.mark.parametrize("sizes", [(12,), (1,) * 12, (7, 5)])
def test_batches_do_not_matter(name, sizes):
    case = named(name)
    other = look(case.model(), case.batches(sizes=sizes))
    for layer in case.reads:
        one, again = (score(it, layer, 2).ranking.scores for it in (watch(case), other))
        torch.testing.assert_close(one, again, atol=1e-15, rtol=0)
        assert torch.equal(one, score(watch(case), layer, 2).ranking.scores)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ["perceptron", "lenet, flatten", "skip"])
def test_as_many_coalitions_are_evaluated_as_are_recorded(name, side):
    case = named(name)
    for layer in case.reads:
        counting = Counting()
        found = score(watch(case, value=counting), layer, 2, side)
        assert counting.asked == found.record["coalitions"]
        assert counting.asked <= 12 * (1 + 5 + 10 + 1)


def test_large_coalitions_in_blocks(monkeypatch):
    case = named("perceptron")
    expected = score(watch(case), "fc0", 3).ranking.scores
    monkeypatch.setattr("neurank.rankers.truncated_shapley._BLOCK", 3)
    found = score(watch(case), "fc0", 3).ranking.scores
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_class_without_examples_is_undefined():
    found = score(watch(named("perceptron"), value=nr.Recall(9)), "fc0", 2).ranking
    assert found.status == "undefined"


def test_an_expensive_layer_is_refused_with_its_cost_and_the_remedy():
    model = nn.Sequential(nn.Linear(3, 300), nn.Sigmoid(), nn.Linear(300, 3))
    observer = look(model, [(torch.ones(2, 3), torch.tensor([0, 1]))])
    message = r"TruncatedShapley\(k=9\) of layer '0'.*up to 300 of 300.*smaller k"
    with pytest.raises(MethodError, match=message):
        score(observer, "0", 9)
    with pytest.raises(MethodError, match=r"max_operations=5e\+00"):
        TruncatedShapley(1, max_operations=5).score(observer, "0")


@pytest.mark.parametrize("k", [0, -1, 1.5, "2", None, True])
def test_k_must_be_a_positive_whole_number(k):
    with pytest.raises(MethodError, match=f"k={k!r}"):
        TruncatedShapley(k)


def test_a_side_is_one_of_two():
    with pytest.raises(MethodError, match=r"side='top'.*'empty'.*'full'"):
        TruncatedShapley(2, "top")
