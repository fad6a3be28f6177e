import pytest
import torch
from tests.cases import chain, conv
from torch import nn

from neurank.errors import UnitError
from neurank.observe.hooks import calls_recorded, units_off


def hooks_of(model):
    return [len(module._forward_hooks) for module in model.modules()]


def network():
    return chain(one=conv(1, 3), act=nn.ReLU(inplace=True), flat=nn.Flatten(), out=nn.Linear(12, 2))


def test_units_that_are_off_compute_zero_example_by_example():
    model, x = network(), torch.randn(2, 1, 3, 3)
    off = torch.tensor([[True, False, False], [False, False, True]])
    with torch.no_grad():
        before = model.one(x)
        with units_off(model, "one", off):
            inside = model.one(x)
    assert (inside[0, 0] == 0).all()
    assert (inside[1, 2] == 0).all()
    assert torch.equal(inside[0, 1:], before[0, 1:])
    assert torch.equal(inside[1, :2], before[1, :2])


@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_of_ours_stays_and_the_user_s_does(fails):
    model, x = network(), torch.randn(2, 1, 3, 3)
    seen = []
    model.one.register_forward_hook(lambda *_: seen.append(1))
    before = hooks_of(model)
    off = torch.zeros(2, 3, dtype=torch.bool)
    for hooked in (units_off(model, "one", off), calls_recorded(model)):
        try:
            with hooked:
                model(torch.randn(2, 5, 3, 3) if fails else x)
        except RuntimeError:
            assert fails
        assert hooks_of(model) == before
    assert len(seen) == (0 if fails else 2)


def test_a_layer_on_other_examples_than_were_given_is_refused():
    model = network()
    off = torch.zeros(2, 3, dtype=torch.bool)
    with (
        units_off(model, "one", off),
        pytest.raises(UnitError, match=r"layer 'one' returned .*\(3, 3, 2, 2\).*2 examples x 3"),
    ):
        model(torch.randn(3, 1, 3, 3))


def test_calls_are_recorded_by_name_in_order():
    model = network()
    with calls_recorded(model) as calls:
        model(torch.randn(2, 1, 3, 3))
        model.one(torch.randn(1, 1, 3, 3))
    assert list(calls) == ["one", "out"]
    assert [len(results) for results in calls.values()] == [2, 1]
    assert not calls["out"][0].requires_grad
