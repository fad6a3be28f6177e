import pytest
import torch
from tests.cases import CASES, named
from tests.condense.nets import AuthorsLeNet, every_second
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from neurank.condense.condensed import condense
from neurank.condense.costs import Report, multiply_adds, parameters
from neurank.errors import FileError, ModelError
from neurank.zoo import lenet


def test_the_papers_small_lenet():
    """7,227 parameters and 134,140 multiply-adds, counted without padding and bias additions."""
    small = lenet(5, 7, 45, 20, seed=0)
    assert parameters(small) == 7_227
    assert multiply_adds(small, torch.zeros(2, 1, 28, 28)) == 134_140


def test_the_full_ones():
    assert parameters(AuthorsLeNet()) == 40_225
    assert multiply_adds(lenet(seed=0), torch.zeros(1, 1, 28, 28)) == 498_750


@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_counts_two_flops_for_each(case):
    model, inputs = case.model().eval(), case.batches()[0][0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    assert 2 * len(inputs) * multiply_adds(model, inputs) == counter.get_total_flops()


def test_weights_that_are_computed_count():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.ReLU())
    assert multiply_adds(model, torch.zeros(2, 4)) == 12


def test_a_tied_weight_is_stored_once_and_used_twice():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert parameters(model) == 16 + 8
    assert multiply_adds(model, torch.zeros(2, 4)) == 32


def test_the_report_counts_what_is_left():
    case = named("lenet, flatten")
    model = case.model()
    small = condense(model, every_second(model, "conv1", "fc1"), case.batches())
    inputs = case.batches()[0][0]
    assert small.report.parameters == (parameters(model), parameters(small.model))
    assert small.report.multiply_adds == (
        multiply_adds(model, inputs),
        multiply_adds(small.model, inputs),
    )
    assert dict(small.report.widths) == {
        "conv1": (3, 2),
        "conv2": (4, 4),
        "fc1": (5, 3),
        "fc2": (3, 3),
    }


def test_a_report_is_a_value_that_json_holds():
    report = Report((40, 10), (100, 30), {"z": (4, 2), "a": (3, 3)})
    again = Report.from_json(report.to_json())
    assert again == report
    assert list(again.widths) == ["z", "a"]
    with pytest.raises(TypeError):
        report.widths["z"] = (1, 1)
    for nonsense in (None, {}, {"parameters": [1], "multiply_adds": [1, 2], "widths": []}, "x"):
        with pytest.raises(FileError, match="no report"):
            Report.from_json(nonsense)


def test_the_table_escapes_names():
    text = str(Report((0, 0), (100, 30), {"\x1b[31mred": (4, 2)}))
    assert "\x1b" not in text
    assert "30.0 %" in text


def test_what_cannot_be_traced_cannot_be_counted():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="traced"):
        multiply_adds(Branching(), torch.zeros(2, 3))


def test_a_transposed_convolution_meets_its_weights_at_what_it_reads():
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 5, stride=2), nn.ReLU(), nn.Flatten())
    inputs = torch.zeros(1, 3, 6, 7)
    assert multiply_adds(model.eval(), inputs) == 3 * 4 * 5 * 5 * 6 * 7
    grouped = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Flatten())
    assert multiply_adds(grouped.eval(), torch.zeros(1, 4, 5, 5)) == 4 * 3 * 9 * 25
