import copy
import math

import pytest
import torch
from tests.cases import named
from tests.condense.nets import every_second
from tests.oracles.condense import masked_outputs
from torch import nn

from neurank.condense import verify as verifying
from neurank.condense.condensed import condense
from neurank.condense.kept import Plan
from neurank.condense.surgery import Changes, cuts_for, operate
from neurank.condense.verify import Check, masked_logits, verify
from neurank.errors import CondenseError
from neurank.observe.execution import runner
from neurank.units.space import unit_space
from neurank.units.trace import trace

CASE = named("perceptron")
SIZES = (5, 4, 3)


@pytest.fixture
def parts():
    """A network cut by hand, and what is needed to verify it."""
    model = CASE.model().eval()
    graph = trace(model, CASE.batches()[0][0])
    space = unit_space(graph, model)
    plan = every_second(model, "fc0", "fc1")
    small = copy.deepcopy(model)
    operate(small, Changes(cuts_for(plan, space, model), {}, {}, {}))
    off = {layer: (torch.zeros(5, dtype=torch.float64),) for layer in plan.keep}
    return model, small, plan, space, off, runner(graph, model, torch.device("cpu"))


def inputs(*sizes):
    return [batch for batch, _ in CASE.batches(sizes=sizes)]


def test_the_masked_network_is_the_original_with_units_switched_off(parts):
    model, _, plan, space, off, running = parts
    batches = CASE.batches()
    removed = {layer: plan.removed(layer) for layer in plan.keep}
    wanted = masked_outputs(model, CASE.reads, removed, "zero", batches, batches[0][0])
    found = masked_logits(plan, space, off, running, batches[0][0])
    assert torch.allclose(found, wanted, rtol=0, atol=1e-14)
    off["fc0"][0][1] = 3.0
    assert not torch.allclose(masked_logits(plan, space, off, running, batches[0][0]), wanted)


def test_what_is_cut_right_passes(parts):
    _, small, *rest = parts
    check = verify(small.train(), *rest, inputs(5, 3))
    assert check.max_error <= 1e-14
    assert check.examples == 8
    assert check.tolerance == 1e-12
    assert small.training


@pytest.mark.parametrize(("sizes", "examples"), [((5, 3), 8), ((4, 4), 10), ((4,), 6), ((1,), 3)])
def test_two_batch_sizes_are_compared(parts, sizes, examples):
    _, small, *rest = parts
    seen = []
    small.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    assert verify(small, *rest, inputs(*sizes)).examples == examples
    assert len(set(seen)) == 2


def test_a_small_difference_is_found_and_told(parts):
    _, small, *rest = parts
    with torch.no_grad():
        small.fc3.bias[0] += 1e-9
    with pytest.raises(CondenseError, match=r"by \d\.\de-\d+ of the largest output, where 1e-12"):
        verify(small, *rest, inputs(5, 3))


def test_what_need_not_be_exact_is_only_measured(parts):
    _, small, *rest = parts
    with torch.no_grad():
        small.fc3.bias[0] += 0.5
    check = verify(small, *rest, inputs(5, 3), exact=False)
    assert check.tolerance == math.inf
    assert check.max_error > 1e-2
    assert f"differs from masked by {check.max_error:.1e} of the largest output" in str(check)


@pytest.mark.parametrize("exact", [True, False])
def test_nan_is_never_equal(parts, exact):
    _, small, *rest = parts
    with torch.no_grad():
        small.fc3.bias[0] = math.nan
    with pytest.raises(CondenseError, match="nan"):
        verify(small, *rest, inputs(5, 3), exact=exact)


class Folded(nn.Module):
    """Gives fewer rows than examples, as a view with a number of old does."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return self.inside(x)[: (len(x) + 1) // 2]


def test_another_shape_is_found_and_told(parts):
    _, small, *rest = parts
    with pytest.raises(CondenseError, match=r"\(3, 3\) for 5 examples"):
        verify(Folded(small), *rest, inputs(5, 3))


def test_user_inputs_are_not_worked_on_in_place(parts):
    _, small, *rest = parts

    class InPlace(Folded):
        def forward(self, x):
            outputs = self.inside(x)
            x.zero_()
            return outputs

    batches = inputs(5, 3)
    before = [batch.clone() for batch in batches]
    verify(InPlace(small), *rest, batches)
    assert all(torch.equal(*pair) for pair in zip(batches, before, strict=True))


def test_a_difference_that_is_meant_is_told_and_passes(parts):
    _, small, *rest = parts
    with torch.no_grad():
        small.fc3.bias[0] += 1e-3
    check = verify(small, *rest, inputs(5, 3), exact=False)
    assert check.max_error > 1e-5
    assert "condensed differs from masked by" in str(check)


def test_the_check_in_a_line():
    text = str(Check(2.5e-7, 1e-5, 400, 0.1))
    assert (
        text == "condensed = masked to 2.5e-07 of the largest output (400 examples, 1e-05 allowed)"
    )


@pytest.mark.parametrize(("in_double", "fits"), [(2e-7, True), (2e-5, False)])
def test_rounding_is_told_from_another_network_in_double_precision(monkeypatch, in_double, fits):
    """Where single precision is off by more than is allowed, double precision decides."""
    compared = verifying._compared

    def worse(small, wanted_of, batches):
        error, dtype, examples = compared(small, wanted_of, batches)
        return error + (2e-5 if dtype == torch.float32 else in_double), dtype, examples

    monkeypatch.setattr(verifying, "_compared", worse)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    data = [(torch.randn(5, 4), torch.arange(5) % 3)]
    plan = Plan({"0": (0, 2, 5)}, {"0": 6})
    if not fits:
        with pytest.raises(CondenseError, match=r"differs from the masked one by 2\.0e-05"):
            condense(model, plan, data, removal="mean", progress=False)
        return
    check = condense(model, plan, data, removal="mean", progress=False).check
    assert check.max_error == pytest.approx(in_double, rel=0.9)
    assert check.rounded == pytest.approx(2e-5, rel=0.1)
    assert "in double precision, 2.0e-05 in single" in str(check)
