import pytest
import torch
from tests.cases import CASES, Forward, chain, conv, named, watch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from neurank.errors import UnitError
from neurank.units.space import unit_space
from neurank.units.trace import trace


def space_of(model, *shape):
    return unit_space(trace(model.eval(), torch.zeros(2, *shape)), model)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layer_is_found_with_its_width_and_its_readers(case):
    space = watch(case).space
    model = case.model()
    assert set(space.layers) == set(case.reads)
    assert space.hidden == tuple(layer for layer in space.layers if case.reads[layer])
    for name, readers in case.reads.items():
        layer = space[name]
        assert layer.width == len(model.get_submodule(name).weight)
        assert layer.weight == f"{name}.weight"
        has_bias = model.get_submodule(name).bias is not None
        assert layer.bias == (f"{name}.bias" if has_bias else None)
        assert layer.is_output == (not readers)
        consumers = {consumer.weights[0] for consumer in layer.consumers}
        assert consumers == {f"{reader}.weight" for reader in readers}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_other_layer_is_refused_with_a_reason(case):
    space = watch(case).space
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    every = {name for name, module in case.model().named_modules() if isinstance(module, kinds)}
    assert set(space.refused) == every - set(case.reads)
    for name, reason in space.refused.items():
        with pytest.raises(UnitError, match=f"layer '{name}' cannot be switched off"):
            space[name]
        assert reason


def _residual(net, x):
    return net.out(torch.relu(net.one(x)) + x)


def _twice(net, x):
    return net.out(torch.relu(net.one(torch.relu(net.one(x)))))


def _concat(net, x):
    return net.out(torch.cat([net.one(x), x], dim=1))


def _token(net, x):
    return net.out(torch.relu(net.one(x[:, None])))[:, 0]


REFUSED = {
    "residual": (Forward(_residual, one=nn.Linear(4, 4), out=nn.Linear(4, 3)), "read by add"),
    "concat": (Forward(_concat, one=nn.Linear(4, 4), out=nn.Linear(8, 3)), "read by cat"),
    "called twice": (Forward(_twice, one=nn.Linear(4, 4), out=nn.Linear(4, 3)), "more than once"),
    "layer norm": (chain(one=nn.Linear(4, 4), norm=nn.LayerNorm(4), out=nn.Linear(4, 3)),
                   "read by layer_norm"),
    "softmax": (chain(one=nn.Linear(4, 4), soft=nn.Softmax(1), out=nn.Linear(4, 3)),
                "read by softmax"),
    "pooling over units": (chain(one=nn.Linear(4, 4), pool=nn.AvgPool1d(3, 1, 1),
                                 out=nn.Linear(4, 3)), "read by avg_pool1d"),
    "normalised weight": (chain(one=parametrizations.weight_norm(nn.Linear(4, 4)), act=nn.ReLU(),
                                out=nn.Linear(4, 3)), "not the parameter of a module"),
    "third axis": (Forward(_token, one=nn.Linear(4, 4), out=nn.Linear(4, 3)), "3|shape"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_rule_is_refused_by_name(model, reason):
    space = space_of(model, 4)
    assert "one" not in space.layers
    assert any(reason_part in space.refused["one"] for reason_part in reason.split("|"))
    with pytest.raises(UnitError, match="no hidden layer"):
        space.choose(None)


def test_tied_weights_are_refused_and_say_with_whom():
    model = chain(one=nn.Linear(4, 4), act=nn.ReLU(), two=nn.Linear(4, 4), out=nn.Linear(4, 3))
    model.two.weight = model.one.weight
    refused = space_of(model, 4).refused
    assert set(refused) == {"one", "two"}
    for reason in refused.values():
        assert "shared" in reason
        assert "one.weight" in reason
        assert "two.weight" in reason


def test_an_embedding_can_be_the_other_one():
    def forward(net, x):
        return net.out(torch.relu(net.one(x)))

    model = Forward(forward, one=nn.Linear(4, 5), names=nn.Embedding(5, 4), out=nn.Linear(5, 3))
    model.names.weight = model.one.weight
    assert "names.weight" in space_of(model, 4).refused["one"]


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


def test_reflected_padding_has_no_rule():
    model = chain(one=conv(1, 4), two=conv(4, 3, 3, padding=1, padding_mode="reflect"),
                  flat=nn.Flatten(), out=nn.Linear(48, 3))  # fmt: skip
    assert "pad" in space_of(model, 1, 5, 5).refused["one"]
