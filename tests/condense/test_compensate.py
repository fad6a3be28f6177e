import pytest
import torch
from tests.cases import named
from tests.condense.nets import every_second
from torch import nn

from neurank.condense.compensate import check_border, compensation
from neurank.condense.plan import Plan
from neurank.condense.surgery import gone_classes
from neurank.errors import CondenseError, MethodError
from neurank.observe.execution import runner
from neurank.units.space import unit_space
from neurank.units.trace import trace


def made_up(model, plan, off, shape, **border):
    """What condensing adds to a network whose removed units give the constants `off`."""
    inputs = torch.zeros(2, *shape, dtype=torch.float64)
    graph = trace(model, inputs)
    running, space = runner(graph, model, torch.device("cpu")), unit_space(graph, model)
    constants = {
        layer: tuple(torch.tensor(values, dtype=torch.float64) for _ in space[layer].reads)
        for layer, values in off.items()
    }
    gone = gone_classes(plan, space)
    return compensation(plan, space, constants, running, model, gone, **border)


def test_a_linear_consumer_gets_what_the_removed_units_would_have_sent():
    model = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]))
    found = made_up(model, Plan({"0": (0,)}, {"0": 3}), {"0": [5.0, 3.0, 7.0]}, (1,))
    assert {name: it.tolist() for name, it in found.shifts.items()} == {"1.bias": [730.0, 1460.0]}
    assert found.made == {}


def test_a_convolution_gets_the_constant_at_every_place_of_its_kernel():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 2), nn.Flatten()).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.arange(8.0).reshape(1, 2, 2, 2))
    found = made_up(model, Plan({"0": (0,)}, {"0": 2}), {"0": [0.5, 0.5]}, (1, 3, 3))
    assert found.shifts["1.bias"].tolist() == [0.5 * (4 + 5 + 6 + 7)]


def test_what_leaves_nothing_adds_nothing_behind_any_padding():
    case = named("skip")
    model = case.model()
    found = made_up(model, every_second(model, "up"), {"up": [0.0] * 5}, case.shape)
    assert (found.shifts, found.made) == ({}, {})


def test_only_removed_units_count():
    case = named("skip")
    model = case.model()
    plan = every_second(model, "up")
    assert made_up(model, plan, {"up": [1.0, 0.0, 1.0, 0.0, 1.0]}, case.shape).made == {}
    assert set(made_up(model, plan, {"up": [0.0, 1.0, 0.0, 0.0, 0.0]}, case.shape).made) == {
        "down.constant"
    }


@pytest.mark.parametrize(
    ("padding", "kernel", "seen"),
    [(0, 2, False), ("valid", 2, False), ("same", 1, False), ("same", 2, True), ((0, 1), 2, True)],
)
def test_which_paddings_are_seen(padding, kernel, seen):
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, kernel, padding=padding), nn.Flatten()
    ).double()
    plan = Plan({"0": (0,)}, {"0": 2})
    found = made_up(model, plan, {"0": [1.0, 2.0]}, (1, 3, 3))
    if seen:
        assert found.shifts == {}
        wanted = 2 * model[1].weight[:, 1:]
        assert torch.allclose(found.made["1.constant"], wanted)
    else:
        assert found.made == {}
        assert set(found.shifts) == {"1.bias"}
    folded = made_up(model, plan, {"0": [1.0, 2.0]}, (1, 3, 3), border="folded")
    assert folded.made == {}
    assert torch.allclose(folded.shifts["1.bias"], 2 * model[1].weight[:, 1].sum())


def test_ways_with_borders_are_named():
    assert check_border("folded") == "folded"
    with pytest.raises(MethodError, match="border='soft' is unknown: it is 'exact' or 'folded'"):
        check_border("soft")


def test_the_kernel_of_a_layer_that_loses_rows_itself_is_cut_as_they_are():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(27, 2)
    ).double()
    plan = Plan({"0": (0,), "1": (0, 2)}, {"0": 2, "1": 3})
    off = {"0": [1.0, 1.0], "1": [0.0] * 27}
    found = made_up(model, plan, off, (1, 3, 3))
    assert torch.allclose(found.made["1.constant"], model[1].weight[[0, 2], 1:])


def test_a_normalisation_goes_on_counting():
    model = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    plan = Plan({"0": (0, 2)}, {"0": 4})
    found = made_up(model, plan, {"0": [9.0, 2.0, 9.0, 3.0]}, (2,))
    assert found.made["1.removed"].tolist() == [2, 5, 13]  # how many, their sum, their squares


def test_a_normalisation_counts_group_by_group():
    model = nn.Sequential(
        nn.Conv2d(1, 6, 1), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(6, 2)
    ).double()
    plan = Plan({"0": (0, 1)}, {"0": 3})  # each unit is a place in both groups
    inputs = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    graph = trace(model, inputs)
    space = unit_space(graph, model)
    constants = torch.arange(6, dtype=torch.float64)
    off = {"0": tuple(constants for _ in space["0"].reads)}
    running = runner(graph, model, torch.device("cpu"))
    found = compensation(plan, space, off, running, model, gone_classes(plan, space))
    assert found.made["1.removed"].tolist() == [[1, 2, 4], [1, 5, 25]]


def test_a_bias_that_another_layer_reads_is_not_shifted():
    model = nn.Sequential(
        nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)
    ).double()
    model[4].bias = model[2].bias
    with pytest.raises(CondenseError, match=r"4.bias.*another layer"):
        made_up(model, Plan({"0": (0,)}, {"0": 2}), {"0": [1.0, 1.0]}, (2,))
