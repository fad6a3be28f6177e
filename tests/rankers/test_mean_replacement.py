"""Mean replacement: the penalty exactly, the saliency to first order, all layers at once."""

import pytest
import torch
from tests.architectures import architecture
from tests.cases import CASES, named
from tests.oracles.mean_replacement import Replacing, penalties, saliencies

import neurank as nr
from neurank.errors import MethodError

SMOOTH = [
    named(name)
    for name in (
        "sigmoid", "linear all along", "tanh, average pooling", "log softmax", "global average",
    )
]  # fmt: skip
HIDDEN = [case for case in CASES if any(case.reads.values())]


def joined(data):
    return (torch.cat(parts) for parts in zip(*data, strict=True))


def expected(case, layer, compute, statistic, at):
    inputs, targets = joined(case.batches())
    model = case.model().eval()
    width = len(model.get_submodule(layer).weight)
    readers = case.reads[layer]
    return compute(Replacing(model, layer, readers, width, statistic, at, inputs), targets)


def compare(case, method, compute, rel):
    ranking = nr.rank(case.model(), case.batches(), method, progress=False)
    layers = [layer for layer, readers in case.reads.items() if readers]
    assert set(layers) <= set(ranking)  # what is tied is ranked besides
    for layer in layers:
        wanted = expected(case, layer, compute, method.statistic, method.at).tolist()
        assert ranking[layer].scores.tolist() == pytest.approx(wanted, rel=rel, abs=1e-12)


@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("case", HIDDEN, ids=str)
def test_penalties_are_those_of_one_forward_pass_per_unit(case, at):
    compare(case, nr.MeanReplacementPenalty(at=at), penalties, rel=1e-9)


@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("statistic", ["median", "minimum", "maximum"])
@pytest.mark.parametrize("case", HIDDEN[::6], ids=str)
def test_penalties_of_other_replacements(case, statistic, at):
    compare(case, nr.MeanReplacementPenalty(statistic, at), penalties, rel=1e-9)


@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("case", [case for case in HIDDEN if not case.whole], ids=str)
def test_saliencies_are_slopes_along_the_way_to_the_mean(case, at):
    compare(case, nr.MeanReplacementSaliency(at=at), saliencies, rel=1e-5)


@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("statistic", ["median", "minimum", "maximum"])
@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_saliencies_of_other_replacements(case, statistic, at):
    compare(case, nr.MeanReplacementSaliency(statistic, at), saliencies, rel=1e-6)


def test_batches_make_no_difference():
    case = named("lenet, flatten")
    for method in (nr.MeanReplacementSaliency(), nr.MeanReplacementPenalty("maximum")):
        one, other = (
            nr.rank(case.model(), case.batches(sizes=sizes), method, progress=False)
            for sizes in ((12,), (5, 4, 3))
        )
        for layer in one:
            torch.testing.assert_close(one[layer].scores, other[layer].scores, rtol=1e-12, atol=0)


def test_tied_units_are_replaced_together():
    """The penalty behind the nonlinearity is the loss of a network condensed by one unit."""
    one = architecture("resnet-basic")
    data = one.batches()
    inputs, targets = joined(data)
    model = one.model().eval()
    ranking = nr.rank(model, data, nr.MeanReplacementPenalty(at="post"), progress=False)

    def losses(network):
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(network(inputs), targets, reduction="none")

    whole = losses(model)
    for layer in ranking:
        width = ranking[layer].units
        plan = nr.Plan.from_keep({layer: tuple(range(1, width))}, {layer: width})
        small = nr.condense(model, plan, data, removal="mean", progress=False)
        wanted = float((losses(small.model.eval()) - whole).abs().mean())
        assert float(ranking[layer].scores[0]) == pytest.approx(wanted, rel=1e-6)


def test_a_unit_that_is_constant_is_worth_nothing():
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)
    ).double()
    with torch.no_grad():
        model[0].weight[1] = 0
    data = [(torch.randn(20, 3, dtype=torch.float64), torch.arange(20) % 3)]
    for method in (nr.MeanReplacementPenalty(), nr.MeanReplacementSaliency()):
        scores = nr.rank(model, data, method, progress=False)["0"].scores
        assert scores[1] == pytest.approx(0, abs=1e-15)
        assert (scores[[0, 2, 3]] > 1e-4).all()


def test_a_unit_behind_the_dead_side_of_its_relu_is_worth_nothing_whatever_it_computes():
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)
    ).double()
    with torch.no_grad():
        model[0].bias[2] = -100
    data = [(torch.randn(20, 3, dtype=torch.float64), torch.arange(20) % 3)]
    for method in (nr.MeanReplacementPenalty(), nr.MeanReplacementSaliency()):
        assert nr.rank(model, data, method, progress=False)["0"].scores[2] == 0


@pytest.mark.parametrize("method", [nr.MeanReplacementPenalty, nr.MeanReplacementSaliency])
def test_unknown_settings_are_named(method):
    with pytest.raises(MethodError, match="statistic='mode' is unknown: it is one of 'mean'"):
        method("mode")
    with pytest.raises(MethodError, match="at='behind' is unknown: it is one of 'pre', 'post'"):
        method(at="behind")


def test_squared_norms():
    case = named("perceptron")
    ranking = nr.rank(case.model(), case.batches(), nr.WeightNorm(2, power=2), progress=False)
    weight = case.model().fc1.weight.detach()
    torch.testing.assert_close(ranking["fc1"].scores, weight.square().sum(dim=1))
    with pytest.raises(MethodError, match="power=0"):
        nr.WeightNorm(power=0)
