"""Which units are judged frozen or dead, and why."""

import math

import pandas as pd
import pytest
import torch
from tests.cases import seeded
from torch import nn

import neurank as nr
from neurank.errors import MethodError, UnitError
from neurank.observe.vital_signs import Penalties, Signs, Spread
from neurank.watch.states import judged

with seeded("states"):
    DATA = [(torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3) for _ in range(2)]


def network(act=nn.ReLU):
    with seeded("judged"):
        return nn.Sequential(nn.Linear(4, 5), act(), nn.Linear(5, 3)).double()


def changed(act=nn.ReLU, *, scale=1.0, **changes):
    """A network some of whose parameters are put in place: weight=(row, value), and so on."""
    model = network(act)
    with torch.no_grad():
        model[2].weight.mul_(scale)
        for name, (unit, value) in changes.items():
            places = {
                "weight": model[0].weight[unit],
                "bias": model[0].bias[unit : unit + 1],
                "column": model[2].weight[:, unit],
            }
            places[name].copy_(torch.as_tensor(value))
    return model


FAINT = [1e-4, -1e-4, 0.0]


def layer_of(model, data=None, **settings):
    found = nr.vitals(model, data or DATA, **settings)
    return found, found.layers["0"]


def test_a_sound_network_has_no_dead_or_frozen_units():
    found, layer = layer_of(network())
    assert found.dead == {"0": ()}
    assert found.frozen == {"0": ()}
    assert layer.reasons == ("",) * 5
    assert (layer.penalties.largest > 1e-3).all()


@pytest.mark.parametrize("exact", [True, False])
def test_a_unit_that_gives_one_value(exact):
    found, layer = layer_of(changed(weight=(1, 0.0), bias=(1, 0.7)), exact=exact)
    assert found.dead == {"0": (1,)}
    assert found.frozen == {"0": ()}  # its bias still learns
    assert layer.reasons[1] == "constant output"


@pytest.mark.parametrize("exact", [True, False])
def test_a_unit_on_the_dead_side_of_its_relu(exact):
    found, layer = layer_of(changed(bias=(3, -100.0)), exact=exact)
    assert found.dead == found.frozen == {"0": (3,)}
    assert layer.reasons[3] == "saturated activation"


def test_a_unit_that_is_saturated_behind_its_tanh():
    found, layer = layer_of(changed(nn.Tanh, bias=(2, 60.0)), exact=False)
    assert found.dead == found.frozen == {"0": (2,)}
    assert layer.reasons[2] == "saturated activation"


def test_a_unit_that_nobody_weighs_in():
    found, layer = layer_of(changed(column=(4, 0.0)), exact=False)
    assert found.dead == found.frozen == {"0": (4,)}
    assert layer.reasons[4] == "zero fan-out"


def test_a_unit_of_little_effect_is_dead_by_its_exact_penalty_only():
    model = changed(nn.Tanh, column=(4, FAINT))
    assert layer_of(model, exact=False)[0].dead == {"0": ()}
    found, layer = layer_of(model)
    assert found.dead == {"0": (4,)}
    assert found.frozen == {"0": ()}
    assert layer.reasons[4] == "small effect"


def test_a_unit_can_be_frozen_and_alive():
    steep = [3e6, -2e6, 1e6, 4e6]  # on either flat side, and never between
    found, layer = layer_of(changed(nn.Hardtanh, weight=(4, steep)))
    assert found.frozen == {"0": (4,)}
    assert found.dead == {"0": ()}
    assert layer.reasons[4] == "no gradient from above"
    assert (float(layer.signs.read.low[4]), float(layer.signs.read.high[4])) == (-1, 1)
    assert layer.signs.gradient_peak[4] == 0
    assert layer.penalties.largest[4] > 0.01


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 60), (torch.float64, 500)])
def test_nothing_is_frozen_where_the_loss_is_zero(dtype, scale):
    """The logits are as far apart as it takes for no gradient in that precision."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).to(dtype)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[1.0, -1, 0], [-1, 1, 0]]) * scale)
        model[2].bias.zero_()
    inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]], dtype=dtype)
    found = nr.vitals(model, [(inputs, torch.tensor([0, 1, 0]))], exact=False)
    assert found.loss == 0
    assert found.frozen == {"0": ()}
    with torch.no_grad():
        model[2].weight.div_(scale)  # now there is a gradient to be had, and unit 2 has none of it
    found = nr.vitals(model, [(inputs, torch.tensor([0, 1, 0]))], exact=False)
    assert found.loss > 0
    assert found.frozen == {"0": (2,)}


def test_thresholds_move_the_borders():
    model = changed(nn.Tanh, column=(4, FAINT))
    penalty = float(layer_of(model)[1].penalties.largest[4])
    below, above = (nr.Thresholds(dead=penalty * share) for share in (0.9, 1.1))
    assert layer_of(model, thresholds=below)[0].dead == {"0": ()}
    assert layer_of(model, thresholds=above)[0].dead == {"0": (4,)}
    assert layer_of(model, exact=False, thresholds=nr.Thresholds(fan_out=0.01))[0].dead == {
        "0": (4,)
    }
    assert layer_of(model, exact=False, thresholds=nr.Thresholds(frozen=0.01))[0].frozen == {
        "0": (4,)
    }
    narrow = changed(weight=(1, 1e-4))
    assert layer_of(narrow, exact=False)[0].dead == {"0": ()}
    assert layer_of(narrow, exact=False, thresholds=nr.Thresholds(constant=1e-2))[0].dead == {
        "0": (1,)
    }


@pytest.mark.parametrize("field", ["frozen", "dead", "constant", "fan_out"])
@pytest.mark.parametrize("value", [-1e-9, 1, 2.5, math.nan, True, "0.1", None])
def test_thresholds_are_numbers_from_0_to_below_1(field, value):
    with pytest.raises(MethodError, match=f"{field}=.*: a threshold is a number from 0 to below"):
        nr.Thresholds(**{field: value})


def signs(**changes):
    """Signs of three units that are alive."""
    ones = torch.ones(3, dtype=torch.float64)
    spread = Spread(-ones, ones, torch.zeros(3, 0), torch.stack([-ones, ones], dim=1))
    names = ("saliency", "gradient_norm", "gradient_peak", "weight_norm", "fan_out_norm")
    return Signs(**(dict.fromkeys(names, ones) | {"given": spread, "read": spread} | changes))


def spread(low, high):
    low, high = (torch.tensor(it, dtype=torch.float64) for it in (low, high))
    return Spread(low, high, torch.zeros(3, 0), torch.stack([low, high], dim=1))


def test_borders_belong_to_what_is_marked():
    limits = nr.Thresholds(frozen=0.25, dead=0.5, constant=0.125, fan_out=0.25)
    own = signs(gradient_peak=torch.tensor([1.0, 1.01, 0.0]).double())
    assert judged(own, None, 4.0, limits).frozen.tolist() == [True, False, True]
    for high, is_dead in ((2.0, True), (2.01, False)):
        own = signs(given=spread([1.0, -8.0, -8.0], [high, 8.0, 9.0]))
        assert judged(own, None, 4.0, limits).dead.tolist() == [is_dead, False, False]
        own = signs(given=spread([16 - high, -8.0, -8.0], [16.0, 8.0, 9.0]))
        assert judged(own, None, 4.0, limits).dead.tolist() == [is_dead, False, False]
        own = signs(fan_out_norm=torch.tensor([high, 8.0, 9.0]).double())
        assert judged(own, None, 4.0, limits).dead.tolist() == [is_dead, False, False]
    losses = Penalties(torch.zeros(3), torch.tensor([0.5, 0.51, 0.0]))
    assert judged(signs(), losses, 4.0, limits).dead.tolist() == [True, False, True]


def test_a_unit_that_explodes_makes_no_other_one_dead():
    own = signs(
        given=spread([-1.0, -1.0, -1e9], [1.0, 1.0, 1e9]),
        read=spread([0.0, 0.0, 0.0], [1.0, 1.0, 1e9]),
        fan_out_norm=torch.tensor([1.0, 1.0, 1e9]).double(),
    )
    assert not judged(own, None, 1.0, nr.Thresholds()).dead.any()


def test_what_has_no_fan_out_is_not_unread():
    nan = torch.full((3,), torch.nan, dtype=torch.float64)
    assert not judged(signs(fan_out_norm=nan), None, 1.0, nr.Thresholds()).dead.any()
    nothing = torch.zeros(3, dtype=torch.float64)
    found = judged(signs(fan_out_norm=nothing), None, 1.0, nr.Thresholds())
    assert found.dead.all()
    assert set(found.reasons) == {"zero fan-out"}


def test_the_first_reason_that_holds_is_named():
    flat = spread([0.0, 0.0, -1.0], [0.0, 0.0, 1.0])
    nothing = torch.zeros(3, dtype=torch.float64)
    found = judged(
        signs(given=flat, read=flat, fan_out_norm=nothing, gradient_peak=nothing),
        Penalties(nothing, nothing),
        1.0,
        nr.Thresholds(),
    )
    assert found.reasons == ("constant output", "constant output", "zero fan-out")


def test_layers_that_never_run_are_listed():
    class Idle(nn.Sequential):
        def forward(self, x):
            return self[2](self[1](self[0](x)))

    model = Idle(*network(), nn.Linear(3, 3).double())
    found = nr.vitals(model, DATA, exact=False)
    assert list(found.layers) == ["0"]
    assert found.refused == {"3": "it never runs, or nothing comes of what it gives"}


def test_layers_are_chosen_and_outputs_refused():
    with seeded("deeper"):
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(),
                              nn.Linear(4, 3)).double()  # fmt: skip
    assert list(nr.vitals(model, DATA, layers=["2"]).layers) == ["2"]
    assert list(nr.vitals(model, DATA).layers) == ["0", "2"]
    for layers, message in (
        (["4"], "layer '4' are the network's outputs"),
        (["9"], "no layer '9'"),
        ("2", r"write layers=\['2'\]"),
        ([], "names no layer"),
    ):
        with pytest.raises(UnitError, match=message):
            nr.vitals(model, DATA, layers=layers)


def test_tables_and_text():
    found, layer = layer_of(changed(bias=(3, -100.0)))
    frame = found.to_frame()
    assert frame["unit"].tolist() == list(range(5))
    assert frame["dead"].tolist() == [False, False, False, True, False]
    assert frame["reason"].tolist()[3] == "saturated activation"
    assert frame["largest_penalty"].tolist() == layer.penalties.largest.tolist()
    assert "given_counts" not in frame
    full = found.to_frame(histograms=True)
    assert [sum(counts) for counts in full["given_counts"]] == [12] * 5
    assert list(full["read_ends"][3]) == [0.0, 0.0]
    quick = nr.vitals(network(), DATA, exact=False).to_frame()
    assert quick["mean_replacement_penalty"].isna().all()
    assert isinstance(frame, pd.DataFrame)
    first, second = str(found).splitlines()
    assert first == f"step 0, loss {found.loss:.4f}"
    assert second == "  0: 1 of 5 units dead, 1 frozen (saturated activation 1)"
