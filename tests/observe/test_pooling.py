from dataclasses import replace

import pytest
import torch
from torch import nn

from neurank.observe.pooling import in_slices
from neurank.units.trace import trace

TAKEN = [
    nn.MaxPool2d(2), nn.MaxPool2d(3), nn.MaxPool2d((2, 1)), nn.MaxPool2d((1, 3)),
    nn.MaxPool2d(2, stride=(2, 2)),
]  # fmt: skip
LEFT = [
    nn.MaxPool2d(2, stride=1), nn.MaxPool2d(3, stride=2), nn.MaxPool2d(2, padding=1),
    nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, stride=2, dilation=2), nn.MaxPool2d(4),
    nn.AvgPool2d(2),
]  # fmt: skip


def pooling(module):
    """The traced pooling of a module."""
    graph = trace(nn.Sequential(module, nn.Flatten()).eval(), torch.randn(2, 3, 9, 8))
    return next(it for it in graph.operations if it.kind in {"max_pool2d", "avg_pool2d"})


def values():
    draw = torch.Generator().manual_seed(0)
    found = torch.randn(2, 3, 9, 8, generator=draw).mul(2).round()  # with many ties
    found[0, 0, 0, 1] = -0.0
    found[0, 1, 2, 2] = torch.inf
    return found


@pytest.mark.parametrize("module", TAKEN, ids=str)
def test_slices_give_the_same_numbers(module):
    before = pooling(module)
    after = in_slices(before)
    assert after.target is not before.target
    assert replace(after, target=before.target) == before
    assert after.kind == "max_pool2d"
    with torch.inference_mode():
        for read in (values(), values().to(memory_format=torch.channels_last), values()[:0]):
            torch.testing.assert_close(
                after.target(read, *after.args[1:]), module(read), rtol=0, atol=0
            )


@pytest.mark.parametrize("module", TAKEN, ids=str)
def test_nan_is_handed_on(module):
    after = in_slices(pooling(module))
    read = values()
    read[0, 0, 1, 0] = torch.nan
    with torch.inference_mode():
        found = after.target(read, *after.args[1:])
    assert torch.equal(found.isnan(), module(read).isnan())


@pytest.mark.parametrize("module", TAKEN, ids=str)
def test_gradients_are_those_of_torch(module):
    after = in_slices(pooling(module))
    read, same = values().requires_grad_(), values().requires_grad_()
    after.target(read, *after.args[1:]).sum().backward()
    module(same).sum().backward()
    assert torch.equal(read.grad, same.grad)


@pytest.mark.parametrize("module", LEFT, ids=str)
def test_other_pooling_is_left_alone(module):
    before = pooling(module)
    assert in_slices(before) is before
