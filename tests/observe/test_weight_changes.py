"""Exact loss changes against one forward pass per weight."""

import pytest
import torch
from tests.architectures import ARCHITECTURES, architecture
from tests.cases import CASES, chain, conv, named, seeded
from tests.oracles import weights as slow
from torch import nn
from torch.nn import functional

from neurank.errors import MethodError
from neurank.observe import weight_changes
from neurank.observe.weight_changes import loss_changes
from neurank.observe.weight_loss import watching_loss
from neurank.observe.weight_places import ADDITIVE, FULL, NOTHING, RERUN, SUFFIX

BOUND = 1e-12


def looked_at(model, batches, parameters=None, loss=None):
    return watching_loss(
        model, batches, parameters=parameters, loss=loss, device=None, progress=False
    )


def a_few(weight, count=3):
    """Move a few weights to 0 and leave the others alone."""
    with seeded(str(tuple(weight.shape))):
        chosen = torch.randperm(weight.numel())[:count]
    move = torch.zeros(weight.numel(), dtype=torch.float64)
    move[chosen] = -weight.reshape(-1)[chosen].double()
    return move.reshape(weight.shape)


def found_and_wanted(model, batches, *, few=None, **options):
    """What the package finds for weights set to 0, and what the slow twin says."""
    with looked_at(model, batches, **options) as watched:
        moves = {
            name: -weight.double() if few is None else a_few(weight, few)
            for name, weight in watched.weights.items()
        }
        found = loss_changes(watched, moves)
        loss = watched.loss
    return found, slow.loss_changes(model, batches, moves, loss)


def check(found, wanted):
    assert found.changes.keys() == wanted.keys()
    for name, changes in wanted.items():
        assert found.changes[name].shape == changes.shape
        scale = max(1.0, float(changes.abs().max()))
        assert float((found.changes[name] - changes).abs().max()) <= BOUND * scale, name


SOME = [
    named(name)
    for name in (
        "many ties", "batchnorm 1d", "norm behind the activation", "max pooling, ceil mode",
        "padding, stride, dilation, no bias", "one dimension", "in place", "skip",
    )
]  # fmt: skip
OTHERS = [case for case in CASES if case not in SOME]


@pytest.mark.parametrize("case", SOME, ids=str)
def test_every_weight_is_that_of_one_forward_pass_each(case):
    check(*found_and_wanted(case.model(), case.batches()))


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_every_weight_of_the_other_networks_too(case):
    check(*found_and_wanted(case.model(), case.batches()))


@pytest.mark.slow
@pytest.mark.parametrize("name", [one.name for one in ARCHITECTURES])
def test_a_few_weights_of_every_architecture(name):
    one = architecture(name)
    loss = None if one.classes is not None else squares
    check(*found_and_wanted(one.model(), one.batches(), few=2, loss=loss))


def squares(outputs, targets):
    """A loss of any outputs: how far the first is from the label."""
    return (outputs.flatten(1)[:, 0] - targets).square()


WAYS = {
    "perceptron": (ADDITIVE, ADDITIVE, ADDITIVE, SUFFIX),
    "lenet, flatten": (ADDITIVE, ADDITIVE, ADDITIVE, SUFFIX),
    "three dimensions": (RERUN, RERUN, SUFFIX),
    "branch": (SUFFIX, SUFFIX, SUFFIX, SUFFIX),
}


@pytest.mark.parametrize("name", WAYS)
def test_each_layer_takes_the_way_that_runs_least(name):
    case = named(name)
    with looked_at(case.model(), case.batches()) as watched:
        still = {name: torch.zeros_like(weight) for name, weight in watched.weights.items()}
        found = loss_changes(watched, still)
    assert tuple(found.ways.values()) == WAYS[name]
    assert all(not changes.any() for changes in found.changes.values())


@pytest.mark.parametrize("way", ["blocks", "chunks"])
def test_cutting_the_work_up_changes_nothing(way, monkeypatch):
    case = named("lenet, flatten")
    model, batches = case.model(), case.batches()
    whole, _ = found_and_wanted(model, batches, few=0)
    with looked_at(model, batches) as watched:
        moves = {name: -weight for name, weight in watched.weights.items()}
        whole = loss_changes(watched, moves)
        name = "BLOCK_BYTES" if way == "blocks" else "MEMORY"
        monkeypatch.setattr(weight_changes, name, 1)
        small = loss_changes(watched, moves)
    for parameter, changes in whole.changes.items():
        torch.testing.assert_close(small.changes[parameter], changes, rtol=0, atol=BOUND)


def test_batches_do_not_count():
    case = named("norm before the activation")
    model = case.model()
    results = []
    for sizes in ((12,), (5, 4, 3)):
        with looked_at(model, case.batches(sizes=sizes)) as watched:
            results.append(loss_changes(watched, {n: -w for n, w in watched.weights.items()}))
    for name, changes in results[0].changes.items():
        torch.testing.assert_close(results[1].changes[name], changes, rtol=0, atol=BOUND)


def test_a_model_in_single_precision_is_computed_in_double():
    """What float32 would give is off by its rounding; ours is the double copy's change."""
    case = named("perceptron")
    model, batches = case.model(torch.float32), case.batches(torch.float32)
    with looked_at(model, batches) as watched:
        moves = {name: -weight.double() for name, weight in watched.weights.items()}
        found = loss_changes(watched, moves)
    exact = [(inputs.double(), targets) for inputs, targets in batches]
    wanted = slow.loss_changes(case.model(torch.float32).double(), exact, moves)
    check(found, wanted)


class Casting(nn.Module):
    """Code that names its precision."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(x.to(torch.float32) + torch.ones(3, dtype=torch.float32))


def test_code_that_names_its_precision_is_widened():
    torch.manual_seed(0)
    batches = [(torch.randn(4, 3), torch.arange(4) % 3)]
    found, wanted = found_and_wanted(Casting(), batches)
    assert set(found.ways.values()) == {SUFFIX}
    torch.testing.assert_close(found.changes["fc.weight"], wanted["fc.weight"], rtol=0, atol=1e-6)


def test_sensitivity_and_biases():
    """Any move, and parameters of one axis if they are named."""
    case = named("norm before the activation")
    model, batches = case.model(), case.batches()
    names = [name for name, _ in model.named_parameters()]
    with looked_at(model, batches, parameters=names) as watched:
        moves = {name: -0.01 * weight.sign() for name, weight in watched.weights.items()}
        found = loss_changes(watched, moves)
    check(found, slow.loss_changes(model, batches, moves))
    assert found.ways["conv1.bias"] == RERUN


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(functional.relu(self.second(functional.relu(self.first(x)))))


def test_a_tied_weight_changes_wherever_it_is_read():
    torch.manual_seed(0)
    batches = [(torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3)]
    found, wanted = found_and_wanted(Tied().double(), batches)
    check(found, wanted)
    assert found.ways == {"first.weight": RERUN, "out.weight": SUFFIX}


class Idle(nn.Module):
    """A layer that never runs."""

    def __init__(self):
        super().__init__()
        self.used = nn.Linear(4, 3)
        self.idle = nn.Linear(4, 3)

    def forward(self, x):
        return self.used(x)


def test_a_parameter_that_never_runs_changes_nothing():
    batches = [(torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3)]
    found, wanted = found_and_wanted(Idle().double(), batches)
    check(found, wanted)
    assert found.ways["idle.weight"] == NOTHING
    assert not found.changes["idle.weight"].any()


class Branching(nn.Module):
    """A branch that depends on the data cannot be traced; here both sides are the same."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x) if bool(x.sum() > 0) else self.fc(1 * x)


def test_a_model_that_cannot_be_traced_is_run_whole():
    torch.manual_seed(0)
    batches = [(torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3)]
    found, wanted = found_and_wanted(Branching().double(), batches)
    check(found, wanted)
    assert set(found.ways.values()) == {FULL}


def test_tokens_have_positions_of_their_own():
    """A linear layer on (examples, tokens, features), read by another."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 4), nn.Flatten(), nn.Linear(8, 3)
    ).double()
    batches = [(torch.randn(6, 2, 3, dtype=torch.float64), torch.arange(6) % 3)]
    found, wanted = found_and_wanted(model, batches)
    check(found, wanted)
    assert found.ways == {"0.weight": ADDITIVE, "2.weight": SUFFIX, "4.weight": SUFFIX}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("padding", [0, 1, "same"])
def test_convolutions_of_all_kinds(groups, padding):
    torch.manual_seed(0)
    stride = 1 if padding == "same" else (2, 1)
    model = chain(
        conv1=conv(4, 4, (3, 2 if padding == 1 else 3), groups=groups, padding=padding,
                   stride=stride, dilation=(1, 2)),
        norm=nn.BatchNorm2d(4), act=nn.ReLU(), pool=nn.MaxPool2d(2), flat=nn.Flatten(),
        norm2=nn.LazyBatchNorm1d(), out=nn.LazyLinear(3),
    ).double()  # fmt: skip
    inputs = torch.randn(5, 4, 9, 9, dtype=torch.float64)
    for _ in range(3):
        model.train()(inputs)
    batches = [(inputs, torch.arange(5) % 3)]
    found, wanted = found_and_wanted(model, batches)
    check(found, wanted)
    assert found.ways == {"conv1.weight": ADDITIVE, "out.weight": SUFFIX}


def test_a_dead_unit_and_an_input_that_is_zero_cost_nothing():
    """They drop out before the network below runs; their changes are exactly 0."""
    torch.manual_seed(0)
    model = chain(fc=nn.Linear(3, 4), act=nn.ReLU(), out=nn.Linear(4, 3)).double()
    with torch.no_grad():
        model.fc.bias[:2] = torch.tensor([5.0, -100.0])
    inputs = torch.randn(8, 3, dtype=torch.float64)
    inputs[:, 2] = 0
    found, wanted = found_and_wanted(model, [(inputs, torch.arange(8) % 3)])
    check(found, wanted)
    assert not found.changes["fc.weight"][1].any()
    assert not found.changes["fc.weight"][:, 2].any()
    assert bool(found.changes["fc.weight"][0, :2].all())


def test_a_loss_that_cannot_be_computed_in_double_is_refused():
    def weighted(outputs, targets):
        shares = torch.ones(3, dtype=torch.float32)
        return functional.cross_entropy(outputs, targets, weight=shares, reduction="none")

    batches = [(torch.randn(4, 4), torch.arange(4) % 3)]
    with (
        pytest.raises(MethodError, match=r"weighted cannot take float64 outputs.*to\(outputs\)"),
        looked_at(nn.Linear(4, 3), batches, loss=weighted) as watched,
    ):
        loss_changes(watched, watched.weights)


def test_a_map_of_one_place_that_is_widened():
    """The bridge makes four numbers of one."""
    torch.manual_seed(0)
    model = chain(
        conv=conv(2, 3, 3), wide=nn.AdaptiveAvgPool2d(2), act=nn.Tanh(), flat=nn.Flatten(),
        out=nn.Linear(12, 3),
    ).double()  # fmt: skip
    batches = [(torch.randn(5, 2, 3, 3, dtype=torch.float64), torch.arange(5) % 3)]
    found, wanted = found_and_wanted(model, batches)
    check(found, wanted)
    assert found.ways["conv.weight"] == ADDITIVE
