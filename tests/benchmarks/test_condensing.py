"""The sweep on a network small enough to check, and the page on measurements that are made up."""

import copy
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import unavailable
from torch import nn

if find_spec("torch_pruning") is None:
    unavailable("torch-pruning is not installed; pip install 'neurank[bench]' brings it")

import neurank as nr
from benchmarks import condensing, condensing_page
from neurank.condense.costs import multiply_adds
from neurank.condense.trials import watched
from neurank.errors import PlanError


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
    return model, watched(model, pictures, progress=False), pictures


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


@pytest.fixture
def small_sweep(net, monkeypatch):
    """A sweep of the small network by two rankers and one peer, in place of all."""
    model, _, pictures = net
    peer = "torch-pruning magnitude"
    monkeypatch.setitem(condensing.NETWORKS, "small", lambda: (model, pictures, pictures))
    few = {by: condensing.METHODS[by] for by in ("WeightNorm", "Taylor")}
    monkeypatch.setattr(condensing, "METHODS", few)
    monkeypatch.setattr(condensing, "PEERS", {peer: condensing.PEERS[peer]})
    monkeypatch.setattr(condensing, "scopes", lambda *_: {"": ("7",)})
    return ["WeightNorm", "Taylor", peer]


def kept_states(kept):
    """Run the small sweep on what was kept; return what is kept after each ranker."""
    states = []
    condensing.sweep("small", lambda found: states.append(copy.deepcopy(found)), kept)
    return states


def rankers(state):
    return list(dict.fromkeys(row["by"] for row in state["rows"]))


def test_a_sweep_keeps_all_rows_of_each_ranker_as_it_is_finished(small_sweep):
    states = kept_states({})
    assert [rankers(state) for state in states] == [small_sweep[:1], small_sweep[:2], small_sweep]
    assert [len(state["rows"]) for state in states] == [8, 16, 20]


def test_errors_are_set_beside_what_they_are_errors_of():
    scores, counts = torch.tensor([0.0, 3.0, 6.0]), torch.ones(3, dtype=torch.int64)
    layer = nr.LayerRanking(scores, torch.tensor([0.5, 0.25, 9.0]), counts, "sampled")
    found = condensing.sampling_error(nr.Ranking({"fc1": layer}, {}))
    assert found == {"stderr": 0.5, "apart": 3.0}
    exact = nr.Ranking.from_scores({"fc1": [1.0, 2.0]})
    assert condensing.sampling_error(exact) is None


@pytest.mark.usefixtures("small_sweep")
def test_a_sweep_that_was_stopped_goes_on_where_it_stopped(monkeypatch):
    whole = kept_states({})
    ranked = condensing.ranked
    seen = []
    monkeypatch.setattr(
        condensing, "ranked", lambda method, it: seen.append(method) or ranked(method, it)
    )
    resumed = kept_states(whole[0])
    assert seen == [nr.Taylor()]
    assert resumed[-1]["rows"] == whole[-1]["rows"]
    assert kept_states(resumed[-1]) == []


def test_rows_of_another_setting_are_not_kept(small_sweep):
    other = {**kept_states({})[-1], "chosen on": 11}
    assert rankers(kept_states(other)[0]) == small_sweep[:1]


def test_an_interrupted_write_leaves_what_was_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(condensing, "KEPT", tmp_path / "kept.json")
    condensing.write({"part": 1})
    whole = Path.write_text

    def stopped(path, text):
        whole(path, text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", stopped)
    with pytest.raises(KeyboardInterrupt):
        condensing.write({"part": 2})
    assert condensing.read() == {"part": 1}


def test_rankers_see_the_pictures_that_the_page_names(net, monkeypatch):
    _, _, pictures = net
    monkeypatch.setitem(condensing.SHAPLEY_PICTURES, "small", 5)
    shapley = condensing.looked_at("PermutationShapley", "small", pictures)
    assert torch.equal(shapley.inputs, pictures.inputs[:5])
    switch = condensing.looked_at("ImportanceSwitch", "small", pictures)
    assert (switch.examples, switch.batch_size) == (12, condensing.SWITCH_BATCH)
    assert condensing.looked_at("Taylor", "small", pictures) is pictures


def test_the_first_photographs_are_of_all_classes(tmp_path, monkeypatch):
    home = tmp_path / "imagenet20"
    home.mkdir()
    (home / "classes.csv").write_text("wnid,imagenet_index,name\nn1,7,one\nn2,9,two\n")
    for wnid, level in (("n1", 0), ("n2", 128)):
        (home / "val" / wnid).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((2, 2, 3), level + number, np.uint8)
            Image.fromarray(pixels).save(home / "val" / wnid / f"{number}.png")
    monkeypatch.setenv("NEURANK_DATA", str(tmp_path))
    found = condensing.photographs("val", 2)
    assert found.targets.tolist() == [7, 9, 7, 9]
    mean, std = (torch.tensor(numbers) for numbers in condensing.IMAGENET)
    levels = 255 * (found.inputs[:, :, 0, 0] * std + mean)
    assert torch.allclose(levels[:, 0], torch.tensor([0.0, 128.0, 2.0, 130.0]), atol=1e-3)


def let_the_peer_take(seconds, monkeypatch):
    """Give the network that is timed first, torch-pruning's, a time; the others take their own."""
    measured = condensing.trials.seconds_of
    first = iter([seconds])
    monkeypatch.setattr(
        condensing.trials, "seconds_of", lambda *given: next(first, None) or measured(*given)
    )


def test_both_budgets_hold_and_too_little_time_is_refused(net, monkeypatch):
    model, seen, pictures = net
    ranking = condensing.ranked(nr.WeightNorm(), seen)
    peer = nn.Sequential(nn.Conv2d(3, 20, 3, padding=1))  # fewer multiply-adds than the network
    let_the_peer_take(60.0, monkeypatch)
    found = condensing.within_both(ranking, model, pictures, (), peer)
    after = nr.condense(model, found, pictures, progress=False).report.multiply_adds[1]
    assert after <= condensing.multiply_adds_run(peer, pictures.inputs[:1])
    assert all(it >= 0.1 * found.widths[layer] for layer, it in found.widths_after.items())
    let_the_peer_take(1e-9, monkeypatch)
    with pytest.raises(PlanError, match=r"cannot be met.* s were measured"):
        condensing.within_both(ranking, model, pictures, (), peer)


def test_the_latency_part_measures_all_that_the_page_shows(net, monkeypatch):
    model, _, pictures = net
    let_the_peer_take(60.0, monkeypatch)
    monkeypatch.setattr(condensing, "scopes", lambda *_: {"": ("7",)})
    found = condensing.latency(lambda: (model, pictures, pictures), "resnet20", "", 4)
    assert set(found["accuracy"]) == set(found["multiply-adds"]) == set(found["by batch"]["4"])
    found = json.loads(json.dumps(found))
    assert condensing_page.times({"resnet20": found})


def row(by, removal, fewer, accuracy, left):
    return {"by": by, "removal": removal, "fewer": fewer, "accuracy": accuracy,
            "multiply-adds": left, "parameters": 7}  # fmt: skip


@pytest.fixture
def found():
    """Measurements with numbers that can be found again."""
    verdicts = {"same": 5, "does not run": 2, "no group: KeyError: 3": 1}
    spent = {"batch_size": 1, "median": 0.004, "lower": 0.003, "upper": 0.005, "repeats": 5}
    peer = "torch-pruning Taylor, inner layers"
    labels = ("whole", "neurank", "neurank, both budgets", "torch-pruning")
    return {
        "coupling": {
            "lenet": {"units": 9, "verdicts": {"same": 9}, "apart": [], "refused": ""},
            "swin": {"units": 8, "verdicts": verdicts, "apart": [], "refused": ""},
        },
        "resnet20": {
            "chosen on": 250, "tested on": 1000, "Shapley on": 100, "seconds": {},
            "switch": {"epochs": 3, "batch": 20, "rate": 0.1},
            "errors": {"PermutationShapley": {"stderr": 0.0123, "apart": 0.0345}},
            "chosen": {"Taylor": "share, all layers"},
            "whole": {"accuracy": 0.915, "multiply-adds": 1000, "parameters": 99},
            "rows": [
                row("Taylor", "zero", 0.1, 0.81, 900), row("Taylor", "mean", 0.1, 0.82, 900),
                row("Taylor", "zero", 0.3, 0.61, 700), row("Taylor", "mean", 0.3, 0.62, 700),
                row(peer, "zero", 0.1, 0.83, 895), row(peer, "zero", 0.3, 0.6, 650),
                row("torch-pruning Taylor, all layers", "zero", 0.1, 0.2, 900),
                row("ImportanceSwitch", "mean", 0.1, 0.7, 900),
                row("PermutationShapley", "mean", 0.1, 0.71, 900),
            ],
        },
        "lenet": {
            "whole": {"accuracy": 0.9911}, "chosen on": 1000, "epochs": [6, 1],
            "switch epochs": 3,
            "from scratch": {"1": 0.9711, "7": 0.9877},
            "rows": [{"by": "Taylor", "removal": "mean", "removed": 0.9333, "retrained": 0.9855,
                      "multiply-adds": 1, "parameters": 1}],
        },
        "time of resnet20": {
            "multiply-adds": dict(zip(labels, (1000, 500, 300, 480), strict=True)),
            "rewritten": {it: it == "neurank" for it in labels},
            "file": dict.fromkeys(labels, 4321),
            "memory": dict.fromkeys(labels, 1234),
            "accuracy": dict(zip(labels, (0.9, 0.4, 0.3, 0.2), strict=True)),
            "tested on": 1000,
            "batch of the budgets": 16,
            "budgets": {"max_macs": 480, "max_latency": 0.0051,
                        "latency": {"seconds": [0.009, 0.0049]}},
            "by batch": {"1": {"whole": {**spent, "median": 0.008}, "neurank": spent,
                               "neurank, both budgets": {**spent, "median": 0.006},
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
    assert "Not measured so far: RandomScore, WeightNorm, MeanReplacementSaliency, torch-" in text
    assert "ImportanceSwitch for 3 epochs, 39 steps with 20 pictures each" in text
    assert "one pass over 100 of them (standard error of a unit's value 0.0123, standard" in text
    timed = "| 500 | 0.50 | 4.00 (3.00 to 5.00) | 0.50 | 40.0 % | 4,321 | 1,234 |"
    assert f"| ResNet-20 | 1 | neurank (rewritten) {timed}" in lines
    assert "ResNet-20 at batch 1: 0.80, both budgets 1.20." in text
    assert "allowed 480 multiply-adds and 5.1 ms for 16 pictures, came to 300 multiply" in text


@pytest.mark.parametrize("part", ["coupling", "resnet20", "lenet", "time of resnet20"])
def test_a_part_that_was_not_measured_is_left_out(found, part):
    whole = len(condensing_page.page(found))
    del found[part]
    assert len(condensing_page.page(found)) < whole


def test_curves_are_of_one_removal_and_of_torch_prunings_inner_layers(found):
    drawn = condensing_page.curves(found["resnet20"], "mean")
    ours = ("Taylor", "ImportanceSwitch", "PermutationShapley")
    assert tuple(drawn) == (*ours, "torch-pruning Taylor")  # in the order of the table
    assert drawn["Taylor"] == [(pytest.approx(0.1), 0.82), (pytest.approx(0.3), 0.62)]
    assert drawn["torch-pruning Taylor"][1] == (pytest.approx(0.35), 0.6)
    assert condensing_page.curves(found["resnet20"], "zero")["Taylor"][0][1] == 0.81


def test_the_picture_shows_both_removals_in_the_same_colours(found):
    found["resnet20"]["rows"] += [row("ImportanceSwitch", "zero", 0.1, 0.6, 900)]
    left, right = condensing_page.picture("resnet20", found["resnet20"]).axes
    for axes, first in ((left, 81.0), (right, 82.0)):
        lines = {line.get_label(): line for line in axes.lines}
        assert lines["Taylor"].get_ydata()[1] == first
        assert lines["Taylor"].get_color() == condensing_page.DRAWN["Taylor"][0]
        assert lines["torch-pruning Taylor"].get_linestyle() == "--"


def test_every_ranker_and_peer_has_a_colour():
    assert set(condensing_page.DRAWN) == {*condensing.METHODS, *condensing.PEERS}
