import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles import agreement as oracle

from neurank.agreement import LayerAgreement, chance_of_overlap, compare
from neurank.errors import RankingError
from neurank.ranking import LayerRanking, Ranking


def given_scores(**layers):
    return Ranking.from_scores(layers)


def best_first(order, units):
    """Scores by which `order` comes first, and the other units after it by index."""
    rest = [unit for unit in range(units) if unit not in order]
    scores = [0.0] * units
    for place, unit in enumerate([*order, *rest]):
        scores[unit] = float(units - place)
    return scores


def of_model(digest, scores):
    return Ranking(given_scores(fc=scores).layers, {"method": "given", "model": digest})


small_scores = st.integers(2, 7).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(-2, 3), min_size=n, max_size=n)] * 2)
)


@settings(deadline=None)
@given(small_scores)
def test_correlations_match_their_definitions_ties_included(scores):
    x, y = scores
    layer = compare(given_scores(fc=x), given_scores(fc=y), k=1)["fc"]
    assert layer.spearman == pytest.approx(oracle.spearman(x, y), abs=1e-12, nan_ok=True)
    assert layer.kendall == pytest.approx(oracle.kendall_tau_b(x, y), abs=1e-12, nan_ok=True)


@settings(deadline=None)
@given(st.integers(1, 9), st.data())
def test_chance_is_the_share_of_all_subsets(units, data):
    k = data.draw(st.integers(0, units))
    overlap = data.draw(st.integers(0, k))
    assert chance_of_overlap(units, k, overlap) == float(
        oracle.chance_of_overlap(units, k, overlap)
    )


@pytest.mark.parametrize(("units", "printed"), [(20, "6.4e-05"), (25, "1.9e-05")])
def test_five_of_five_by_chance(units, printed):
    assert f"{chance_of_overlap(units, 5, 5):.1e}" == printed


@pytest.mark.parametrize(
    ("units", "k", "overlap"), [(5, 6, 1), (5, 3, 4), (5, 3, -1)], ids=["k", "above k", "below 0"]
)
def test_an_impossible_overlap_is_refused(units, k, overlap):
    with pytest.raises(RankingError, match="cannot be"):
        chance_of_overlap(units, k, overlap)


def test_top_units_overlap_and_chance_of_the_papers_first_row():
    shapley = given_scores(conv1=best_first([1, 8, 7, 4, 6], 10))
    switch = given_scores(conv1=best_first([8, 1, 3, 9, 6], 10))
    layer = compare(shapley, switch)["conv1"]
    assert (layer.top_a, layer.top_b) == ((1, 8, 7, 4, 6), (8, 1, 3, 9, 6))
    assert (layer.common, layer.overlap) == ((1, 8, 6), 3)
    assert layer.chance == float(oracle.chance_of_overlap(10, 5, 3)) == 0.5


def test_tied_scores_count_the_lower_index_first():
    layer = compare(given_scores(fc=[1, 2, 2, 2]), given_scores(fc=[3, 3, 3, 3.5]), k=2)["fc"]
    assert (layer.top_a, layer.top_b) == ((1, 2), (3, 0))
    assert layer.overlap == 0
    assert layer.chance == 1.0


def test_the_table_reads_like_the_papers():
    a = given_scores(conv1=best_first([1, 8, 7, 4, 6], 10), fc2=best_first([5, 1, 8, 9, 7], 25))
    b = given_scores(conv1=best_first([8, 1, 3, 9, 6], 10), fc2=best_first([1, 7, 9, 5, 8], 25))
    table = str(compare(a, b, names=("SH", "IS"))).splitlines()
    assert len({line.index("*") for line in table[1:]}) == 1, "columns are aligned"
    words = [line.split() for line in table]
    assert words[1][:7] == ["conv1", "(10)", "SH", "*1,*8,7,4,*6", "3", "of", "5"]
    assert words[2] == ["IS", "*8,*1,3,9,*6"]
    assert words[3][:8] == ["fc2", "(25)", "SH", "*5,*1,*8,*9,*7", "5", "of", "5", "1.9e-05"]
    assert words[4] == ["IS", "*1,*7,*9,*5,*8"]


def test_constant_scores_have_no_correlation_and_no_warning():
    agreement = compare(given_scores(fc=[1, 1, 1]), given_scores(fc=[1, 2, 3]), k=1)
    assert math.isnan(agreement["fc"].spearman)
    assert math.isnan(agreement["fc"].kendall)
    assert str(agreement).count("undefined") == 2
    assert math.isnan(compare(given_scores(fc=[1]), given_scores(fc=[2]), k=1)["fc"].kendall)


def test_a_ranking_agrees_with_itself():
    ranking = given_scores(fc=torch.randn(100, generator=torch.Generator().manual_seed(0)))
    layer = compare(ranking, ranking, k=10)["fc"]
    assert (layer.overlap, layer.spearman, layer.kendall) == pytest.approx((10, 1, 1))


@settings(deadline=None)
@given(st.permutations(range(6)), st.permutations(range(6)), st.permutations(range(6)))
def test_relabelling_the_units_changes_no_figure(x, y, labels):
    def relabelled(scores):
        return [scores[label] for label in labels]

    before = compare(given_scores(fc=x), given_scores(fc=y), k=3)["fc"]
    after = compare(given_scores(fc=relabelled(x)), given_scores(fc=relabelled(y)), k=3)["fc"]
    assert (after.overlap, after.chance) == (before.overlap, before.chance)
    assert (after.spearman, after.kendall) == pytest.approx((before.spearman, before.kendall))


def test_only_common_layers_are_compared_and_the_others_named():
    a = given_scores(conv1=[1, 2], fc1=[1, 2], conv2=[2, 1])
    b = given_scores(conv2=[1, 2], fc2=[1, 2], conv1=[1, 2])
    agreement = compare(a, b, k=1, names=("SH", "IS"))
    assert list(agreement) == ["conv1", "conv2"]
    assert (agreement.only_in_a, agreement.only_in_b) == (("fc1",), ("fc2",))
    assert str(agreement).splitlines()[-2:] == ["only in SH: fc1", "only in IS: fc2"]


def test_k_may_differ_between_layers():
    a = given_scores(conv1=[1, 2, 3], fc1=[1, 2, 3])
    agreement = compare(a, a, k={"fc1": 3, "conv1": 2})
    assert [agreement[name].k for name in agreement] == [2, 3]
    assert len(agreement["fc1"].top_a) == 3


def test_rankings_without_a_common_layer_are_refused():
    with pytest.raises(RankingError, match="no layer in common: conv1 and fc1"):
        compare(given_scores(conv1=[1, 2]), given_scores(fc1=[1, 2]), k=1)


@pytest.mark.parametrize("k", [0, 4, -1, True, 2.0, {"fc": 4}])
def test_k_that_does_not_fit_is_refused_with_the_layer(k):
    ranking = given_scores(fc=[1, 2, 3])
    with pytest.raises(RankingError, match=r"layer 'fc' of 3 units.*k=\{'fc': 3\}"):
        compare(ranking, ranking, k=k)


@pytest.mark.parametrize("k", [{}, {"fc": 1, "conv": 1}])
def test_k_must_name_every_common_layer_and_no_other(k):
    ranking = given_scores(fc=[1, 2, 3])
    with pytest.raises(RankingError, match="share \\['fc'\\]"):
        compare(ranking, ranking, k=k)


def test_rankings_of_other_networks_are_refused():
    with pytest.raises(RankingError, match="'fc' has 2 units in one ranking and 3 in the other"):
        compare(given_scores(fc=[1, 2]), given_scores(fc=[1, 2, 3]), k=1)
    with pytest.raises(RankingError, match="different models"):
        compare(of_model("0ff", [1, 2]), of_model("0fe", [1, 2]), k=1)


def test_given_scores_compare_with_those_of_any_model():
    assert compare(of_model("0ff", [1, 2]), given_scores(fc=[1, 2]), k=1)["fc"].overlap == 1
    assert compare(of_model("0ff", [1, 2]), of_model("0ff", [1, 2]), k=1)["fc"].overlap == 1


def test_undefined_scores_are_refused_by_name():
    nothing = torch.full((2,), math.nan)
    undefined = LayerRanking(nothing, nothing, torch.zeros(2, dtype=torch.int64), "undefined")
    with pytest.raises(RankingError, match=r"layer 'fc'.*undefined"):
        compare(given_scores(fc=[1, 2]), Ranking({"fc": undefined}, {}), k=1)


def test_rankings_are_called_by_their_methods():
    a = Ranking(given_scores(fc=[1, 2]).layers, {"method": {"name": "ExactShapley"}})
    b = Ranking(given_scores(fc=[1, 2]).layers, {"method": "ImportanceSwitch"})
    assert compare(a, b, k=1).names == ("ExactShapley", "ImportanceSwitch")
    assert compare(b, b, k=1).names == ("a: ImportanceSwitch", "b: ImportanceSwitch")


def test_names_with_control_characters_do_not_reach_the_terminal():
    ranking = given_scores(**{"fc\x1b[2J\n": [1, 2]})
    table = str(compare(ranking, ranking, k=1, names=("\x07", "b")))
    assert "\x1b" not in table
    assert "\x07" not in table
    assert len(table.splitlines()) == 3


def test_an_unknown_layer_lists_those_compared():
    ranking = given_scores(fc=[1, 2])
    with pytest.raises(RankingError, match="'conv' was not compared; 'fc'"):
        compare(ranking, ranking, k=1)["conv"]


def test_the_frame_has_a_row_per_layer():
    ranking = given_scores(conv=[1, 2, 3], fc=[3, 2, 1])
    frame = compare(ranking, ranking, k=2).to_frame()
    assert list(frame.columns) == [
        "layer", "units", "k", "top_a", "top_b", "overlap", "chance", "spearman", "kendall",
    ]  # fmt: skip
    assert frame.set_index("layer").loc["fc", ["units", "k", "overlap"]].tolist() == [3, 2, 2]
    assert frame["top_b"].tolist() == [(2, 1), (0, 1)]


def test_an_agreement_is_a_value():
    ranking = given_scores(fc=[1, 2, 3])
    agreement = compare(ranking, ranking, k=2)
    assert copy.deepcopy(agreement) == agreement == compare(ranking, ranking, k=2)
    assert agreement != compare(ranking, ranking, k=1)
    assert len(agreement) == 1
    with pytest.raises(AttributeError):
        agreement.names = ("x", "y")
    with pytest.raises(TypeError):
        agreement.layers["fc"] = LayerAgreement(3, 1, (0,), (0,), 1.0, 1.0, 1.0)
