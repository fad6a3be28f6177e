import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import CASES, Case, drawn, look, named, perceptron, watch
from tests.oracles.game import Oracle
from torch import nn

import neurank as nr
from neurank.errors import MethodError
from neurank.rankers.orders import own_orders, reversed_orders


def score(observer, layer, **parameters):
    return nr.PermutationShapley(**parameters).score(observer, layer)


def exact(observer, layer):
    return nr.ExactShapley().score(observer, layer).ranking.scores


def literal(observer, oracle, layer, passes, antithetic):
    """Eq. 1 over the permutations that each example draws, one coalition at a time."""
    repetitions = passes // 2 if antithetic else passes
    means = []
    for game in observer.games(layer):
        for row, number in enumerate(game.numbers.tolist()):
            value = oracle.example(number)
            total = np.zeros((repetitions, oracle.width))
            for repetition in range(repetitions):
                active = game.active[row : row + 1].numpy()
                orders = own_orders(observer.seed, repetition, np.array([number]), active)
                turned = [reversed_orders(orders)] if antithetic else []
                for order in np.concatenate([orders, *turned]):
                    before = frozenset()
                    for unit in order[order >= 0].tolist():
                        total[repetition, unit] += value(before | {unit}) - value(before)
                        before |= {unit}
            means.append(total * repetitions / passes)
    return np.array(means)  # (examples, repetitions, units)


@pytest.mark.parametrize("case", CASES[::2], ids=str)
@pytest.mark.parametrize(("passes", "antithetic"), [(1, False), (3, False), (4, True)])
def test_matches_eq_1_over_its_own_permutations(case, passes, antithetic):
    for layer, readers in case.reads.items():
        oracle = Oracle(case.model(), case.batches(), layer, readers)
        observer = watch(case, seed=5)
        found = score(observer, layer, passes=passes, antithetic=antithetic).ranking
        each = literal(observer, oracle, layer, passes, antithetic)
        np.testing.assert_allclose(found.scores, each.mean(axis=(0, 1)), atol=1e-10)
        assert found.counts.tolist() == [len(each) * passes] * oracle.width


@pytest.mark.parametrize("value", [nr.NegativeLoss(), nr.Margin(), nr.Recall(0)], ids=repr)
@pytest.mark.parametrize("removal", ["mean", "parameters"])
def test_matches_eq_1_for_other_values_and_removals(value, removal):
    names = {nr.NegativeLoss(): "negative loss", nr.Margin(): "margin", nr.Recall(0): "accuracy"}
    for name in ("lenet, flatten", "norm behind the activation", "skip", "branch"):
        case = named(name)
        for layer, readers in case.reads.items():
            oracle = Oracle(case.model(), case.batches(), layer, readers, removal, names[value])
            observer = watch(case, removal=removal, value=value)
            found = score(observer, layer, passes=2).ranking
            each = literal(observer, oracle, layer, 2, antithetic=False)
            np.testing.assert_allclose(found.scores, each.mean(axis=(0, 1)), atol=1e-10)


def test_errors_are_those_of_independent_repetitions_within_each_example():
    case = named("perceptron")
    oracle = Oracle(case.model(), case.batches(), "fc1", ("fc2",))
    for parameters in ({"passes": 3}, {"passes": 6, "antithetic": True}):
        found = score(watch(case), "fc1", **parameters).ranking
        each = literal(watch(case), oracle, "fc1", parameters["passes"], len(parameters) > 1)
        examples, repetitions, _ = each.shape
        within = each.var(axis=1, ddof=1) / repetitions
        total = each.mean(axis=1).var(axis=0, ddof=1) / examples
        active = np.concatenate([game.active for game in watch(case).games("fc1")]).any(axis=0)
        least = active / (examples * parameters["passes"])  # one sample could always differ
        expected = np.maximum(np.sqrt(within.sum(axis=0)) / examples, least)
        assert found.stderr_of == "estimator"
        np.testing.assert_allclose(found.stderr, expected, atol=1e-12)
        of_data = np.sqrt(np.maximum(total - expected**2, 0))
        np.testing.assert_allclose(found.data_stderr, of_data, atol=1e-12)


@pytest.mark.parametrize("parameters", [{}, {"passes": 2, "antithetic": True}])
def test_one_repetition_can_tell_the_total_error_only(parameters):
    case = named("perceptron")
    oracle = Oracle(case.model(), case.batches(), "fc1", ("fc2",))
    found = score(watch(case), "fc1", **parameters).ranking
    each = literal(watch(case), oracle, "fc1", parameters.get("passes", 1), bool(parameters))
    spread = each[:, 0].std(axis=0, ddof=1) / math.sqrt(len(each))
    expected = np.maximum(spread, 1 / len(each))  # one example could always differ
    assert (found.stderr_of, found.data_stderr) == ("total", None)
    np.testing.assert_allclose(found.stderr, expected, atol=1e-12)


@settings(deadline=None, max_examples=7)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 3), st.booleans())
def test_efficient_in_every_pass(network, seed, passes, margin):
    case = drawn(network)
    value = nr.Margin() if margin else nr.Accuracy()
    observer = look(case.model(), case.batches(), value=value, seed=seed)
    for layer in case.reads:
        found = score(observer, layer, passes=passes)
        gain = found.record["value_all"] - found.record["value_none"]
        assert float(found.ranking.scores.sum()) == pytest.approx(gain, abs=1e-10)


GROUPS = [{"antithetic": True}, {"strata": 2}, {"strata": 3}, {"strata": 2, "antithetic": True}]


@pytest.mark.parametrize("parameters", [{}, *GROUPS], ids=str)
@pytest.mark.parametrize("name", ["perceptron", "many ties", "linear pair"])
def test_unbiased(name, parameters):
    observer = watch(named(name))
    found = score(observer, "fc0", passes=1200, **parameters).ranking
    error = (found.scores - exact(observer, "fc0")).abs()
    assert (error <= 4 * found.stderr + 1e-12).all()
    assert found.stderr.max() < 0.01


@pytest.mark.parametrize("parameters", [{}, *GROUPS], ids=str)
def test_errors_at_two_repetitions_match_what_is_seen_over_seeds(parameters):
    observer = watch(named("perceptron"))
    wanted = exact(observer, "fc1")
    passes = 2 * nr.PermutationShapley(passes=12, **parameters).group
    claimed, seen = [], []
    for seed in range(150):
        found = score(replace(observer, seed=seed), "fc1", passes=passes, **parameters).ranking
        claimed.append(found.stderr**2)
        seen.append((found.scores - wanted) ** 2)
    claimed_rmse, seen_rmse = (float(torch.stack(it).mean().sqrt()) for it in (claimed, seen))
    assert claimed_rmse == pytest.approx(seen_rmse, rel=0.12)


@pytest.mark.parametrize("parameters", [{"antithetic": True}, {"strata": 2}, {"strata": 4}])
def test_groups_help_where_values_are_nearly_additive(parameters):
    observer = watch(named("linear pair"), value=nr.Margin())
    wanted = exact(observer, "fc0")

    def rmse(**parameters):
        errors = [
            score(replace(observer, seed=seed), "fc0", passes=4, **parameters).ranking.scores
            - wanted
            for seed in range(30)
        ]
        return float(torch.stack(errors).pow(2).mean().sqrt())

    assert rmse(**parameters) < 0.85 * rmse()


@pytest.mark.parametrize("parameters", [{}, {"strata": 2}, {"stop": nr.StderrBelow(1e-9)}], ids=str)
@pytest.mark.parametrize("name", ["perceptron", "lenet, flatten", "sigmoid"])
def test_by_class_is_what_the_recall_of_each_class_gives(name, parameters):
    case = named(name)
    inputs, targets = case.batches(sizes=(12,))[0]
    targets = targets.clamp(max=1)  # nothing of class 2
    observer = look(case.model(), [(inputs, targets)], seed=4)
    layer = next(iter(case.reads))
    found = score(observer, layer, passes=4, **parameters).ranking
    for label in range(2):
        alone = score(replace(observer, value=nr.Recall(label)), layer, passes=4, **parameters)
        torch.testing.assert_close(found.by_class[label], alone.ranking.scores, atol=1e-14, rtol=0)
        torch.testing.assert_close(
            found.by_class_stderr[label], alone.ranking.stderr, atol=1e-14, rtol=0
        )
    assert found.by_class.shape == (3, observer.width(layer))
    assert found.by_class[2].isnan().all()
    assert found.by_class_stderr[2].isnan().all()


def test_leaps_cost_less_and_keep_mean_and_efficiency():
    case = Case("wide", lambda: perceptron(4, 40, 6, 3, act=nn.Tanh), (4,), {"fc0": ("fc1",)})
    observer = look(case.model(), case.batches(sizes=(24,)))
    whole = score(observer, "fc0", passes=40, leaps=False)
    leaping = score(observer, "fc0", passes=40)
    assert leaping.record["coalitions"] < 0.8 * whole.record["coalitions"]
    gain = whole.record["value_all"] - whole.record["value_none"]
    assert float(leaping.ranking.scores.sum()) == pytest.approx(gain, abs=1e-10)
    gap = (leaping.ranking.scores - whole.ranking.scores).abs()
    assert (gap <= 4.5 * (leaping.ranking.stderr**2 + whole.ranking.stderr**2).sqrt()).all()
    steady = [score(replace(observer, value=nr.Margin()), "fc0", leaps=it) for it in (True, False)]
    assert torch.equal(*(it.ranking.scores for it in steady))


@pytest.mark.parametrize("sizes", [(12,), (1,) * 12, (7, 5)])
@pytest.mark.parametrize("name", ["lenet, flatten", "skip", "sigmoid"])
def test_same_bits_in_other_batches(name, sizes):
    case = named(name)
    other = look(case.model(), case.batches(sizes=sizes), seed=3)
    for value in (nr.Accuracy(), nr.Recall(1)):
        for layer in case.reads:
            found = score(watch(case, value=value, seed=3), layer, passes=2).ranking
            again = score(replace(other, value=value), layer, passes=2).ranking
            assert torch.equal(found.scores, again.scores), layer


def test_same_seed_same_bits_another_seed_other_bits():
    observer = watch(named("perceptron"))
    one, same = (score(observer, "fc0").ranking.scores for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, score(replace(observer, seed=1), "fc0").ranking.scores)


def test_a_wide_layer_costs_a_chain_per_example_and_pass():
    observer = watch(named("perceptron"))
    active = sum(int((game.active.sum(dim=1) + 1).sum()) for game in observer.games("fc0"))
    assert score(observer, "fc0", passes=3).record["coalitions"] == 3 * active


@pytest.mark.parametrize("passes", [0, -1, 1.5, "2", None])
def test_passes_must_be_a_positive_whole_number(passes):
    with pytest.raises(MethodError, match=f"passes={passes!r}"):
        nr.PermutationShapley(passes=passes)


def test_antithetic_passes_come_in_pairs():
    with pytest.raises(MethodError, match=r"passes=3 with antithetic=True.*even"):
        nr.PermutationShapley(passes=3, antithetic=True)
    assert nr.PermutationShapley(passes=4, antithetic=True).repetitions == 2


@pytest.mark.parametrize("strata", [0, -1, True, 1.5, "2", None])
def test_strata_must_be_a_positive_whole_number(strata):
    with pytest.raises(MethodError, match=f"strata={strata!r}"):
        nr.PermutationShapley(strata=strata)


def test_strata_come_in_whole_groups():
    with pytest.raises(MethodError, match=r"passes=6 with strata=4.*multiple"):
        nr.PermutationShapley(passes=6, strata=4)
    with pytest.raises(MethodError, match=r"passes=6 with strata=2.*groups of 4"):
        nr.PermutationShapley(passes=6, strata=2, antithetic=True)
    assert nr.PermutationShapley(passes=12, strata=3, antithetic=True).repetitions == 2
