"""The search for the smallest network: its steps, its bound, and going on where it stopped."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from tests.condense.nets import WithNumber, drawn
from torch import nn

from neurank.condense.condensed import condense
from neurank.condense.load import load
from neurank.condense.plan import Plan
from neurank.condense.search import Attempt, _Settings, composed, smallest, widened
from neurank.data import load as load_data
from neurank.errors import FileError, MethodError, PlanError
from neurank.modes import evaluating
from neurank.observe.observer import model_digest
from neurank.rankers.weight_norm import WeightNorm
from neurank.training import error_rate, fit
from neurank.units.space import unit_space
from neurank.units.trace import trace
from neurank.zoo import digits_net


def space_of(model, inputs):
    with evaluating(model):
        return unit_space(trace(model, inputs), model)


class Parting(nn.Module):
    """Two branches tied to a third by units of their own: they part when the third's units go.

    `first` shares its units with the left half of `both`, `second` with the right half.
    """

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 3)
        self.second = nn.Linear(5, 3)
        self.both = nn.Linear(5, 6)
        self.read = nn.Linear(6, 3)

    def forward(self, x):
        beside = torch.cat([self.first(x), self.second(x)], 1)
        return self.read((beside + self.both(x)).relu())


class Shared(nn.Module):
    """One layer under two names, and a width as a number."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(5, 4)
        self.two = nn.Linear(4, 4)
        self.again = self.two
        self.read = nn.Linear(4, 3)

    def forward(self, x):
        x = self.again(self.one(x).relu()).relu()
        return self.read(x.view(-1, 2, 2).reshape(-1, 4))


NETS = {
    "digits": (lambda: digits_net(seed=0), (1, 8, 8)),
    "with a number": (lambda: drawn(WithNumber, dtype=torch.float32), (1, 6, 6)),
    "parting": (lambda: drawn(Parting, dtype=torch.float32), (5,)),
    "shared": (lambda: drawn(Shared, dtype=torch.float32), (5,)),
}


def prepared(name):
    build, shape = NETS[name]
    model = build().eval()
    draw = torch.Generator().manual_seed(1)
    inputs = torch.rand(12, *shape, generator=draw)
    return model, [(inputs, torch.arange(12) % 3)]


def halved(space):
    """Remove every third unit of every hidden layer."""
    widths = {layer: space[layer].width for layer in space.hidden}
    keep = {
        layer: [unit for unit in range(width) if unit % 3 != 1] for layer, width in widths.items()
    }
    return Plan.from_keep(keep, widths)


@pytest.mark.parametrize("name", NETS)
def test_plans_in_turn_are_one_plan_for_the_original(name):
    model, data = prepared(name)
    before = space_of(model, data[0][0])
    first = condense(model, halved(before), data, progress=False)
    now = space_of(first.model, data[0][0])
    second = condense(first.model, halved(now), data, progress=False)
    whole = composed(first, halved(now), now, before, model)
    at_once = condense(model, whole, data, progress=False)
    assert at_once.report.parameters[1] == second.report.parameters[1] < model_size(model)
    with torch.no_grad():
        wanted = second.model.eval()(data[0][0])
        torch.testing.assert_close(at_once.model.eval()(data[0][0]), wanted, rtol=1e-4, atol=1e-5)


def model_size(model):
    return sum(it.numel() for it in model.parameters())


def test_where_names_stay_the_composition_is_that_of_the_plans():
    model, data = prepared("digits")
    before = space_of(model, data[0][0])
    first = condense(model, halved(before), data, progress=False)
    now = space_of(first.model, data[0][0])
    later = halved(now)
    assert composed(first, later, now, before, model) == first.plan.then(later)


@pytest.mark.parametrize("name", NETS)
def test_a_network_that_was_trained_on_is_found_again_in_the_original(name):
    model, data = prepared(name)
    first = condense(model, halved(space_of(model, data[0][0])), data, progress=False)
    with torch.no_grad():
        for it in first.model.parameters():
            it.add_(torch.randn(it.shape, generator=torch.Generator().manual_seed(3)))
        for it in first.model.buffers():
            if it.is_floating_point():
                it.add_(1.0)
    untouched = model_digest(model)
    again = condense(widened(model, first), first.plan, data, progress=False)
    assert model_digest(model) == untouched
    assert again.model.state_dict().keys() == first.model.state_dict().keys()
    for key, it in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], it), key


@dataclass(frozen=True)
class Halves:
    """What a search may see; there is no test split in it."""

    train: object
    validation: object


@pytest.fixture(scope="module")
def network():
    digits = load_data("digits", batch_size=50)
    model = digits_net(seed=0)
    fit(model, digits.train, digits.validation, epochs=25, lr=0.05, progress=False)
    return model, Halves(digits.train.first(400), digits.validation)


OPTIONS = {
    "max_drop": 0.03,
    "method": WeightNorm(1),
    "step": 0.4,
    "least_step": 0.2,
    "retraining": 1,
    "progress": False,
}


@pytest.fixture(scope="module")
def found(network):
    return smallest(*network, **OPTIONS)


def same(one, other):
    assert [replace(it, seconds=0.0) for it in one.attempts] == [
        replace(it, seconds=0.0) for it in other.attempts
    ]
    assert (one.error, one.bound) == (other.error, other.bound)
    assert one.condensed.plan == other.condensed.plan
    first, second = one.condensed.model.state_dict(), other.condensed.model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(it, second[name]) for name, it in first.items())


def test_what_is_found_is_within_the_bound_and_smaller(network, found):
    model, splits = network
    assert found.initial_error == error_rate(model, splits.validation)
    assert found.bound == pytest.approx(found.initial_error + 0.03)
    assert found.error == error_rate(found.condensed.model, splits.validation) <= found.bound
    before, after = found.condensed.report.parameters
    assert before == model_size(model)
    assert after == model_size(found.condensed.model) < before
    accepted = [it for it in found.attempts if it.accepted]
    assert accepted[-1].parameters == after
    sizes = [it.parameters for it in accepted]
    assert sizes == sorted(sizes, reverse=True)
    assert all(it.error <= found.bound for it in accepted)
    assert all(
        it.error is None or it.error > found.bound for it in found.attempts if not it.accepted
    )
    assert len(accepted) >= 2


def test_the_result_is_relative_to_the_original(network, found, tmp_path):
    model, splits = network
    small = found.condensed
    assert small.plan.widths == {"conv1": 8, "conv2": 16, "fc1": 32, "fc2": 16}
    assert small.origin.parent == model_digest(model)
    last = [it for it in found.attempts if it.accepted][-1]
    assert dict(small.plan.widths_after) == dict(last.widths)
    small.save(tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", digits_net)
    assert error_rate(again.model, splits.validation) == found.error
    assert again.original_index("fc1", 0) == small.plan.keep["fc1"][0]


def test_every_attempt_is_shown_and_in_the_table(found):
    frame = found.to_frame()
    assert list(frame["number"]) == list(range(1, len(found.attempts) + 1))
    assert list(frame["units of fc1"]) == [it.widths["fc1"] for it in found.attempts]
    assert len(str(found).splitlines()) == len(found.attempts) + 2
    assert "allowed" in str(found)


def test_the_original_is_untouched_and_the_result_repeats(network, found):
    model, splits = network
    before, flags = model_digest(model), [it.training for it in model.modules()]
    same(smallest(model, splits, **OPTIONS), found)
    assert model_digest(model) == before
    assert [it.training for it in model.modules()] == flags


class Stop(Exception):  # noqa: N818 (it stands for Ctrl-C)
    pass


@pytest.mark.parametrize("stopped_at", [1, 2, 4])
def test_a_search_that_was_interrupted_goes_on_to_the_same_result(network, tmp_path, stopped_at):
    model, splits = network
    calls = []

    def train(small, seed):
        calls.append(seed)
        fit(small, splits.train, splits.validation, epochs=1, seed=seed, progress=False)

    def stopping(small, seed):
        if len(calls) + 1 == stopped_at:
            raise Stop
        train(small, seed)

    stopping.__qualname__ = train.__qualname__
    options = {**OPTIONS, "max_attempts": 5}
    whole = smallest(model, splits, **{**options, "retraining": train})
    total = len(calls)
    assert len(set(calls)) == total  # every network is trained from a seed of its own
    calls.clear()
    with pytest.raises(Stop):
        smallest(model, splits, **{**options, "retraining": stopping}, folder=tmp_path)
    assert len(calls) == stopped_at - 1
    calls.clear()
    same(smallest(model, splits, **{**options, "retraining": train}, folder=tmp_path), whole)
    assert len(calls) == total - stopped_at + 1
    calls.clear()
    same(smallest(model, splits, **{**options, "retraining": train}, folder=tmp_path), whole)
    assert calls == []


def test_a_folder_of_another_search_is_refused_and_its_networks_can_be_loaded(network, tmp_path):
    model, splits = network
    first = smallest(model, splits, **{**OPTIONS, "max_attempts": 1}, folder=tmp_path)
    with pytest.raises(FileError, match=r"another search \(method, seed\)"):
        smallest(model, splits, **{**OPTIONS, "method": WeightNorm(2)}, seed=1, folder=tmp_path)
    with pytest.raises(FileError, match=r"another search \(model"):
        smallest(digits_net(seed=5), splits, **OPTIONS, folder=tmp_path)
    network_1 = load(tmp_path / "step-01.safetensors", digits_net)
    assert network_1.plan == first.condensed.plan
    more = smallest(model, splits, **{**OPTIONS, "max_attempts": 2}, folder=tmp_path)
    assert len(more.attempts) == 2


def attempt(accepted):
    return Attempt(1, 0.4, "share", {}, 1, 1, 0.1, 0.1, accepted, 0.0)


def test_after_failures_other_ways_are_tried_and_then_smaller_steps():
    policy = _Settings("parameters", 0.4, 0.1, ("share", "rank"), 8, 1, 1, ())
    story = [False, True, False, False, True, False, False]
    turns = [policy.turn([attempt(it) for it in story[:n]]) for n in range(len(story) + 1)]
    assert turns == [
        (0.4, "share"),
        (0.4, "rank"),
        (0.4, "share"),
        (0.4, "rank"),
        (0.2, "share"),
        (0.2, "share"),
        (0.2, "rank"),
        (0.1, "share"),
    ]
    assert policy.turn([attempt(False)] * 6) is None
    assert policy.turn([attempt(True)] * 8) is None


def test_widths_and_ignored_layers_are_those_of_plans(network):
    made = smallest(
        *network,
        **{**OPTIONS, "max_drop": 0.9, "retraining": 0, "max_attempts": 4},
        min_width={"conv1": 6},
        multiple_of={"fc1": 4},
        ignored=["fc2"],
    )
    widths = made.condensed.plan.widths_after
    assert widths["conv1"] >= 6
    assert widths["fc1"] % 4 == 0
    assert widths["fc2"] == 16
    assert made.condensed.report.parameters[1] < 4026


def test_multiply_adds_can_be_what_is_made_small(network):
    made = smallest(
        *network,
        **{**OPTIONS, "max_drop": 0.9, "retraining": 0, "max_attempts": 1},
        cost="multiply_adds",
    )
    before, after = made.condensed.report.multiply_adds
    assert 0.4 * before < after <= 0.6 * before


def test_a_bound_that_nothing_reaches_is_refused_and_one_that_allows_nothing_keeps_all(network):
    model, splits = network
    raw = digits_net(seed=3)
    with pytest.raises(PlanError, match="nothing that was tried reaches"):
        smallest(raw, splits, **{**OPTIONS, "max_drop": None, "retraining": 0}, max_error=0.0)
    kept = smallest(model, splits, **{**OPTIONS, "max_drop": 0.0, "retraining": 0, "step": 0.9})
    if not any(it.accepted for it in kept.attempts):
        assert kept.condensed.report.parameters == (4026, 4026)
    assert kept.error <= kept.initial_error


def test_a_network_whose_forward_pass_holds_a_width(tmp_path):
    model, data = prepared("with a number")
    inputs = torch.rand(60, 1, 6, 6)
    with torch.no_grad():
        labels = copy.deepcopy(model).eval()(inputs).argmax(1)
    splits = Halves([(inputs, labels)], [(inputs, labels)])
    made = smallest(
        model,
        splits,
        max_error=0.9,
        method=WeightNorm(1),
        retraining=1,
        max_attempts=3,
        step=0.2,
        folder=tmp_path,
        progress=False,
    )
    assert sum(it.accepted for it in made.attempts) == 3
    assert made.condensed.model(data[0][0]).shape == (12, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_error": 0.1}, "give one of them"),
        ({"max_drop": None}, "give one of them"),
        ({"max_drop": -0.1}, "from 0 to 1"),
        ({"step": 1.0}, "cannot fall"),
        ({"least_step": 0.5}, "cannot fall"),
        ({"across": ()}, "nothing to try"),
        ({"max_attempts": 0}, "nothing to try"),
        ({"cost": "latency"}, "cost='latency' is unknown"),
        ({"retraining": -1}, "retraining=-1"),
    ],
)
def test_settings_out_of_range_are_refused(network, options, message):
    with pytest.raises(MethodError, match=message):
        smallest(*network, **{**OPTIONS, **options})
