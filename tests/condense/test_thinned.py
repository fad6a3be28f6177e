"""Networks without some units, run as operations: each is the masked network, whatever is off.

What the masked network is, is asked of hooks on the modules that a person found to read the units,
and, where nobody wrote those down, of the switches that condensing is checked with.
"""

import copy
import random

import pytest
import torch
from tests.architectures import SLOW_TO_TRACE
from tests.cases import CASES, look, named, watch
from tests.condense.nets import everything
from tests.condense.zoo import NAMES, batches, cuttable, examples, planned, watched
from tests.oracles.condense import masked_by_hand, masked_outputs
from tests.oracles.game import logits_of
from tests.oracles.reads import READS, opened
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from neurank.condense.kept import Plan
from neurank.condense.thinned import sweep, thinned
from neurank.condense.verify import masked_logits
from neurank.errors import PlanError, UnitError
from neurank.observe.removal import off_constants

CASE = named("lenet, flatten")
QUICK = {"lenet", "resnet-basic", "shufflenet-v2", "group-norm", "vit-fused-attention",
         "tied-autoencoder"}  # fmt: skip
"""Architectures in the fast tests."""
FEW_OR_ALL = [
    pytest.param(name, marks=[] if name in QUICK - SLOW_TO_TRACE else [pytest.mark.slow])
    for name in NAMES
]


def apart(found, wanted):
    """The largest difference, relative to the largest number."""
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max()) / (float(wanted.abs().max()) or 1.0)


def swept(points, watching, inputs, **options):
    """The logits point by point, each seen once."""
    found = dict(sweep(points, watching, inputs, **options))
    assert sorted(found) == list(range(len(points)))
    return [found[place] for place in range(len(points))]


def inputs_of(case, sizes=(5, 4, 3)):
    return [inputs for inputs, _ in case.batches(sizes=sizes)]


def off_of(watching, layers, removal):
    where = [watching.space[layer] for layer in layers]
    return off_constants(removal, where, watching.runner, watching.examples)


def by_switches(removed, watching, inputs, removal="zero"):
    """The masked network by the switches of `verify`; no layer can be off as a whole."""
    widths = {layer: watching.space[layer].width for layer in removed}
    keep = {
        layer: tuple(sorted(set(range(widths[layer])) - set(units)))
        for layer, units in removed.items()
    }
    plan = Plan(keep, widths)
    off = off_of(watching, removed, removal)
    with torch.inference_mode():
        return masked_logits(plan, watching.space, off, watching.runner, inputs)


def drawn_points(widths, name, *, whole):
    """Every layer by itself, some together, all; a few units, and (where `whole`) all units."""
    draw = random.Random(name)
    points = [{}, dict.fromkeys(widths, ())]
    for layer, width in widths.items():
        points += [
            {layer: (width - 1,)},
            {layer: draw.sample(range(width), draw.randint(0, width - 1))},
        ]
        points += [{layer: range(width)}] if whole else []
    for _ in range(4):
        some = draw.sample(list(widths), draw.randint(1, len(widths)))
        points.append(
            {
                it: draw.sample(range(widths[it]), draw.randint(0, widths[it] - (not whole)))
                for it in some
            }
        )
    if whole:
        points.append({layer: range(width) for layer, width in widths.items()})
    return points


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_small_network_is_the_masked_one(case):
    read = {layer: readers for layer, readers in case.reads.items() if readers}
    watching, inputs = watch(case), inputs_of(case)
    widths = {layer: watching.space[layer].width for layer in read}
    if not widths:
        return
    points = drawn_points(widths, case.name, whole=True)
    for point, found in zip(points, swept(points, watching, inputs), strict=True):
        wanted = masked_outputs(case.model(), read, point, "zero", None, torch.cat(inputs))
        assert apart(found, logits_of(wanted)) <= 1e-12, point


@pytest.mark.parametrize("case", CASES, ids=str)
def test_units_that_are_tied_go_from_all_their_layers(case):
    watching, inputs = watch(case), inputs_of(case)
    widths = {it: watching.space[it].width for it in watching.space.hidden}
    points = drawn_points(widths, case.name + " tied", whole=False)
    for point, found in zip(points, swept(points, watching, inputs), strict=True):
        wanted = by_switches(point or dict.fromkeys(widths, ()), watching, torch.cat(inputs))
        assert apart(found, wanted) <= 1e-12, point


@pytest.mark.parametrize("removal", ["zero", "mean"])
@pytest.mark.parametrize("name", ["lenet, flatten", "norm behind the activation", "branch", "skip"])
def test_what_is_off_gives_what_is_said(name, removal):
    case = named(name)
    watching, inputs = watch(case), inputs_of(case)
    read = {layer: readers for layer, readers in case.reads.items() if readers}
    widths = {layer: watching.space[layer].width for layer in read}
    off = off_of(watching, widths, removal)
    points = drawn_points(widths, name + removal, whole=True)
    for point, found in zip(points, swept(points, watching, inputs, off=off), strict=True):
        wanted = masked_outputs(
            case.model(), read, point, removal, case.batches(), torch.cat(inputs)
        )
        assert apart(found, wanted) <= 1e-12, point


@pytest.mark.parametrize("name", FEW_OR_ALL)
def test_every_architecture_is_the_masked_one(name):
    watching, by_hand = watched(name), name in READS
    layers = random.Random(name).sample(cuttable(name), min(4, len(cuttable(name))))
    widths = {layer: watching.space[layer].width for layer in layers}
    points = drawn_points(widths, name, whole=by_hand)
    for pattern in ("second", "all but one"):
        plan = planned(name, pattern)
        points.append({layer: plan.removed(layer) for layer in plan.keep})
    results = swept(points, watching, [it for it, _ in batches(name)])
    model = opened(name, copy.deepcopy(watching.model)) if by_hand else None
    for point, found in zip(points, results, strict=True):
        if by_hand:
            wanted = masked_by_hand(model, READS[name], point, "zero", None, examples(name))
        else:
            wanted = by_switches(point or dict.fromkeys(widths, ()), watching, examples(name))
        assert apart(found, logits_of(wanted)) <= 1e-12, point


@pytest.mark.parametrize("name", FEW_OR_ALL)
def test_every_architecture_can_leave_its_means(name):
    if name == "non-local":  # whose units leave no constant
        return
    watching = watched(name)
    inputs = [it for it, _ in batches(name)]
    plan = planned(name, "second")
    removed = {layer: plan.removed(layer) for layer in plan.keep}
    off = off_of(watching, removed, "mean")
    (found,) = swept([removed], watching, inputs, off=off)
    assert apart(found, by_switches(removed, watching, examples(name), "mean")) <= 1e-12


def test_what_cannot_be_cut_is_switched_off():
    """One half of a split runs empty here, which no cut can leave."""
    name = "shufflenet-v2"
    watching, layer = watched(name), "1.left.1.0"
    removed = {layer: range(1, watching.space[layer].width)}
    thin = thinned(removed, watching)
    assert thin.start == (watching.space.graph.input,)
    assert list(thin.given)
    assert not thinned({layer: (0,)}, watching).given  # while that is cut
    wanted = masked_by_hand(watching.model, READS[name], removed, "zero", None, examples(name))
    (found,) = swept([removed], watching, [examples(name)])
    assert apart(found, wanted) <= 1e-12


def test_a_layer_of_which_nothing_is_left_gives_its_readers_their_biases():
    watching, inputs = watch(CASE), inputs_of(CASE)
    (found,) = swept([{"fc1": range(5)}], watching, inputs)
    assert torch.equal(found, watching.model.fc2.bias.detach().expand(12, 3))


def test_units_may_be_named_in_any_order_and_twice():
    watching, inputs = watch(CASE), inputs_of(CASE)
    points = [{"conv2": (1, 3), "fc1": (0,)}, {"fc1": [0, 0], "conv2": torch.tensor([3, 1, 3])}]
    one, other = swept(points, watching, inputs)
    assert torch.equal(one, other)


POINTS = (
    {"fc1": (0,)}, {"conv2": (1,)}, {}, {"fc1": (1, 2)}, {"conv1": (0,), "fc1": (1,)},
    {"conv2": (0, 3)}, {"fc1": (4,)}, {"conv1": (0, 1, 2)}, {"conv1": (2,)},
)  # fmt: skip


def test_the_order_of_points_does_not_matter():
    watching, inputs = watch(CASE), inputs_of(CASE)
    forth = swept(POINTS, watching, inputs)
    back = swept(POINTS[::-1], watching, inputs)
    alone = [swept([point], watching, inputs)[0] for point in POINTS]
    for one, other, third in zip(forth, back[::-1], alone, strict=True):
        assert torch.equal(one, other)
        assert apart(one, third) <= 1e-14  # sums that are shared are added up in another order


@pytest.mark.parametrize("memory", [0, 1, 8 * 16 * 5, 8 * 16 * 9])
def test_memory_changes_nothing_but_the_order_of_additions(memory):
    watching, inputs = watch(CASE), inputs_of(CASE)
    for one, other in zip(
        swept(POINTS, watching, inputs), swept(POINTS, watching, inputs, memory=memory), strict=True
    ):
        assert apart(one, other) <= 1e-14


@pytest.mark.parametrize("memory", [0, 1, 8 * 16 * 5, 8 * 16 * 9])
def test_memory_changes_no_bit_where_no_sums_are_shared(memory):
    watching, inputs = watch(CASE), inputs_of(CASE)
    points = [point for point in POINTS if "conv1" not in point and point != {"fc1": (0,)}]
    for one, other in zip(
        swept(points, watching, inputs), swept(points, watching, inputs, memory=memory), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("sizes", [(12,), (1,) * 12, (7, 1, 4)])
def test_how_examples_are_cut_into_batches_does_not_matter(sizes):
    watching = watch(CASE)
    wanted = swept(POINTS, watching, inputs_of(CASE))
    for found, one in zip(swept(POINTS, watching, inputs_of(CASE, sizes)), wanted, strict=True):
        assert apart(found, one) <= 1e-14


class Reading(TorchDispatchMode):
    """Counts how often each of some tensors is read by a convolution."""

    def __init__(self, **tensors):
        super().__init__()
        self.names = {tensor.data_ptr(): name for name, tensor in tensors.items()}
        self.counts = dict.fromkeys(tensors, 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "conv" in str(func) and args[1].data_ptr() in self.names:
            self.counts[self.names[args[1].data_ptr()]] += 1
        return func(*args, **(kwargs or {}))


def convolutions_run(points, **options):
    """How often the whole first and second convolutions of the LeNet run, with three batches."""
    watching, inputs = watch(CASE), inputs_of(CASE)
    weights = {name: watching.runner.tensors[f"{name}.weight"] for name in ("conv1", "conv2")}
    with Reading(**weights) as reading:
        swept(points, watching, inputs, **options)
    return reading.counts


BATCHES = 3


def test_what_no_removed_unit_touches_is_computed_once():
    behind = [{"fc1": (unit,)} for unit in range(5)]
    assert convolutions_run(behind) == {"conv1": BATCHES, "conv2": BATCHES}
    # The second convolution is cut, the first is not.
    second = [{"conv2": (unit,)} for unit in range(4)]
    assert convolutions_run(second) == {"conv1": BATCHES, "conv2": 0}
    # Once for each place where networks part, even if they are given in turns.
    turns = [point for pair in zip(behind, second, strict=False) for point in pair]
    assert convolutions_run(turns) == {"conv1": 2 * BATCHES, "conv2": BATCHES}
    both = [{"conv2": (unit,), "fc1": (0,)} for unit in range(4)]
    assert convolutions_run([*second, *both]) == {"conv1": BATCHES, "conv2": 0}


def test_without_memory_it_is_computed_for_each():
    behind = [{"fc1": (unit,)} for unit in range(5)]
    expected = {"conv1": 5 * BATCHES, "conv2": 5 * BATCHES}
    assert convolutions_run(behind, memory=0) == expected
    # 16 numbers of 8 bytes for each of 12 examples are kept: a byte less, and they are not.
    assert convolutions_run(behind, memory=12 * 16 * 8 - 1) == expected
    assert convolutions_run(behind, memory=12 * 16 * 8)["conv1"] == BATCHES


def test_no_points_no_runs():
    assert list(sweep([], watch(CASE), inputs_of(CASE))) == []


def test_the_network_is_as_it_was():
    model = CASE.model().eval()
    model.conv1.weight.requires_grad_(False)
    model.fc1.register_forward_hook(lambda *_: None)
    watching = look(model, CASE.batches())
    before = everything(model)
    swept(POINTS, watching, inputs_of(CASE))
    swept([{"conv1": (1,)}], watching, inputs_of(CASE), off=off_of(watching, ["conv1"], "mean"))
    assert everything(model) == before


def test_what_a_sweep_gives_is_not_changed_by_what_follows():
    watching, inputs = watch(CASE), inputs_of(CASE)
    kept = []
    for _, logits in sweep([{"fc1": (0,)}, {"fc1": (1,)}, {}], watching, inputs):
        kept.append((logits, logits.clone()))
    assert all(torch.equal(one, other) for one, other in kept)


@pytest.mark.parametrize("units", [(0,), (0, 1, 2)])
def test_outputs_cannot_be_off(units):
    with pytest.raises(PlanError, match="'fc2' are the network's outputs"):
        thinned({"conv1": (0,), "fc2": units}, watch(CASE))
    thinned({"conv1": (0,), "fc2": ()}, watch(CASE))


@pytest.mark.parametrize("units", [(0,), ()])
def test_a_layer_that_is_not_there_is_refused(units):
    with pytest.raises(UnitError, match="no layer 'fc9': layers with units are conv1, conv2"):
        thinned({"fc9": units, "conv1": (0,)}, watch(CASE))


@pytest.mark.parametrize("unit", [-1, 4, 99])
@pytest.mark.parametrize("others", [(), (0, 1, 2, 3)])
def test_units_that_are_not_there_are_refused(unit, others):
    with pytest.raises(PlanError, match=f"'conv2' has no unit {unit}, only 0 to 3"):
        thinned({"conv2": (*others, unit)}, watch(CASE))


def test_tied_layers_go_by_one_name():
    watching = watched("resnet-basic")
    other = next(it for it in watching.space["stem.0"].members if it != "stem.0")
    with pytest.raises(PlanError, match=r"tied to those of 'stem.0': name 'stem.0'"):
        thinned({other: (0,)}, watching)


def test_a_network_in_single_precision():
    watching = watch(CASE, torch.float32)
    inputs = [it for it, _ in CASE.batches(torch.float32)]
    for found, wanted in zip(
        swept(POINTS, watching, inputs), swept(POINTS, watch(CASE), inputs_of(CASE)), strict=True
    ):
        assert found.dtype == torch.float32
        assert apart(found.double(), wanted) <= 1e-5


def test_a_convolution_at_the_end_can_be_swept():
    """A fully convolutional network, whose outputs are means of maps."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    data = [(torch.randn(6, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2]))]
    watching = look(model, data)
    points = [{"0": (1, 2)}, {"0": range(4)}, {}]
    for point, found in zip(points, swept(points, watching, [data[0][0]]), strict=True):
        wanted = masked_outputs(model, {"0": ("2",)}, point, "zero", None, data[0][0])
        assert apart(found, wanted) <= 1e-12
