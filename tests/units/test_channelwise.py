import pytest
import torch
from tests.cases import Forward
from torch import nn
from torch.nn import functional

from neurank.units.channelwise import is_channelwise
from neurank.units.trace import trace

MAP = (3, 4, 4)
FLAT = (6,)


def last_operation(function, shape):
    """The operation that `function` does to the result of another, and whether it is accepted."""
    model = Forward(lambda _, x: function(torch.relu(x)))
    graph = trace(model, torch.zeros(2, *shape))
    relu = next(operation.name for operation in graph.operations if operation.kind == "relu")
    (reader,) = {operation.name: operation for operation in graph.readers[relu]}.values()
    return is_channelwise(reader, relu, graph)


NORM = (torch.zeros(3), torch.ones(3))

ACCEPTED = {
    "relu": (torch.relu, MAP),
    "leaky relu": (functional.leaky_relu, FLAT),
    "gelu": (functional.gelu, MAP),
    "dropout": (lambda x: functional.dropout(x, training=False), MAP),
    "max pool": (lambda x: functional.max_pool2d(x, 2), MAP),
    "average pool": (lambda x: functional.avg_pool2d(x, 2), MAP),
    "adaptive pool": (lambda x: functional.adaptive_avg_pool2d(x, 1), MAP),
    "max pool of a line": (lambda x: functional.max_pool1d(x, 2), (3, 4)),
    "flatten": (lambda x: x.flatten(1), MAP),
    "view": (lambda x: x.view(-1, 48), MAP),
    "view by size": (lambda x: x.view(x.size(0), -1), MAP),
    "mean of positions": (lambda x: x.mean((2, 3)), MAP),
    "mean of positions from the end": (lambda x: x.mean((-1, -2), keepdim=True), MAP),
    "batch norm": (lambda x: functional.batch_norm(x, *NORM), MAP),
}

REFUSED = {
    "softmax": (lambda x: x.softmax(1), FLAT),
    "layer norm": (lambda x: functional.layer_norm(x, FLAT), FLAT),
    "batch norm over the batch": (lambda x: functional.batch_norm(x, None, None, training=True),
                                  MAP),
    "pool over units": (lambda x: functional.avg_pool1d(x, 3, 1, 1), FLAT),
    "pool over units and positions": (lambda x: functional.max_pool2d(x, 3, 1, 1), (3, 4)),
    "mean of units": (lambda x: x.mean(1, keepdim=True), MAP),
    "mean of some positions": (lambda x: x.mean(2), MAP),
    "partly flat": (lambda x: x.flatten(2), MAP),
    "reshape across channels": (lambda x: x.reshape(-1, 6, 2, 4), MAP),
    "transpose": (lambda x: x.transpose(1, 2), MAP),
    "sum with itself turned": (lambda x: x + x.flip(1), MAP),
    "number": (lambda x: x * 2, MAP),
}  # fmt: skip


@pytest.mark.parametrize(("function", "shape"), ACCEPTED.values(), ids=ACCEPTED)
def test_channels_stay_apart(function, shape):
    assert last_operation(function, shape)


@pytest.mark.parametrize(("function", "shape"), REFUSED.values(), ids=REFUSED)
def test_channels_may_mix_or_there_is_no_rule(function, shape):
    model = Forward(lambda _, x: function(torch.relu(x)))
    graph = trace(model, torch.zeros(2, *shape))
    relu = next(operation.name for operation in graph.operations if operation.kind == "relu")
    assert not all(is_channelwise(reader, relu, graph) for reader in graph.readers[relu])


@pytest.mark.parametrize(("function", "shape"), ACCEPTED.values(), ids=ACCEPTED)
def test_what_is_accepted_does_keep_channels_apart(function, shape):
    """Changing one channel of the input changes its own channel of the result only."""
    x = torch.rand(2, *shape)
    changed = x.clone()
    changed[:, 1] += 1
    difference = (function(changed) - function(x)).reshape(2, shape[0], -1)
    others = [channel for channel in range(shape[0]) if channel != 1]
    assert (difference[:, others] == 0).all()


def test_an_operation_that_reads_another_tensor_too_is_not_channelwise():
    model = Forward(lambda net, x: torch.relu(x) + net.fc(x), fc=nn.Linear(6, 6))
    graph = trace(model, torch.zeros(2, 6))
    relu = next(operation for operation in graph.operations if operation.kind == "relu")
    (add,) = graph.readers[relu.name]
    assert not is_channelwise(add, relu.name, graph)
