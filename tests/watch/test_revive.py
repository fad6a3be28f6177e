"""A unit begins anew, or goes, on the spot; nothing else does."""

from collections import OrderedDict

import pytest
import torch
from tests.cases import seeded
from tests.watch.nets import DATA, epoch_of, network, same, state_of
from torch import nn

from neurank.condense.carry import carry_over
from neurank.condense.condensed import condense
from neurank.condense.plan import Plan
from neurank.errors import CondenseError, MethodError, ModelError, PlanError, UnitError
from neurank.watch.losses import mean_loss
from neurank.watch.revive import remove, revive

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.3),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.02),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}


def trained(build=OPTIMIZERS["adam"]):
    model = network()
    optimizer = build(model.parameters())
    epoch_of(model, optimizer)
    return model, optimizer


def with_dead_unit():
    """A network of which unit 2 of conv gives the same for every example, behind its ReLU."""
    model, optimizer = trained()
    with torch.no_grad():
        model.norm.weight[2], model.norm.bias[2] = 0.0, 0.7
    return model, optimizer


def mask_of(name, tensor, unit, positions=16):
    """Which entries of a tensor are those of a unit of conv."""
    mask = torch.zeros_like(tensor, dtype=torch.bool)
    if name.startswith(("conv.", "norm.")) and tensor.ndim:
        mask[unit] = True
    if name == "fc1.weight":
        mask[:, unit * positions : (unit + 1) * positions] = True
    return mask


def test_what_is_constant_goes_into_biases_and_the_function_stays():
    model, _ = with_dead_unit()
    model.eval()
    wanted = [model(inputs) for inputs, _ in DATA]
    revived = revive(model, DATA, "conv", 2)
    for (inputs, _), before in zip(DATA, wanted, strict=True):
        assert torch.allclose(model(inputs), before, rtol=1e-12, atol=1e-12)
    first, last = revived.losses
    assert first == pytest.approx(last, rel=1e-12)
    assert first == pytest.approx(mean_loss(model, DATA), rel=1e-12)
    assert revived.shifted == ("fc1.bias",)
    assert revived.units == (2,)


def test_without_the_mean_the_function_jumps_and_the_record_says_so():
    model, _ = with_dead_unit()
    revived = revive(model, DATA, "conv", 2, removal="zero")
    assert revived.shifted == ()
    assert abs(revived.losses[0] - revived.losses[1]) > 1e-4
    assert revived.losses[1] == mean_loss(model, DATA)


def test_only_the_unit_changes():
    model, _ = trained()
    before, training = state_of(model), model.training
    revived = revive(model, DATA, "conv", 2, removal="zero")
    assert model.training == training
    after = model.state_dict()
    for name, tensor in before.items():
        changed = after[name] != tensor
        assert not bool((changed & ~mask_of(name, tensor, 2)).any()), name
    assert dict(revived.changed) == {
        "conv.weight": (0,),
        "conv.bias": (0,),
        "norm.weight": (0,),
        "norm.bias": (0,),
        "norm.running_mean": (0,),
        "norm.running_var": (0,),
        "fc1.weight": (1,),
    }
    assert after["norm.weight"][2] == after["norm.running_var"][2] == 1
    assert after["norm.bias"][2] == after["norm.running_mean"][2] == 0
    assert not bool(after["fc1.weight"][:, 32:48].any())
    assert bool((after["conv.weight"][2] != before["conv.weight"][2]).all())


def test_incoming_weights_are_as_the_layer_draws_them():
    model, _ = trained()
    generator = torch.get_rng_state()
    revive(model, DATA, "conv", (1, 4), seed=5)
    assert torch.equal(torch.get_rng_state(), generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        fresh = nn.Conv2d(1, 6, 3, dtype=torch.float64)
    assert torch.equal(model.conv.weight[[1, 4]], fresh.weight[[1, 4]])
    assert torch.equal(model.conv.bias[[1, 4]], fresh.bias[[1, 4]])


def test_incoming_weights_are_picked_from_those_of_other_units():
    model, _ = trained()
    before = state_of(model)["fc1.weight"]
    revive(model, DATA, "fc1", (0, 7), incoming="units", seed=1)
    others = before[[1, 2, 3, 4, 5, 6, 8, 9]]
    for unit in (0, 7):
        row = model.fc1.weight.detach()[unit]
        places = (others == row).nonzero()
        assert sorted(places[:, 1].tolist()) == list(range(96))
        assert len(set(places[:, 0].tolist())) == 8
    assert not torch.equal(model.fc1.weight[0], model.fc1.weight[7])


def test_outgoing_weights_can_be_small():
    model, _ = trained()
    before = state_of(model)["fc2.weight"]
    revive(model, DATA, "fc1", 3, outgoing=0.01)
    column = model.fc2.weight.detach()[:, 3]
    others = before[:, [0, 1, 2, 4, 5, 6, 7, 8, 9]]
    assert all(bool((0.01 * others[row] == column[row]).any()) for row in range(3))


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_optimizer_begins_anew_with_these_entries_alone(build):
    model, optimizer = trained(build)
    before = {
        name: {key: value.clone() for key, value in optimizer.state[it].items()}
        for name, it in model.named_parameters()
    }
    revive(model, DATA, "conv", 2, optimizer=optimizer)
    fresh_model = network()
    fresh = build(fresh_model.parameters())
    if build is OPTIMIZERS["rprop"]:  # which has its step sizes from its first step on
        for parameter in fresh_model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        fresh.step()
    beginning = dict(zip(model.parameters(), fresh_model.parameters(), strict=True))
    seen = 0
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            old = before[name][key]
            if value.shape != parameter.shape:  # one number, or a factor of a matrix
                axis = 1 if name == "fc1.weight" else 0
                if value.numel() > 1 and value.shape[axis] == parameter.shape[axis]:
                    along = mask_of(name, parameter, 2).movedim(axis, 0).flatten(1).any(1)
                    changed = (value != old).movedim(axis, 0).flatten(1)
                    assert torch.equal(changed, along[:, None].expand_as(changed)), (name, key)
                else:
                    assert torch.equal(value, old), (name, key)
                continue
            mask = mask_of(name, parameter, 2)
            assert torch.equal(value[~mask], old[~mask]), (name, key)
            first = fresh.state[beginning[parameter]].get(key, torch.zeros_like(value))
            assert torch.equal(value[mask], first.to(value)[mask]), (name, key)
            seen += int((old[mask] != value[mask]).sum())
    if build is not OPTIMIZERS["adafactor"]:  # which keeps factors of matrices
        assert seen > 100


def test_a_revived_unit_learns():
    model, optimizer = with_dead_unit()
    revive(model, DATA, "conv", 2, optimizer=optimizer)
    for _ in range(3):
        epoch_of(model, optimizer)
    assert float(model.fc1.weight[:, 32:48].detach().abs().max()) > 1e-3


def test_gradients_in_flight_of_the_unit_are_dropped():
    model, optimizer = trained()
    grads = {name: it.grad.clone() for name, it in model.named_parameters()}
    revive(model, DATA, "conv", 2, optimizer=optimizer)
    for name, parameter in model.named_parameters():
        mask = mask_of(name, parameter, 2)
        assert torch.equal(parameter.grad[~mask], grads[name][~mask])
        assert not bool(parameter.grad[mask].any())


class Residual(nn.Module):
    """Two layers whose units are tied."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)
        self.norm, self.last = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(self.norm(x + self.second(x)))


def test_tied_units_begin_anew_in_all_their_layers():
    with seeded("residual"):
        model = Residual().double()
        data = [(torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,)))]
    before = state_of(model)
    revived = revive(model, data, "first", 1, removal="zero")
    assert set(revived.changed["second.weight"]) == {0, 1}
    after = model.state_dict()
    for name in ("first.weight", "first.bias", "second.weight", "second.bias"):
        assert not torch.equal(after[name][1], before[name][1])
        others = [0, 2, 3, 4, 5]
        if name != "second.weight":
            assert torch.equal(after[name][others], before[name][others])
    assert not bool(after["second.weight"][:, 1].any())
    assert not bool(after["last.weight"][:, 1].any())
    assert after["norm.weight"][1] == 1


def test_removing_is_condensing_and_carrying_over():
    model, optimizer = trained()
    twin, twins = trained()
    before = state_of(model)
    removed = remove(model, DATA, "conv", (0, 5), optimizer=optimizer)
    assert same(state_of(model), before)
    small = condense(twin, Plan({"conv": (1, 2, 3, 4)}, {"conv": 6}), DATA, removal="mean")
    carry_over(twins, twin, small.model, small.cuts)
    epoch_of(removed.condensed.model, optimizer)
    assert removed.losses == (mean_loss(model, DATA), mean_loss(small.model, DATA))
    epoch_of(small.model, twins)
    assert same(state_of(removed.condensed.model), state_of(small.model))
    assert len(removed.carried) == 1


def without_bias():
    with seeded("no bias"):
        return nn.Sequential(
            OrderedDict(
                a=nn.Conv2d(1, 4, 3),
                act=nn.Sigmoid(),
                b=nn.Conv2d(4, 3, 4, bias=False),
                f=nn.Flatten(),
            )
        ).double()


def test_what_cannot_be_revived_is_refused_and_nothing_changes():
    model, optimizer = trained()
    before = state_of(model)
    for call, kind, message in [
        (lambda: revive(model, DATA, "conv", 6), UnitError, "no unit 6: its 6 units are 0 to 5"),
        (lambda: revive(model, DATA, "conv", -1), UnitError, "no unit -1"),
        (lambda: revive(model, DATA, "conv", ()), UnitError, "give the index of a unit"),
        (lambda: revive(model, DATA, "conv", (1, 1)), UnitError, "several different ones"),
        (lambda: revive(model, DATA, "conv", True), UnitError, "units=True"),
        (lambda: revive(model, DATA, "conv", range(6)), PlanError, "keep at least one"),
        (lambda: revive(model, DATA, "none", 0), UnitError, "no layer 'none'"),
        (lambda: revive(model, DATA, "conv", 0, incoming="x"), MethodError, "incoming='x'"),
        (lambda: revive(model, DATA, "conv", 0, outgoing=-1), MethodError, "outgoing=-1"),
        (lambda: revive(model, DATA, "conv", 0, removal="x"), MethodError, "removal='x'"),
        (lambda: remove(model, DATA, "conv", 6), UnitError, "no unit 6"),
        (lambda: revive(without_bias(), DATA, "a", 0), (CondenseError, ModelError), "b.bias"),
    ]:
        with pytest.raises(kind, match=message):
            call()
    optimizer.state[model.fc1.weight]["basis"] = torch.zeros(7)
    with pytest.raises(CondenseError, match="keeps 'basis'"):
        revive(model, DATA, "conv", 0, optimizer=optimizer)
    optimizer.state[model.fc1.weight]["basis"] = [torch.zeros(7)]
    with pytest.raises(CondenseError, match="keeps 'basis', list"):
        revive(model, DATA, "conv", 0, optimizer=optimizer)
    assert same(state_of(model), before)


def test_lbfgs_is_refused():
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(DATA[0][0]), DATA[0][1])
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(CondenseError, match="LBFGS"):
        revive(model, DATA, "conv", 0, optimizer=optimizer)


def test_a_layer_that_does_not_say_how_it_begins_is_refused():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.ones(10, dtype=torch.float64))

        def forward(self, x):
            return x * self.slope

    model = network()
    model.tanh = Own()
    with pytest.raises(CondenseError, match="'tanh' is a Own without reset_parameters"):
        revive(model, DATA, "fc1", 0)
