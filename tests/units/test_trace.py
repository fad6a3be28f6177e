import pytest
import torch
from tests.cases import CASES, chain
from torch import nn

from neurank.errors import ModelError
from neurank.observe.execution import runner
from neurank.units.trace import logits_of, trace


class Body(nn.Module):
    """A linear layer and a forward pass written as a function of it."""

    def __init__(self, body):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.body = body

    def forward(self, x):
        return self.body(self.fc, x)


def run(model, inputs):
    """The traced pass, run on other inputs than it was traced on."""
    graph = trace(model, torch.zeros(2, *inputs.shape[1:], dtype=inputs.dtype))
    return runner(graph, model, torch.device("cpu")).forward(inputs)[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_traced_pass_is_the_model_at_any_batch_size(case):
    model = case.model().eval()
    every = torch.cat([inputs for inputs, _ in case.batches()])
    graph = trace(model, every[:2])
    traced = runner(graph, model, torch.device("cpu"))
    for examples in (1, 2, 3, 7):
        inputs = every[:examples]
        with torch.no_grad():
            torch.testing.assert_close(traced.forward(inputs)[0], logits_of(model(inputs)))


def _overwrite(fc, x):
    y = fc(x)
    y *= 2
    y.relu_()
    y += x
    return y


BODIES = {
    "in place, one after another": _overwrite,
    "mapping with what is no tensor": lambda fc, x: {"loss": None, "n": 3, "logits": fc(x)},
    "tuple of one": lambda fc, x: (fc(x),),
    "batch size in sums": lambda fc, x: fc(x).reshape(x.shape[0] * 2, 2).view(x.shape[0], -1),
    "constant in the code": lambda fc, x: fc(x) * torch.arange(4),
    "unused work": lambda fc, x: (fc(x * 3), fc(x))[1],
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_forward_passes_as_people_write_them(body):
    model, inputs = Body(body), torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(run(model, inputs), logits_of(model(inputs)))


REFUSED = {
    "a branch on the data": (lambda fc, x: fc(x) if x.sum() > 0 else x, "cannot be traced"),
    "a batch size held as a number": (lambda fc, x: fc(x).view(6, 4), "cannot be traced"),
    "two tensors": (lambda fc, x: (fc(x), x), "tuple in which the logits cannot be told"),
    "a mapping without logits": (lambda fc, x: {"y": fc(x)}, "dict in which the logits"),
    "weights only": (lambda fc, _: fc.weight, "does not depend on its input"),
    "a number": (lambda *_: 3, "does not depend on its input, or is not a tensor"),
}


@pytest.mark.parametrize(("body", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_traced_is_refused_with_the_reason(body, reason):
    with pytest.raises(ModelError, match=reason):
        trace(Body(body), torch.zeros(6, 4))


def test_tracing_leaves_no_trace():
    model = chain(fc=nn.Linear(4, 4), norm=nn.BatchNorm1d(4), drop=nn.Dropout()).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    trace(model, torch.zeros(6, 4))
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_a_batch_of_one_is_enough():
    assert run(nn.Linear(4, 4), torch.zeros(1, 4)).shape == (1, 4)


@pytest.mark.parametrize(
    "output", ["logits", {"logits": "logits", "more": 2}, ["logits"], ("logits",)]
)
def test_logits_are_told(output):
    assert logits_of(output) == "logits"
