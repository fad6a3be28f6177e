from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import drawn, look, named, watch
from tests.oracles.game import Oracle
from tests.rankers.relabelled import relabelled
from torch import nn

import neurank as nr
from neurank.errors import MethodError
from neurank.rankers.draws import share_of_coalitions
from neurank.rankers.orders import own_orders
from neurank.rankers.two_stage_shapley import TwoStageShapley


def score(observer, layer, share=1.0, permutations=400, tables=2, **parameters):
    return TwoStageShapley(share, permutations, tables, **parameters).score(observer, layer)


def exact(observer, layer):
    return nr.ExactShapley().score(observer, layer).ranking.scores


def literal(oracle, seed, table, share, permutations):
    """What units add along permutations where both coalitions were measured, by (unit, place)."""
    units = oracle.width
    known = share_of_coalitions(seed, table, units, share)
    added = {(unit, place): [] for unit in range(units) for place in range(units)}
    for number in range(permutations):
        (order,) = own_orders(seed, table, np.array([number]), np.ones((1, units), bool)).tolist()
        for place, unit in enumerate(order):
            before = sum(1 << other for other in order[:place])
            if known[before] and known[before | 1 << unit]:
                here = frozenset(order[:place])
                added[unit, place].append(oracle(here | {unit}) - oracle(here))
    return added


@pytest.mark.parametrize("name", ["perceptron", "lenet, flatten", "skip", "sigmoid"])
def test_over_the_whole_table_it_is_eq_1_over_sampled_permutations(name):
    case = named(name)
    for layer, readers in case.reads.items():
        oracle = Oracle(case.model(), case.batches(), layer, readers)
        added = literal(oracle, 4, 0, 1.0, 60)
        found = score(watch(case, seed=4), layer, permutations=60)
        for unit in range(oracle.width):
            each = np.concatenate([added[unit, place] for place in range(oracle.width)])
            assert len(each) == 60
            assert float(found.ranking.scores[unit]) == pytest.approx(each.mean(), abs=1e-10)
            error = each.std(ddof=1) / np.sqrt(60)
            assert float(found.ranking.stderr[unit]) == pytest.approx(error, abs=1e-10)
        assert found.record["coalitions_by_table"] == [1 << oracle.width]
        assert (found.ranking.status, found.ranking.stderr_of) == ("sampled", "estimator")


def test_over_shares_it_is_the_mean_of_the_sizes_means_and_the_error_is_that_of_the_tables():
    case = named("perceptron")
    oracle = Oracle(case.model(), case.batches(), "fc0", ("fc1",))
    found = score(watch(case, seed=0), "fc0", 0.85, 300, 3)
    tables = []
    for table in range(3):
        added = literal(oracle, 0, table, 0.85, 300)
        means = [[np.mean(added[unit, place]) for place in range(5)] for unit in range(5)]
        tables.append(np.mean(means, axis=1))
    assert not any(share_of_coalitions(0, table, 5, 0.85).all() for table in range(3))
    np.testing.assert_allclose(found.ranking.scores, np.mean(tables, axis=0), atol=1e-10)
    error = np.std(tables, axis=0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(found.ranking.stderr, error, atol=1e-10)
    assert found.ranking.freedom.tolist() == [2] * 5
    measured = [int(share_of_coalitions(0, table, 5, 0.85).sum()) for table in range(3)]
    assert found.record["coalitions_by_table"] == measured
    assert found.record["value_none"] == pytest.approx(oracle(()))
    assert found.record["value_all"] == pytest.approx(oracle(range(5)))


@pytest.mark.parametrize("share", [1.0, 0.85])
def test_unbiased_and_its_errors_are_what_is_seen_over_seeds(share):
    observer = watch(named("perceptron"))
    wanted = exact(observer, "fc0")
    scores, claimed = [], []
    for seed in range(150):
        try:
            found = score(replace(observer, seed=seed), "fc0", share, 120).ranking
        except MethodError:  # a gap, as likely for one unit and size as for another
            continue
        scores.append(found.scores)
        claimed.append(found.stderr**2)
    errors = torch.stack(scores) - wanted
    assert len(errors) > 75
    bias = errors.mean(dim=0).abs()
    assert (bias <= 4 * errors.std(dim=0) / len(errors) ** 0.5 + 1e-12).all()
    seen, stated = errors.pow(2).mean().sqrt(), torch.stack(claimed).mean().sqrt()
    assert float(stated) == pytest.approx(float(seen), rel=0.15)


@settings(max_examples=4)
@given(st.integers(0, 10**6))
def test_efficient_over_the_whole_table(network):
    case = drawn(network)
    observer = look(case.model(), case.batches(), value=nr.Margin())
    for layer in case.reads:
        found = score(observer, layer, permutations=5)
        gain = found.record["value_all"] - found.record["value_none"]
        assert float(found.ranking.scores.sum()) == pytest.approx(gain, abs=1e-10)


def test_unbiased_when_units_are_relabelled():
    case = named("perceptron")
    order = [3, 0, 4, 1, 2]
    turned = look(relabelled(case, order), case.batches())
    wanted = exact(watch(case), "fc0")[order]
    found = score(turned, "fc0", permutations=20_000).ranking
    assert ((found.scores - wanted).abs() <= 4 * found.stderr + 1e-12).all()


@pytest.mark.parametrize("sizes", [(12,), (1,) * 12])
@pytest.mark.parametrize("name", ["lenet, flatten", "skip", "sigmoid"])
def test_same_bits_in_other_batches(name, sizes):
    case = named(name)
    other = look(case.model(), case.batches(sizes=sizes), seed=3)
    layer = next(iter(case.reads))
    for share in (1.0, 0.9):
        found = score(watch(case, seed=3), layer, share).ranking
        assert found == score(other, layer, share).ranking
        assert found == score(watch(case, seed=3), layer, share).ranking
        assert found != score(watch(case, seed=4), layer, share).ranking


def test_a_wide_layer_is_refused_and_so_is_one_that_costs_too_much():
    wide = nn.Sequential(nn.Linear(3, 26), nn.Sigmoid(), nn.Linear(26, 3))
    observer = look(wide, [(torch.ones(2, 3), torch.tensor([0, 1]))])
    with pytest.raises(MethodError, match=r"'0' has 26 units.*PermutationShapley"):
        score(observer, "0")
    with pytest.raises(MethodError, match=r"max_operations=5e\+00"):
        score(watch(named("perceptron")), "fc0", max_operations=5)


def test_a_unit_without_a_pair_is_refused_with_the_remedy():
    message = r"lets unit \d of layer 'fc0' join \d others.*more permutations, or a larger share"
    with pytest.raises(MethodError, match=message):
        score(watch(named("perceptron")), "fc0", 0.01)


def test_a_class_without_examples_is_undefined():
    for share in (1.0, 0.9):
        found = score(watch(named("perceptron"), value=nr.Recall(9)), "fc0", share)
        assert found.ranking.status == "undefined"
        assert found.record["value_all"] is None


@pytest.mark.parametrize(
    "wrong",
    [{"share": 0}, {"share": 1.5}, {"permutations": 1}, {"permutations": 2.5}, {"tables": 1}],
)
def test_parameters_out_of_range(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(MethodError, match=f"{name}={value!r}"):
        TwoStageShapley(**wrong)
