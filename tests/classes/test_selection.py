"""Which units a class keeps: against sorted lists, with ties, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import semantic as oracle

import neurank as nr
from neurank.classes.selection import DISCRETE, Selection, Setting, select, selections, thetas
from neurank.errors import MethodError, PlanError, RankingError

SCOPES = ("layer", "network")


def ranked(*by_layer):
    """A ranking whose layers have these rows of scores, a row per class."""
    layers = {}
    for place, rows in enumerate(by_layer):
        units = len(rows[0])
        layers[f"layer{place}"] = nr.LayerRanking(
            [0.0] * units, stderr=[0] * units, counts=[9] * units, status="computed", by_class=rows
        )
    return nr.Ranking(layers, {})


def scores_of(ranking, label):
    return {name: ranking[name].by_class[label].tolist() for name in ranking}


def as_lists(selection):
    return {name: on.tolist() for name, on in selection.kept.items()}


EQUAL_OFTEN = st.sampled_from([-2.0, -0.0, 0.0, 0.5, 1.0, 3.0])
ANY = st.floats(-1e6, 1e6, allow_nan=False)


@st.composite
def rankings(draw):
    classes = draw(st.integers(1, 3))
    values = draw(st.sampled_from([EQUAL_OFTEN, ANY]))
    widths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    return ranked(
        *(
            [draw(st.lists(values, min_size=width, max_size=width)) for _ in range(classes)]
            for width in widths
        )
    )


SHARES = st.one_of(st.floats(0, 1), st.integers(0, 100).map(lambda percent: percent / 100))


@given(rankings(), st.sampled_from(SCOPES), st.one_of(SHARES, st.sampled_from(["zero", "median"])))
def test_any_scores_and_any_share(ranking, scope, theta):
    for label in range(len(ranking["layer0"].by_class)):
        found = select(ranking, label, Setting(scope, theta))
        assert as_lists(found) == oracle.kept(scores_of(ranking, label), scope, theta)
        assert list(found.kept) == list(ranking)


@pytest.mark.parametrize("theta", ["zero", "median", 0, 0.0, 0.33, 0.66, 1, 1.0])
@pytest.mark.parametrize("scope", SCOPES)
def test_the_settings_of_the_paper(scope, theta):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(4, width, generator=generator).round(decimals=1) for width in (9, 1, 30)]
    ranking = ranked(*rows)
    for label in range(4):
        found = select(ranking, label, Setting(scope, theta))
        assert as_lists(found) == oracle.kept(scores_of(ranking, label), scope, theta)
        if theta == 0:
            assert found.share_removed == 0
        if theta == 1:
            assert found.share_removed == 1


def test_by_layer_each_layer_loses_its_share_and_network_wide_the_lowest_go():
    ranking = ranked([[9.0, 8.0, 7.0, 6.0]], [[1.0, 2.0]])
    assert select(ranking, 0, "LWP-50").removed == {"layer0": (2, 3), "layer1": (0,)}
    assert select(ranking, 0, "NWP-50").removed == {"layer0": (3,), "layer1": (0, 1)}
    assert select(ranking, 0, "LWP-M").removed == {"layer0": (2, 3), "layer1": (0,)}
    assert select(ranking, 0, "NWP-M").removed == {"layer0": (3,), "layer1": (0, 1)}


def test_of_equal_units_the_lower_index_and_the_earlier_layer_stay():
    ranking = ranked([[1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0]])
    assert select(ranking, 0, Setting("layer", 0.34)).removed == {"layer0": (2,), "layer1": (2,)}
    assert select(ranking, 0, Setting("network", 0.34)).removed == {"layer0": (), "layer1": (1, 2)}
    assert select(ranking, 0, Setting("network", 0.67)).removed == {
        "layer0": (2,), "layer1": (0, 1, 2)
    }  # fmt: skip
    # What is not below the median stays: of equal units, all.
    assert select(ranking, 0, "NWP-M").share_removed == 0


def test_at_zero_what_is_zero_goes_and_what_is_negative():
    ranking = ranked([[-1.0, -0.0, 0.0, 1e-300]])
    for name in ("LWP-0", "NWP-0"):
        assert select(ranking, 0, name).removed == {"layer0": (0, 1, 2)}


@pytest.mark.parametrize(("theta", "units", "gone"), [
    (0.29, 100, 29), (0.57, 100, 57), (0.58, 50, 29), (0.07, 100, 7), (0.1, 30, 3), (0.7, 10, 7),
    (0.33, 3, 0), (0.34, 3, 1), (0.99, 1, 0), (1.0, 1, 1), (1e-9, 1000, 0),
])  # fmt: skip
@pytest.mark.parametrize("scope", SCOPES)
def test_shares_are_the_decimals_that_were_written_rounded_down(scope, theta, units, gone):
    ranking = ranked([list(map(float, range(units)))])
    for written in (theta, np.float64(theta)):
        found = select(ranking, 0, Setting(scope, written))
        assert found.removed == {"layer0": tuple(range(gone))}
        assert found.share_removed == gone / units


def test_each_class_is_chosen_for_by_itself_class_after_class():
    ranking = ranked([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    found = selections(ranking, [1, 0], ["LWP-34", Setting("layer", 0.67)])
    assert [(it.label, str(it.setting)) for it in found] == [
        (1, "LWP-34"), (1, "LWP-67"), (0, "LWP-34"), (0, "LWP-67")
    ]  # fmt: skip
    assert [it.removed["layer0"] for it in found] == [(2,), (1, 2), (0,), (0, 1)]


def test_a_class_without_examples_is_refused_and_not_taken_for_zeros():
    undefined = [math.nan] * 3
    ranking = ranked([[1.0, 2.0, 3.0], undefined], [[1.0, 2.0, 3.0], undefined])
    for setting in DISCRETE:
        with pytest.raises(RankingError, match="undefined"):
            select(ranking, 1, setting)
    assert select(ranking, 0, "LWP-34").removed["layer1"] == (0,)


def test_a_class_that_one_layer_was_not_scored_on_is_refused():
    ranking = ranked([[1.0, 2.0]], [[math.nan, math.nan]])
    with pytest.raises(RankingError, match=r"'layer1'.*undefined"):
        select(ranking, 0, "LWP-33")


def test_scores_that_are_not_by_class_are_refused():
    with pytest.raises(RankingError, match="not scored by class"):
        select(nr.Ranking.from_scores({"fc": [1.0, 2.0]}), 0, "LWP-33")


@pytest.mark.parametrize("label", [-1, 2, 99, True, 0.0, "0", None])
def test_labels_that_are_no_class_are_refused(label):
    with pytest.raises(RankingError, match="there is no class"):
        select(ranked([[1.0], [2.0]]), label, "LWP-33")


@pytest.mark.parametrize("theta", [math.nan, -0.1, 1.1, math.inf, True, False, -1e-12])
def test_shares_that_are_none_are_refused(theta):
    with pytest.raises(MethodError, match=r"theta=.* is no share of units: give 0 to 1"):
        Setting("layer", theta)


@pytest.mark.parametrize("theta", ["Zero", "", "mean", "0.33"])
def test_words_that_are_no_rule_are_refused(theta):
    with pytest.raises(MethodError, match="is unknown"):
        Setting("layer", theta)


@pytest.mark.parametrize("scope", ["LWP", "layers", "", None])
def test_scopes_that_are_none_are_refused(scope):
    with pytest.raises(MethodError, match=r"it is 'layer' \(LWP\) or 'network' \(NWP\)"):
        Setting(scope, 0.33)


@pytest.mark.parametrize(("name", "setting"), [
    ("LWP-33", Setting("layer", 0.33)), ("NWP-33", Setting("network", 0.33)),
    ("LWP-M", Setting("layer", "median")), ("NWP-M", Setting("network", "median")),
    ("LWP-0", Setting("layer", "zero")), ("NWP-0", Setting("network", "zero")),
    ("NWP-66", Setting("network", 0.66)), ("LWP-100", Setting("layer", 1.0)),
    ("LWP-29", Setting("layer", 0.29)), ("LWP-5", Setting("layer", 0.05)),
    ("LWP-2.5", Setting("layer", 0.025)), ("NWP-12.3456", Setting("network", 0.123456)),
])  # fmt: skip
def test_names_are_the_papers(name, setting):
    assert Setting.named(name) == setting
    assert str(setting) == name
    ranking = ranked([[float(unit) for unit in range(40)]])
    assert select(ranking, 0, name).removed == select(ranking, 0, setting).removed


@given(st.sampled_from(SCOPES), st.one_of(SHARES, st.sampled_from(["zero", "median"])))
def test_a_name_says_which_setting_it_is(scope, theta):
    setting = Setting(scope, theta)
    again = Setting.named(str(setting))
    assert again.theta == theta
    assert again.scope == scope or theta == 0  # which removes nothing either way


def test_the_whole_network_is_not_called_what_the_paper_calls_zero():
    assert str(Setting("layer", 0.0)) == str(Setting("network", 0)) == "whole"
    assert str(Setting("layer", "zero")) == "LWP-0"


@pytest.mark.parametrize("name", [
    "", "LWP", "LWP-", "lwp-33", "XWP-33", "LWP-m", "LWP-101", "LWP--3", "LWP-3e1", "LWP-33%",
    "LWP-33-", "-33", "33", "LWP-median", "LWP- 33", "LWP-nan", "NWP-inf", "NWP-1_0", "NWP-.5",
    "LWP-00", "LWP-0.0",
])  # fmt: skip
def test_names_that_are_none_are_refused(name):
    with pytest.raises(MethodError, match="is no setting: give one such as LWP-33"):
        Setting.named(name)
    with pytest.raises(MethodError, match="is no setting"):
        select(ranked([[1.0]]), 0, name)


def test_the_discrete_settings_are_the_papers_eight():
    assert sorted(map(str, DISCRETE)) == sorted(
        ["LWP-0", "LWP-33", "LWP-66", "LWP-M", "NWP-0", "NWP-33", "NWP-66", "NWP-M"]
    )
    assert len(set(DISCRETE)) == 8


def test_layers_of_which_nothing_is_left_are_told_and_not_planned():
    ranking = ranked([[5.0, 6.0]], [[1.0, 2.0, -3.0]], [[7.0]])
    found = select(ranking, 0, Setting("network", 0.5))
    assert found.emptied == ("layer1",)
    with pytest.raises(PlanError, match=r"NWP-50 for class 0 leaves no unit of layer 'layer1'"):
        found.plan()
    assert select(ranking, 0, "LWP-100").emptied == ("layer0", "layer1", "layer2")
    assert select(ranking, 0, "NWP-33").emptied == ()


def test_the_plan_keeps_the_same_units_and_says_for_whom():
    ranking = ranked([[5.0, 6.0]], [[1.0, 2.0, -3.0]])
    plan = select(ranking, 0, "NWP-0").plan()
    assert plan.keep == {"layer0": (0, 1), "layer1": (0, 1)}
    assert plan.widths == {"layer0": 2, "layer1": 3}
    assert plan.source == {"class": 0, "setting": "NWP-0"}


def test_the_share_is_of_all_units():
    found = select(ranked([[1.0, -1.0, 1.0]], [[1.0]]), 0, "LWP-0")
    assert found.share_removed == 0.25
    assert found.removed == {"layer0": (1,), "layer1": ()}


def test_a_selection_does_not_change():
    kept = {"fc": torch.tensor([True, False])}
    found = Selection(0, Setting(), kept)
    kept["other"] = torch.tensor([True])
    assert list(found.kept) == ["fc"]
    with pytest.raises(TypeError):
        found.kept["fc"] = torch.tensor([True, True])


def test_the_grid_of_the_paper():
    grid = thetas()
    assert len(grid) == 25
    assert grid[:3] == (0.0, 0.025, 0.05)
    assert grid[-1] == 0.6
    assert thetas(3, 1.0) == (0.0, 0.5, 1.0)
    assert list(grid) == sorted(set(grid))


@pytest.mark.parametrize(("steps", "largest", "reason"), [
    (1, 0.6, "steps=1"), (0, 0.6, "steps=0"), (2.5, 0.6, "steps=2.5"), (True, 0.6, "steps=True"),
    (5, 1.1, "largest=1.1"), (5, 0.0, "largest=0"), (5, -0.2, "largest=-0.2"),
    (5, math.nan, "largest=nan"), (5, True, "largest=True"),
])  # fmt: skip
def test_grids_that_are_none_are_refused(steps, largest, reason):
    with pytest.raises(MethodError, match=reason):
        thetas(steps, largest)
