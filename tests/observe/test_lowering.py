"""A BatchNorm folded into the convolution before it changes no logits, and nothing of the model."""

from dataclasses import replace

import pytest
import torch
from tests.cases import CASES, Forward, chain, conv, draw_weights, seeded
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from neurank.observe.execution import runner
from neurank.observe.lowering import lowered
from neurank.units.trace import trace

EXACTNESS = {torch.float64: 1e-12, torch.float32: 1e-5}
WITH_NORMS = [
    case
    for case in CASES
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in case.model().modules())
]


def run(operations, running, inputs):
    known, output = {running.graph.input: inputs}, running.graph.output
    return running.run(operations, known, len(inputs), (output,))[output]


def norms(operations):
    return sum(operation.kind == "batch_norm" for operation in operations)


def left_after_folding(model, inputs, output=None):
    """Check that the whole network, lowered, gives the same; return how many norms are left."""
    model.eval()
    before = [tensor.clone() for tensor in (*model.parameters(), *model.buffers())]
    graph = trace(model, inputs)
    graph = replace(graph, output=output(graph)) if output else graph
    plain = runner(graph, model, inputs.device)
    operations, folded = lowered(graph.operations, plain)
    with torch.inference_mode():
        wanted = run(graph.operations, plain, inputs)
        found = run(operations, folded, inputs)
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= EXACTNESS[inputs.dtype]
    assert wanted.abs().max() > 0
    for tensor, old in zip((*model.parameters(), *model.buffers()), before, strict=True):
        assert torch.equal(tensor, old)
    for name, tensor in plain.tensors.items():
        assert folded.tensors[name] is tensor
    return norms(operations)


def network(first, norm, shape):
    """A convolution, its norm, ReLU and an output layer; weights drawn, in float64."""
    with seeded(f"{first} {norm}"):
        features = norm.eval()(first(torch.zeros(2, *shape)))[0].numel()
        parts = {"conv": first, "norm": norm, "act": nn.ReLU(), "flat": nn.Flatten()}
        model = draw_weights(chain(**parts, out=nn.Linear(features, 3)).double())
        return model, torch.randn(4, *shape, dtype=torch.float64)


@pytest.mark.parametrize("dtype", EXACTNESS, ids=str)
@pytest.mark.parametrize("case", WITH_NORMS, ids=str)
def test_logits_stay_the_same(case, dtype):
    model = case.model(dtype)
    left = left_after_folding(model, case.batches(dtype)[0][0])
    folds = case.name in {"norm before the activation", "in-place modules"}
    assert left == sum("Norm" in type(module).__name__ for module in model.modules()) - folds


@pytest.mark.parametrize(
    ("first", "norm", "shape"),
    [
        (nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), (2, 7)),
        (nn.Conv3d(1, 4, 2), nn.BatchNorm3d(4), (1, 3, 3, 3)),
        (conv(2, 4, 3, bias=False), nn.BatchNorm2d(4), (2, 5, 5)),
        (conv(2, 4, 3, bias=False, stride=2, padding=1), nn.BatchNorm2d(4), (2, 5, 5)),
        (conv(2, 4, 3, padding="same", dilation=2), nn.BatchNorm2d(4), (2, 5, 5)),
        (conv(4, 4, 2, groups=2), nn.BatchNorm2d(4), (4, 5, 5)),
        (conv(2, 4, 3), nn.BatchNorm2d(4, affine=False), (2, 5, 5)),
        (conv(2, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False, eps=0.1), (2, 5, 5)),
    ],
    ids=str,
)
def test_every_kind_of_convolution_takes_its_norm_in(first, norm, shape):
    model, inputs = network(first, norm, shape)
    assert left_after_folding(model, inputs) == 0


def _read_twice(net, x):
    x = net.conv(x)
    return net.out((functional.relu(net.norm(x)) + x).flatten(1))


def _size_asked(net, x):
    x = net.conv(x)
    return net.out(functional.relu(net.norm(x)).reshape(x.size(0), -1))


def _convolved_twice(net, x):
    return net.out((net.norm(net.conv(x)) * functional.relu(net.other(net.conv(x)))).flatten(1))


def _own_statistics(net, x):
    x = functional.batch_norm(net.conv(x), None, None, training=True)
    return net.out(x.flatten(1))


@pytest.mark.parametrize(
    ("forward", "left"),
    [(_read_twice, 1), (_size_asked, 0), (_convolved_twice, 0), (_own_statistics, 1)],
)
def test_a_convolution_that_others_need_is_left_alone(forward, left):
    with seeded(forward.__name__):
        model = Forward(
            forward, conv=conv(1, 4), norm=nn.BatchNorm2d(4), other=nn.BatchNorm2d(4),
            out=nn.Linear(64, 3),
        )  # fmt: skip
        draw_weights(model.double())
        inputs = torch.randn(4, 1, 5, 5, dtype=torch.float64)
    assert left_after_folding(model, inputs) == left


def test_a_convolution_that_is_the_output_is_left_alone():
    model, inputs = network(conv(2, 4, 3), nn.BatchNorm2d(4), (2, 5, 5))

    def the_convolution(graph):
        return next(it.name for it in graph.operations if it.kind == "conv2d")

    assert left_after_folding(model, inputs, the_convolution) == 1


def test_a_weight_that_the_forward_pass_computes_is_left_alone():
    model, inputs = network(conv(2, 4, 3), nn.BatchNorm2d(4), (2, 5, 5))
    model.conv = weight_norm(model.conv)
    assert left_after_folding(model, inputs) == 1


def test_a_convolution_above_the_suffix_is_left_alone():
    model, inputs = network(conv(2, 4, 3), nn.BatchNorm2d(4), (2, 5, 5))
    graph = trace(model.eval(), inputs)
    below = tuple(it for it in graph.operations if it.kind not in {"conv2d"})
    operations, _ = lowered(below, runner(graph, model, inputs.device))
    assert operations == below


def test_folded_weights_are_rounded_once():
    model, inputs = network(conv(2, 4, 3), nn.BatchNorm2d(4), (2, 5, 5))
    model = model.float().eval()
    with torch.no_grad():
        model.norm.running_var.fill_(1e-7)  # 1 / sqrt of it, times 1 / 3, is not exact
        model.norm.weight.fill_(1 / 3)
    graph = trace(model, inputs.float())
    _, folded = lowered(graph.operations, runner(graph, model, inputs.device))
    (name,) = (name for name in folded.tensors if name.endswith("folded weight"))
    norm = model.norm
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    wanted = (model.conv.weight.double() * scale[:, None, None, None]).float()
    assert (folded.tensors[name] == wanted).float().mean() > 0.95  # sqrt and rsqrt differ rarely
