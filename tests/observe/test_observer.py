import pytest
import torch
from tests.cases import CASES, Forward, chain, look, named, watch
from torch import nn

import neurank as nr
from neurank.errors import DataError, ModelError, UnitError
from neurank.observe.observer import HookedObserver, TracedObserver, choose_layers, model_digest

DATA = [(torch.randn(4, 4), torch.arange(4) % 3), (torch.randn(2, 4), torch.arange(2))]


def branching(net, x):
    """Cannot be traced; every example goes the same way."""
    if x.abs().sum() > 1e9:
        return net.out(net.fc(x))
    return net.out(torch.relu(net.fc(x)))


def untraceable(**modules):
    return Forward(branching, fc=nn.Linear(4, 5), out=nn.Linear(5, 3), **modules)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_width_and_weights_by_name(case):
    observer = watch(case)
    model = case.model()
    for layer in case.reads:
        weight = model.get_submodule(layer).weight
        assert observer.width(layer) == len(weight)
        assert torch.equal(observer.weight(layer), weight)
        assert not observer.weight(layer).requires_grad


def test_games_come_batch_by_batch_without_gradients():
    case = named("lenet, flatten")
    inside = []
    for game in watch(case).games("conv2"):
        inside.append(torch.is_inference_mode_enabled())
        assert game.units == 4
    assert inside == [True] * 3
    assert not torch.is_inference_mode_enabled()


def test_inference_mode_ends_where_a_game_is_broken_off():
    def broken():
        for _ in watch(named("lenet, flatten")).games("conv2"):
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert not torch.is_inference_mode_enabled()


def test_a_model_that_cannot_be_traced_is_watched_through_hooks():
    observer = look_at(untraceable())
    assert isinstance(observer, HookedObserver)
    assert dict(observer.widths) == {"fc": 5}
    assert observer.way("fc") == "full forward"
    assert choose_layers(observer, None) == ("fc",)
    assert torch.equal(observer.weight("fc"), observer.model.fc.weight)
    with pytest.raises(UnitError, match="no layer 'out' whose units can be switched off"):
        choose_layers(observer, ["out"])
    with pytest.raises(ModelError, match="switch on 'fc' needs the forward pass traced"):
        observer.switchboard("fc")


def look_at(model, removal="parameters"):
    from neurank.observe.observer import observe

    return observe(
        model.eval(), DATA, value=nr.Accuracy(), removal=removal, seed=0,
        device=torch.device("cpu"), progress=False,
    )  # fmt: skip


def test_hooks_find_layers_with_units_on_axis_1_and_weights_of_their_own():
    def forward(net, x):
        if x.abs().sum() > 1e9:
            return x
        x = net.tokens(x.reshape(-1, 2, 2)).flatten(1)
        x = net.twice(net.twice(x))
        x = net.tied(torch.relu(net.tie(x)))
        return net.out(torch.relu(net.fine(x)))

    model = Forward(
        forward, tokens=nn.Linear(2, 2), twice=nn.Linear(4, 4), tie=nn.Linear(4, 4),
        tied=nn.Linear(4, 4), fine=nn.Linear(4, 5), out=nn.Linear(5, 3), idle=nn.Linear(4, 4),
    )  # fmt: skip
    model.tied.weight = model.tie.weight
    assert dict(look_at(model).widths) == {"fine": 5}


def test_other_removals_need_the_trace():
    for removal in ("zero", "mean"):
        with pytest.raises(ModelError, match="rank with removal='parameters'"):
            look_at(untraceable(), removal)


def test_a_model_without_any_layer_of_ours_is_refused_with_the_reason_of_the_trace():
    model = Forward(lambda _, x: x if x.sum() > -1e9 else -x)
    with pytest.raises(ModelError, match="cannot be traced"):
        look_at(model)


def test_a_trace_that_is_not_the_model_is_refused():
    class Fickle(nn.Module):
        """Adds what a first call has left behind."""

        def __init__(self):
            super().__init__()
            self.fc, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            shift = 1.0 if torch.compiler.is_exporting() else 0.0
            return self.out(torch.relu(self.fc(x))) + shift

    with pytest.raises(ModelError, match="traced forward pass differs from the model"):
        look_at(Fickle())


def test_the_last_batch_is_compared_too():
    """Labels and layers are fine; the last batch alone takes another path."""

    def forward(net, x):
        if not torch.compiler.is_exporting() and x.abs().max() > 50:
            return net.out(net.fc(x))
        return net.out(torch.relu(net.fc(x)))

    model = Forward(forward, fc=nn.Linear(4, 5), out=nn.Linear(5, 3))
    data = [*DATA, (torch.full((2, 4), -100.0), torch.arange(2))]
    with pytest.raises(ModelError, match="traced forward pass differs from the model"):
        look(model, data)


def test_labels_beyond_the_outputs_are_refused():
    with pytest.raises(DataError, match=r"label 3, but the model has 3 outputs, classes 0 to 2"):
        look(nn.Linear(4, 3), [(torch.zeros(2, 4), torch.tensor([0, 3]))])


def test_the_digest_sees_every_weight_and_buffer():
    model = chain(fc=nn.Linear(2, 2), norm=nn.BatchNorm1d(2))
    before = model_digest(model)
    assert model_digest(model) == before
    with torch.no_grad():
        model.norm.running_mean[0] += 1
    assert model_digest(model) != before


def test_a_traced_model_is_watched_through_its_trace():
    assert isinstance(look_at(chain(fc=nn.Linear(4, 5), out=nn.Linear(5, 3))), TracedObserver)
