import copy
import gc
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.cases import CASES, look, named, seeded, watch
from tests.condense.nets import (
    AuthorsLeNet,
    WithNumber,
    drawn,
    error,
    every_second,
    everything,
    pictures,
)
from tests.oracles.condense import At, masked_by_hand, masked_outputs
from torch import nn

import neurank as nr
from neurank.condense import surgery
from neurank.condense.condensed import condense
from neurank.condense.parts import Conv2dWithConstant
from neurank.condense.plan import Plan
from neurank.condense.rewritten import Rewritten
from neurank.errors import CondenseError, DataError, MethodError, ModelError, PlanError, UnitError
from neurank.units.trace import logits_of

REMOVALS = ("zero", "mean", "parameters")
PERCEPTRON = named("perceptron")


def reads_of(case):
    """Where units are read, entry by entry: what `Case.reads` says, and of tied layers this."""
    model, space = case.model(), watch(case).space
    found = {}
    for layer, readers in case.reads.items():
        for reader in readers if layer not in TIED.get(case.name, {}) else ():
            weight = model.get_submodule(reader).weight
            size = weight.shape[1] // space[layer].width
            units = tuple(unit for unit in range(space[layer].width) for _ in range(size))
            found.setdefault(layer, []).append(At(reader, units, 1, units))
    return {**found, **TIED.get(case.name, {})}


def flat(channels, size, module):
    """A flattened map: for each channel its unit, `size` places."""
    entries = [(unit, at) for at, unit in enumerate(channels) for _ in range(size)]
    units, numbers = zip(*entries, strict=True)
    return At(module, units, 1, numbers)


TIED = {
    "depthwise consumer": {"conv1": [flat((0, 0, 1, 1), 9, "out")], "conv2": [], "conv3": []},
    "branch": {"left": [flat(range(3), 9, "out")]},
    "skip": {"stem": [At("up", (0, 1, 2)), flat(range(3), 16, "out")]},
    "gate and skip": {"early": [At("out", (0, 1, 2, 3, 4))]},
}
"""Layers of several members."""


def against_oracle(model, reads, plan, removal, batches, members=None):
    """How far the condensed network is from the masked one that no graph has touched."""
    small = condense(model, plan, batches, removal=removal)
    inputs = torch.cat([inputs for inputs, _ in batches])
    removed = {layer: plan.removed(layer) for layer in plan.keep}
    if members is None:
        wanted = masked_outputs(model, reads, removed, removal, batches, inputs)
    else:
        wanted = masked_by_hand(model, reads, removed, removal, batches, inputs, members)
    with torch.no_grad():
        found = logits_of(small.model.eval()(inputs))
    assert small.check.max_error <= 1e-12
    return error(found, logits_of(wanted))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_condensed_is_masked(case):
    model, batches, space = case.model(), case.batches(), watch(case).space
    widths = {name: space[name].width for name in space.hidden}
    plan = Plan({name: tuple(range(0, width, 2)) for name, width in widths.items()}, widths)
    members = {name: space[name].members for name in space.hidden}
    for removal in REMOVALS:
        found = against_oracle(model, reads_of(case), plan, removal, batches, members)
        assert found <= 1e-12, removal


@pytest.mark.parametrize("removal", ["mean", "parameters"])
@pytest.mark.parametrize("padding", [0, 1])
def test_constants_behind_padding_are_exact_everywhere(removal, padding):
    model, batches = drawn(padded_chain, padding), pictures(4, 3)
    small = condense(model, every_second(model, "0"), batches, removal=removal)
    assert small.check.max_error <= 1e-12
    assert type(small.model) is nn.Sequential
    assert small.origin.made == (("3.constant",) if padding else ())
    assert type(small.model[3]) is (Conv2dWithConstant if padding else nn.Conv2d)
    assert set(small.shifts) == (set() if padding else {"3.bias"})


@pytest.mark.parametrize("removal", ["mean", "parameters"])
def test_folded_constants_are_those_of_the_middle_and_the_difference_is_told(removal):
    model, batches = drawn(padded_chain, 1), pictures(4, 3)
    plan = every_second(model, "0")
    small = condense(model, plan, batches, removal=removal, border="folded")
    assert type(small.model[3]) is nn.Conv2d
    assert (small.origin.made, set(small.shifts)) == ((), {"3.bias"})
    assert small.check.tolerance == math.inf
    assert 1e-3 < small.check.max_error < 1
    assert "since constants were folded in front of padding" in str(small.check)
    exact = condense(model, plan, batches, removal=removal).model
    maps = [net[:4](batches[0][0]) for net in (small.model.eval(), exact.eval())]
    inner = (..., slice(1, -1), slice(1, -1))
    assert error(maps[0][inner], maps[1][inner]) <= 1e-12
    assert error(*maps) > 1e-3


def test_there_are_two_ways_with_borders():
    model = drawn(padded_chain, 1)
    with pytest.raises(MethodError, match="border='thin' is unknown: it is 'exact' or 'folded'"):
        condense(model, every_second(model, "0"), pictures(4), removal="mean", border="thin")


def padded_chain(padding):
    size = (4 + 2 * padding - 2) ** 2
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 3, 3, padding=padding),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3 * size, 3),
    )


def test_a_constant_of_zero_in_front_of_padding_needs_nothing():
    case = named("skip")  # ReLU only: what "parameters" leaves is 0
    model = case.model()
    small = condense(model, every_second(model, "up"), case.batches(), removal="parameters")
    assert small.check.max_error <= 1e-12
    assert small.origin.made == ()


class Chain(nn.Module):
    """Convolutions, then a flattening written in one of three ways, then linear layers."""

    def __init__(self, convolutions, linears, flatten, size):
        super().__init__()
        self.reads, blocks, channels = {}, [], 1
        maps = torch.zeros(2, 1, size, size)
        for number, (width, kernel, *rest) in enumerate(convolutions):
            blocks.append((f"conv{number}", nn.Conv2d(channels, width, kernel, bias=rest[0])))
            blocks += self.between(number, rest[1:], nn.BatchNorm2d(width))
            channels = width
        self.convolutions = nn.Sequential()
        for name, module in blocks:
            self.convolutions.add_module(name, module)
        maps = self.convolutions.eval()(maps)
        features = channels * maps[0, 0].numel()
        self.flatten, self.features = flatten, features
        self.linears = nn.Sequential()
        for number, (width, *rest) in enumerate(linears):
            self.linears.add_module(f"fc{number}", nn.Linear(features, width, bias=rest[0]))
            for name, module in self.between(100 + number, rest[1:], nn.BatchNorm1d(width)):
                self.linears.add_module(name, module)
            features = width
        self.linears.add_module("out", nn.Linear(features, 3))
        order = [
            name
            for name, module in self.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        ]
        self.reads = {name: (after,) for name, after in pairwise(order)}

    @staticmethod
    def between(number, settings, norm):
        act, where, pool = settings
        blocks = [(f"act{number}", getattr(nn, act)())]
        if where != "none":
            blocks.insert(0 if where == "before" else 1, (f"norm{number}", norm))
        if pool and isinstance(norm, nn.BatchNorm2d):
            blocks.append((f"pool{number}", getattr(nn, pool)(2, stride=1)))
        return blocks

    def forward(self, x):
        x = self.convolutions(x)
        ways = {
            "flatten": lambda: x.flatten(1),
            "number": lambda: x.view(-1, self.features),
            "reshape": lambda: x.reshape(x.shape[0], -1),
        }
        return self.linears(ways[self.flatten]())


BETWEEN = (
    st.booleans(),
    st.sampled_from(["ReLU", "Tanh", "Sigmoid", "Identity", "ELU"]),
    st.sampled_from(["none", "before", "behind"]),
    st.sampled_from(["", "MaxPool2d", "AvgPool2d"]),
)
CONVOLUTIONS = st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 2]), *BETWEEN), max_size=2)
LINEARS = st.lists(st.tuples(st.integers(1, 5), *BETWEEN), min_size=1, max_size=2)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    convolutions=CONVOLUTIONS,
    linears=LINEARS,
    flatten=st.sampled_from(["flatten", "number", "reshape"]),
    removal=st.sampled_from(REMOVALS),
    data=st.data(),
)
def test_random_chains_condense_to_the_masked_network(
    convolutions, linears, flatten, removal, data
):
    model = drawn(Chain, convolutions, linears, flatten, 6)
    keep = {}
    for layer in model.reads:
        units = range(len(model.get_submodule(layer).weight))
        keep[layer] = data.draw(st.lists(st.sampled_from(units), min_size=1, unique=True))
    plan = Plan.from_keep(keep, {la: len(model.get_submodule(la).weight) for la in keep})
    assert against_oracle(model, model.reads, plan, removal, pictures(4, 3)) <= 1e-12


@pytest.mark.parametrize("removal", REMOVALS)
def test_the_model_comes_back_exactly_as_it_was(removal):
    model = drawn(WithNumber)
    model.drop1.eval()
    model.fc1.weight.requires_grad_(requires_grad=False)
    model.bn.register_forward_hook(lambda *_: None)
    before = everything(model)
    small = condense(model, every_second(model, "conv1", "fc1"), pictures(5, 4), removal=removal)
    assert everything(model) == before
    flags = {name: module.training for name, module in model.named_modules()}
    assert {name: module.training for name, module in small.model.named_modules()} == flags
    shared = {id(p) for p in model.parameters()} & {id(p) for p in small.model.parameters()}
    assert not shared


def test_a_failure_in_mid_surgery_leaves_the_model_alone(monkeypatch):
    model = PERCEPTRON.model()
    before = everything(model)
    install, calls = surgery._install, []

    def third_fails(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        install(*arguments)

    monkeypatch.setattr(surgery, "_install", third_fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        condense(model, every_second(model, "fc0", "fc1"), PERCEPTRON.batches())
    assert len(calls) == 3
    assert everything(model) == before


def test_frozen_parameters_are_cut_and_stay_frozen():
    model = PERCEPTRON.model()
    model.fc0.requires_grad_(requires_grad=False)
    model.fc1.bias.requires_grad_(requires_grad=False)
    small = condense(model, every_second(model, "fc0", "fc1"), PERCEPTRON.batches(), removal="mean")
    assert small.model.fc0.weight.shape == (3, 4)
    assert small.model.fc1.weight.shape == (3, 3)
    frozen = {name for name, p in small.model.named_parameters() if not p.requires_grad}
    assert frozen == {"fc0.weight", "fc0.bias", "fc1.bias"}


def test_a_made_bias_trains_as_the_weight_beside_it():
    case = named("without biases")
    model = case.model()
    model.fc2.requires_grad_(requires_grad=False)
    small = condense(model, every_second(model, "fc0", "fc1"), case.batches(), removal="mean")
    assert small.origin.made == ("fc1.bias", "fc2.bias")
    assert small.model.fc1.bias.requires_grad
    assert not small.model.fc2.bias.requires_grad
    assert small.model.fc1.bias.dtype == torch.float64


def test_layers_know_their_new_widths():
    case = named("norm before the activation")
    model = case.model()
    small = condense(model, every_second(model, "conv1", "conv2"), case.batches()).model
    assert (small.conv1.out_channels, small.conv2.in_channels) == (2, 2)
    assert small.middle[0].num_features == 2
    assert small.out.in_features == small.out.weight.shape[1]


@pytest.mark.parametrize(
    ("dtype", "allowed"),
    [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)],
)
@pytest.mark.parametrize("removal", REMOVALS)
def test_lower_precision_is_kept_and_checked_as_far_as_it_goes(dtype, allowed, removal):
    case = named("norm before the activation")
    model = case.model(dtype)
    small = condense(model, every_second(model, "conv1"), case.batches(dtype), removal=removal)
    assert {tensor.dtype for tensor in small.model.parameters()} == {dtype}
    assert small.check.tolerance == allowed
    assert small.check.max_error <= allowed


def test_two_heads_of_one_layer_are_both_cut():
    case = named("branch")
    model = case.model()
    small = condense(model, every_second(model, "stem"), case.batches(), removal="mean").model
    assert small.left.weight.shape[1] == small.right.weight.shape[1] == 2


def test_a_plan_that_keeps_everything_changes_nothing():
    model = PERCEPTRON.model()
    small = condense(model, Plan({"fc0": range(5)}, {"fc0": 5}), PERCEPTRON.batches())
    for name, tensor in model.state_dict().items():
        assert torch.equal(small.model.state_dict()[name], tensor)
    assert small.report.parameters == (94, 94)


def test_units_are_found_again_in_the_original():
    model = PERCEPTRON.model()
    small = condense(model, Plan({"fc0": (1, 3)}, {"fc0": 5}), PERCEPTRON.batches())
    assert [small.original_index("fc0", position) for position in (0, 1)] == [1, 3]
    assert small.original_index("fc1", 4) == 4
    assert torch.equal(small.model.fc0.weight, model.fc0.weight[[1, 3]])
    for layer, position in (("fc0", 2), ("fc0", -1), ("nothing", 0)):
        with pytest.raises(PlanError, match=layer):
            small.original_index(layer, position)


def test_it_prints_what_was_gained_and_how_exact_it_is():
    small = condense(PERCEPTRON.model(), Plan({"fc0": (1,)}, {"fc0": 5}), PERCEPTRON.batches())
    assert "units of fc0" in str(small)
    assert "condensed = masked" in str(small)


def tied():
    """Columns read the input, so that no row of either can go."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    return model


class SharedConsumer(nn.Module):
    """Two layers whose weights are one; the layer before them is read by both."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.third, self.out = nn.Linear(4, 4), nn.Linear(4, 3)
        self.third.weight = self.second.weight

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.out(torch.relu(self.third(x)))


class ReadByOne(nn.Module):
    """Two layers whose one consumer runs twice."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.relu(self.left(x))) + self.out(torch.tanh(self.right(x)))


class SharedNorm(nn.Module):
    """One BatchNorm behind two layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        x = torch.relu(self.norm(self.one(x)))
        return self.out(torch.relu(self.norm(self.two(x))))


class CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.twice(torch.relu(self.stem(x))))
        return self.out(torch.relu(self.twice(x)))


def grouped():
    return nn.Sequential(
        nn.Linear(4, 4),
        nn.Unflatten(1, (4, 1, 1)),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


SHARED = {
    # by network: the layer, its members, its width, and each weight's shape with half of it gone
    SharedConsumer: ("first", ("first", "second", "third"), 4,
                     {"first": (2, 4), "second": (2, 2), "third": (2, 2), "out": (3, 2)}),
    ReadByOne: ("left", ("left", "right"), 4,
                {"left": (2, 4), "right": (2, 4), "out": (3, 2)}),
    SharedNorm: ("one", ("one", "two"), 4,
                 {"one": (2, 4), "two": (2, 2), "out": (3, 2), "norm": (2,)}),
    CalledTwice: ("stem", ("stem", "twice"), 4,
                  {"stem": (2, 4), "twice": (2, 2), "out": (3, 2)}),
    grouped: ("0", ("0", "2"), 2,
              {"0": (2, 4), "2": (2, 2, 1, 1), "5": (3, 2)}),
}  # fmt: skip


@pytest.mark.parametrize("removal", ["zero", "mean"])
@pytest.mark.parametrize("build", SHARED)
def test_what_is_shared_is_cut_for_all_who_share_it(build, removal):
    name, members, width, shapes = SHARED[build]
    model, batches = drawn(build), pictures(4, 3, shape=(4,))
    assert look(model, batches).space[name].members == members
    plan = Plan({name: tuple(range(width // 2))}, {name: width})
    small = condense(model, plan, batches, removal=removal)
    assert small.check.max_error <= 1e-12
    weights = {owner: tuple(small.model.get_submodule(owner).weight.shape) for owner in shapes}
    assert weights == shapes
    if build is SharedConsumer:
        assert small.model.third.weight is small.model.second.weight


def spectral():
    return nn.Sequential(
        nn.Linear(4, 4),
        nn.ReLU(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        nn.ReLU(),
        nn.Linear(4, 3),
    )


class AsItIs(nn.Module):
    def forward(self, weight):
        return weight


def parametrized_consumer():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    nn.utils.parametrize.register_parametrization(model[2], "weight", AsItIs())
    return model


@pytest.mark.parametrize(
    ("build", "layer", "message"),
    [
        (tied, "0", "its weight is shared or used more than once"),
        (tied, "2", "its weight is shared or used more than once"),
        (SharedConsumer, "third", "tied to those of 'first': plan for 'first', which stands for"),
        (spectral, "2", "weight is not the parameter of a module"),
        (spectral, "0", "'0'.* cannot be switched off: .* linear"),
        (parametrized_consumer, "0", "a tensor of '2' is parametrized"),
        (tied, "nothing", "no layer 'nothing'"),
        (tied, "4", "network's outputs"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(build, layer, message):
    model = drawn(build)
    before = everything(model)
    plan = Plan({layer: (0,)}, {layer: 3 if layer == "4" else 4})
    with pytest.raises((UnitError, CondenseError, PlanError), match=message):
        condense(model, plan, pictures(4, 3, shape=(4,)))
    assert everything(model) == before


def test_a_plan_for_another_network_is_refused():
    with pytest.raises(PlanError, match="7 units of layer 'fc0', which has 5"):
        condense(PERCEPTRON.model(), Plan({"fc0": (0,)}, {"fc0": 7}), PERCEPTRON.batches())


def test_a_layer_that_never_runs_is_refused():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.used(x))

    with pytest.raises(UnitError, match="no layer 'idle'"):
        condense(drawn(Idle), Plan({"idle": (0,)}, {"idle": 4}), pictures(4, 3, shape=(4,)))


def test_constants_that_no_bias_can_hold_are_refused():
    class OwnLinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self, x):
            return nn.functional.linear(torch.tanh(self.first(x)), self.weight)

    model, batches = drawn(OwnLinear), pictures(4, 3, shape=(4,))
    plan = every_second(model, "first")
    with pytest.raises(CondenseError, match="has none and cannot be given one"):
        condense(model, plan, batches, removal="mean")
    small = condense(model, plan, batches)
    assert small.model.weight.shape == (3, 2)


def test_a_constant_that_varies_over_positions_is_refused_by_a_convolution_alone():
    def chain(*end):
        pool = nn.AvgPool2d(3, stride=1, padding=1)  # counts its padding: less at the border
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), pool, *end)

    batches = pictures(4, 3)
    model = drawn(chain, nn.Conv2d(4, 3, 4), nn.Flatten())
    with pytest.raises(UnitError, match=r"no constant of layer '0': .* still varies by 0\.\d+"):
        condense(model, every_second(model, "0"), batches, removal="parameters")
    model = drawn(chain, nn.Flatten(), nn.Linear(64, 3))
    small = condense(model, every_second(model, "0"), batches, removal="parameters")
    assert small.check.max_error <= 1e-12


def test_forwards_that_cannot_be_followed_are_refused():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.out(self.fc(x) if x.sum() > 0 else -self.fc(x))

    plan, batches = Plan({"fc": (0,)}, {"fc": 4}), pictures(4, 3, shape=(4,))
    for removal in REMOVALS:
        with pytest.raises(ModelError, match="traced"):
            condense(drawn(Branching), plan, batches, removal=removal)


def test_a_compiled_model_is_refused_with_the_remedy():
    with pytest.raises(ModelError, match="compile the result"):
        condense(
            torch.compile(PERCEPTRON.model(), backend="eager"), Plan({"fc0": (0,)}, {"fc0": 5}), []
        )


def test_a_model_that_cannot_be_copied_is_refused():
    model = PERCEPTRON.model()
    model.kept = model.fc0.weight * 2  # a computed tensor has a history that no copy can have
    with pytest.raises(CondenseError, match="cannot be copied"):
        condense(model, Plan({"fc0": (0,)}, {"fc0": 5}), PERCEPTRON.batches())


def test_other_arguments_are_checked_first():
    model, plan, batches = PERCEPTRON.model(), Plan({"fc0": (0,)}, {"fc0": 5}), PERCEPTRON.batches()
    with pytest.raises(ModelError, match="give a torch"):
        condense("model", plan, batches)
    with pytest.raises(PlanError, match="plan is a dict"):
        condense(model, {"fc0": 3}, batches)
    with pytest.raises(MethodError, match="removal='off'"):
        condense(model, plan, batches, removal="off")
    with pytest.raises(DataError, match="no batch"):
        condense(model, plan, [])
    shuffled = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*map(torch.cat, zip(*batches, strict=True))), shuffle=True
    )
    with seeded("shuffle"), pytest.raises(DataError, match="not the same at every pass"):
        condense(model, plan, shuffled)


def test_one_example_is_enough():
    case = named("norm before the activation")
    model = case.model()
    inputs, targets = case.batches()[0]
    small = condense(model, every_second(model, "conv1"), [(inputs[:1], targets[:1])])
    assert small.check.examples == 3  # once alone, and twice over


def test_no_reference_to_the_original_is_kept():
    model = PERCEPTRON.model()
    small = condense(model, every_second(model, "fc0"), PERCEPTRON.batches())
    own = {id(part) for part in small.model.parameters()}
    assert own
    held = [thing for thing in gc.get_referrers(model) if isinstance(thing, nn.Module)]
    assert held == []


def test_means_are_those_of_the_original_network():
    """A later layer's constant does not follow what the removal of earlier units does to it."""
    model, batches = PERCEPTRON.model(), PERCEPTRON.batches()
    inputs = torch.cat([inputs for inputs, _ in batches])
    plan = every_second(model, "fc0", "fc1")
    small = condense(model, plan, batches, removal="mean").model.eval()
    with torch.no_grad():
        first = torch.relu(model.fc0(inputs))
        second = torch.relu(model.fc1(first))
        constant = second.mean(0)
        first[:, [1, 3]] = first.mean(0)[[1, 3]]
        second = torch.relu(model.fc1(first))
        second[:, [1, 3]] = constant[[1, 3]]
        wanted = model.fc3(torch.relu(model.fc2(second)))
        assert error(small(inputs), wanted) <= 1e-12


@pytest.fixture(scope="module")
def authors(data_dir):
    """The neuron-ranking authors' pruned network and the units that they left in it."""
    weights = load_file(data_dir / "models" / "lenet5_mnist_pruned_7_10_40_20.safetensors")
    model = AuthorsLeNet()
    model.load_state_dict(weights)
    keep, norms = {}, {"c1": "bn1", "c3": "bn2"}
    for layer in ("c1", "c3", "c5", "f6"):
        alive = weights[f"{layer}.weight"].flatten(1).any(dim=1) | (weights[f"{layer}.bias"] != 0)
        if layer in norms:
            alive |= weights[f"{norms[layer]}.weight"] != 0
        keep[layer] = alive.nonzero().flatten()
    return model, Plan.from_keep(keep, {"c1": 10, "c3": 20, "c5": 100, "f6": 25})


@pytest.fixture(scope="module")
def answers(authors, mnist):
    """What their network says of the test pictures."""
    with torch.no_grad():
        return copy.deepcopy(authors[0]).eval()(mnist.test.inputs)


@pytest.mark.parametrize("removal", ["zero", "parameters"])
def test_the_authors_pruned_network_condenses_to_what_is_alive_in_it(
    authors, answers, mnist, removal
):
    """Both removals are exact: the BatchNorm biases of the removed units are 0 as well, so that
    what is left of a unit whose weights are 0 is 0. `parameters` would be exact beyond that."""
    model, plan = authors
    assert tuple(plan.widths_after.values()) == (7, 10, 40, 20)
    small = condense(model, plan, mnist.validation.first(400), removal=removal)
    assert isinstance(small.model, Rewritten)
    assert small.report.parameters == (40_225, 9_446)
    assert not small.origin.made
    test = mnist.test  # a final error, for which the test split is there
    with torch.no_grad():
        found = small.model.eval()(test.inputs)
    assert int((found.argmax(dim=1) == test.targets).sum()) == 9_865
    assert int((answers.argmax(dim=1) == test.targets).sum()) == 9_865
    assert float((found - answers).abs().max()) <= 1e-4


@pytest.mark.parametrize("removal", ["zero", "mean", "median", "pre-mean", "parameters"])
def test_a_plan_that_removes_nothing_changes_nothing(removal, digits):
    model = nr.zoo.digits_net(2, 3, 4, 4, seed=0)
    data = digits.validation.first(20)
    plan = nr.Plan.from_keep({"fc1": (0, 1, 2, 3)}, {"fc1": 4})
    small = nr.condense(model, plan, data, removal=removal, progress=False)
    inputs, _ = next(iter(data))
    assert torch.equal(small.model(inputs), model.eval()(inputs))
