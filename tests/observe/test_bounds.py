from itertools import product

import pytest
import torch
from tests.cases import chain, look, named, watch
from torch import nn

from neurank.errors import ModelError
from neurank.observe.bounds import stays_finite
from neurank.rankers.exact_shapley import ExactShapley


def suffix_of(name, layer):
    game = next(watch(named(name)).games(layer))
    return game.split.suffix, game.runner


def test_small_numbers_stay_finite_and_huge_ones_may_not():
    suffix, run = suffix_of("batchnorm between linear maps", "fc0")
    assert stays_finite(suffix, run, 1e3)
    assert not stays_finite(suffix, run, 1e307)
    assert not stays_finite(suffix, run, float("inf"))
    assert not stays_finite(suffix, run, float("nan"))


def test_nothing_exceeds_what_it_takes_as_the_bound():
    """No input as large as the bound just allows overflows, and the bound is not far off."""
    suffix, run = suffix_of("batchnorm between linear maps", "fc0")
    peak = max(10.0**power for power in range(309) if stays_finite(suffix, run, 10.0**power))
    start = next(watch(named("batchnorm between linear maps")).games("fc0")).split.start
    signs = torch.tensor(list(product([-1.0, 0.0, 1.0], repeat=4)), dtype=torch.float64)
    names = [operation.name for operation in suffix]
    results = run.run(suffix, {start: signs * peak}, len(signs), names)
    assert all(bool(torch.isfinite(result).all()) for result in results.values())
    assert peak > 1e300


@pytest.mark.parametrize("large", [1e3, 3e38])
def test_an_overflow_in_a_coalition_is_refused_and_never_ranked(large):
    """All units together are fine, since two of them cancel; each alone is not."""
    model = chain(one=nn.Linear(1, 2), act=nn.ReLU(), two=nn.Linear(2, 2), act2=nn.ReLU(),
                  out=nn.Linear(2, 2))  # fmt: skip
    with torch.no_grad():
        model.one.weight.fill_(1)
        model.one.bias.zero_()
        model.two.weight.copy_(torch.tensor([[large, -large], [1.0, 1.0]]))
        model.two.bias.zero_()
        model.out.weight.copy_(torch.tensor([[10.0, 1.0], [10.0, 2.0]]))
        model.out.bias.zero_()
    observer = look(model, [(torch.ones(1, 1), torch.tensor([1]))])
    if large < 1e6:
        ExactShapley().score(observer, "one")
        return
    with pytest.raises(ModelError, match="NaN or infinite with units of layer 'one' off"):
        ExactShapley().score(observer, "one")
