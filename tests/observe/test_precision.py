"""Convolutions in bfloat16: close to the model's own numbers, and what they change is counted."""

import pytest
import torch
from tests.cases import CASES, look, named

import neurank as nr
from neurank.errors import MethodError
from neurank.observe.observer import LEAST_COMPARED

WITH_CONVOLUTIONS = ("padding, stride, dilation, no bias", "branch", "one dimension", "skip")


def games(name, layer, precision):
    case = named(name)
    watched = look(case.model(torch.float32), case.batches(torch.float32), precision=precision)
    return list(watched.games(layer, "suffix"))


def first_layer(name):
    return next(iter(named(name).reads))


@pytest.mark.parametrize("name", WITH_CONVOLUTIONS)
def test_logits_are_close_to_the_models_own_and_not_the_same(name):
    layer = first_layer(name)
    pairs = zip(games(name, layer, "own"), games(name, layer, "bfloat16"), strict=True)
    for exact, rounded in pairs:
        rows = torch.arange(exact.examples)
        masks = torch.ones(exact.examples, exact.units, dtype=torch.bool)
        wanted, found = (game.logits(rows, masks) for game in (exact, rounded))
        assert found.dtype == torch.float32
        error = float((found - wanted).abs().max() / wanted.abs().max())
        assert 0 < error < 0.03


def test_a_suffix_without_convolutions_stays_as_it_is():
    (exact, *_), (rounded, *_) = (games("sigmoid", "fc0", it) for it in ("own", "bfloat16"))
    rows, masks = torch.arange(exact.examples), exact.active
    assert torch.equal(exact.logits(rows, masks), rounded.logits(rows, masks))


@pytest.mark.parametrize("case", CASES[::6], ids=str)
def test_the_record_says_which_share_of_decisions_changes(case):
    layer = next(iter(case.reads))
    ranking = nr.rank(
        case.model(torch.float32),
        case.batches(torch.float32),
        nr.PermutationShapley(passes=2),
        layers=[layer],
        precision="bfloat16",
        progress=False,
    )
    assert 0 <= ranking.provenance["by_layer"][layer]["decisions_changed"] < 0.1
    assert ranking.provenance["precision"] == "bfloat16"


def test_changed_decisions_are_counted(monkeypatch):
    """With convolutions that give nothing, every decision is that of the biases alone."""
    case = named("branch")
    watched = look(case.model(torch.float32), case.batches(torch.float32), precision="bfloat16")
    before = watched.decisions_changed("stem", "suffix")

    def nothing(target, kind):
        def convolution(read, weight, bias, *others):
            return torch.zeros_like(target(read, weight.float(), bias.float(), *others))

        convolution.__name__ = kind
        return convolution

    monkeypatch.setattr("neurank.observe.lowering._rounding", nothing)
    assert watched.decisions_changed("stem", "suffix") > max(0.2, 10 * before)
    assert LEAST_COMPARED >= 1000


def test_a_precision_is_one_of_two():
    case = named("perceptron")
    with pytest.raises(MethodError, match=r"precision='half': give one of 'own', 'bfloat16'"):
        nr.rank(case.model(), case.batches(), nr.RandomScore(), precision="half")
