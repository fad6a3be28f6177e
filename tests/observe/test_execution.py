import pytest
import torch
from tests.cases import CASES, named, watch

from neurank.observe.execution import runner, weight_and_bias
from neurank.units.trace import trace


def test_weights_are_the_model_s_own_without_its_gradients():
    case = named("batchnorm 1d")
    model = case.model()
    graph = trace(model, case.batches()[0][0])
    tensors = runner(graph, model, torch.device("cpu")).tensors
    assert tensors["fc0.weight"].data_ptr() == model.fc0.weight.data_ptr()
    assert tensors["norm.running_var"] is not None
    assert not any(tensor.requires_grad for tensor in tensors.values())
    assert model.fc0.weight.requires_grad


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_result_can_be_asked_for(case):
    observer = watch(case)
    inputs, _ = case.batches()[0]
    operations = [o for o in observer.runner.graph.operations if o.shape is not None]
    results = observer.runner.forward(inputs, *(operation.name for operation in operations))
    for operation, result in zip(operations, results, strict=True):
        assert result.shape == (len(inputs), *operation.shape[1:])


def test_multiply_adds_are_counted_per_example():
    observer = watch(named("lenet, flatten"))
    # 8x8 maps of 3 units with 2x2x1 weights, 3x3 of 4 with 2x2x3, and the linear layers.
    wanted = 64 * 3 * 4 + 9 * 4 * 12 + 16 * 5 + 5 * 3
    assert observer.runner.multiply_adds(observer.space.graph.operations) == wanted


def test_biases_may_be_missing():
    observer = watch(named("without biases"))
    _, bias = weight_and_bias(observer.space["fc0"].producer, observer.runner)
    assert bias is None
