import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.cases import CASES, look, named, watch
from tests.oracles.game import Oracle
from tests.oracles.shapley import by_subsets
from tests.oracles.truncated import banzhaf
from tests.rankers.relabelled import Counting, first_layer, relabelled

import neurank as nr
from neurank.errors import MethodError
from neurank.rankers.draws import coalitions_of_others
from neurank.rankers.pair_shapley import PairShapley
from neurank.rankers.stopping import StderrBelow

INDEX = {"size-uniform": by_subsets, "subset-uniform": banzhaf}


def score(observer, layer, pairs=1, coalitions="size-uniform", **parameters):
    return PairShapley(pairs, coalitions, **parameters).score(observer, layer)


def literal(observer, oracle, layer, pairs, coalitions):
    """What each unit adds to the coalitions that each example draws, one at a time."""
    added = []
    for game in observer.games(layer):
        for row, number in enumerate(game.numbers.tolist()):
            value, here = oracle.example(number), np.zeros((pairs, oracle.width))
            active = game.active[row : row + 1].numpy()
            for pair in range(pairs):
                for unit in np.flatnonzero(active[0]).tolist():
                    ((drawn,),) = coalitions_of_others(
                        observer.seed, pair, np.array([number]), np.array([[unit]]), active,
                        coalitions,
                    )  # fmt: skip
                    members = frozenset(np.flatnonzero(drawn).tolist())
                    here[pair, unit] = value(members | {unit}) - value(members)
            added.append(here)
    return np.array(added)  # (examples, pairs, units)


@pytest.mark.parametrize("case", CASES[::3], ids=str)
@pytest.mark.parametrize("coalitions", INDEX)
def test_matches_the_coalitions_that_are_drawn(case, coalitions):
    for layer, readers in case.reads.items():
        oracle = Oracle(case.model(), case.batches(), layer, readers)
        observer = watch(case, seed=5)
        found = score(observer, layer, 2, coalitions)
        each = literal(observer, oracle, layer, 2, coalitions)
        np.testing.assert_allclose(found.ranking.scores, each.mean(axis=(0, 1)), atol=1e-10)
        assert found.ranking.counts.tolist() == [len(each) * 2] * oracle.width
        assert found.record["value_none"] == pytest.approx(oracle(()), abs=1e-10)
        assert found.record["value_all"] == pytest.approx(oracle(range(oracle.width)), abs=1e-10)


@pytest.mark.parametrize("value", [nr.NegativeLoss(), nr.Recall(0)], ids=repr)
def test_other_values_and_removals(value):
    name = "negative loss" if isinstance(value, nr.NegativeLoss) else "accuracy"
    for case in (named("lenet, flatten"), named("branch")):
        for layer, readers in case.reads.items():
            oracle = Oracle(case.model(), case.batches(), layer, readers, "mean", name)
            observer = watch(case, removal="mean", value=value)
            each = literal(observer, oracle, layer, 2, "size-uniform")
            found = score(observer, layer, 2).ranking
            np.testing.assert_allclose(found.scores, each.mean(axis=(0, 1)), atol=1e-10)


@pytest.mark.parametrize("coalitions", INDEX)
@pytest.mark.parametrize("name", ["perceptron", "many ties", "linear pair"])
def test_unbiased_for_its_own_index(name, coalitions):
    case = named(name)
    oracle = Oracle(case.model(), case.batches(), *_first(case))
    found = score(watch(case), "fc0", 300, coalitions)
    wanted = torch.tensor(INDEX[coalitions](oracle, oracle.width), dtype=torch.float64)
    error = (found.ranking.scores - wanted).abs()
    assert (error <= 4 * found.ranking.stderr + 1e-12).all()
    assert found.ranking.stderr.max() < 0.03
    assert found.record["index"] == {"size-uniform": "Shapley"}.get(coalitions, "Banzhaf")


def _first(case):
    layer, reader = first_layer(case)
    return layer, (reader,)


def test_the_two_indices_differ():
    case = named("perceptron")
    oracle = Oracle(case.model(), case.batches(), "fc0", ("fc1",))
    wanted, other = np.array(by_subsets(oracle, 5)), np.array(banzhaf(oracle, 5))
    found = score(watch(case), "fc0", 300).ranking.scores.numpy()
    assert np.abs(found - wanted).max() < np.abs(found - other).max() / 2


def test_unbiased_when_units_are_relabelled():
    case = named("perceptron")
    order = [3, 0, 4, 1, 2]
    turned = look(relabelled(case, order), case.batches())
    wanted = nr.ExactShapley().score(watch(case), "fc0").ranking.scores[order]
    found = score(turned, "fc0", 300).ranking
    assert ((found.scores - wanted).abs() <= 4 * found.stderr + 1e-12).all()


def test_errors_are_those_of_independent_pairs_within_each_example():
    case = named("perceptron")
    oracle = Oracle(case.model(), case.batches(), "fc1", ("fc2",))
    each = literal(watch(case), oracle, "fc1", 3, "size-uniform")
    found = score(watch(case), "fc1", 3).ranking
    within = each.var(axis=1, ddof=1) / 3
    assert (found.status, found.stderr_of) == ("sampled", "estimator")
    np.testing.assert_allclose(found.stderr, np.sqrt(within.sum(axis=0)) / 12, atol=1e-12)


def test_one_pair_can_tell_the_total_error_only():
    case = named("perceptron")
    oracle = Oracle(case.model(), case.batches(), "fc1", ("fc2",))
    each = literal(watch(case), oracle, "fc1", 1, "subset-uniform")[:, 0]
    found = score(watch(case), "fc1", 1, "subset-uniform").ranking
    assert (found.stderr_of, found.data_stderr) == ("total", None)
    expected = each.std(axis=0, ddof=1) / math.sqrt(12)
    seen = expected > 0  # what no example shows may be there all the same
    np.testing.assert_allclose(found.stderr[seen], expected[seen], atol=1e-12)
    assert seen.sum() >= 3


def test_errors_match_what_is_seen_over_seeds():
    observer = watch(named("perceptron"))
    wanted = nr.ExactShapley().score(observer, "fc1").ranking.scores
    runs = [score(replace(observer, seed=seed), "fc1", 2).ranking for seed in range(100)]
    claimed = torch.stack([run.stderr**2 for run in runs]).mean().sqrt()
    seen = torch.stack([(run.scores - wanted) ** 2 for run in runs]).mean().sqrt()
    assert float(claimed) == pytest.approx(float(seen), rel=0.15)


def test_a_unit_that_changes_nothing_scores_nothing():
    case = named("perceptron")
    model = case.model()
    with torch.no_grad():
        model.fc1.weight[:, 2] = 0
    for coalitions in INDEX:
        observer = look(model, case.batches())
        assert float(score(observer, "fc0", 3, coalitions).ranking.scores[2]) == 0


@pytest.mark.parametrize("sizes", [(12,), (1,) * 12, (7, 5)])
@pytest.mark.parametrize("name", ["lenet, flatten", "skip", "sigmoid"])
def test_same_bits_in_other_batches_and_in_parts(name, sizes, monkeypatch):
    case = named(name)
    other = look(case.model(), case.batches(sizes=sizes), seed=3)
    for layer in case.reads:
        found = score(watch(case, seed=3), layer, 2).ranking.scores
        assert torch.equal(found, score(other, layer, 2).ranking.scores)
        with monkeypatch.context() as patch:
            patch.setattr("neurank.rankers.pair_shapley._MASK_ENTRIES", 7)
            assert torch.equal(found, score(other, layer, 2).ranking.scores)


def test_same_seed_same_bits_another_seed_other_bits():
    observer = watch(named("perceptron"))
    one, same = (score(observer, "fc0").ranking.scores for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, score(replace(observer, seed=1), "fc0").ranking.scores)


def test_two_coalitions_for_each_active_unit_and_pair():
    observer = watch(named("perceptron"))
    wanted = sum(int((2 * game.active.sum(dim=1) + 2).sum()) for game in observer.games("fc0"))
    assert score(observer, "fc0", 3).record["coalitions"] == 3 * wanted


def test_where_all_units_are_active_as_many_are_evaluated_as_recorded():
    counting = Counting()
    observer = watch(named("linear all along"), value=counting)
    played = [PairShapley().play(game, 0, 0) for game in observer.games("fc0")]
    assert counting.asked == sum(one.coalitions for one in played) == 12 * (2 * 5 + 2)


def test_stops_when_told():
    observer = watch(named("perceptron"))
    found = score(observer, "fc0", 4096, stop=StderrBelow(0.02))
    assert found.record["repetitions"] < 4096
    assert found.ranking.stderr.max() <= 0.02


@pytest.mark.parametrize("pairs", [0, -1, 1.5, "2", None, True])
def test_pairs_must_be_a_positive_whole_number(pairs):
    with pytest.raises(MethodError, match=f"pairs={pairs!r}"):
        PairShapley(pairs)


def test_coalitions_are_drawn_in_one_of_two_ways():
    with pytest.raises(MethodError, match=r"coalitions='uniform'.*Shapley.*Banzhaf"):
        PairShapley(2, "uniform")
