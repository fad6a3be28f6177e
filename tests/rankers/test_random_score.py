import numpy as np
import torch
from scipy import stats
from tests.cases import chain, look, named, watch
from torch import nn

import neurank as nr


def scores(layer, **changes):
    return nr.RandomScore().score(watch(named("perceptron"), **changes), layer).ranking.scores


def test_drawn_from_the_seed_and_the_layer_s_name():
    assert torch.equal(scores("fc0"), scores("fc0"))
    assert not torch.equal(scores("fc0"), scores("fc1"))  # both have five units
    assert not torch.equal(scores("fc0"), scores("fc0", seed=1))


def test_torch_s_generator_is_left_alone_and_does_not_matter():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = scores("fc0")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(scores("fc0"), one)


def test_uniform():
    model = chain(fc=nn.Linear(1, 20_000), out=nn.Linear(20_000, 2))
    observer = look(model, [(torch.zeros(2, 1), torch.tensor([0, 1]))])
    drawn = nr.RandomScore().score(observer, "fc").ranking
    assert stats.kstest(np.asarray(drawn.scores), "uniform").pvalue > 1e-3
    assert (drawn.status, drawn.stderr_of) == ("random", "none")
