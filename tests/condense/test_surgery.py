import pytest
import torch
from tests.cases import Forward, named
from tests.condense.nets import drawn, every_second
from torch import nn

from neurank.condense.parts import LayerNormOfRest
from neurank.condense.plan import Plan
from neurank.condense.surgery import (
    Changes,
    Cut,
    bias_of,
    cut_layers,
    cuts_for,
    gone_classes,
    operate,
    parts_fit,
    swap_parts,
)
from neurank.errors import CondenseError, PlanError, UnitError
from neurank.units.space import unit_space
from neurank.units.trace import trace


def spaced(case):
    model = case.model()
    return model, unit_space(trace(model, case.batches()[0][0]), model)


def space_of(model, *shape):
    return unit_space(trace(model, torch.zeros(2, *shape, dtype=torch.float64)), model)


def change(model, *cuts, shifts=None, made=None, groups=None, shapes=None):
    operate(model, Changes(cuts, shifts or {}, made or {}, groups or {}, shapes or {}))


def test_a_plan_becomes_cuts_before_anything_is_touched():
    model, space = spaced(named("lenet, flatten"))
    positions = model.fc1.in_features // 4
    cuts = cuts_for(Plan({"conv2": (0, 3)}, {"conv2": 4}), space, model)
    assert set(cuts) == {
        Cut("conv2.weight", 0, (0, 3)),
        Cut("conv2.bias", 0, (0, 3)),
        Cut("fc1.weight", 1, (*range(positions), *range(3 * positions, 4 * positions))),
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
    change(model, *cuts)
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
    change(model, *cuts_for(plan, space, model), shifts={"fc1.bias": shift})
    assert model.fc1.bias.tolist() == [1.0, 3.0]
    assert model.fc0.bias is None
    change(model, shifts={"fc1.bias": torch.tensor([0.5, 0.0])})
    assert model.fc1.bias.tolist() == [1.5, 3.0]


def test_a_tensor_that_is_not_there_is_named():
    with pytest.raises(CondenseError, match=r"no tensor 'fc9.weight'"):
        change(named("perceptron").model(), Cut("fc9.weight", 0, (0,)))


def test_a_layer_whose_bias_is_computed_has_no_units():
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            hidden = nn.functional.linear(x, self.fc.weight, self.fc.bias * 2)
            return self.out(hidden.relu())

    model = drawn(Computed)
    with pytest.raises(UnitError, match="'fc' cannot be switched off: its bias is computed"):
        cuts_for(Plan({"fc": (0,)}, {"fc": 4}), space_of(model, 4), model)


class Tied(nn.Module):
    """A stem and a layer that are added, and norms of all kinds."""

    def __init__(self):
        super().__init__()
        self.stem, self.again = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.groups, self.every = nn.GroupNorm(6, 6), nn.InstanceNorm2d(6)
        self.act, self.norm = nn.PReLU(6), nn.LayerNorm(6)
        self.depthwise, self.out = nn.Conv2d(6, 12, 1, groups=6), nn.Linear(12, 3)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.register_buffer("offset", torch.zeros(1, 6, 1, 1))

    def forward(self, x):
        x = self.groups(self.stem(x))
        x = self.act(x + self.every(self.again(x))) * self.scale + self.offset
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out(self.depthwise(x).mean((2, 3)))


def test_what_is_tied_is_cut_together_and_everyone_knows_its_width():
    model = drawn(Tied)
    space = space_of(model, 1, 5, 5)
    assert list(space.layers) == ["stem", "out"]
    plan = Plan({"stem": (0, 3, 4, 5)}, {"stem": 6})
    kept, doubled = (0, 3, 4, 5), (0, 1, 6, 7, 8, 9, 10, 11)
    cuts = set(cuts_for(plan, space, model))
    assert cuts == {
        *(Cut(f"{owner}.{tensor}", 0, kept) for owner in ("stem", "again", "groups", "norm")
          for tensor in ("weight", "bias")),
        Cut("again.weight", 1, kept), Cut("act.weight", 0, kept), Cut("scale", 0, kept),
        Cut("offset", 1, kept), Cut("depthwise.weight", 0, doubled),
        Cut("depthwise.bias", 0, doubled), Cut("out.weight", 1, doubled),
    }  # fmt: skip
    change(model, *cuts, groups={"groups": 4, "depthwise": 4}, shapes={"every": (4,)})
    assert (model.stem.out_channels, model.again.in_channels, model.again.out_channels) == (4,) * 3
    assert (model.groups.num_channels, model.groups.num_groups) == (4, 4)
    assert (model.every.num_features, model.act.num_parameters) == (4, 4)
    assert model.norm.normalized_shape == (4,)
    assert (model.depthwise.groups, model.depthwise.in_channels) == (4, 4)
    assert (model.depthwise.out_channels, model.out.in_features) == (8, 8)
    assert isinstance(model.scale, nn.Parameter)
    assert model.offset.shape == (1, 4, 1, 1)
    assert "offset" in dict(model.named_buffers())
    assert model(torch.zeros(2, 1, 5, 5, dtype=torch.float64)).shape == (2, 3)


def test_gone_classes_are_those_of_removed_units():
    _, space = spaced(named("branch"))
    layer = space["left"]
    gone = gone_classes(Plan({"left": (0, 2)}, {"left": 3}), space)
    assert gone.nonzero().flatten().tolist() == [layer.classes[1]]
    assert len(gone) == int(space.coupling.classes.max()) + 1


@pytest.mark.parametrize(
    ("layer", "keep", "width", "message"),
    [
        ("right", (0,), 3, "'right' are tied to those of 'left': plan for 'left'"),
        ("left", (0,), 4, "4 units of layer 'left', which has 3"),
        ("out", (0,), 3, "network's outputs, its classes"),
    ],
)
def test_plans_that_do_not_fit_are_refused(layer, keep, width, message):
    _, space = spaced(named("branch"))
    with pytest.raises(PlanError, match=message):
        gone_classes(Plan({layer: keep}, {layer: width}), space)


def test_a_layer_may_not_be_left_without_anything():
    """Each of two layers keeps what the other's reader does not read."""

    def forward(net, x):
        return net.out(net.one(x)[:, :2]) + net.other(net.one(x)[:, 2:])

    model = Forward(forward, one=nn.Linear(4, 4), out=nn.Linear(2, 3), other=nn.Linear(2, 3))
    model = model.double()
    with pytest.raises(CondenseError, match=r"leaves nothing of 'out\.weight'.* Keep at least one"):
        cuts_for(Plan({"one": (2, 3)}, {"one": 4}), space_of(model, 4), model)


def test_tensors_are_made_where_they_train_and_where_they_only_count():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.LayerNorm(4)).double()
    model[0].requires_grad_(requires_grad=False)
    made = {"0.constant": torch.ones(1, 2, 3, 3), "1.removed": torch.ones(3)}
    change(model, made=made)
    assert isinstance(model[0].constant, nn.Parameter)
    assert not model[0].constant.requires_grad
    assert set(dict(model.named_buffers())) == {"1.removed"}
    assert set(model.state_dict()) >= set(made)
    assert parts_fit(model, made)
    swap_parts(model, ["1.removed"])
    assert type(model[1]) is LayerNormOfRest


def test_a_subclass_is_no_layer_of_torchs_own():
    class Own(nn.LayerNorm):
        pass

    assert not parts_fit(nn.Sequential(Own(4)), ["0.removed"])
    assert not parts_fit(nn.Sequential(nn.BatchNorm1d(4)), ["0.removed"])


def test_a_made_kernel_beside_a_weight_of_another_name_trains_as_it_does():
    model = nn.Module()
    model.filters = nn.Parameter(torch.ones(1, 2, 3, 3))
    change(model, made={"filters_constant": torch.ones(1, 1, 3, 3)})
    assert model.filters_constant.requires_grad


def test_a_bias_can_be_made_for_torchs_own_layers_alone():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 4))

        def forward(self, x):
            return nn.functional.linear(x, self.weight)

    model = nn.Sequential(nn.Linear(4, 4, bias=False), Own()).double()
    first, second = trace(model, torch.zeros(2, 4, dtype=torch.float64)).operations
    assert bias_of(first, model) == "0.bias"
    with pytest.raises(CondenseError, match="bias of '1', which has none and cannot be given one"):
        bias_of(second, model)
