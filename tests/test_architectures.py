"""The networks of `tests.architectures`: each can be traced, and is worth being tried on."""

from functools import cache

import pytest
import torch
from tests.architectures import ARCHITECTURES, architecture, slow_where_tracing_is

from neurank.observe.execution import runner
from neurank.units.trace import trace

EVERY = pytest.mark.parametrize("name", [one.name for one in ARCHITECTURES])


@cache
def prepared(name):
    """The model in evaluation mode, its inputs and labels in one batch, what it says of them."""
    one = architecture(name)
    model = one.model().eval()
    inputs, targets = (torch.cat(column) for column in zip(*one.batches(), strict=True))
    with torch.no_grad():
        return model, inputs, targets, model(inputs)


def test_there_are_many_and_names_are_unique():
    names = [one.name for one in ARCHITECTURES]
    assert len(names) >= 46
    assert len(set(names)) == len(names)


@EVERY
def test_outputs_are_of_the_order_of_one_and_depend_on_the_example(name):
    one = architecture(name)
    _, inputs, _, outputs = prepared(name)
    assert inputs.shape == (7, *one.shape)
    assert len(outputs) == 7
    if one.classes is not None:
        assert outputs.shape == (7, one.classes)
        assert len(outputs.argmax(dim=1).unique()) > 1
    assert outputs.isfinite().all()
    assert 0.1 < outputs.square().mean().sqrt() < 10
    spread = (outputs - outputs.mean(dim=0)).square().mean().sqrt()
    assert spread > 0.1


@EVERY
def test_rows_do_not_depend_on_each_other(name):
    model, inputs, _, outputs = prepared(name)
    with torch.no_grad():
        apart = torch.cat([model(inputs[:4]), model(inputs[4:])])
    torch.testing.assert_close(apart, outputs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", slow_where_tracing_is(one.name for one in ARCHITECTURES))
def test_the_traced_pass_is_the_model_at_other_batch_sizes(name):
    model, inputs, _, outputs = prepared(name)
    traced = runner(trace(model, inputs[:2]), model, torch.device("cpu"))
    for examples in (1, 4, 7):
        given = traced.forward(inputs[:examples])[0]
        torch.testing.assert_close(given, outputs[:examples], rtol=1e-9, atol=1e-9)


@EVERY
def test_it_is_the_same_network_each_time_and_training(name):
    first, again = prepared(name)[0], architecture(name).model()
    assert all(module.training for module in again.modules())
    first, again = first.state_dict(), again.state_dict()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


@EVERY
def test_the_same_examples_come_however_batches_are_cut(name):
    one = architecture(name)
    _, inputs, targets, _ = prepared(name)
    assert targets.dtype == torch.long
    assert ((targets >= 0) & (targets < (one.classes or 1))).all()
    batches = one.batches(sizes=(2, 5, 1))
    assert [len(x) for x, _ in batches] == [2, 5, 1]
    assert torch.equal(torch.cat([x for x, _ in batches])[:7], inputs)
    assert torch.equal(torch.cat([y for _, y in batches])[:7], targets)


@EVERY
def test_no_two_units_are_alike_and_every_parameter_is_drawn(name):
    for key, parameter in prepared(name)[0].named_parameters():
        rows = parameter.detach().flatten(1) if parameter.ndim > 1 else parameter.detach()
        assert len(rows.unique(dim=0)) == len(rows), key
        assert (rows != 0).any(), key


@EVERY
def test_precision_is_asked_for(name):
    one = architecture(name)
    model = one.model(torch.float32).eval()
    inputs, _ = one.batches(torch.float32)[0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        outputs = model(inputs)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs.double(), prepared(name)[3][:4], rtol=0, atol=1e-3)
