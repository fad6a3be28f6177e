"""Plans under budgets: exact costs, the order in which units go, and what is measured."""

import copy
import random
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.architectures import ARCHITECTURES, architecture, slow_where_tracing_is
from tests.condense import zoo
from tests.condense.nets import WithNumber, drawn
from torch import nn

from neurank.condense import budget
from neurank.condense.condensed import carried_out, condense
from neurank.condense.descent import ACROSS, descent
from neurank.condense.plan import Budgets, Plan, Rules, plan
from neurank.condense.surgery import cuts_for
from neurank.condense.trials import MaskedAccuracy, farthest, last_of, watched
from neurank.condense.unit_costs import costs_of
from neurank.errors import CondenseError, DataError, PlanError
from neurank.modes import evaluating
from neurank.observe.observer import model_digest
from neurank.ranking import Ranking
from neurank.training import error_rate
from neurank.units.space import unit_space
from neurank.units.trace import trace
from neurank.zoo import digits_net, lenet


def reported(small):
    return {
        "parameters": small.report.parameters[1],
        "multiply_adds": small.report.multiply_adds[1],
    }


def observed(name):
    watching = zoo.watched(name)
    return watching.model, watching


def some_plan(space, model, seed):
    """Draw a plan that takes something of every layer and leaves no tensor empty."""
    rng = random.Random(seed)
    widths = {layer: space[layer].width for layer in space.hidden}
    while True:
        keep = {
            layer: tuple(rng.sample(range(width), rng.randint(width // 2, max(width - 1, 1)) or 1))
            for layer, width in widths.items()
        }
        plan = Plan(keep, widths)
        with suppress(CondenseError):
            cuts_for(plan, space, model)
            return plan


LABELLED = [one.name for one in ARCHITECTURES if one.classes is not None]


@pytest.mark.parametrize("name", slow_where_tracing_is(LABELLED))
def test_the_costs_of_a_plan_are_those_of_the_condensed_network(name):
    model, watching = observed(name)
    if not watching.space.hidden:
        pytest.skip("no layer can lose units")
    with evaluating(model):
        costs = costs_of(watching.space, model)
        made = some_plan(watching.space, model, name)
        small = carried_out(made, watching, "zero")
    assert costs.of({it: made.removed(it) for it in made.keep}) == reported(small)
    assert small.report.parameters[1] < small.report.parameters[0]


def prepared(model, shape=(1, 8, 8)):
    with evaluating(model):
        space = unit_space(trace(model, torch.zeros(2, *shape)), model)
    return space, costs_of(space, model)


def test_costs_are_worked_out_thousands_of_times_a_second():
    import time

    space, costs = prepared(lenet(), (1, 28, 28))
    ranking = ranked({name: space[name].width for name in space.hidden})
    coming = descent(ranking, space, costs, Rules(), "share")
    started = time.process_time()
    for rung in range(2000):
        coming.cost((rung % 9, rung % 19, rung % 99, rung % 24))
    assert time.process_time() - started < 1.5


def ranked(widths, seed=0, model=None):
    draw = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(width, generator=draw) for name, width in widths.items()}
    provenance = {} if model is None else {"model": model_digest(model)}
    return Ranking.from_scores(scores, provenance=provenance)


WIDTHS = {"conv1": 8, "conv2": 16, "fc1": 32, "fc2": 16}
DATA = [(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))]
SPACE, COSTS = prepared(digits_net(seed=0))


def made(across="share", rules=None, seed=0):
    return descent(ranked(WIDTHS, seed), SPACE, COSTS, rules or Rules(), across)


def cost_of(widths):
    return COSTS.of({name: range(width, WIDTHS[name]) for name, width in widths.items()})


@pytest.mark.parametrize("across", ACROSS)
def test_every_way_ends_within_the_budget_and_has_nothing_to_spare(across):
    model = digits_net(seed=0)
    found = plan(ranked(WIDTHS), max_params=1000, across=across, model=model, data=DATA)
    cost = cost_of(found.widths_after)["parameters"]
    assert cost == condense(model, found, DATA).report.parameters[1] <= 1000
    for name, width in found.widths_after.items():
        if width < WIDTHS[name]:
            assert cost_of({**found.widths_after, name: width + 1})["parameters"] > 1000
    assert found.source["budget"]["parameters"] == [4026, cost]
    best = {
        name: set(ranked(WIDTHS).top(width, name)) for name, width in found.widths_after.items()
    }
    assert {name: set(kept) for name, kept in found.keep.items()} == best


def gone_one_by_one(coming, start=None, bounds=None):
    """The layers that come down, in order."""
    path = list(coming.down(coming.top if start is None else start, bounds or {"parameters": 0}))
    names = [it.layer for it in coming.ladders]
    return [
        names[next(it for it, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)]
        for one, other in pairwise(path)
    ], path


def test_scores_as_they_are_go_in_order_over_all_layers():
    order, _ = gone_one_by_one(made("score"))
    ranking = ranked(WIDTHS)
    every = sorted(
        (float(score), name)
        for name, layer in ranking.layers.items()
        for score in sorted(layer.scores.tolist())[:-1]  # the best one stays
    )
    assert order == [name for _, name in every]


def slow_order(across, bounds):
    """What goes first, worked out anew at every step from the words of the documentation."""
    ranking = ranked(WIDTHS)
    left = {name: sorted(layer.scores.tolist()) for name, layer in ranking.layers.items()}
    whole = cost_of(WIDTHS)
    order = []

    def cost():
        return cost_of({name: len(scores) for name, scores in left.items()})

    while any(len(scores) > 1 for scores in left.values()):
        before = cost()
        above = [it for it, bound in bounds.items() if before[it] > bound] or list(bounds)
        best = None
        for name, scores in left.items():
            if len(scores) == 1:
                continue
            worst = scores[0]
            kind = across.removesuffix(" per cost")
            worth = {
                "score": worst,
                "share": worst / sum(map(abs, scores)),
                "rank": (WIDTHS[name] - len(scores) + 1) / WIDTHS[name],
            }[kind]
            if across.endswith("per cost"):
                after = cost_of({**{n: len(s) for n, s in left.items()}, name: len(scores) - 1})
                worth /= sum((before[it] - after[it]) / whole[it] for it in above)
            if best is None or worth < best[0]:
                best = (worth, name)
        left[best[1]].pop(0)
        order.append(best[1])
    return order


@pytest.mark.parametrize("across", ACROSS)
@pytest.mark.parametrize("bounds", [{"parameters": 0}, {"multiply_adds": 9000, "parameters": 900}])
def test_the_order_is_that_of_the_documentation(across, bounds):
    assert gone_one_by_one(made(across), bounds=bounds)[0] == slow_order(across, bounds)


def test_harmful_units_go_before_all_others_whatever_they_cost():
    scores = {"conv1": [0.5] * 7 + [-0.001], "fc1": [1e-6] * 32}
    ranking = Ranking.from_scores(scores)
    for across in ACROSS:
        if across != "rank":
            coming = descent(ranking, SPACE, COSTS, Rules(), across)
            assert gone_one_by_one(coming)[0][0] == "conv1"


@settings(max_examples=30)
@given(
    bound=st.integers(60, 4100),
    multiple=st.sampled_from([1, 2, 3, 4, 8]),
    least=st.integers(1, 20),
    across=st.sampled_from(list(ACROSS)),
)
def test_widths_are_multiples_and_wide_enough_under_any_budget(bound, multiple, least, across):
    multiples = {"fc1": multiple, "conv2": multiple}
    rules = Rules(least, multiples)
    coming = made(across, rules)
    search = budget._Search(
        coming, Budgets(max_params=bound), budget.Settings(rules, across, "zero", False)
    )
    rungs, _ = search.static()
    narrowest = {name: rules.rounded(name, 1, width) for name, width in WIDTHS.items()}
    fewest = cost_of(narrowest)["parameters"]
    if fewest > bound:
        with pytest.raises(PlanError, match=f"{fewest:,} parameters"):
            search.check(rungs)
        return
    search.check(rungs)
    widths = coming.plan(rungs, {}).widths_after
    assert cost_of(widths)["parameters"] <= bound
    for name, width in widths.items():
        assert width == WIDTHS[name] or (width >= least and width % multiples.get(name, 1) == 0)


def test_all_budgets_hold_and_ignored_layers_stay_whole():
    model = digits_net(seed=0)
    found = plan(
        ranked(WIDTHS), max_params=3000, max_macs=9000, ignored=["fc1"], model=model, data=DATA
    )
    assert "fc1" not in found.keep
    small = condense(model, found, DATA)
    assert small.report.parameters[1] <= 3000
    assert small.report.multiply_adds[1] <= 9000
    loose = plan(ranked(WIDTHS), max_params=3000, ignored=["fc1"], model=model, data=DATA)
    assert condense(model, loose, DATA).report.multiply_adds[1] > 9000


def test_a_budget_that_holds_already_removes_nothing():
    found = plan(ranked(WIDTHS), max_params=4026, model=digits_net(seed=0), data=DATA)
    assert found.widths_after == WIDTHS


@pytest.mark.parametrize(
    "name", ["resnet-basic", "shufflenet-v1", "densenet", "vit-fused-attention"]
)
def test_coupled_networks_keep_within_a_budget_that_condensing_confirms(name):
    model, watching = observed(name)
    ranking = ranked({it: watching.space[it].width for it in watching.space.hidden})
    whole = sum(it.numel() for it in model.parameters())
    found = plan(ranking, max_params=whole * 2 // 3, model=model, data=architecture(name).batches())
    with evaluating(model):
        small = carried_out(found, watching, "zero")
    assert small.report.parameters[1] <= whole * 2 // 3
    assert small.report.parameters[1] == found.source["budget"]["parameters"][1]


class Tied(nn.Module):
    """Two layers whose sum is read, of which the second has rows of its own beside."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(4, 6)
        self.narrow = nn.Linear(4, 2)
        self.read = nn.Linear(6, 3)

    def forward(self, x):
        wide = self.wide(x).relu()
        return self.read(torch.cat([wide[:, :2] + self.narrow(x).relu(), wide[:, 2:]], 1))


def test_no_member_of_a_tie_runs_empty():
    model = drawn(Tied, dtype=torch.float32).eval()
    data = [(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))]
    ranking = Ranking.from_scores({"wide": [0.0, 0.1, 5, 6, 7, 8]})
    fewer = plan(ranking, max_params=31, model=model, data=data)
    assert fewer.keep["wide"] == (1, 5)  # narrow would be empty without 1
    assert len(condense(model, fewer, data).model.narrow.weight) == 1
    fewest = plan(ranking, max_params=21, model=model, data=data)
    assert fewest.keep["wide"] == (1,)
    outputs = ranked({"0": 3, "2": 2})
    chain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    found = plan(
        outputs, max_params=12, model=chain, data=[(torch.zeros(2, 2), torch.tensor([0, 1]))]
    )
    assert found.keep == {"0": found.keep["0"]}  # the network's outputs stay


def trained(seed=0):
    from neurank.data import load
    from neurank.training import fit

    digits = load("digits", batch_size=50)
    model = digits_net(seed=seed)
    fit(model, digits.train, digits.validation, epochs=25, lr=0.05, progress=False)
    return model, digits


@pytest.fixture(scope="module")
def network():
    return trained()


@pytest.fixture(scope="module")
def scores(network):
    from neurank.rankers.permutation_shapley import PermutationShapley
    from neurank.rankers.rank import rank

    model, digits = network
    return rank(model, digits.validation, PermutationShapley(), progress=False)


def right(model, data):
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in data)


@pytest.mark.parametrize("removal", ["zero", "mean", "parameters"])
@pytest.mark.parametrize("memory", [2**30, 0])
def test_masked_networks_get_right_what_condensed_ones_do(network, removal, memory):
    model, digits = network
    data = list(digits.validation)
    with evaluating(model):
        watching = watched(model, data, progress=False)
        accuracy = MaskedAccuracy(watching, removal, list(WIDTHS), memory)
        together = accuracy.varying(list(WIDTHS), {})
        found = some_plan(watching.space, watching.model, removal)
        small = carried_out(found, watching, removal)
        expected = right(small.model.eval(), data)
        assert together(found.keep) == expected
        for layer in WIDTHS:
            others = {name: kept for name, kept in found.keep.items() if name != layer}
            alone = accuracy.varying([layer], others)
            assert alone({layer: found.keep[layer]}) == expected
            whole = Plan(others, {name: WIDTHS[name] for name in others})
            without = carried_out(whole, watching, removal).model.eval()
            assert alone({}) == right(without, data)
        assert together({}) == right(model, data)
    assert expected < right(model.eval(), data)


@pytest.mark.parametrize("name", ["resnet-basic", "densenet", "vit-fused-attention", "lstm"])
def test_coupled_networks_are_masked_and_cached_alike(name):
    model, watching = observed(name)
    layers = list(watching.space.hidden)
    found = some_plan(watching.space, watching.model, name)
    with evaluating(model):
        data = architecture(name).batches()
        expected = right(carried_out(found, watching, "zero").model.eval(), data)
        accuracy = MaskedAccuracy(watching, "zero", layers)
        assert accuracy.varying(layers, {})(found.keep) == expected
        last = layers[-1]
        others = {layer: kept for layer, kept in found.keep.items() if layer != last}
        assert accuracy.varying([last], others)({last: found.keep[last]}) == expected


@pytest.mark.parametrize("max_drop", [0.0, 0.03, 0.2])
def test_max_drop_is_kept_and_no_layer_can_lose_one_more(network, scores, max_drop):
    model, digits = network
    found = plan(scores, max_drop=max_drop, model=model, data=digits.validation, progress=False)
    count = digits.validation.examples
    before = 1 - error_rate(model, digits.validation)
    after = 1 - error_rate(condense(model, found, digits.validation).model, digits.validation)
    assert before - after <= max_drop + 1e-9
    told = found.source["budget"]
    assert told["accuracy"] == pytest.approx([before, after])
    assert told["examples"] == count
    assert 0 < told["of_which_bisection"] < told["evaluations"]
    for name, width in found.widths_after.items():
        if width > 1:
            fewer = plan(scores, keep={**found.keep, name: width - 1})
            small = condense(model, fewer, digits.validation, progress=False).model
            assert before - (1 - error_rate(small, digits.validation)) > max_drop + 1e-9


def test_a_larger_drop_makes_a_smaller_network(network, scores):
    model, digits = network
    sizes = [
        plan(scores, max_drop=drop, model=model, data=digits.validation).source["budget"]
        for drop in (0.0, 0.05, 0.3)
    ]
    after = [it["parameters"][1] for it in sizes]
    assert after == sorted(after, reverse=True)
    assert after[0] > after[2]


def test_budgets_must_hold_within_the_drop(network, scores):
    model, digits = network
    given_data = {"model": model, "data": digits.validation}
    reached = plan(scores, max_drop=0.02, **given_data).source["budget"]["parameters"][1]
    plan(scores, max_drop=0.02, max_params=3500, **given_data)
    with pytest.raises(PlanError, match=r"500 parameters cannot be met: within max_drop=0\.02, "):
        plan(scores, max_drop=0.02, max_params=500, **given_data)
    assert reached > 500


def test_latency_is_searched_for_along_the_order(monkeypatch, network, scores):
    model, digits = network
    seen = []

    def seconds(made, watching, _removal):
        cost = costs_of(watching.space, watching.model).of(
            {name: made.removed(name) for name in made.keep}
        )["multiply_adds"]
        seen.append(cost)
        return cost * 1e-6

    monkeypatch.setattr(budget, "latency_of", seconds)
    found = plan(scores, max_latency=0.01, model=model, data=digits.validation)
    before, after = found.source["budget"]["multiply_adds"]
    assert found.source["budget"]["latency"]["seconds"] == [before * 1e-6, after * 1e-6]
    assert after <= 10_000
    assert len(seen) <= 10
    space, costs = prepared(model)
    path = list(
        descent(scores, space, costs, Rules(), "share").down((0,) * 4, {"multiply_adds": 0})
    )
    coming = descent(scores, space, costs, Rules(), "share")
    reached = next(it for it in path if coming.cost(it)["multiply_adds"] <= 10_000)
    assert coming.plan(reached, {}) == found
    with pytest.raises(PlanError, match=r"budget of 1e-05 s cannot be met: with every layer"):
        plan(scores, max_latency=1e-5, model=model, data=digits.validation)
    with pytest.raises(PlanError, match=r"within max_drop=0\.0, 0\.0\d+ s were measured"):
        plan(scores, max_latency=1e-4, max_drop=0.0, model=model, data=digits.validation)


def test_latency_is_really_measured(network, scores):
    model, digits = network
    found = plan(scores, max_latency=60, model=model, data=digits.validation)
    assert found.widths_after == WIDTHS
    before, after = found.source["budget"]["latency"]["seconds"]
    assert 0 < after < 1
    assert 0 < before < 1
    with pytest.raises(PlanError, match=r"s were measured\. Ask for no less"):
        plan(scores, max_latency=1e-9, model=model, data=digits.validation)


def test_the_model_comes_back_as_it_was(network, scores):
    model, digits = network
    model.train()
    before = copy.deepcopy(model.state_dict())
    plan(scores, max_drop=0.05, model=model, data=digits.validation)
    assert model.training
    assert all(torch.equal(it, before[name]) for name, it in model.state_dict().items())
    model.eval()


def test_budgets_on_a_forward_pass_that_holds_a_width():
    model = drawn(WithNumber, dtype=torch.float32).eval()
    data = [(torch.randn(6, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1, 2]))]
    ranking = ranked({"conv1": 4, "fc1": 6})
    found = plan(ranking, max_params=90, model=model, data=data)
    assert condense(model, found, data).report.parameters[1] <= 90


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({"max_params": -1}, "max_params=-1 is no bound"),
        ({"max_macs": True}, "max_macs=True is no bound"),
        ({"max_drop": float("nan")}, "max_drop=nan is no bound"),
        ({"max_latency": "fast"}, "max_latency='fast' is no bound"),
        ({"max_params": 900, "across": "best"}, "across='best' is unknown"),
        ({"max_params": 900, "ratio": 0.5}, "two of them were given"),
        ({"max_params": 900, "ratio": 0.5, "keep": {"fc1": 3}}, "three of them were given"),
        ({"max_params": 900, "model": None}, "needs the network"),
        ({"max_params": 900, "data": None}, "needs the network"),
        ({"max_params": 900, "ignored": list(WIDTHS)}, "no layer of the ranking may lose units"),
        ({"max_params": 46, "max_macs": 500}, "46 parameters cannot be met"),
        ({"max_macs": 30}, "30 multiply-adds cannot be met: with every layer as narrow"),
    ],
)
def test_what_is_no_budget_is_refused(budgets, message):
    options = {"model": digits_net(seed=0), "data": DATA, **budgets}
    with pytest.raises(PlanError, match=message):
        plan(ranked(WIDTHS), **options)


def test_rankings_of_another_network_are_refused():
    model = digits_net(seed=0)
    of_other = ranked(WIDTHS, model=digits_net(seed=1))
    with pytest.raises(PlanError, match="other weights"):
        plan(of_other, max_params=900, model=model, data=DATA)
    with pytest.raises(PlanError, match="9 units of layer 'conv1', the network 8"):
        plan(ranked({"conv1": 9}), max_params=900, model=model, data=DATA)
    with pytest.raises(DataError, match="gives no batch"):
        plan(ranked(WIDTHS), max_params=900, model=model, data=[])


@given(st.integers(0, 50), st.integers(0, 50), st.integers(-1, 60))
def test_searches_end_where_the_next_number_does_not_hold(low, more, last):
    last = max(last, low)
    found = farthest(low, low + more, lambda number: number <= last)
    assert found == min(last, low + more)
    asked = []
    assert last_of(more + 1, lambda number: asked.append(number) or number <= last) == min(
        last, more
    )
    assert len(asked) <= int(np.log2(more + 1)) + 1
