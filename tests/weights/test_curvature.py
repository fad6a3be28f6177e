"""The Hessian against finite differences of the gradient, and by hand."""

import pytest
import torch
from tests.cases import chain, named
from tests.oracles import weights as slow
from torch import nn

from neurank import weights
from neurank.errors import MethodError, ModelError
from neurank.weights import curvature


def small():
    torch.manual_seed(0)
    model = chain(one=nn.Linear(3, 4), act=nn.Tanh(), two=nn.Linear(4, 3)).double()
    inputs = torch.randn(7, 3, dtype=torch.float64)
    return model, [(inputs[:4], torch.tensor([0, 1, 2, 0])), (inputs[4:], torch.tensor([2, 1, 1]))]


CASES = {
    "tanh": small,
    "batchnorm": lambda: (named("batchnorm 1d").model(), named("batchnorm 1d").batches()),
    "pooling": lambda: (
        named("tanh, average pooling").model(), named("tanh, average pooling").batches()
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [name if name == "tanh" else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_it_is_the_difference_of_gradients(name):
    model, data = CASES[name]()
    names = [it for it, parameter in model.named_parameters() if parameter.ndim > 1]
    found = weights.hessian(model, data, progress=False)
    wanted = slow.hessian(model, data, names)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found, found.T, rtol=0, atol=1e-13)
    diagonal = weights.hessian_diagonal(model, data, progress=False)
    flat = torch.cat([diagonal[it].reshape(-1) for it in names])
    torch.testing.assert_close(flat, found.diagonal(), rtol=0, atol=1e-15)


def test_it_gives_the_products_that_scores_are_made_of():
    model, data = small()
    names = ["two.bias", "one.weight"]
    matrix = weights.hessian(model, data, names, progress=False)
    parameters = dict(model.named_parameters())
    move = torch.cat([-parameters[it].detach().reshape(-1) for it in names])
    scores = weights.score(model, data, weights.Hessian(), parameters=names, progress=False)
    torch.testing.assert_close(scores.flat(), move * (matrix @ move), rtol=0, atol=1e-13)


def test_cross_entropy_of_a_linear_model_by_hand():
    """H = mean of (diag(p) - p pᵀ) ⊗ x xᵀ."""
    torch.manual_seed(0)
    model = nn.Linear(2, 3, bias=False).double()
    inputs = torch.randn(5, 2, dtype=torch.float64)
    data = [(inputs, torch.tensor([0, 1, 2, 0, 1]))]
    shares = model(inputs).softmax(dim=1).detach()
    wanted = sum(
        torch.kron(p.diag() - torch.outer(p, p), torch.outer(x, x))
        for p, x in zip(shares, inputs, strict=True)
    )
    found = weights.hessian(model, data, progress=False)
    torch.testing.assert_close(found, wanted / 5, rtol=0, atol=1e-14)


def test_what_never_runs_has_no_curvature_and_gradients_are_left_alone():
    model, data = small()
    model.idle = nn.Linear(2, 2).double()
    model.idle.forward = lambda x: x
    model.one.weight.grad = torch.ones_like(model.one.weight)
    diagonal = weights.hessian_diagonal(model, data, progress=False)
    assert not diagonal["idle.weight"].any()
    assert model.one.weight.grad.eq(1).all()


def test_too_many_weights_are_refused_with_their_number(monkeypatch):
    model, data = small()
    monkeypatch.setattr(curvature, "LARGEST", 23)
    monkeypatch.setattr(curvature, "LARGEST_DIAGONAL", 20)
    with pytest.raises(MethodError, match="the Hessian of 24 weights is more than the 23"):
        weights.hessian(model, data)
    with pytest.raises(MethodError, match="diagonal of 24 weights is more than the 20"):
        weights.hessian_diagonal(model, data)
    weights.hessian(model, data, ["one.weight"], progress=False)


def test_a_parameter_that_is_not_there():
    model, data = small()
    with pytest.raises(ModelError, match=r"no parameter 'three.weight'"):
        weights.hessian(model, data, ["three.weight"])
