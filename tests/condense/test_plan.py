import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neurank.condense.plan import Plan, plan
from neurank.errors import FileError, PlanError
from neurank.files import write_tensors
from neurank.ranking import LayerRanking, Ranking

RANKING = Ranking.from_scores(
    {"conv1": [0.1, 0.5, 0.2, 0.5, -3.0], "fc1": [1.0, 2.0]}, provenance={"method": "given"}
)


def undefined():
    nothing = torch.full((3,), torch.nan)
    layer = LayerRanking(nothing, nothing, torch.zeros(3, dtype=torch.int64), "undefined")
    return Ranking({"fc1": layer}, {})


def test_a_number_keeps_the_best_units_and_ties_go_to_the_lower_index():
    assert plan(RANKING, keep={"conv1": 1}).keep == {"conv1": (1,)}
    assert plan(RANKING, keep={"conv1": 3}).keep == {"conv1": (1, 2, 3)}
    assert plan(RANKING, keep={"conv1": np.int64(5)}).removed("conv1") == ()


@pytest.mark.parametrize("indices", [[4, 0], (0, 4), np.array([4, 0]), torch.tensor([0, 4])])
def test_indices_are_taken_as_they_are_and_sorted(indices):
    made = plan(RANKING, keep={"conv1": indices})
    assert made.keep == {"conv1": (0, 4)}
    assert made.removed("conv1") == (1, 2, 3)
    assert all(type(unit) is int for unit in made.keep["conv1"])


def test_layers_that_are_not_named_stay_whole():
    assert set(plan(RANKING, keep={"fc1": 1}).keep) == {"fc1"}
    assert set(plan(RANKING, ratio={"fc1": 0.5}).keep) == {"fc1"}
    assert set(plan(RANKING, ratio=0.5).keep) == {"conv1", "fc1"}


@given(units=st.integers(1, 300), percent=st.integers(0, 99))
def test_ratio_removes_the_share_that_is_written_rounded_down_and_keeps_one(units, percent):
    ranking = Ranking.from_scores({"fc1": list(range(units))})
    made = plan(ranking, ratio=percent / 100)
    assert len(made.removed("fc1")) == min(units * percent // 100, units - 1)
    assert made.removed("fc1") == tuple(range(units - len(made.keep["fc1"])))  # the worst


def test_the_plan_knows_where_it_comes_from_which_does_not_count():
    made = plan(RANKING, keep={"fc1": [0]})
    assert made.source == {"method": "given"}
    assert made == Plan.from_keep({"fc1": [0]}, {"fc1": 2, "conv1": 5})
    assert made != Plan({"fc1": (1,)}, {"fc1": 2})
    assert made != Plan({"fc1": (0,)}, {"fc1": 3})


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"conv9": 1}, "'conv9' is not in the ranking, which has conv1, fc1"),
        ({"conv1": 0}, "0 units of layer 'conv1'"),
        ({"conv1": 6}, "6 units of layer 'conv1' cannot be kept: it has 5"),
        ({"conv1": -1}, "-1 units"),
        ({"conv1": True}, "True units"),
        ({"conv1": 2.0}, "2.0 units"),
        ({"conv1": "3"}, "'3'"),
        ({"conv1": []}, "removes all 5 units of layer 'conv1'"),
        ({"conv1": [0, 99]}, "no unit 99"),
        ({"conv1": [0, -1]}, "no unit -1"),
        ({"conv1": [0, 5]}, "0 to 4"),
        ({"conv1": [0, True]}, "no unit True"),
        ({"conv1": [np.True_]}, "no unit"),
        ({"conv1": [1.0]}, "no unit 1.0"),
        ({"conv1": [2, 0, 2]}, "unit 2 of layer 'conv1' is given twice"),
        ({}, "names no layer"),
        (5, "keep=5 names no layers"),
    ],
)
def test_what_cannot_be_kept_is_refused(keep, message):
    with pytest.raises(PlanError, match=message):
        plan(RANKING, keep=keep)


@pytest.mark.parametrize("ratio", [1, 1.0, -0.1, float("nan"), True, "0.5", {"fc1": 2}])
def test_a_ratio_that_is_no_share_is_refused(ratio):
    with pytest.raises(PlanError, match="share of units removed"):
        plan(RANKING, ratio=ratio)


def test_exactly_one_of_keep_and_ratio():
    with pytest.raises(PlanError, match="none was given"):
        plan(RANKING)
    with pytest.raises(PlanError, match="two of them were given"):
        plan(RANKING, keep={"fc1": 1}, ratio=0.5)
    with pytest.raises(PlanError, match="'fc9'"):
        plan(RANKING, ratio={"fc9": 0.5})


def test_undefined_scores_choose_nothing_but_indices_need_no_scores():
    with pytest.raises(PlanError, match="undefined"):
        plan(undefined(), keep={"fc1": 1})
    with pytest.raises(PlanError, match="undefined"):
        plan(undefined(), ratio=0.5)
    assert plan(undefined(), keep={"fc1": [2]}).removed("fc1") == (0, 1)


@pytest.mark.parametrize(
    ("keep", "widths", "message"),
    [
        ({"a": (0,)}, {"b": 2}, "one width for each layer"),
        ({"a": (0,)}, {"a": 0}, "width of layer 'a' is 0"),
        ({"a": (0,)}, {"a": True}, "width of layer 'a' is True"),
        ({"a": 1}, {"a": 2}, "give the indices"),
        ({}, {}, "names no layer"),
    ],
)
def test_a_plan_made_by_hand_is_checked(keep, widths, message):
    with pytest.raises(PlanError, match=message):
        Plan(keep, widths)
    if keep.keys() - widths.keys():
        with pytest.raises(PlanError, match="nothing is known of layer 'a'"):
            Plan.from_keep(keep, widths)


def test_an_unknown_layer_has_nothing_removed():
    with pytest.raises(PlanError, match="'conv1': there are fc1"):
        plan(RANKING, keep={"fc1": 1}).removed("conv1")


def test_json_and_back_with_the_order_of_layers():
    made = Plan({"z": (1, 3), "a": (0,)}, {"z": 4, "a": 2}, {"method": "given"})
    again = Plan.from_json(json.loads(json.dumps(made.to_json(), sort_keys=True)))
    assert again == made
    assert list(again.keep) == ["z", "a"]
    assert again.source == made.source


@pytest.mark.parametrize(
    "value",
    [None, [], "x", {}, {"layers": 3}, {"layers": [{"name": "a"}]}, {"layers": [[]]}],
)
def test_json_that_is_no_plan_is_refused(value):
    with pytest.raises(PlanError, match=r"no plan|names no layer"):
        Plan.from_json(value)


def test_json_is_checked_like_any_plan():
    with pytest.raises(PlanError, match="no unit 7"):
        Plan.from_json({"layers": [{"name": "a", "units": 2, "keep": [7]}]})


def test_a_plan_is_a_value():
    keep = {"a": [2, 0]}
    made = Plan(keep, {"a": 3})
    keep["a"].append(1)
    assert made.keep["a"] == (0, 2)
    with pytest.raises(TypeError):
        made.keep["a"] = (1,)
    with pytest.raises(AttributeError):
        made.keep = {}
    assert copy.deepcopy(made) == made


def test_the_table_escapes_names_and_cuts_long_lists():
    text = str(Plan({"a\x1b[2J": tuple(range(100))}, {"a\x1b[2J": 200}))
    assert "\x1b" not in text
    assert text.endswith("15 …")


def test_source_must_be_json():
    with pytest.raises(PlanError, match="source"):
        Plan({"a": (0,)}, {"a": 1}, {"x": object()})


def test_numbers_and_shares_are_rounded_up_to_what_widths_may_be():
    rules = {"min_width": {"fc1": 2}, "multiple_of": {"conv1": 2}}
    assert plan(RANKING, keep={"conv1": 1, "fc1": 1}, **rules).widths_after == {
        "conv1": 2,
        "fc1": 2,
    }
    assert plan(RANKING, ratio=0.5, **rules).widths_after == {"conv1": 4, "fc1": 2}
    assert plan(RANKING, keep={"conv1": 5}, multiple_of=4).widths_after == {"conv1": 5}
    assert plan(RANKING, ratio=0.5, min_width=9).widths_after == {"conv1": 5, "fc1": 2}


def test_ignored_layers_are_not_planned_for():
    assert set(plan(RANKING, ratio=0.5, ignored=["fc1"]).keep) == {"conv1"}
    with pytest.raises(PlanError, match="'fc1' is in keep and in ignored"):
        plan(RANKING, keep={"fc1": 1}, ignored=["fc1"])
    with pytest.raises(PlanError, match="'fc1' is in ratio and in ignored"):
        plan(RANKING, ratio={"fc1": 0.5}, ignored=("fc1",))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"min_width": 0}, "min_width of layer 'conv1' is 0"),
        ({"multiple_of": {"fc1": 2.5}}, "multiple_of of layer 'fc1' is 2.5"),
        ({"multiple_of": True}, "is True"),
        ({"min_width": {"fc9": 2}}, "'fc9' is not in the ranking"),
        ({"ignored": ["fc9"]}, "'fc9' is not in the ranking"),
        ({"ignored": "fc1"}, r"write ignored=\['fc1'\]"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules, message):
    with pytest.raises(PlanError, match=message):
        plan(RANKING, ratio=0.5, **rules)


def test_indices_must_fit_the_rules():
    assert plan(RANKING, keep={"conv1": [0, 3]}, multiple_of=2).keep["conv1"] == (0, 3)
    with pytest.raises(PlanError, match=r"3 indices are given for layer 'conv1'.* give 4"):
        plan(RANKING, keep={"conv1": [0, 1, 2]}, multiple_of=2)


@given(st.data())
def test_two_plans_in_turn_are_one(data):
    def some(width):
        return data.draw(st.sets(st.integers(0, width - 1), min_size=1).map(sorted))

    first = {"a": some(9), "b": some(4)}
    later = {"a": some(len(first["a"])), "c": some(3)}
    widths = {"a": 9, "b": 4, "c": 3}
    one = Plan.from_keep(first, widths)
    both = one.then(Plan.from_keep(later, {"a": len(first["a"]), "c": 3}))
    units = {name: list(range(width)) for name, width in widths.items()}
    for kept in (first, later):
        units = {
            name: [left[it] for it in kept[name]] if name in kept else left
            for name, left in units.items()
        }
    assert both == Plan.from_keep(units, widths)


def test_a_later_plan_must_be_for_what_is_left():
    first = Plan({"a": (0, 2)}, {"a": 3})
    with pytest.raises(PlanError, match="for 3 units of layer 'a', of which this one leaves 2"):
        first.then(Plan({"a": (0,)}, {"a": 3}))


def test_comparison_says_what_is_shared_and_what_is_not():
    first = Plan({"a": (0, 2, 3), "b": (1,)}, {"a": 5, "b": 2})
    second = Plan({"a": (3, 4), "c": (0,)}, {"a": 5, "c": 2})
    found = first.compare(second)
    assert (found.both("a"), found.only_first("a"), found.only_second("a")) == ((3,), (0, 2), (4,))
    assert found.shared("a") == 0.25
    assert (found.both("b"), found.only_second("b")) == ((1,), (0,))  # whole in the second
    assert (found.both("c"), found.only_first("c")) == ((0,), (1,))
    assert str(found).splitlines()[1].split() == ["a", "5", "3", "0", "2", "4", "25", "%"]
    with pytest.raises(PlanError, match="'a' has 5 units in one plan and 6 in the other"):
        first.compare(Plan({"a": (0,)}, {"a": 6}))
    with pytest.raises(PlanError, match="'z'"):
        found.both("z")


def test_a_file_brings_the_plan_back_and_any_change_is_found(tmp_path):
    made = Plan({"z": (1, 3), "a": (0,)}, {"z": 4, "a": 2}, {"method": "given", "x": [1, None]})
    path = tmp_path / "plan.safetensors"
    made.save(path)
    again = Plan.load(path)
    assert again == made
    assert list(again.keep) == ["z", "a"]
    assert again.source == made.source
    path.write_bytes(path.read_bytes().replace(b'units\\":4', b'units\\":5'))
    with pytest.raises(FileError, match="altered"):
        Plan.load(path)
    write_tensors(path, {}, {"layers": 5}, kind="plan")
    with pytest.raises(FileError, match="no plan"):
        Plan.load(path)
    write_tensors(path, {}, {}, kind="ranking")
    with pytest.raises(FileError, match="'ranking', not a 'plan'"):
        Plan.load(path)


def test_units_above_a_threshold_stay():
    ranking = Ranking.from_scores({"a": [0.3, -0.1, 0.0, 0.5], "b": [-1.0, -2.0, -3.0]})
    assert dict(plan(ranking, above=0).keep) == {"a": (0, 3), "b": (0,)}  # the best one at least
    assert dict(plan(ranking, above={"a": -0.1}).keep) == {"a": (0, 2, 3)}
    assert dict(plan(ranking, above=-math.inf).widths_after) == {"a": 4, "b": 3}
    assert plan(ranking, above=0.4, min_width=2, ignored=["b"]).keep["a"] == (0, 3)
    assert plan(ranking, above=0.4, multiple_of={"a": 4}, ignored=["b"]).widths_after["a"] == 4
    for wrong in (math.nan, "0.1", True):
        with pytest.raises(PlanError, match="the threshold of layer 'a' is"):
            plan(ranking, above=wrong)
    with pytest.raises(PlanError, match="'a' is in above and in ignored"):
        plan(ranking, above={"a": 0}, ignored=["a"])
