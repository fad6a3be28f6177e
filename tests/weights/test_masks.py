"""Masks: how many go, which, in what order; and what they cost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import named
from tests.oracles import weights as slow
from torch import nn

from neurank import weights
from neurank.errors import MethodError, PlanError, RankingError


def scores(**tensors):
    return weights.WeightScores({name: torch.tensor(it) for name, it in tensors.items()})


def test_the_lowest_go_and_of_equals_the_first():
    given_one = scores(a=[[3.0, 1.0], [1.0, -2.0]])
    assert weights.mask(given_one, 0.25)["a"].tolist() == [[True, True], [True, False]]
    assert weights.mask(given_one, 0.5)["a"].tolist() == [[True, False], [True, False]]


def test_within_a_layer_each_loses_its_share_and_within_the_network_the_lowest_of_all():
    given_one = scores(a=[1.0, 2.0], b=[3.0, 4.0])
    layer = weights.mask(given_one, 0.5)
    network = weights.mask(given_one, 0.5, within="network")
    assert (layer["a"].tolist(), layer["b"].tolist()) == ([False, True], [False, True])
    assert (network["a"].tolist(), network["b"].tolist()) == ([False, False], [True, True])
    assert layer.sparsity == network.sparsity == 0.5


@pytest.mark.parametrize(
    ("fraction", "count", "gone"),
    [
        (0.29, 100, 29),
        (0.1, 30, 3),
        (0.29, 10, 2),
        (0, 5, 0),
        (1, 5, 5),
        (1e-9, 7, 0),
        (0.7, 10, 7),
    ],
)
def test_how_many_is_rounded_down_from_the_number_as_it_is_written(fraction, count, gone):
    masks = weights.mask(weights.WeightScores({"w": torch.arange(count)}), fraction)
    assert masks.pruned == gone
    assert f"{gone} of {count} weights pruned" in str(masks)
    assert masks.sparsity == gone / count


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=40),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_growing_fraction_keeps_nothing_that_was_pruned(numbers, one, other):
    low, high = sorted((one, other))
    first = weights.mask(weights.WeightScores({"w": torch.tensor(numbers)}), low)
    fresh = weights.WeightScores({"w": torch.tensor(numbers).flip(0)})  # scores change meanwhile
    second = weights.mask(fresh, high, after=first)
    assert not (second["w"] & ~first["w"]).any()
    assert second.pruned == weights.mask(fresh, high).pruned
    left = second["w"]
    went = first["w"] & ~second["w"]
    if left.any() and went.any():
        assert fresh["w"][left].min() >= fresh["w"][went].max()


def test_the_thesis_schedule():
    """Table 2.2: 0.2, 0.5, 0.8 and 0.9 of all weights."""
    torch.manual_seed(0)
    masks = None
    for fraction in (0.2, 0.5, 0.8, 0.9):
        given_one = weights.WeightScores({"a": torch.rand(10, 10), "b": torch.rand(50)})
        masks = weights.mask(given_one, fraction, within="network", after=masks)
        assert masks.sparsity == pytest.approx(fraction)
    assert masks.provenance["follows"] == 0.8


def test_scores_that_are_negative_go_first_unless_sizes_are_asked_for():
    given_one = scores(a=[-5.0, 0.1, 1.0])
    assert weights.mask(given_one, 0.34)["a"].tolist() == [False, True, True]
    assert weights.mask(given_one.absolute(), 0.34)["a"].tolist() == [True, False, True]


REFUSED = [
    ({"fraction": 1.5}, MethodError, "fraction=1.5"),
    ({"fraction": -0.1}, MethodError, "fraction=-0.1"),
    ({"fraction": float("nan")}, MethodError, "fraction=nan"),
    ({"fraction": True}, MethodError, "fraction=True"),
    ({"within": "model"}, MethodError, "within='model'"),
    ({"scores": {"a": torch.ones(2)}}, MethodError, "scores are a dict"),
    ({"after": weights.Masks({"b": torch.ones(4) > 0})}, PlanError, "the shape none"),
    ({"after": weights.Masks({"a": torch.ones(5) > 0})}, PlanError, r"shape \(5,\)"),
    ({"after": weights.Masks({"a": torch.zeros(4) > 0})}, MethodError, "prune 4 already"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "reason"), REFUSED)
def test_what_is_refused(options, error, reason):
    options = {"scores": scores(a=[1.0, 2.0, 3.0, 4.0]), "fraction": 0.5, **options}
    with pytest.raises(error, match=reason):
        weights.mask(**options)


def test_masks_are_bool():
    with pytest.raises(RankingError, match=r"'a' is torch\.float32"):
        weights.Masks({"a": torch.ones(3)})


def test_the_loss_if_pruned_now():
    case = named("lenet, flatten")
    model, data = case.model(), case.batches()
    found = weights.score(model, data, weights.Magnitude(), progress=False)
    masks = weights.mask(found, 0.4, within="network")
    before = {name: it.detach().clone() for name, it in model.state_dict().items()}
    change = weights.loss_change(model, data, masks)
    assert all(torch.equal(it, before[name]) for name, it in model.state_dict().items())
    pruned = slow.copied(model)
    with torch.no_grad():
        for name, parameter in pruned.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])
        wanted = slow.mean_loss(pruned, data) - slow.mean_loss(slow.copied(model), data)
    assert change == pytest.approx(wanted.item(), abs=1e-13)
    assert change != 0


def test_one_weight_pruned_is_its_loss_change():
    case = named("perceptron")
    model, data = case.model(), case.batches()
    exact = weights.score(model, data, weights.LossChange(), progress=False)
    name = "fc1.weight"
    for place in (0, 7):
        one = torch.ones(exact[name].numel(), dtype=torch.bool)
        one[place] = False
        masks = weights.Masks({name: one.reshape(exact[name].shape)})
        change = weights.loss_change(model, data, masks)
        assert change == pytest.approx(exact[name].reshape(-1)[place].item(), abs=1e-13)


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        (weights.Masks({"wieght": torch.ones(3, 2) > 0}), "does not have: it has weight, bias"),
        (weights.Masks({"weight": torch.ones(2, 3) > 0}), r"shape \(2, 3\) and the parameter"),
        ({"weight": torch.ones(3, 2) > 0}, "masks are a dict"),
    ],
)
def test_masks_that_do_not_fit(masks, reason):
    data = [(torch.ones(2, 2), torch.tensor([0, 1]))]
    with pytest.raises(PlanError, match=reason):
        weights.loss_change(nn.Linear(2, 3), data, masks)
    with pytest.raises(PlanError, match=reason):
        weights.hold(nn.Linear(2, 3), masks)
