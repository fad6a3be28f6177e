import pytest
import torch
from tests.cases import CASES, Forward, chain, conv, named, watch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from neurank.errors import UnitError
from neurank.units.space import Chain, Layer, unit_space
from neurank.units.trace import trace


def space_of(model, *shape):
    return unit_space(trace(model.eval(), torch.zeros(2, *shape)), model)


TIED = {
    "depthwise consumer": {"conv1": ("conv1", "conv2", "conv3")},
    "branch": {"left": ("left", "right")},
    "skip": {"stem": ("stem", "down")},
    "gate and skip": {"early": ("early", "down")},
}
"""By case, the layers of several members; the others are chains by themselves."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layer_is_found_with_its_width_and_its_readers(case):
    space = watch(case).space
    model = case.model()
    tied = TIED.get(case.name, {})
    assert space.hidden == tuple(name for name in space.layers if case.reads.get(name, name))
    chains = set(case.reads) - {member for members in tied.values() for member in members}
    assert set(space.layers) == chains | set(tied)
    for name in chains:
        layer = space[name]
        assert isinstance(layer, Chain)
        assert layer.members == (name,)
        assert layer.width == len(model.get_submodule(name).weight)
        assert layer.weight == f"{name}.weight"
        has_bias = model.get_submodule(name).bias is not None
        assert layer.bias == (f"{name}.bias" if has_bias else None)
        assert layer.is_output == (not case.reads[name])
        consumers = {consumer.weights[0] for consumer in layer.consumers}
        assert consumers == {f"{reader}.weight" for reader in case.reads[name]}
    for name, members in tied.items():
        assert type(space[name]) is Layer
        assert space[name].members == members
        assert not space[name].is_output
        assert all(space[member] is space[name] for member in members)


def test_units_are_the_groups_of_a_convolution_that_has_many():
    """Four depthwise channels that two groups of two read: two units of two channels."""
    space = watch(named("depthwise consumer")).space
    assert space["conv1"].width == 2
    rows = {rows.tensor: rows.units for rows in space.rows("conv1")}
    assert rows == {f"conv{at}.weight": (0, 0, 1, 1) for at in (1, 2, 3)}
    assert [read.operation for read in space["conv1"].reads] == ["linear"]


def test_units_are_the_places_within_the_groups_of_a_convolution_that_has_few():
    model = chain(one=conv(1, 8), two=conv(8, 6, 1, groups=2), flat=nn.Flatten(),
                  out=nn.Linear(96, 3))  # fmt: skip
    space = space_of(model, 1, 5, 5)
    assert {name: layer.width for name, layer in space.layers.items()} == {
        "one": 4, "two": 3, "out": 3,
    }  # fmt: skip
    (one,), (two,) = space.rows("one"), space.rows("two")
    assert one.units == (0, 1, 2, 3) * 2
    assert two.units == (0, 1, 2) * 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_other_layer_is_refused_with_a_reason(case):
    space = watch(case).space
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    every = {name for name, module in case.model().named_modules() if isinstance(module, kinds)}
    members = {member for layer in space.layers.values() for member in layer.members}
    assert set(space.refused) == every - members
    assert set(space.refused) == ({"fc1"} if case.name == "log softmax" else set())
    for name, reason in space.refused.items():
        with pytest.raises(UnitError, match=f"layer '{name}' cannot be switched off"):
            space[name]
        assert reason


def _residual(net, x):
    x = net.zero(x)
    return net.out(torch.relu(net.one(x)) + x)


def _twice(net, x):
    return net.out(torch.relu(net.one(torch.relu(net.one(net.zero(x))))))


def _concat(net, x):
    return net.out(torch.cat([net.one(x), x], dim=1))


def _token(net, x):
    return net.out(torch.relu(net.one(x[:, None])))[:, 0]


def _tied(net, x):
    return net.out(torch.relu(net.two(torch.relu(net.one(net.zero(x))))))


def tied():
    model = Forward(
        _tied, zero=nn.Linear(4, 4), one=nn.Linear(4, 4), two=nn.Linear(4, 4),
        out=nn.Linear(4, 3),
    )  # fmt: skip
    model.two.weight = model.one.weight
    return model


def _transposed(net, x):
    return functional.linear(torch.relu(net.one(x)), net.one.weight.t())


def _two_steps(net, x):
    return net.out(torch.tanh(net.one(x)) + torch.tanh(net.one(x * 2)))


def _squared(net, x):
    """The weight's rows scale another layer's units."""
    return net.out(torch.relu(net.one(x)) + net.two(x) * net.one.weight.square().sum(1))


FOUND = {
    "residual": (Forward(_residual, zero=nn.Linear(4, 4), one=nn.Linear(4, 4),
                         out=nn.Linear(4, 3)), ("zero", "one")),
    "concat": (Forward(_concat, one=nn.Linear(4, 4), out=nn.Linear(8, 3)), ("one",)),
    "called twice": (Forward(_twice, zero=nn.Linear(4, 4), one=nn.Linear(4, 4),
                             out=nn.Linear(4, 3)), ("zero", "one")),
    "called twice side by side": (Forward(_two_steps, one=nn.Linear(4, 4), out=nn.Linear(4, 3)),
                                  ("one",)),
    "one weight in two layers": (tied(), ("zero", "one", "two")),
    "a weight and its transpose": (Forward(_transposed, one=nn.Linear(4, 4)), ("one",)),
    "a weight that is squared, too": (
        Forward(_squared, one=nn.Linear(4, 4), two=nn.Linear(4, 4), out=nn.Linear(4, 3)),
        ("one", "two")),
    "layer norm": (chain(one=nn.Linear(4, 4), norm=nn.LayerNorm(4), out=nn.Linear(4, 3)),
                   ("one",)),
    "third axis": (Forward(_token, one=nn.Linear(4, 4), out=nn.Linear(4, 3)), ("one",)),
}  # fmt: skip
"""Networks whose units were once refused: the members of the layer that they are now."""


@pytest.mark.parametrize(("model", "members"), FOUND.values(), ids=FOUND)
def test_units_are_found_however_they_are_tied(model, members):
    space = space_of(model, 4)
    layer = space["one"]
    assert (layer.members, layer.width) == (members, 4)
    assert type(layer) is Layer
    assert layer.name == members[0]
    assert space.hidden == (layer.name,)


def test_a_layer_that_is_tied_to_the_input_stays():
    model = Forward(
        lambda net, x: net.out(torch.relu(net.one(x)) + x),
        one=nn.Linear(4, 4), out=nn.Linear(4, 3),
    )  # fmt: skip
    assert "tied by add" in space_of(model, 4).refused["one"]
    model = chain(one=nn.Linear(4, 4), act=nn.ReLU(), two=nn.Linear(4, 4), out=nn.Linear(4, 3))
    model.two.weight = model.one.weight  # whose columns read the input
    assert "its weight is shared" in space_of(model, 4).refused["one"]


REFUSED = {
    "softmax": (chain(one=nn.Linear(4, 4), soft=nn.Softmax(1), out=nn.Linear(4, 3)),
                "read by softmax"),
    "pooling over units": (chain(one=nn.Linear(4, 4), pool=nn.AvgPool1d(3, 1, 1),
                                 out=nn.Linear(4, 3)), "read by avg_pool1d"),
    "sorting": (Forward(lambda net, x: net.out(net.one(x).sort(dim=1)[0]), one=nn.Linear(4, 4),
                        out=nn.Linear(4, 3)), "read by sort"),
    "normalised weight": (chain(one=parametrizations.weight_norm(nn.Linear(4, 4)), act=nn.ReLU(),
                                out=nn.Linear(4, 3)), "not the parameter of a module"),
    "a norm of units": (Forward(lambda net, x: net.out(functional.normalize(net.one(x))),
                                one=nn.Linear(4, 4), out=nn.Linear(4, 3)), "linalg_vector_norm"),
    "a gate for several": (Forward(lambda net, x: net.out(x * torch.sigmoid(net.one(x))),
                                   one=nn.Linear(4, 1), out=nn.Linear(4, 3)), "stretched"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_rule_is_refused_by_name(model, reason):
    space = space_of(model, 4)
    assert "one" not in space.layers
    assert reason in space.refused["one"]
    with pytest.raises(UnitError, match="no hidden layer"):
        space.choose(None)


def test_a_layer_that_never_runs_is_not_there():
    model = Forward(lambda net, x: net.out(x), idle=nn.Linear(4, 4), out=nn.Linear(4, 3))
    with pytest.raises(UnitError, match="no layer 'idle': layers with units are out"):
        space_of(model, 4)["idle"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [(["fc9"], "no layer 'fc9'"), (["fc0", "fc0"], "named twice"), (["fc0", "nope"], "nope")],
)
def test_layers_are_chosen_by_names_that_exist_once(names, reason):
    with pytest.raises(UnitError, match=reason):
        watch(named("perceptron")).space.choose(names)


def test_layers_come_in_the_order_of_execution():
    space = watch(named("perceptron")).space
    chosen = space.choose(["fc3", "fc1", "fc0"])
    assert [layer.name for layer in chosen] == ["fc0", "fc1", "fc3"]


def test_the_switch_multiplies_the_pre_activation():
    """Behind a BatchNorm only where that stands before the nonlinearity."""
    before = watch(named("norm before the activation")).space["conv1"]
    behind = watch(named("norm behind the activation")).space["conv1"]
    assert before.switch == before.bridge[0].name
    assert before.bridge[0].kind == "batch_norm"
    assert behind.switch == behind.producer.name


def test_pooling_over_positions_keeps_units_apart():
    def forward(net, x):
        return net.out(functional.max_pool1d(torch.relu(net.one(x)), 2).flatten(1))

    model = Forward(forward, one=nn.Conv1d(1, 4, 1), out=nn.Linear(8, 3))
    assert set(space_of(model, 1, 4).layers) == {"one", "out"}
    wrong = Forward(
        lambda net, x: net.out(functional.max_pool2d(net.one(x), 3, 1, 1).flatten(1)),
        one=nn.Conv1d(1, 4, 1), out=nn.Linear(16, 3),
    )  # fmt: skip
    assert set(space_of(wrong, 1, 4).layers) == {"out"}


def test_reflected_padding_keeps_channels_apart():
    model = chain(one=conv(1, 4), two=conv(4, 3, 3, padding=1, padding_mode="reflect"),
                  flat=nn.Flatten(), out=nn.Linear(48, 3))  # fmt: skip
    space = space_of(model, 1, 5, 5)
    assert (space["one"].width, space["one"].members) == (4, ("one",))
    (read,) = space["one"].reads
    assert space.graph.by_name[read.tensor].kind == "pad"  # what is off is off in the margin, too


def test_rows_say_which_unit_each_computes():
    model = Forward(
        lambda net, x: net.out(net.one(x).unflatten(1, (3, 2)).amax(2)),
        one=nn.Linear(4, 6), out=nn.Linear(3, 2),
    )  # fmt: skip
    space = space_of(model, 4)
    assert space["one"].width == 3
    assert [(it.tensor, it.axis, it.units) for it in space.rows("one")] == [
        ("one.weight", 0, (0, 0, 1, 1, 2, 2))
    ]


def test_reads_say_where_units_lie_and_what_is_one_channel():
    model = Forward(
        lambda net, x: net.out(torch.cat([x.flatten(1), net.one(x).flatten(1)], dim=1)),
        one=conv(1, 2), out=nn.Linear(17, 3),
    )  # fmt: skip
    (read,) = space_of(model, 1, 3, 3)["one"].reads
    assert read.units == (-1,) * 9 + (0,) * 4 + (1,) * 4
    assert len(set(read.cells[9:13])) == len(set(read.cells[13:])) == 1
    assert (read.axis, read.kind) == (1, "sum")


def test_members_are_chosen_by_any_of_their_names():
    space = watch(named("skip")).space
    assert [layer.name for layer in space.choose(["down", "up"])] == ["stem", "up"]
