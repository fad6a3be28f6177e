"""An attacked unit takes larger steps; everything else trains as if nobody were there."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import seeded
from torch import nn
from torch.nn import functional

from neurank.errors import MethodError, UnitError
from neurank.watch.attack import attack

STEPS = 12


def network():
    with seeded("attacked"):
        return nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3)),
        ).double()


def batches(count=STEPS):
    with seeded("attacked data"):
        return [
            (torch.randn(6, 1, 6, 6, dtype=torch.float64), torch.randint(3, (6,)))
            for _ in range(count)
        ]


def trained(model, optimizer, data=None, **settings):
    """Train with the attack that the settings say; give its record."""
    with attack(optimizer, model, **settings) as record:
        for inputs, targets in data or batches():
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return record


def by_hand(model, rates, *, lr, momentum, weight_decay):
    """Stochastic gradient descent with a rate for every number, ``rates(step, name, tensor)``."""
    buffers = {}
    for step, (inputs, targets) in enumerate(batches()):
        model.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                slope = parameter.grad + weight_decay * parameter
                buffers[name] = momentum * buffers.get(name, torch.zeros_like(slope)) + slope
                parameter.sub_(lr * rates(step, name, parameter) * buffers[name])


def assert_equal(one, other, tolerance=1e-12):
    for name, tensor in one.state_dict().items():
        assert torch.allclose(tensor, other.state_dict()[name], rtol=tolerance, atol=tolerance), (
            name
        )


@settings(max_examples=25)
@given(
    unit=st.integers(0, 3),
    multiplier=st.floats(0, 50),
    start=st.integers(0, 5),
    repeats=st.integers(1, 4),
    interval=st.integers(1, 4),
    momentum=st.sampled_from([0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    whole=st.booleans(),
)
def test_it_is_a_learning_rate_of_its_own(
    unit, multiplier, start, repeats, interval, momentum, weight_decay, whole
):
    attacked = {"0.weight", "0.bias", "1.weight", "1.bias"} if whole else {"0.weight"}
    when = {start + interval * k for k in range(repeats)}

    def rates(step, name, parameter):
        rate = torch.ones_like(parameter)
        if step in when and name in attacked:
            rate[unit] = multiplier
        return rate

    rule = {"lr": 0.01, "momentum": momentum, "weight_decay": weight_decay}
    model, twin = network(), network()
    record = trained(
        model,
        torch.optim.SGD(model.parameters(), **rule),
        layer="0",
        unit=unit,
        multiplier=multiplier,
        start=start,
        repeats=repeats,
        interval=interval,
        weights_only=not whole,
        norm="1" if whole else None,
    )
    by_hand(twin, rates, **rule)
    assert_equal(model, twin, 1e-9)
    assert [hit.step for hit in record.hits] == sorted(when & set(range(STEPS)))
    assert record.steps == STEPS
    assert all(set(hit.moved) == attacked for hit in record.hits)


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
        lambda p: torch.optim.Adagrad(p, lr=0.01),
        lambda p: torch.optim.NAdam(p, lr=0.01),
    ],
)
def test_a_multiplied_rate_is_a_group_of_its_own(build):
    """All units attacked on every step, one inside the other, equal a larger rate of the weight."""
    # in evaluation mode: before BatchNorm in training a bias has slopes of rounding errors alone
    model, twin = network().eval(), network().eval()
    optimizer = build(model.parameters())
    with (
        attack(optimizer, model, "6", 0, multiplier=3, start=0, repeats=12, interval=1),
        attack(optimizer, model, "6", 1, multiplier=3, start=0, repeats=12, interval=1),
    ):
        trained(
            *(model, optimizer), layer="6", unit=2, multiplier=3, start=0, repeats=12, interval=1
        )
    faster = {"params": [twin[6].weight], "lr": 0.03}
    others = [it for it in twin.parameters() if it is not twin[6].weight]
    optimizer = build([{"params": others}, faster])
    for inputs, targets in batches():
        optimizer.zero_grad()
        functional.cross_entropy(twin(inputs), targets).backward()
        optimizer.step()
    assert_equal(model, twin, 1e-9)


def test_all_others_train_as_ever_in_the_attacked_step():
    model, twin = network(), network()
    settings = {"layer": "4", "unit": 2, "start": 0, "repeats": 1, "interval": 1}
    data = batches(1)
    record = trained(model, torch.optim.Adam(model.parameters()), data, multiplier=7, **settings)
    trained(twin, torch.optim.Adam(twin.parameters()), data, multiplier=1, **settings)
    change = model[4].weight - twin[4].weight
    assert bool((change[2] != 0).all())
    with torch.no_grad():
        model[4].weight[2] = twin[4].weight[2]
    assert_equal(model, twin, 0)
    (hit,) = record.hits
    assert hit.moved["4.weight"] == pytest.approx(7 * hit.unattacked["4.weight"], rel=1e-9)
    assert hit.unattacked["4.weight"] > 0


def test_accumulated_gradients_are_one_step_and_groups_are_theirs():
    model = network()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[4].parameters()}], lr=0.1
    )
    with attack(optimizer, model, "0", 1, multiplier=10, start=1, repeats=1, interval=1) as record:
        for step in range(2):
            before = model[0].weight.detach().clone()
            optimizer.zero_grad()
            for inputs, targets in batches(3):
                functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            rate = torch.full((4, 1, 1, 1), 0.5, dtype=torch.float64)
            rate[1] *= 10 if step else 1
            wanted = before - rate * model[0].weight.grad
            assert torch.allclose(model[0].weight.detach(), wanted, rtol=1e-12)
    assert (record.steps, [hit.step for hit in record.hits]) == (2, [1])


def test_closures_are_part_of_the_step():
    model, calls = network(), []
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    inputs, targets = batches(1)[0]

    def closure():
        calls.append(model[4].weight.detach().clone())
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    twin = network()
    with attack(optimizer, model, "4", 0, multiplier=2, start=0, repeats=1, interval=1) as record:
        loss = optimizer.step(closure)
    assert float(loss.detach()) == pytest.approx(
        float(functional.cross_entropy(twin(inputs), targets).detach())
    )
    assert len(calls) > 1
    plain = copy.deepcopy(twin)
    other = torch.optim.LBFGS(plain.parameters(), lr=0.1, max_iter=3)

    def again():
        other.zero_grad()
        loss = functional.cross_entropy(plain(inputs), targets)
        loss.backward()
        return loss

    other.step(again)
    wanted = twin[4].weight + 2 * (plain[4].weight - twin[4].weight)
    assert torch.allclose(model[4].weight[0], wanted[0], rtol=1e-12)
    assert torch.equal(model[4].weight[1:], plain[4].weight[1:])
    assert record.steps == 1


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_gradient_scaler_skips_is_none(fused):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    with attack(optimizer, model, "4", 0, multiplier=5, start=0, repeats=1, interval=1) as record:
        for step, (inputs, targets) in enumerate(batches(3)):
            before = model[4].weight.detach().clone()
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), targets)
            scaler.scale(loss * (float("inf") if step == 0 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(model[4].weight.detach(), before) == (step == 0)
            assert record.steps == step
    assert [hit.step for hit in record.hits] == [0]


def hooks(optimizer):
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def test_nothing_is_left_behind_whatever_happens():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"multiplier": 5, "start": 0, "repeats": 1, "interval": 1}
    with attack(optimizer, model, "4", 0, **settings):
        assert hooks(optimizer) == 2
    assert hooks(optimizer) == 0
    with pytest.raises(KeyboardInterrupt), attack(optimizer, model, "4", 0, **settings):
        raise KeyboardInterrupt
    assert hooks(optimizer) == 0


def test_a_step_that_fails_does_not_count():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def failing():
        raise RuntimeError("out of luck")

    with attack(optimizer, model, "4", 0, multiplier=5, start=0, repeats=1, interval=1) as record:
        with pytest.raises(RuntimeError, match="luck"):
            optimizer.step(failing)
        assert (record.steps, record.hits) == (0, ())
        inputs, targets = batches(1)[0]
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        assert [hit.step for hit in record.hits] == [0]


def test_units_of_a_transposed_convolution_are_its_columns():
    with seeded("transposed"):
        model = nn.Sequential(nn.ConvTranspose2d(2, 3, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model[0].weight.detach().clone()
    with attack(optimizer, model, "0", 2, multiplier=10, start=0, repeats=1, interval=1):
        model(torch.ones(1, 2, 3, 3, dtype=torch.float64)).sum().backward()
        optimizer.step()
    moved = (model[0].weight.detach() - before).mean((0, 2, 3))
    assert torch.allclose(moved / moved[0], torch.tensor([1.0, 1.0, 10.0], dtype=torch.float64))


USUAL = {"layer": "4", "unit": 0, "multiplier": 2, "start": 0, "repeats": 1, "interval": 1}


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"layer": "9"}, UnitError, "no layer '9': convolutions and linear are 0, 4, 6"),
        ({"layer": "1"}, UnitError, "layer '1' is a BatchNorm2d"),
        ({"unit": 5}, UnitError, "no unit 5: its 5 units are 0 to 4"),
        ({"unit": -1}, UnitError, "no unit -1"),
        ({"unit": True}, UnitError, "no unit True"),
        ({"multiplier": float("nan")}, MethodError, "multiplier=nan"),
        ({"multiplier": -1}, MethodError, "multiplier=-1"),
        ({"start": -1}, MethodError, "start=-1: give a whole number of 0 or more"),
        ({"repeats": 0}, MethodError, "repeats=0: give a whole number of 1 or more"),
        ({"interval": 0.5}, MethodError, "interval=0.5"),
        ({"norm": "1"}, MethodError, "norm='1' names parameters beside the weights"),
        ({"norm": "1", "weights_only": False}, UnitError, "4 channels and layer '4' has 5 units"),
        ({"norm": "2", "weights_only": False}, UnitError, "norm='2' is a ReLU"),
    ],
)
def test_what_cannot_be_attacked_is_refused(wrong, kind, message):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(kind, match=message), attack(optimizer, model, **(USUAL | wrong)):
        pass
    assert hooks(optimizer) == 0


def test_weights_that_the_optimizer_does_not_hold_are_refused():
    model = network()
    other = torch.optim.SGD(model[6].parameters(), lr=0.1)
    with (
        pytest.raises(MethodError, match=r"the SGD does not hold '4\.weight'"),
        attack(other, model, **USUAL),
    ):
        pass
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attack(optimizer, model, **USUAL):
        optimizer.param_groups[0]["params"][:] = list(network().parameters())
        with pytest.raises(MethodError, match="end the attack before the network is condensed"):
            optimizer.step()


def test_a_parametrized_weight_is_refused():
    model = network()
    nn.utils.parametrizations.weight_norm(model[4])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(MethodError, match=r"'4\.weight' is computed"),
        attack(optimizer, model, **USUAL),
    ):
        pass
