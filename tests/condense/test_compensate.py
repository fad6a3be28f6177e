import pytest
import torch
from tests.cases import named
from tests.condense.nets import every_second
from torch import nn

from neurank.condense.compensate import bias_shifts
from neurank.condense.plan import Plan
from neurank.errors import CondenseError
from neurank.observe.execution import runner
from neurank.units.space import unit_space
from neurank.units.trace import trace


def shifts(model, plan, off, shape):
    inputs = torch.zeros(2, *shape, dtype=torch.float64)
    graph = trace(model, inputs)
    running = runner(graph, model, torch.device("cpu"))
    return bias_shifts(plan, unit_space(graph, model), off, running, model)


def test_a_linear_consumer_gets_what_the_removed_units_would_have_sent():
    model = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]))
    off = {"0": torch.tensor([[5.0], [3.0], [7.0]], dtype=torch.float64)}
    found = shifts(model, Plan({"0": (0,)}, {"0": 3}), off, (1,))
    assert {name: shift.tolist() for name, shift in found.items()} == {"1.bias": [730.0, 1460.0]}


def test_a_convolution_gets_the_constant_at_every_place_of_its_kernel():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 2), nn.Flatten()).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.arange(8.0).reshape(1, 2, 2, 2))
    off = {"0": torch.full((2, 9), 0.5, dtype=torch.float64)}
    found = shifts(model, Plan({"0": (0,)}, {"0": 2}), off, (1, 3, 3))
    assert found["1.bias"].tolist() == [0.5 * (4 + 5 + 6 + 7)]


def test_what_leaves_nothing_shifts_nothing_behind_any_padding():
    case = named("skip")
    model = case.model()
    off = {"up": torch.zeros(5, 16, dtype=torch.float64)}
    assert shifts(model, every_second(model, "up"), off, case.shape) == {}


def test_only_removed_units_count():
    case = named("skip")
    model = case.model()
    off = {"up": torch.zeros(5, 16, dtype=torch.float64)}
    off["up"][0] = 1.0
    assert shifts(model, every_second(model, "up"), off, case.shape) == {}
    off["up"][1] = 1e-30
    with pytest.raises(CondenseError, match="unit 1 of layer 'up'"):
        shifts(model, every_second(model, "up"), off, case.shape)


@pytest.mark.parametrize(
    ("padding", "kernel", "refused"),
    [(0, 2, False), ("valid", 2, False), ("same", 1, False), ("same", 2, True), ((0, 1), 2, True)],
)
def test_which_paddings_are_seen(padding, kernel, refused):
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, kernel, padding=padding), nn.Flatten()
    ).double()
    off = {"0": torch.ones(2, 9, dtype=torch.float64)}
    plan = Plan({"0": (0,)}, {"0": 2})
    if refused:
        with pytest.raises(CondenseError, match="zero padding"):
            shifts(model, plan, off, (1, 3, 3))
    else:
        assert set(shifts(model, plan, off, (1, 3, 3))) == {"1.bias"}


def test_rounding_between_positions_is_no_variation():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 2), nn.Flatten()).double()
    off = {"0": torch.ones(2, 9, dtype=torch.float64)}
    off["0"][1, 4] += 2e-16
    plan = Plan({"0": (0,)}, {"0": 2})
    assert shifts(model, plan, off, (1, 3, 3))
    off["0"][1, 4] += 1e-9
    with pytest.raises(CondenseError, match="varies"):
        shifts(model, plan, off, (1, 3, 3))


def test_a_bias_that_another_layer_reads_is_not_shifted():
    model = nn.Sequential(
        nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)
    ).double()
    model[4].bias = model[2].bias
    off = {"0": torch.ones(2, 1, dtype=torch.float64)}
    with pytest.raises(CondenseError, match=r"2.bias, 4.bias"):
        shifts(model, Plan({"0": (0,)}, {"0": 2}), off, (2,))
