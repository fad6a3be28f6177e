import pytest
import torch
from tests.cases import CASES, Forward, named, watch
from torch import nn

from neurank.errors import UnitError
from neurank.units.graph import reads_only_shape
from neurank.units.space import Chain, unit_space
from neurank.units.split import split_at, suffix_split
from neurank.units.trace import trace


def split_of(name, layer):
    space = watch(named(name)).space
    return split_at(space.graph, space[layer])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_prefix_and_suffix_share_no_work_and_reach_the_output(case):
    space = watch(case).space
    graph = space.graph
    chains = [name for name, layer in space.layers.items() if isinstance(layer, Chain)]
    assert chains
    for name in chains:
        for split in (split_at(graph, space[name]), suffix_split(graph, space[name])):
            in_suffix = {operation.name for operation in split.suffix}
            above = graph.needed_for((space[name].read, *split.side))
            assert in_suffix.isdisjoint(operation.name for operation in above)
            assert (graph.output in in_suffix) or split.start == graph.output
            known = in_suffix | {split.start, *split.side}
            for operation in split.suffix:
                if reads_only_shape(operation):
                    continue  # the runner knows the batch size
                assert known.issuperset(operation.refs)


def test_one_plain_consumer_makes_a_sum():
    for name, layer in [("linear pair", "fc0"), ("lenet, flatten", "conv2"), ("skip", "up")]:
        split = split_of(name, layer)
        assert split.mode == "additive"
        assert split.start == split.consumer.name


def test_two_consumers_and_outputs_make_none():
    for name, layer in [("branch", "stem"), ("linear pair", "fc1")]:
        split = split_of(name, layer)
        assert (split.mode, split.consumer) == ("suffix", None)
    assert split_of("linear pair", "fc1").suffix == ()


def test_what_goes_round_the_layer_is_a_side_input():
    assert len(split_of("skip", "up").side) == 1
    assert len(split_of("gate and skip", "up").side) == 2
    assert split_of("lenet, batch size asked", "conv1").side == ()


def test_a_side_input_must_keep_the_examples_apart():
    def forward(net, x):
        aside = net.side(x).T
        return net.out((net.two(torch.relu(net.one(x))).T + aside).T)

    model = Forward(
        forward, one=nn.Linear(4, 5), two=nn.Linear(5, 5), side=nn.Linear(4, 5),
        out=nn.Linear(5, 3),
    )  # fmt: skip
    space = unit_space(trace(model, torch.zeros(2, 4)), model)
    with pytest.raises(UnitError, match=r"layer 'one'.*first axis is not the examples"):
        split_at(space.graph, space["one"])
