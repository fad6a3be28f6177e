import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neurank.combination import combine
from neurank.errors import RankingError
from neurank.ranking import LayerRanking, Ranking

WAYS = ("rank", "mean", "share", "geometric", "min")
SCALED = ("rank", "min", "share", "geometric")

columns = st.integers(1, 6).flatmap(
    lambda units: st.lists(
        st.lists(st.integers(0, 20).map(float), min_size=units, max_size=units),
        min_size=1,
        max_size=4,
    )
)


def of(scores, **provenance):
    return Ranking(Ranking.from_scores({"fc": scores}).layers, provenance)


def combined(lists, how, **options):
    return combine([of(scores) for scores in lists], how, **options)["fc"].scores.tolist()


def slowly(lists, how, weights):
    """The formulas of the docstring, unit by unit."""
    units = range(len(lists[0]))

    def beaten(scores, unit):
        others = [it for it in units if it != unit]
        wins = sum(scores[it] < scores[unit] for it in others)
        return (wins + sum(scores[it] == scores[unit] for it in others) / 2) / max(len(others), 1)

    def share(scores, unit):
        total = sum(map(abs, scores))
        return scores[unit] / total if total else 0.0

    parts = list(zip(lists, weights, strict=True))
    return {
        "rank": lambda u: sum(w * beaten(s, u) for s, w in parts),
        "mean": lambda u: sum(w * s[u] for s, w in parts),
        "share": lambda u: sum(w * share(s, u) for s, w in parts),
        "geometric": lambda u: math.prod(share(s, u) ** w for s, w in parts),
        "min": lambda u: min(beaten(s, u) for s in lists),
    }[how]


@pytest.mark.parametrize("how", WAYS)
@given(columns, st.data())
def test_every_way_is_its_formula(how, lists, data):
    if how == "min":
        weights, given_weights = [1.0] * len(lists), None
    else:
        given_weights = data.draw(
            st.lists(st.floats(0.1, 9), min_size=len(lists), max_size=len(lists))
        )
        weights = [it / sum(given_weights) for it in given_weights]
    expected = slowly(lists, how, weights)
    found = combined(lists, how, weights=given_weights)
    assert found == pytest.approx([expected(unit) for unit in range(len(lists[0]))], abs=1e-12)


@pytest.mark.parametrize("how", WAYS)
@given(columns, st.randoms(use_true_random=False))
def test_relabelling_units_relabels_scores(how, lists, random):
    order = list(range(len(lists[0])))
    random.shuffle(order)
    moved = combined([[scores[unit] for unit in order] for scores in lists], how)
    there = combined(lists, how)
    assert moved == pytest.approx([there[unit] for unit in order], abs=1e-12)


@pytest.mark.parametrize("how", SCALED)
@given(columns, st.sampled_from([0.25, 8.0, 1024.0]))
def test_the_scale_of_one_ranking_does_not_count_where_that_is_promised(how, lists, factor):
    scaled = [[factor * it for it in lists[0]], *lists[1:]]
    assert combined(scaled, how) == pytest.approx(combined(lists, how), abs=1e-12)


def test_the_scale_counts_in_a_mean():
    assert combined([[1.0, 0.0], [0.0, 2.0]], "mean") == [0.5, 1.0]
    assert combined([[8.0, 0.0], [0.0, 2.0]], "mean") == [4.0, 1.0]


@pytest.mark.parametrize("how", ["rank", "min"])
@given(columns)
def test_ranks_do_not_change_if_scores_rise_in_any_way(how, lists):
    bent = [[math.exp(it) - 100 for it in lists[0]], *lists[1:]]
    assert combined(bent, how) == combined(lists, how)


@pytest.mark.parametrize("how", WAYS)
def test_the_order_of_the_rankings_does_not_count(how):
    one, other, third = [1.0, 4.0, 2.0], [5.0, 1.0, 1.0], [0.0, 3.0, 9.0]
    expected = combined([one, other, third], how)
    assert combined([third, one, other], how) == pytest.approx(expected)


@pytest.mark.parametrize("how", ["rank", "mean", "share", "geometric", "min"])
def test_one_ranking_alone_keeps_its_order(how):
    ranking = of([0.3, 0.9, 0.1, 0.5])
    assert combine([ranking], how).order() == ranking.order()


def test_a_weight_says_how_much_a_ranking_counts():
    lists = [[1.0, 0.0], [0.0, 1.0]]
    assert combined(lists, "rank", weights=[3, 1]) == [0.75, 0.25]
    assert combined(lists, "share", weights=[1, 3]) == [0.25, 0.75]


def test_signs_are_kept_in_shares_and_refused_in_products():
    assert combined([[-1.0, 3.0]], "share") == [-0.25, 0.75]
    with pytest.raises(RankingError, match="ranking 2 gives a unit of layer 'fc' the score -1"):
        combined([[1.0, 3.0], [-1.0, 3.0]], "geometric")


def sampled(errors, covers="estimator", scores=(1.0, 2.0)):
    layer = LayerRanking(
        list(scores), stderr=errors, counts=[5, 5], status="sampled", stderr_of=covers
    )
    return Ranking({"fc": layer}, {})


def test_errors_are_known_of_a_mean_alone():
    pair = [sampled([0.3, 0.0]), sampled([0.4, 0.2])]
    layer = combine(pair, "mean")["fc"]
    assert layer.stderr.tolist() == pytest.approx([0.25, 0.1])
    assert (layer.stderr_of, layer.counts.tolist(), layer.status) == (
        "estimator",
        [10, 10],
        "computed",
    )
    weighted = combine(pair, "mean", weights=[3, 1])["fc"]
    assert weighted.stderr.tolist() == pytest.approx([math.hypot(0.225, 0.1), 0.05])
    for how in ("rank", "share", "geometric", "min"):
        layer = combine(pair, how)["fc"]
        assert layer.stderr.isnan().all()
        assert layer.stderr_of == "none"


def test_errors_that_cover_different_things_are_not_added():
    layer = combine([sampled([0.3, 0.1]), sampled([0.3, 0.1], "total")], "mean")["fc"]
    assert layer.stderr.isnan().all()
    layer = combine([sampled([0.3, math.nan]), sampled([0.3, 0.1])], "mean")["fc"]
    assert layer.stderr.isnan().tolist() == [False, True]


def test_the_parts_are_in_the_provenance():
    parts = [of([1, 2], model="abc", method="one"), of([2, 1], method="other")]
    made = combine(parts, "share", weights=[1, 3])
    assert made.provenance["combined"] == [part.provenance for part in parts]
    assert made.provenance["model"] == "abc"
    assert made.method == "combine"
    assert made.provenance["method"]["parameters"] == {"how": "share", "weights": [0.25, 0.75]}


def test_layers_are_combined_by_themselves_in_the_first_rankings_order():
    one = Ranking.from_scores({"b": [1, 2], "a": [1, 2, 3]})
    other = Ranking.from_scores({"a": [1, 2, 3], "b": [1, 2]})
    made = combine([one, other])
    assert list(made) == ["b", "a"]
    assert made["a"].scores.tolist() == [0, 0.5, 1]


def undefined():
    nothing = torch.full((2,), torch.nan)
    return Ranking({"fc": LayerRanking(nothing, nothing, torch.zeros(2).long(), "undefined")}, {})


@pytest.mark.parametrize(
    ("rankings", "options", "message"),
    [
        ([], {}, "nothing to combine"),
        (of([1, 2]), {}, "nothing to combine"),
        ([of([1, 2], model="a"), of([1, 2]), of([1, 2], model="b")], {}, "different models"),
        (
            [of([1, 2]), Ranking.from_scores({"fc": [1, 2], "fc9": [1]})],
            {},
            "rankings 1 and 2 are of different layers: only one of them has fc9",
        ),
        ([of([1, 2]), of([1, 2, 3])], {}, "'fc' has 2 units in ranking 1 and 3 in ranking 2"),
        ([of([1, 2]), undefined()], {}, "'fc' are undefined in ranking 2"),
        ([of([1, 2])], {"how": "median"}, "how='median' is unknown: it is one of 'rank'"),
        ([of([1, 2])], {"weights": [1, 2]}, "for 1 rankings"),
        ([of([1, 2])], {"weights": [0]}, "one positive number for each"),
        ([of([1, 2])], {"weights": [math.nan]}, "one positive number for each"),
        ([of([1, 2])], {"how": "min", "weights": [1]}, "no effect"),
    ],
)
def test_what_does_not_belong_together_is_refused(rankings, options, message):
    with pytest.raises(RankingError, match=message):
        combine(rankings, **options)


def test_a_single_unit_and_a_worthless_layer_are_no_trouble():
    assert combined([[5.0], [7.0]], "rank") == [0.0]
    assert combined([[0.0, 0.0], [1.0, 3.0]], "share") == [0.125, 0.375]
    assert combined([[0.0, 0.0], [1.0, 3.0]], "geometric") == [0.0, 0.0]
