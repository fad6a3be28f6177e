import torch
from tests.cases import named
from torch import nn

from neurank.units.graph import Ref, Weight, leaves, map_leaves
from neurank.units.trace import trace


def graph_of(name):
    case = named(name)
    return trace(case.model(), case.batches()[0][0])


def kinds(operations):
    return [operation.kind for operation in operations]


def test_operations_stand_in_order_with_their_weights_and_shapes():
    graph = graph_of("linear pair")
    assert kinds(graph.operations) == ["linear", "relu", "linear"]
    first, _, last = graph.operations
    assert first.weights == ("fc0.weight", "fc0.bias")
    assert (first.shape, last.shape) == ((None, 5), (None, 3))
    assert (first.module, graph.output) == ("fc0", last.name)
    assert first.refs == (graph.input,)


def test_readers_and_what_lies_below():
    graph = graph_of("branch")
    stem = next(o for o in graph.operations if "stem.weight" in o.weights)
    (relu,) = graph.readers[stem.name]
    assert kinds(graph.readers[relu.name]) == ["conv2d", "conv2d"]
    below = graph.below(relu.name)
    assert kinds(below).count("conv2d") == 2
    assert graph.output in [operation.name for operation in below]
    assert stem.name not in [operation.name for operation in below]
    assert graph.readers[graph.output] == ()


def test_only_what_is_needed_is_run():
    graph = graph_of("linear pair")
    first, relu, last = graph.operations
    assert graph.needed_for((relu.name,)) == (first, relu)
    assert graph.needed_for((graph.output,), known=(relu.name,)) == (last,)
    assert graph.needed_for((graph.output,), known=(graph.output,)) == ()


def test_asking_for_the_batch_size_is_no_reading():
    graph = graph_of("lenet, batch size asked")
    sizes = [operation for operation in graph.operations if operation.shape is None]
    assert sizes
    for size in sizes:
        assert size not in graph.readers[size.refs[0]]
        assert size not in graph.below(graph.input)


def test_leaves_of_nested_arguments():
    tree = (Ref("x"), [1, {"w": Weight("fc.weight")}])
    assert list(leaves(tree)) == [Ref("x"), 1, Weight("fc.weight")]
    assert map_leaves(str, (1, [2, {"a": 3}])) == ("1", ["2", {"a": "3"}])


def test_weights_that_are_shared_show_under_one_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
            self.other.weight = self.one.weight

        def forward(self, x):
            return self.other(torch.relu(self.one(x)))

    graph = trace(Tied(), torch.zeros(2, 3))
    one, _, other = graph.operations
    assert one.weights[0] == other.weights[0]
