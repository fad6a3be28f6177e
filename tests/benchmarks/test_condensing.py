"""The sweep on a network small enough to check, and the page on measurements that are made up."""

from importlib.util import find_spec

import pytest
import torch
from tests.conftest import unavailable
from torch import nn

if find_spec("torch_pruning") is None:
    unavailable("torch-pruning is not installed; pip install 'neurank[bench]' brings it")

import neurank as nr
from benchmarks import condensing, condensing_page
from neurank.condense.costs import multiply_adds


@pytest.fixture(scope="module")
def net():
    """A network of two hidden convolutions, what is seen of it, and pictures."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU()),
        *(nn.Conv2d(20, 30, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(30, 4)),
    ).eval()
    pictures = nr.data.Split(torch.randn(12, 3, 6, 6), torch.arange(12) % 4, "noise", 6)
    return model, condensing.watched(model, pictures), pictures


def test_multiply_adds_are_counted_alike_by_running_and_by_tracing(net):
    model, _, pictures = net
    assert condensing.multiply_adds_run(model, pictures.inputs[:1]) == multiply_adds(
        model, pictures.inputs
    )


@pytest.mark.parametrize("across", condensing.ACROSS)
def test_plans_hold_their_budgets_narrowly_and_keep_the_best(net, across):
    model, seen, pictures = net
    ranking = condensing.ranked(nr.WeightNorm(), seen)
    found = condensing.plans(ranking, seen, across, ())
    assert tuple(found) == condensing.FEWER
    for fewer, plan in found.items():
        small = nr.condense(model, plan, pictures, progress=False)
        before, after = small.report.multiply_adds
        assert (1 - fewer) * before * 0.9 < after <= (1 - fewer) * before
        for layer, kept in plan.keep.items():
            assert set(kept) == set(ranking.order(layer)[: len(kept)])


def test_a_layer_is_left_alone(net):
    _, seen, _ = net
    found = condensing.plans(condensing.ranked(nr.WeightNorm(), seen), seen, "share", ("0",))
    assert all("0" not in plan.keep for plan in found.values())


def test_the_way_that_serves_better_is_taken(net, monkeypatch):
    _, seen, pictures = net
    ranking = condensing.ranked(nr.WeightNorm(), seen)
    rights = iter([0.25, 0.5])
    monkeypatch.setattr(condensing, "accuracy", lambda *_: next(rights))
    way, plans = condensing.better("other", ranking, seen, pictures)
    assert way == "share per cost, all layers"
    assert plans[0.3] == condensing.plans(ranking, seen, "share per cost", ())[0.3]


@pytest.mark.parametrize("peer", list(condensing.PEERS))
def test_torch_pruning_meets_each_budget_and_the_network_stays_whole(net, peer):
    model, _, pictures = net
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = condensing.torch_pruned(model, condensing.PEERS[peer](), ("7",), pictures, steps=20)
    whole = condensing.multiply_adds_run(model, pictures.inputs[:1])
    assert set(found) == set(condensing.FEWER)
    for fewer, small in found.items():
        left = condensing.multiply_adds_run(small, pictures.inputs[:1])
        assert 0.7 * (1 - fewer) * whole < left <= (1 - fewer) * whole
        assert small(pictures.inputs).shape == (12, 4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[0].out_channels == 20


def test_as_many_units_are_kept_as_torch_pruning_left(net):
    _, seen, _ = net
    ranking = condensing.ranked(nr.WeightNorm(), seen)
    peer = nn.Sequential(*(nn.Identity() for _ in range(8)))
    peer[0], peer[3] = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 5, 3)
    plan = condensing.of_its_widths(peer, ranking, ("0",))
    assert plan.widths_after == {"3": 5}
    assert set(plan.keep["3"]) == set(ranking.order("3")[:5])


def row(by, removal, fewer, accuracy, left):
    return {"by": by, "removal": removal, "fewer": fewer, "accuracy": accuracy,
            "multiply-adds": left, "parameters": 7}  # fmt: skip


@pytest.fixture
def found():
    """Measurements with numbers that can be found again."""
    verdicts = {"same": 5, "does not run": 2, "no group: KeyError: 3": 1}
    spent = {"batch_size": 1, "median": 0.004, "lower": 0.003, "upper": 0.005, "repeats": 5}
    peer = "torch-pruning Taylor, inner layers"
    return {
        "coupling": {
            "lenet": {"units": 9, "verdicts": {"same": 9}, "apart": [], "refused": ""},
            "swin": {"units": 8, "verdicts": verdicts, "apart": [], "refused": ""},
        },
        "resnet20": {
            "chosen on": 250, "tested on": 1000, "Shapley on": 100, "seconds": {},
            "chosen": {"Taylor": "share, all layers"},
            "whole": {"accuracy": 0.915, "multiply-adds": 1000, "parameters": 99},
            "rows": [
                row("Taylor", "zero", 0.1, 0.81, 900), row("Taylor", "mean", 0.1, 0.82, 900),
                row("Taylor", "zero", 0.3, 0.61, 700), row("Taylor", "mean", 0.3, 0.62, 700),
                row(peer, "zero", 0.1, 0.83, 895), row(peer, "zero", 0.3, 0.6, 650),
                row("torch-pruning Taylor, all layers", "zero", 0.1, 0.2, 900),
            ],
        },
        "lenet": {
            "whole": {"accuracy": 0.9911}, "chosen on": 1000, "epochs": [6, 1],
            "from scratch": {"1": 0.9711, "7": 0.9877},
            "rows": [{"by": "Taylor", "removal": "mean", "removed": 0.9333, "retrained": 0.9855,
                      "multiply-adds": 1, "parameters": 1}],
        },
        "time of resnet20": {
            "multiply-adds": {"whole": 1000, "neurank": 500, "torch-pruning": 480},
            "rewritten": {"whole": False, "neurank": True, "torch-pruning": False},
            "file": dict.fromkeys(("whole", "neurank", "torch-pruning"), 4321),
            "memory": dict.fromkeys(("whole", "neurank", "torch-pruning"), 1234),
            "by batch": {"1": {"whole": {**spent, "median": 0.008}, "neurank": spent,
                               "torch-pruning": {**spent, "median": 0.005}}},
        },
    }  # fmt: skip


def test_the_page_says_what_was_measured(found):
    lines = condensing_page.page(found)
    text = "\n".join(lines)
    assert "For each of 17 units of 2 small architectures" in text
    assert "| the same elements | 14 |" in text
    assert "All groups are the same in 1 architectures: lenet." in text
    assert any(line.startswith("| swin | 8 | 5 | 2 | 0 | 1 | windows") for line in lines)
    assert "| Taylor | mean | 82.0 % | **62.0 %** | share, all layers |" in lines
    assert "| torch-pruning Taylor, inner layers | zero | **83.0 %** | 60.0 % (at 35) |  |" in lines
    assert "97.11 % after 1, 98.77 % after 7 epochs" in text
    assert "| Taylor | mean | 93.33 % | 98.55 % |" in lines
    timed = "| ResNet-20 | 1 | neurank (rewritten) | 500 | 0.50 | 4.00 (3.00 to 5.00) | 0.50 |"
    assert any(line.startswith(timed) for line in lines)
    assert "ResNet-20 at batch 1: 0.80." in text


@pytest.mark.parametrize("part", ["coupling", "resnet20", "lenet", "time of resnet20"])
def test_a_part_that_was_not_measured_is_left_out(found, part):
    whole = len(condensing_page.page(found))
    del found[part]
    assert len(condensing_page.page(found)) < whole


def test_curves_are_of_means_and_of_torch_prunings_inner_layers(found):
    drawn = condensing_page.curves(found["resnet20"])
    assert set(drawn) == {"Taylor, means", "torch-pruning Taylor, inner layers"}
    assert drawn["Taylor, means"] == [(pytest.approx(0.1), 0.82), (pytest.approx(0.3), 0.62)]
    assert drawn["torch-pruning Taylor, inner layers"][1] == (pytest.approx(0.35), 0.6)
