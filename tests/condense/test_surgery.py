import pytest
import torch
from tests.cases import named
from tests.condense.nets import drawn, every_second
from torch import nn

from neurank.condense.plan import Plan
from neurank.condense.surgery import Changes, Cut, cut_layers, cuts_for, operate
from neurank.errors import CondenseError, UnitError
from neurank.units.space import unit_space
from neurank.units.trace import trace


def changes(cuts, shifts=None):
    return Changes(cuts, shifts or {}, {}, {})


def spaced(case):
    model = case.model()
    return model, unit_space(trace(model, case.batches()[0][0]), model)


def test_a_plan_becomes_cuts_before_anything_is_touched():
    model, space = spaced(named("lenet, flatten"))
    features = model.fc1.in_features
    positions = features // 4
    cuts = cuts_for(Plan({"conv2": (0, 3)}, {"conv2": 4}), space, model)
    assert len(cuts) == 3
    assert set(cuts) == {
        Cut("conv2.weight", 0, (0, 3)),
        Cut("conv2.bias", 0, (0, 3)),
        Cut("fc1.weight", 1, (*range(positions), *range(3 * positions, features))),
    }


def test_batch_norms_of_the_bridge_are_cut_with_all_they_hold():
    model, space = spaced(named("norm before the activation"))
    cuts = cuts_for(Plan({"conv1": (1,)}, {"conv1": 4}), space, model)
    assert {cut.tensor for cut in cuts if cut.tensor.startswith("middle.0")} == {
        f"middle.0.{name}" for name in ("weight", "bias", "running_mean", "running_var")
    }


def test_a_batch_norm_behind_the_flattening_is_cut_in_blocks():
    def flat_norm():
        return nn.Sequential(
            nn.Conv2d(1, 3, 2), nn.Flatten(), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 2)
        )

    model = drawn(flat_norm)
    space = unit_space(trace(model, torch.zeros(2, 1, 3, 3, dtype=torch.float64)), model)
    cuts = cuts_for(Plan({"0": (0, 2)}, {"0": 3}), space, model)
    kept = (0, 1, 2, 3, 8, 9, 10, 11)
    assert Cut("2.running_var", 0, kept) in cuts
    assert Cut("4.weight", 1, kept) in cuts
    operate(model, changes(cuts))
    assert model[2].num_features == 8
    assert model(torch.zeros(2, 1, 3, 3, dtype=torch.float64)).shape == (2, 2)


def test_layers_that_lose_nothing_are_not_cut():
    model, space = spaced(named("perceptron"))
    plan = Plan({"fc1": range(5), "fc0": (0,)}, {"fc1": 5, "fc0": 5})
    assert [layer.name for layer in cut_layers(plan, space)] == ["fc0"]
    assert {cut.tensor for cut in cuts_for(plan, space, model)} == {
        "fc0.weight",
        "fc0.bias",
        "fc1.weight",
    }


def test_biases_shift_while_weights_are_whole_and_are_cut_afterwards():
    model, space = spaced(named("without biases"))
    plan = every_second(model, "fc0", "fc1")
    shift = torch.tensor([1.0, 2.0, 3.0, 4.0])
    operate(model, changes(cuts_for(plan, space, model), {"fc1.bias": shift}))
    assert model.fc1.bias.tolist() == [1.0, 3.0]
    assert model.fc0.bias is None
    operate(model, changes((), {"fc1.bias": torch.tensor([0.5, 0.0])}))
    assert model.fc1.bias.tolist() == [1.5, 3.0]


def test_a_tensor_that_is_not_there_is_named():
    with pytest.raises(CondenseError, match=r"no tensor 'fc9.weight'"):
        operate(named("perceptron").model(), changes((Cut("fc9.weight", 0, (0,)),)))


def test_a_bias_that_is_computed_is_refused():
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            hidden = nn.functional.linear(x, self.fc.weight, self.fc.bias * 2)
            return self.out(hidden.relu())

    model = drawn(Computed)
    space = unit_space(trace(model, torch.zeros(2, 4, dtype=torch.float64)), model)
    with pytest.raises(UnitError, match="'fc' cannot be switched off: its bias is computed"):
        cuts_for(Plan({"fc": (0,)}, {"fc": 4}), space, model)
