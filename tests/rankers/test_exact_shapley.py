import itertools
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import CASES, drawn, look, named, watch
from tests.oracles.game import Oracle
from tests.oracles.shapley import by_permutations, by_subsets
from torch import nn

import neurank as nr
from neurank.errors import MethodError
from neurank.rankers.exact_shapley import shapley_of_table

REMOVALS = ("zero", "mean", "parameters")


def soft_rank(outputs, targets):
    """A value of the user's own, one number per example."""
    return outputs.softmax(dim=1).gather(1, targets[:, None])[:, 0] ** 2


VALUES = {
    "accuracy": nr.Accuracy(),
    ("recall", 1): nr.Recall(1),
    "negative loss": nr.NegativeLoss(),
    "margin": nr.Margin(),
    soft_rank: soft_rank,
}


def score(observer, layer):
    return nr.ExactShapley().score(observer, layer)


def scores(model, batches, layer, value=None):
    observer = look(model, batches, value=value or nr.Accuracy())
    return score(observer, layer).ranking.scores


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_network_removal_and_value_matches_eq_2(case, removal):
    batches = case.batches()
    for layer, readers in case.reads.items():
        oracle = Oracle(case.model(), batches, layer, readers, removal)
        for name, value in VALUES.items():
            oracle.value = name
            found = score(watch(case, removal=removal, value=value), layer)
            assert found.ranking.scores.tolist() == pytest.approx(
                by_subsets(oracle, oracle.width), abs=1e-10
            ), (layer, name)
            assert found.record["value_none"] == pytest.approx(oracle(()), abs=1e-10)
            assert found.record["value_all"] == pytest.approx(
                oracle(range(oracle.width)), abs=1e-10
            )


@pytest.mark.parametrize("name", ["perceptron", "many ties in pictures", "skip"])
def test_matches_eq_1_over_every_permutation(name):
    case = named(name)
    for layer, readers in case.reads.items():
        oracle = Oracle(case.model(), case.batches(), layer, readers)
        expected = by_permutations(oracle, oracle.width)
        assert score(watch(case), layer).ranking.scores.tolist() == pytest.approx(
            expected, abs=1e-10
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_units_of_every_case_differ_in_worth(case):
    """Otherwise an agreement of zeros would prove nothing."""
    for layer in case.reads:
        found = score(watch(case, value=nr.NegativeLoss()), layer).ranking.scores
        assert found.abs().max() > 1e-3
        assert found.max() > found.min()


def test_single_precision_ranks_like_double_precision():
    for case in CASES[::4]:
        for layer in case.reads:
            single = score(watch(case, torch.float32, value=nr.NegativeLoss()), layer)
            double = score(watch(case, value=nr.NegativeLoss()), layer)
            torch.testing.assert_close(
                single.ranking.scores, double.ranking.scores, atol=1e-5, rtol=1e-4
            )


def test_exact_scores_have_no_error_and_the_data_s_own_error_is_that_of_a_mean():
    case = named("perceptron")
    batches = case.batches()
    oracle = Oracle(case.model(), batches, "fc1", ("fc2",))
    examples = sum(len(targets) for _, targets in batches)
    each = np.array([by_subsets(oracle.example(e), oracle.width) for e in range(examples)])
    ranking = score(watch(case), "fc1").ranking
    assert (ranking.status, ranking.stderr_of) == ("exact", "estimator")
    assert ranking.stderr.tolist() == [0] * oracle.width
    assert ranking.counts.tolist() == [examples] * oracle.width
    expected = each.std(axis=0, ddof=1) / math.sqrt(examples)
    np.testing.assert_allclose(ranking.data_stderr, expected, atol=1e-12)


def test_recall_averages_the_examples_of_its_class_only():
    case = named("lenet, flatten")
    kept = [(inputs[targets == 2], targets[targets == 2]) for inputs, targets in case.batches()]
    kept = [batch for batch in kept if len(batch[1])]
    recall = score(watch(case, value=nr.Recall(2)), "conv2").ranking
    alone = score(look(case.model(), kept), "conv2").ranking
    torch.testing.assert_close(recall.scores, alone.scores, atol=1e-12, rtol=0)
    assert recall.counts.tolist() == alone.counts.tolist()


def test_ties_go_to_the_lowest_class():
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 3, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1.0]]))
        model[1].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))
    one = torch.ones(1, 1, dtype=torch.float64)
    # No unit: (0, 0, 0), class 0. Unit 0: (0, 1, 1), class 1. Unit 1: (0, 0, 1), class 2.
    expected = {0: [-0.5, -0.5], 1: [0.5, -0.5], 2: [0, 1]}
    for target, wanted in expected.items():
        assert scores(model, [(one, torch.tensor([target]))], "0").tolist() == wanted


def test_an_expensive_layer_is_refused_with_its_cost_and_the_remedy():
    model = nn.Sequential(nn.Linear(3, 60), nn.Sigmoid(), nn.Linear(60, 3))
    with pytest.raises(MethodError, match=r"up to 60 of 60 units.*PermutationShapley") as refusal:
        scores(model, [(torch.ones(2, 3), torch.tensor([0, 1]))], "0")
    assert f"{2 * 2**60:.1e} coalitions" in str(refusal.value)


def test_a_layer_beyond_the_range_of_floats_is_refused_too():
    model = nn.Sequential(nn.Linear(3, 1500), nn.Sigmoid(), nn.Linear(1500, 3))
    with pytest.raises(MethodError, match=r"1e\+451 coalitions"):
        scores(model, [(torch.ones(1, 3), torch.tensor([0]))], "0")


def test_the_bound_is_the_caller_s_to_move():
    observer = watch(named("perceptron"))
    with pytest.raises(MethodError, match=r"max_operations=5e\+00"):
        nr.ExactShapley(max_operations=5).score(observer, "fc1")
    nr.ExactShapley(max_operations=1e6).score(observer, "fc1")


class Recalled:
    """A journal that has some chunks and keeps no others."""

    reused = 0

    def __init__(self, chunks):
        self.chunks = chunks

    def get(self, key):
        return dict(self.chunks[key]) if key in self.chunks else None

    def append(self, key, arrays):
        pass


@pytest.mark.parametrize("method", [nr.ExactShapley, partial(nr.TruncatedShapley, 11, "empty")])
def test_a_resumed_layer_is_judged_by_all_its_examples(method):
    """Eight idle examples are recalled; the busy ninth alone would cost too much nine times."""
    model = nn.Sequential(nn.Linear(1, 12, bias=False), nn.ReLU(), nn.Linear(12, 2))
    nn.init.ones_(model[0].weight)
    idle, busy = torch.full((8, 1), -1.0), torch.ones(1, 1)
    batches = [(idle, torch.zeros(8, dtype=torch.int64)), (busy, torch.tensor([1]))]
    observer = look(model, batches)
    game = list(observer.games("0"))[1]
    allowed = method(2 * 2**12 * game.operations_per_coalition)
    kept = {}
    first = Recalled({})
    first.append = lambda key, arrays: kept.update({key: dict(arrays)})
    wanted = allowed.score(replace(observer, journal=first), "0").ranking
    del kept[next(key for key in kept if key.endswith("/ 1"))]
    assert allowed.score(replace(observer, journal=Recalled(kept)), "0").ranking == wanted
    nine = look(model, [(busy.repeat(9, 1), torch.ones(9, dtype=torch.int64))])
    with pytest.raises(MethodError, match="max_operations"):
        allowed.score(nine, "0")


# Axioms, over networks that are drawn.

few = settings(deadline=None, max_examples=7)
seeds = st.integers(0, 10**6)


def first_layer(case):
    layer, readers = next(iter(case.reads.items()))
    return layer, readers[0]


def columns(model, layer, reader):
    """The reader's weights, (outputs, units, ...), as a view."""
    weight = model.get_submodule(reader).weight
    return weight.view(len(weight), len(model.get_submodule(layer).weight), -1)


@few
@given(seeds)
def test_efficiency(seed):
    case = drawn(seed)
    observer = look(case.model(), case.batches(), value=nr.Margin())
    for layer in case.reads:
        found = score(observer, layer)
        gain = found.record["value_all"] - found.record["value_none"]
        assert float(found.ranking.scores.sum()) == pytest.approx(gain, abs=1e-10)


@few
@given(seeds, st.booleans())
def test_symmetry(seed, compiled):
    case = drawn(seed)
    model = case.model()
    layer, reader = first_layer(case)
    with torch.no_grad():
        for parameter in model.get_submodule(layer).parameters():
            parameter[-1] = parameter[0]
        columns(model, layer, reader)[:, -1] = columns(model, layer, reader)[:, 0]
    found = scores(model, case.batches(), layer, nr.Accuracy() if compiled else nr.Margin())
    assert float(found[0]) == pytest.approx(float(found[-1]), abs=1e-10)


@few
@given(seeds, st.booleans())
def test_null_player(seed, compiled):
    case = drawn(seed)
    model = case.model()
    layer, reader = first_layer(case)
    with torch.no_grad():
        columns(model, layer, reader)[:, -1] = 0
    found = scores(model, case.batches(), layer, nr.Accuracy() if compiled else nr.Margin())
    assert float(found[-1]) == 0


@few
@given(seeds, st.floats(-3, 3), st.floats(-3, 3))
def test_linearity(seed, a, b):
    case = drawn(seed)
    layer, _ = first_layer(case)
    observer = look(case.model(), case.batches())
    one, two = nr.NegativeLoss(), nr.Accuracy()

    def both(outputs, targets):
        return a * one(outputs, targets) + b * two(outputs, targets)

    first, second, together = (
        score(replace(observer, value=value), layer).ranking.scores for value in (one, two, both)
    )
    torch.testing.assert_close(together, a * first + b * second, atol=1e-10, rtol=0)


@few
@given(seeds, st.randoms(use_true_random=False))
def test_relabelling_units_relabels_scores(seed, random):
    case = drawn(seed)
    model, turned = case.model(), case.model()
    layer, reader = first_layer(case)
    order = list(range(len(model.get_submodule(layer).weight)))
    random.shuffle(order)
    with torch.no_grad():
        for parameter in turned.get_submodule(layer).parameters():
            parameter.copy_(parameter[order])
        columns(turned, layer, reader).copy_(columns(model, layer, reader)[:, order])
    found = scores(turned, case.batches(), layer)
    torch.testing.assert_close(found, scores(model, case.batches(), layer)[order], atol=1e-12,
                               rtol=0)  # fmt: skip


@few
@given(seeds, st.permutations(range(12)), st.sampled_from([(12,), (1,) * 12, (7, 5), (2, 9, 1)]))
def test_the_order_of_the_data_and_its_batches_do_not_matter(seed, order, sizes):
    case = drawn(seed)
    layer, _ = first_layer(case)
    model = case.model()
    expected = scores(model, case.batches(), layer)
    ((inputs, targets),) = case.batches(sizes=(12,))
    ends = [0, *itertools.accumulate(sizes)]
    again = [(inputs[order][a:b], targets[order][a:b]) for a, b in itertools.pairwise(ends)]
    torch.testing.assert_close(scores(model, again, layer), expected, atol=1e-12, rtol=0)


# Games that are tables: coalition c at index c, player j in it where bit j is set.

players = st.integers(0, 6)
tables = players.flatmap(
    lambda k: st.lists(st.floats(-10, 10, width=32), min_size=2**k, max_size=2**k)
)


def members(index):
    return frozenset(j for j in range(10) if (index >> j) & 1)


def index_of(coalition):
    return sum(1 << player for player in coalition)


@settings(deadline=None)
@given(tables)
def test_tables_match_both_equations(table):
    k = len(table).bit_length() - 1
    found = shapley_of_table(np.array(table, float)).tolist()

    def value(coalition):
        return table[index_of(coalition)]

    assert found == pytest.approx(by_subsets(value, k), abs=1e-9)
    if k <= 5:
        assert found == pytest.approx(by_permutations(value, k), abs=1e-9)


@settings(deadline=None)
@given(tables)
def test_table_games_are_efficient(table):
    total = shapley_of_table(np.array(table, float)).sum()
    assert total == pytest.approx(table[-1] - table[0], abs=1e-9)


@settings(deadline=None)
@given(tables, st.integers(0, 5), st.integers(0, 5))
def test_players_who_can_be_exchanged_score_alike(table, one, other):
    k = len(table).bit_length() - 1
    if max(one, other) >= k:
        return
    swap = {one: other, other: one}

    def mirrored(index):
        return index_of(swap.get(player, player) for player in members(index))

    fair = [table[c] + table[mirrored(c)] for c in range(len(table))]
    found = shapley_of_table(np.array(fair, float))
    assert found[one] == pytest.approx(found[other], abs=1e-9)


@settings(deadline=None)
@given(tables, st.integers(0, 5))
def test_a_player_who_changes_nothing_scores_nothing(table, player):
    k = len(table).bit_length() - 1
    if player >= k:
        return
    idle = [table[c & ~(1 << player)] for c in range(len(table))]
    assert shapley_of_table(np.array(idle, float))[player] == pytest.approx(0, abs=1e-9)


@settings(deadline=None)
@given(tables, tables, st.floats(-3, 3))
def test_table_games_add_up(one, other, factor):
    size = min(len(one), len(other))
    one, other = np.array(one[:size], float), np.array(other[:size], float)
    together = shapley_of_table(one + factor * other)
    expected = shapley_of_table(one) + factor * shapley_of_table(other)
    np.testing.assert_allclose(together, expected, atol=1e-8)
