"""The loss as a function of weights: gradients, Hessian-vector products, and what is refused."""

import pytest
import torch
from tests.architectures import architecture
from tests.cases import CASES, chain, named
from tests.oracles import weights as slow
from torch import nn

from neurank.errors import DataError, MethodError, ModelError
from neurank.observe.weight_loss import choose_parameters, loss_name, watching_loss


def looked_at(model, batches, parameters=None, loss=None):
    return watching_loss(
        model, batches, parameters=parameters, loss=loss, device=None, progress=False
    )


def smooth(name):
    """A case and its gradient: the kinks of ReLU are no matter away from them."""
    case = named(name)
    return case.model(), case.batches()


SOME = [case for case in CASES[1::7] if not case.whole]


@pytest.mark.parametrize("case", SOME, ids=str)
def test_the_gradient_is_what_backward_gives(case):
    model, batches = case.model(), case.batches()
    with looked_at(model, batches) as watched:
        found = watched.gradient()
    wanted = slow.gradients(model, batches, list(found))
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_backward_twice_is_forward_over_reverse(case):
    model, batches = case.model(), case.batches()
    with looked_at(model, batches) as watched:
        vector = {name: -weight for name, weight in watched.weights.items()}
        found = watched.times_hessian(vector)
    wanted = slow.times_hessian(model, batches, vector)
    for name, product in wanted.items():
        torch.testing.assert_close(found[name], product, rtol=1e-10, atol=1e-12)


def test_attention_has_a_second_derivative():
    """The fused kernel has none; with it the product would be an error."""
    one = architecture("vit-torch-encoder")
    model, batches = one.model(), one.batches()
    with looked_at(model, batches) as watched:
        vector = {name: torch.ones_like(weight) for name, weight in watched.weights.items()}
        found = watched.times_hessian(vector)
    wanted = slow.times_hessian(model, batches, vector)
    for name, product in wanted.items():
        torch.testing.assert_close(found[name], product, rtol=1e-8, atol=1e-10)


def test_a_loss_that_is_linear_has_no_curvature():
    model = nn.Linear(2, 3, bias=False).double()
    batches = [(torch.ones(2, 2, dtype=torch.float64), torch.tensor([0, 1]))]
    with looked_at(model, batches, loss=lambda outputs, _: outputs.sum(dim=1)) as watched:
        product = watched.times_hessian(watched.weights)
    assert not product["weight"].any()


def test_values_with_weights_replaced():
    model, batches = smooth("perceptron")
    with looked_at(model, batches) as watched:
        before = watched.value()
        pruned = watched.value({"fc0.weight": torch.zeros_like(watched.tensors["fc0.weight"])})
    assert before == pytest.approx(slow.mean_loss(slow.copied(model), batches).item(), abs=1e-14)
    with torch.no_grad():
        model.fc0.weight.zero_()
    assert pruned == pytest.approx(slow.mean_loss(slow.copied(model), batches).item(), abs=1e-14)
    assert pruned != before


def test_parameters_are_weights_unless_they_are_named():
    model = chain(conv=nn.Conv1d(2, 3, 2), norm=nn.BatchNorm1d(3), flat=nn.Flatten())
    assert choose_parameters(model, None) == ("conv.weight",)
    assert choose_parameters(model, ["norm.bias", "conv.bias"]) == ("norm.bias", "conv.bias")


DATA = [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))]


def tied():
    model = chain(first=nn.Linear(3, 3), second=nn.Linear(3, 3))
    model.second.weight = model.first.weight
    return model


def infinite():
    """Its outputs are sound, their slope is not: the root of 0."""
    return chain(fc=nn.Linear(3, 2), root=Root())


class Root(nn.Module):
    def forward(self, x):
        return (0 * x).sqrt() + x


REFUSED = {
    "a name that is unknown": (nn.Linear(3, 2), {"parameters": ["wieght"]}, "has weight, bias"),
    "one name": (nn.Linear(3, 2), {"parameters": "weight"}, r"write \['weight'\]"),
    "no name": (nn.Linear(3, 2), {"parameters": []}, "names none"),
    "a name twice": (nn.Linear(3, 2), {"parameters": ["weight", "weight"]}, "one twice"),
    "a second name": (tied(), {"parameters": ["second.weight"]}, "same tensor as 'first.weight'"),
    "no weights": (nn.BatchNorm1d(3), {}, "no parameter with two axes"),
    "half precision": (nn.Linear(3, 2).half(), {}, "'weight' is float16.*float()"),
    "bfloat16": (nn.Linear(3, 2).bfloat16(), {}, "'weight' is bfloat16"),
    "no gradient": (infinite(), {}, "'fc.weight' is NaN or infinite on batch 1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_models_that_are_refused(what):
    model, options, reason = REFUSED[what]
    with (
        pytest.raises(ModelError, match=reason),
        looked_at(model, DATA, **options) as watched,
    ):
        watched.gradient()


LOSSES = {
    "a mean": (lambda outputs, _: outputs.mean(), MethodError, "one number per example"),
    "infinite": (lambda outputs, _: outputs[:, 0] / 0, ModelError, "infinite on batch 1"),
    "no function": (3, MethodError, "loss=3 is not a loss"),
    "a class": (nn.CrossEntropyLoss, MethodError, "is not a loss"),
}


@pytest.mark.parametrize("what", LOSSES)
def test_losses_that_are_refused(what):
    loss, error, reason = LOSSES[what]
    with pytest.raises(error, match=reason), looked_at(nn.Linear(3, 2), DATA, loss=loss) as it:
        it.value()


@pytest.mark.parametrize(
    ("data", "reason"),
    [([], "no batch at all"), ([(torch.ones(2, 3), torch.tensor([0, 5]))], "the label 5")],
)
def test_data_that_are_refused(data, reason):
    with pytest.raises(DataError, match=reason), looked_at(nn.Linear(3, 2), data):
        pass


def test_a_loss_has_a_name():
    assert loss_name(slow.cross_entropy) == "cross_entropy"


def test_a_tied_weight_has_the_slopes_of_all_its_places():
    model = tied().double()
    batches = [(inputs.double(), targets) for inputs, targets in DATA]
    with looked_at(model, batches) as watched:
        assert watched.names == ("first.weight",)
        found = watched.gradient()["first.weight"]
    wanted = slow.gradients(model, batches, ["first.weight"])["first.weight"]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
