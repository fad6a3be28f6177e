import copy

import pytest
import torch
from tests.cases import named
from tests.condense.nets import Computed, WithNumber, drawn, error, every_second, pictures
from torch import nn
from torch.nn import functional

from neurank.condense.condensed import condense
from neurank.condense.rewritten import Rewritten
from neurank.errors import CondenseError
from neurank.observe.observer import model_digest
from neurank.units.trace import trace


def condensed(model, *layers, removal="zero", sizes=(4, 3)):
    return condense(model, every_second(model, *layers), pictures(*sizes), removal=removal).model


def test_a_width_held_as_a_number_is_rewritten_and_names_are_kept():
    model = drawn(WithNumber)
    small = condensed(model, "conv1", "fc1")
    assert isinstance(small, Rewritten)
    assert set(small.state_dict()) == set(model.state_dict())
    assert set(dict(small.named_modules())) == set(dict(model.named_modules()))
    assert "forward pass of WithNumber" in repr(small)


@pytest.mark.parametrize("examples", [1, 2, 5, 8])
def test_examples_are_never_reshaped_into_others(examples):
    """Half the features fit twice into the number: forward would give half the examples."""
    small = condensed(drawn(WithNumber), "conv1")
    inputs = pictures(examples)[0][0]
    small.eval()
    outputs = small(inputs)
    assert outputs.shape == (examples, 3)
    one_by_one = torch.cat([small(inputs[row : row + 1]) for row in range(examples)])
    assert error(outputs, one_by_one) <= 1e-12


def test_python_that_computes_the_width_stays():
    model = drawn(Computed)
    small = condensed(model, "conv1", "fc1")
    assert type(small) is Computed


def test_a_number_that_is_not_lost_stays():
    assert type(condensed(drawn(WithNumber), "fc1")) is WithNumber


@pytest.mark.parametrize("bias", [True, False])
def test_made_biases_are_read(bias):
    model = drawn(WithNumber, bias=bias)
    small = condensed(model, "conv1", "fc1", removal="mean")
    assert set(small.state_dict()) - set(model.state_dict()) == (
        set() if bias else {"fc1.bias", "fc2.bias"}
    )


def test_one_step_trains_every_parameter():
    small = condensed(drawn(WithNumber, bias=False), "conv1", "fc1", removal="mean").train()
    before = {name: parameter.detach().clone() for name, parameter in small.named_parameters()}
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    (inputs, targets), *_ = pictures(16)
    functional.cross_entropy(small(inputs), targets).backward()
    optimizer.step()
    for name, parameter in small.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_it_trains_as_the_module_it_was_rewritten_from():
    """Same chance, same outputs, gradients and running statistics, before anything is cut."""
    model = drawn(WithNumber)
    inputs = pictures(6)[0][0]
    itself = copy.deepcopy(model).train()
    traced = Rewritten(copy.deepcopy(model), trace(model, inputs)).train()
    torch.manual_seed(3)
    wanted = itself(inputs)
    torch.manual_seed(3)
    found = traced(inputs)
    assert torch.equal(found, wanted)
    found.square().sum().backward()
    wanted.square().sum().backward()
    for name, parameter in itself.named_parameters():
        assert torch.equal(traced.get_parameter(name).grad, parameter.grad), name
    for name, tensor in itself.state_dict().items():
        assert torch.equal(traced.state_dict()[name], tensor), name


def test_training_flags_are_followed_module_by_module():
    small = condensed(drawn(WithNumber), "conv1", "fc1").train()
    inputs = pictures(6)[0][0]
    assert not torch.equal(small(inputs), small(inputs))  # three kinds of dropout
    small.drop1.eval()
    small.drop2.p = 0.0  # settings may change after the trace
    small.training = False  # the functional dropout asks the module itself
    statistics = small.bn.running_mean.clone()
    assert torch.equal(small(inputs), small(inputs))
    assert not torch.equal(small.bn.running_mean, statistics)
    assert int(small.bn.num_batches_tracked) > 0
    small.bn.eval()
    statistics = small.bn.running_mean.clone()
    small(inputs)
    assert torch.equal(small.bn.running_mean, statistics)


class Noisy(WithNumber):
    def flat(self, x):
        return super().flat(x + torch.randn_like(x) if self.training else x)


class Scaled(WithNumber):
    def flat(self, x):
        return super().flat(x * 1.5 if self.training else x)


class NeverDropped(WithNumber):
    def flat(self, x):
        return functional.dropout(super().flat(x), 0.5, training=False)


class Detached(WithNumber):
    """The same outputs in training mode, other gradients."""

    def flat(self, x):
        return super().flat(x.detach() if self.training else x)


@pytest.mark.parametrize("build", [Noisy, Scaled, NeverDropped, Detached])
def test_what_only_training_does_is_refused_with_the_line(build):
    model = drawn(build)
    digest, chance = model_digest(model), torch.get_rng_state()
    with pytest.raises(CondenseError, match=r"holds the number .*\(in `.*self.flat\(x\)"):
        condensed(model, "conv1")
    assert model_digest(model) == digest
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.mark.parametrize("build", [Noisy, Scaled, NeverDropped, Detached])
def test_it_is_accepted_where_nobody_trains(build):
    model = drawn(build)
    plan = every_second(model, "conv1")
    small = condense(model, plan, pictures(4, 3), inference_only=True)
    assert small.check.max_error <= 1e-12
    assert isinstance(small.model, Rewritten)


def test_it_can_be_copied_moved_and_converted():
    small = condensed(drawn(WithNumber), "conv1").eval()
    inputs = pictures(4)[0][0]
    other = copy.deepcopy(small)
    assert torch.equal(other(inputs), small(inputs))
    assert {id(p) for p in other.parameters()}.isdisjoint({id(p) for p in small.parameters()})
    assert other.float()(inputs.float()).dtype == torch.float32


def test_it_can_be_condensed_again():
    model = drawn(WithNumber)
    small = condensed(model, "conv1")
    smaller = condensed(small, "conv1", "fc1")
    assert smaller.conv1.weight.shape[0] == 1
    assert smaller.fc1.weight.shape == (3, 4)


def test_constants_of_the_code_come_along():
    class EndConstant(WithNumber):
        def forward(self, x):
            return super().forward(x) * torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype)

    model = drawn(EndConstant)
    small = condensed(model, "conv1").eval()
    assert isinstance(small, Rewritten)
    assert set(small.state_dict()) == set(model.state_dict())


def test_a_mapping_becomes_its_logits():
    class Mapping(WithNumber):
        def forward(self, x):
            return {"logits": super().forward(x), "hidden": None}

    small = condensed(drawn(Mapping), "conv1").eval()
    assert small(pictures(4)[0][0]).shape == (4, 3)


def test_the_case_of_everyone():
    case = named("lenet, width as a number")
    model = case.model()
    plan = every_second(model, "conv1", "conv2", "fc1")
    small = condense(model, plan, case.batches())
    assert isinstance(small.model, Rewritten)
    assert isinstance(small.model.fc1, nn.Linear)
    assert small.origin.rewritten
