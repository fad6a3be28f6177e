"""The networks of `tests.architectures`: each can be traced, and is worth being tried on."""

from functools import cache

import pytest
import torch
from tests.architectures import ARCHITECTURES, architecture

from neurank.observe.execution import runner
from neurank.units.trace import trace

EVERY = pytest.mark.parametrize("name", [one.name for one in ARCHITECTURES])


@cache
def prepared(name):
    """The model in evaluation mode, its inputs in one batch, and what it says of them."""
    one = architecture(name)
    model = one.model().eval()
    inputs = torch.cat([inputs for inputs, _ in one.batches()])
    with torch.no_grad():
        return model, inputs, model(inputs)


def test_names_are_unique():
    names = [one.name for one in ARCHITECTURES]
    assert sorted(set(names)) == sorted(names)


@EVERY
def test_outputs_are_of_the_order_of_one_and_depend_on_the_example(name):
    one = architecture(name)
    _, inputs, outputs = prepared(name)
    assert len(outputs) == len(inputs) == 7
    if one.classes is not None:
        assert outputs.shape == (7, one.classes)
    assert outputs.isfinite().all()
    assert 0.1 < outputs.square().mean().sqrt() < 10
    spread = (outputs - outputs.mean(dim=0)).square().mean().sqrt()
    assert spread > 0.1


@EVERY
def test_rows_do_not_depend_on_each_other(name):
    one = architecture(name)
    model, _, outputs = prepared(name)
    with torch.no_grad():
        apart = torch.cat([model(inputs) for inputs, _ in one.batches()])
    torch.testing.assert_close(apart, outputs, rtol=1e-9, atol=1e-9)


@EVERY
def test_the_traced_pass_is_the_model_at_other_batch_sizes(name):
    model, inputs, outputs = prepared(name)
    traced = runner(trace(model, inputs[:2]), model, torch.device("cpu"))
    for examples in (1, 4, 7):
        given = traced.forward(inputs[:examples])[0]
        torch.testing.assert_close(given, outputs[:examples], rtol=1e-9, atol=1e-9)


@EVERY
def test_it_is_the_same_network_each_time(name):
    one = architecture(name)
    first, second = one.model().state_dict(), one.model().state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    for batch, again in zip(one.batches(), one.batches(), strict=True):
        assert torch.equal(batch[0], again[0])
        assert torch.equal(batch[1], again[1])


@EVERY
def test_no_two_units_are_alike_and_every_number_is_drawn(name):
    for key, tensor in architecture(name).model().named_parameters():
        rows = tensor.detach().flatten(1) if tensor.ndim > 1 else tensor.detach()
        assert len(rows.unique(dim=0)) == len(rows), key
        assert (tensor != 0).any(), key


@EVERY
def test_models_come_in_training_mode_and_any_precision(name):
    model = architecture(name).model(torch.float32)
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@EVERY
def test_labels_are_classes_and_batches_may_be_cut_otherwise(name):
    one = architecture(name)
    (inputs, targets), *_ = one.batches(sizes=(7,))
    apart = one.batches(sizes=(2, 5))
    assert torch.equal(torch.cat([x for x, _ in apart]), inputs)
    assert torch.equal(torch.cat([y for _, y in apart]), targets)
    assert targets.dtype == torch.long
    assert ((targets >= 0) & (targets < (one.classes or 1))).all()
