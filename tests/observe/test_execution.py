import weakref

import pytest
import torch
from tests.cases import CASES, chain, look, named, watch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import neurank as nr
from neurank.observe.execution import Runner, runner, weight_and_bias
from neurank.units.graph import Graph, Operation, Ref
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


def test_multiply_adds_count_weights_that_the_forward_pass_computes():
    computed = weight_norm(nn.Linear(6, 4))
    model = chain(
        fc0=nn.Linear(4, 5), act0=nn.ReLU(), fc1=nn.Linear(5, 6), act1=nn.ReLU(), fc2=computed,
        act2=nn.ReLU(), out=nn.Linear(4, 3),
    )  # fmt: skip
    data = [(torch.randn(4, 4), torch.arange(4) % 3)]
    observer = look(model, data)
    found = observer.runner.multiply_adds(observer.space.graph.operations)
    assert found == 4 * 5 + 5 * 6 + 6 * 4 + 4 * 3
    assert list(nr.rank(model, data, nr.ExactShapley(), progress=False)) == ["fc0"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_result_is_overwritten_by_what_comes_after(case):
    running = watch(case).runner
    inputs, _ = case.batches()[0]
    before = inputs.clone()
    names = [o.name for o in running.graph.operations if o.shape is not None]
    together = running.forward(inputs, *names)
    for name, result in zip(names, together, strict=True):
        assert torch.equal(running.forward(inputs, name)[0], result), name
    assert torch.equal(inputs, before)


class Line:
    """Operations in a row, each noting which results before it are still held."""

    def __init__(self):
        self.operations, self.results, self.held = [], {}, {}

    def add(self, name, *reads, function=None, shape_only=False):
        def step(*arguments):
            self.held[name] = {other for other, ref in self.results.items() if ref() is not None}
            result = function(*arguments) if function else sum(arguments) + 1
            self.results[name] = weakref.ref(result)
            return result

        def sym_size(*arguments):
            raise AssertionError(arguments)

        target = sym_size if shape_only else step
        refs = tuple(map(Ref, reads))
        self.operations.append(Operation(name, target, refs, {}, "", (None, 3), ""))

    def run(self, *wanted):
        graph = Graph("x", tuple(self.operations), self.operations[-1].name)
        return Runner(graph, {}).run(self.operations, {"x": torch.zeros(2, 3)}, 2, wanted)


def test_a_result_is_let_go_after_its_last_use():
    line = Line()
    line.add("a", "x")
    line.add("b", "a")
    line.add("c", "a", "b")
    line.add("d", "c")
    line.add("e", "d")
    found = line.run("e")
    assert line.held == {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": {"c"}, "e": {"d"}}
    assert torch.equal(found["e"], torch.full((2, 3), 6.0))


def test_wanted_results_are_kept_wherever_they_were_made():
    line = Line()
    line.add("a", "x")
    line.add("b", "a")
    line.add("c", "b")
    found = line.run("x", "a", "c")
    assert line.held["c"] == {"a", "b"}
    assert [float(found[name][0, 0]) for name in found] == [0, 1, 3]
    assert line.results["b"]() is None


def test_to_be_asked_for_its_size_keeps_no_result():
    line = Line()
    line.add("a", "x")
    line.add("b", "a")
    line.add("size", "a", shape_only=True)
    line.add("c", "b")
    found = line.run("c", "size")
    assert line.held["c"] == {"b"}
    assert found["size"] == 2


def test_a_result_that_is_its_argument_outlives_the_argument_s_name():
    line = Line()
    line.add("a", "x")
    line.add("same", "a", function=lambda a: torch.ops.aten.dropout.default(a, 0.5, False))
    line.add("view", "same", function=lambda a: a.view(3, 2))
    line.add("c", "view")
    found = line.run("c", "same")
    assert torch.equal(found["same"], torch.ones(2, 3))
    assert torch.equal(found["c"], torch.full((3, 2), 2.0))


def test_the_caller_s_results_are_left_alone():
    line = Line()
    line.add("a", "x")
    line.add("b", "a")
    known = {"x": torch.zeros(2, 3)}
    Runner(Graph("x", tuple(line.operations), "b"), {}).run(line.operations, known, 2, ("b",))
    assert list(known) == ["x"]
