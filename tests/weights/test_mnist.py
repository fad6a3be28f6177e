"""Scores of a LeNet that was trained on MNIST: the thesis' own setting, on fewer pictures."""

import pytest
import torch
from scipy import stats
from tests.oracles import weights as slow

import neurank as nr
from neurank import weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(mnist):
    model = nr.zoo.lenet(5, 7, 45, 20, seed=0)
    nr.fit(model, mnist.train.first(6000), mnist.validation.first(500), epochs=2, progress=False)
    return model, list(mnist.validation.first(300))


@pytest.fixture(scope="module")
def exact(trained):
    return weights.score(*trained, weights.LossChange(), progress=False)


def test_some_weights_of_every_layer_are_those_of_one_forward_pass_each(trained, exact):
    model, data = trained
    double = slow.copied(model).double()
    batches = [(inputs.double(), targets) for inputs, targets in data]
    moves = {}
    for name, scores in exact.items():
        move = torch.zeros(scores.numel(), dtype=torch.float64)
        some = torch.linspace(0, len(move) - 1, 12).long()
        move[some] = -double.get_parameter(name).detach().reshape(-1)[some]
        moves[name] = move.reshape(scores.shape)
    wanted = slow.loss_changes(double, batches, moves)
    for name, changes in wanted.items():
        moved = moves[name] != 0
        torch.testing.assert_close(exact[name][moved], changes[moved], rtol=0, atol=1e-12)


def test_many_weights_help_when_they_go(exact):
    """Section 2.1.1: about a third of the first layer's have a negative loss change."""
    share = float((exact["conv1.weight"] < 0).double().mean())
    assert 0.1 < share < 0.6


def test_first_order_ranks_as_the_loss_change_does(trained, exact):
    """Figure 2.4: taylor1Scorer looks best at approximating lossChangeScorer."""
    found = weights.score(*trained, weights.Taylor1(), progress=False)
    for name in ("fc1.weight", "fc2.weight", "output.weight"):
        agreement = stats.spearmanr(found[name].reshape(-1), exact[name].reshape(-1)).statistic
        assert agreement > 0.7, name


def test_a_few_weights_pruned_lower_the_loss_and_magnitude_prunes_better_than_chance(
    trained, exact
):
    """Sections 2.1.2 and 2.1.6."""
    model, data = trained

    def cost(scores, fraction):
        return weights.loss_change(model, data, weights.mask(scores, fraction, within="network"))

    assert cost(exact, 0.01) < 0
    magnitude, chance = (
        weights.score(model, data, method, progress=False)
        for method in (weights.Magnitude(), weights.Random())
    )
    assert cost(magnitude, 0.5) < cost(chance, 0.5)
