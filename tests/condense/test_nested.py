"""Networks that keep more and more of the same units, against the masked network."""

import random

import pytest
import torch
from tests.cases import CASES, Forward, look, named, watch
from tests.condense.test_thinned import FEW_OR_ALL, apart, by_switches, inputs_of, off_of, swept
from tests.condense.zoo import batches, cuttable, examples, watched
from tests.oracles.condense import masked_outputs
from tests.oracles.game import logits_of
from torch import nn

from neurank.condense.nested import PartialSum, RunningSums, are_nested, first_readers
from neurank.condense.thinned import sweep, thinned

LENET = named("lenet, flatten")


def growing(widths, seed, steps=5):
    """Points that remove fewer and fewer units, each only such as the one before it removes."""
    draw = random.Random(seed)
    order = {layer: draw.sample(range(width), width) for layer, width in widths.items()}
    return [
        {layer: units[: max(1, len(units) * part // (steps + 1))] for layer, units in order.items()}
        for part in range(steps, 0, -1)
    ]


def readers_of(watching, layers):
    return first_readers([watching.space[layer] for layer in layers], watching.space.graph)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_small_network_in_a_growing_sweep(case):
    read = {layer: readers for layer, readers in case.reads.items() if readers}
    watching, inputs = watch(case), inputs_of(case)
    widths = {it: watching.space[it].width for it in read if watching.space[it].width > 1}
    if not widths:
        return
    for some in (widths, dict(list(widths.items())[-1:]), dict(list(widths.items())[1:])):
        points = random.Random(case.name).sample(made := growing(some, case.name), len(made))
        for point, found in zip(points, swept(points, watching, inputs), strict=True):
            wanted = masked_outputs(case.model(), read, point, "zero", None, torch.cat(inputs))
            assert apart(found, logits_of(wanted)) <= 1e-12, point


@pytest.mark.parametrize("name", FEW_OR_ALL)
def test_every_architecture_in_a_growing_sweep(name):
    watching = watched(name)
    widths = {it: watching.space[it].width for it in cuttable(name)}
    points = growing({it: width for it, width in widths.items() if width > 1}, name, 3)
    results = swept(points, watching, [it for it, _ in batches(name)])
    for point, found in zip(points, results, strict=True):
        assert apart(found, by_switches(point, watching, examples(name))) <= 1e-12, point


@pytest.mark.parametrize("name", ["lenet, flatten", "norm behind the activation", "branch", "skip"])
def test_biases_that_make_up_for_means_are_those_of_each_network(name):
    case = named(name)
    watching, inputs = watch(case), inputs_of(case)
    read = {layer: readers for layer, readers in case.reads.items() if readers}
    widths = {layer: watching.space[layer].width for layer in read}
    off = off_of(watching, widths, "mean")
    points = growing({it: width for it, width in widths.items() if width > 1}, name)
    for point, found in zip(points, swept(points, watching, inputs, off=off), strict=True):
        wanted = masked_outputs(
            case.model(), read, point, "mean", case.batches(), torch.cat(inputs)
        )
        assert apart(found, wanted) <= 1e-12, point


def test_the_first_readers_are_those_that_no_other_cut_layer_changes():
    watching = watch(LENET)
    by_layers = {
        ("conv1", "conv2", "fc1"): ["conv1"],
        ("conv2", "fc1"): ["conv2"],
        ("fc1",): ["fc1"],
    }
    for layers, wanted in by_layers.items():
        assert [list(it.units) for it in readers_of(watching, layers)] == [[it] for it in wanted]
    assert readers_of(watching, ()) == ()


def test_what_is_read_by_anything_but_sums_is_left_alone():
    """A stem whose units are added to others, too."""
    watching = watched("resnet-basic")
    assert readers_of(watching, ["stem.0"]) == ()
    assert readers_of(watching, ["blocks.0.conv1"])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_with_groups_sum_over_their_own_units_only(groups):
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 1, groups=groups)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    ).double()
    inputs = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    watching = look(model, [(inputs, torch.arange(3))])
    found = [it.operation.weights[0] for it in readers_of(watching, ["0"])]
    assert ("2.weight" in found) == (groups == 1)
    points = growing({"0": watching.space["0"].width}, "groups", 3)
    for point, it in zip(points, swept(points, watching, [inputs]), strict=True):
        assert apart(it, by_switches(point, watching, inputs)) <= 1e-12


def test_units_of_two_layers_that_are_read_as_one():
    def forward(net, x):
        return net.out(net.mixed(torch.cat([net.one(x), net.two(x)], dim=1)).relu())

    torch.manual_seed(0)
    model = Forward(forward, one=nn.Linear(4, 6), two=nn.Linear(4, 5), mixed=nn.Linear(11, 4),
                    out=nn.Linear(4, 3)).double()  # fmt: skip
    inputs = torch.randn(6, 4, dtype=torch.float64)
    watching = look(model, [(inputs, torch.tensor([0, 1, 2, 0, 1, 2]))])
    (reader,) = readers_of(watching, ["one", "two"])
    assert set(reader.units) == {"one", "two"}
    left = reader.left({"one": (5, 0), "two": (1,)})
    assert left.tolist() == [False, *[True] * 4, False, True, False, *[True] * 3]
    points = growing({"one": 6, "two": 5, "mixed": 4}, "two")
    for point, found in zip(points, swept(points, watching, [inputs]), strict=True):
        assert apart(found, by_switches(point, watching, inputs)) <= 1e-12


def test_each_entry_is_multiplied_once(monkeypatch):
    multiplied, over = [], PartialSum.over
    monkeypatch.setattr(
        PartialSum,
        "over",
        lambda part, entries, read: multiplied.append(entries) or over(part, entries, read),
    )
    watching, inputs = watch(LENET), inputs_of(LENET, (12,))
    points = growing({it: watching.space[it].width for it in ("conv1", "conv2")}, "lenet")
    swept(points, watching, inputs)
    (reader,) = readers_of(watching, points[0])
    assert torch.equal(torch.stack(multiplied).sum(dim=0) > 0, reader.left(points[-1]))
    assert int(torch.stack(multiplied).sum()) == int(reader.left(points[-1]).sum())


def test_a_sum_starts_again_where_units_are_lost():
    watching, inputs = watch(LENET), inputs_of(LENET)
    readers = readers_of(watching, ["conv1"])
    running = RunningSums()
    for units in ((0,), (1,), (0, 1), ()):
        point = {"conv1": units} if units else {"conv1": (2,)}
        (part,) = thinned(point, watching, None, readers).sums
        whole = watching.runner.forward(inputs[0], part.reader.read)[0]
        kept = running.result(part, 0, whole)
        assert apart(kept, part.of(part.over(part.left, whole))) <= 1e-14


def test_what_a_network_was_given_is_not_changed_by_the_next():
    watching, inputs = watch(LENET), inputs_of(LENET)
    readers = readers_of(watching, ["conv1"])
    running = RunningSums()
    kept = []
    for units in ((0, 1), (0,)):
        (part,) = thinned({"conv1": units}, watching, None, readers).sums
        whole = watching.runner.forward(inputs[0], part.reader.read)[0]
        found = running.result(part, 0, whole)
        kept.append((found, found.clone()))
    assert all(torch.equal(one, other) for one, other in kept)


def test_points_that_are_not_nested_share_no_sums():
    watching, inputs = watch(LENET), inputs_of(LENET)
    readers = readers_of(watching, ["conv1"])
    assert are_nested(readers, [{"conv1": (0, 1)}, {"conv1": (1,)}])
    assert are_nested(readers, [{"conv1": (1,)}, {"conv1": (1,)}])
    assert not are_nested(readers, [{"conv1": (1,)}, {"conv1": (0, 1)}])
    assert not are_nested(readers, [{"conv1": (0,)}, {"conv1": (1,)}])
    points = [{"conv1": (0,)}, {"conv1": (1,)}]
    alone = [swept([point], watching, inputs)[0] for point in points]
    assert all(map(torch.equal, swept(points, watching, inputs), alone))


def test_without_room_sums_are_not_kept():
    watching, inputs = watch(LENET), inputs_of(LENET)
    points = [{"conv1": (0, 1)}, {"conv1": (0,)}, {"conv1": (0, 1, 2)}]
    alone = [swept([point], watching, inputs)[0] for point in points]
    assert all(map(torch.equal, swept(points, watching, inputs, memory=0), alone))
    shared = dict(sweep(points, watching, inputs))
    assert not all(torch.equal(shared[at], alone[at]) for at in shared)
    assert all(apart(shared[at], alone[at]) <= 1e-14 for at in shared)


def test_sums_are_kept_where_what_is_read_and_given_fits_to_the_byte():
    watching, inputs = watch(LENET), inputs_of(LENET)
    points = [{"conv1": (0, 1)}, {"conv1": (0,)}]
    alone = [swept([point], watching, inputs)[0] for point in points]
    (reader,) = readers_of(watching, ["conv1"])
    room = sum(
        it.nbytes
        for batch in inputs
        for it in watching.runner.forward(batch, reader.read, reader.operation.name)
    )
    enough = swept(points, watching, inputs, memory=room)
    assert not all(map(torch.equal, enough, alone))
    assert all(map(torch.equal, swept(points, watching, inputs, memory=room - 1), alone))
