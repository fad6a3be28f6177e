"""What classes share: units, correlations, neighbours, projections, orders."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.decomposition import PCA
from tests.oracles import classes as slow

from neurank.classes.interference import (
    agreement_by_class,
    jump_association,
    neighbours,
    overlap,
    overlaps,
    projected,
    projections,
    pruned_correlation,
    pruned_correlations,
    rank_correlation,
)
from neurank.errors import DataError, MethodError, RankingError, UnitError
from neurank.ranking import LayerRanking, Ranking

WIDTHS = {"conv1": 5, "conv2": 9, "fc": 7}


def sets(classes=6, share=0.6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.rand(units, generator=generator) < share for name, units in WIDTHS.items()}
        for _ in range(classes)
    ]


def members(one, keep=True, layers=WIDTHS):
    return {
        (name, unit)
        for name in layers
        for unit, kept in enumerate(one[name].tolist())
        if kept == keep
    }


@pytest.mark.parametrize("layers", [None, ["conv2"], ["fc", "conv1"]])
def test_overlaps_are_those_of_pythons_sets(layers):
    kept = sets()
    kept[4] = {name: torch.zeros(units).bool() for name, units in WIDTHS.items()}
    kept[5] = kept[4]
    found, inside = overlap(kept, layers), layers or WIDTHS
    for row, one in enumerate(kept):
        for column, other in enumerate(kept):
            for keep, counts, jaccard in (
                (True, found.kept_counts, found.kept_jaccard),
                (False, found.pruned_counts, found.pruned_jaccard),
            ):
                first, second = members(one, keep, inside), members(other, keep, inside)
                assert counts[row, column] == len(first & second)
                twin = slow.jaccard(first, second)
                assert float(jaccard[row, column]) == pytest.approx(twin, nan_ok=True)
    assert math.isnan(found.kept_jaccard[4, 5])
    assert found.pruned_jaccard[4, 5] == 1
    assert found.kept_counts.dtype == torch.int64


def test_chance_is_what_random_sets_of_these_sizes_share_on_average():
    kept = sets(classes=2, share=0.5)
    generator = torch.Generator().manual_seed(5)
    drawn = []
    for _ in range(4000):
        mixed = [
            {name: one[torch.randperm(len(one), generator=generator)] for name, one in both.items()}
            for both in kept
        ]
        found = overlap(mixed)
        drawn.append((int(found.kept_counts[0, 1]), int(found.pruned_counts[0, 1])))
    means = np.mean(drawn, axis=0)
    found = overlap(kept)
    assert float(found.kept_chance[0, 1]) == pytest.approx(means[0], abs=0.1)
    assert float(found.pruned_chance[0, 1]) == pytest.approx(means[1], abs=0.1)


def test_a_thousand_classes_of_five_thousand_units_are_counted_exactly():
    generator = torch.Generator().manual_seed(2)
    kept = torch.rand(1000, 5000, generator=generator) < 0.999
    found = overlap([{"fc": row} for row in kept])
    both = int((kept[3] & kept[998]).sum())
    assert found.kept_counts[3, 998] == both > 4900
    assert torch.equal(found.kept_counts, found.kept_counts.T)


def test_ratios_are_stacked():
    by_theta = [sets(seed=0), sets(seed=1, share=0.3)]
    found = overlaps(by_theta)
    assert found.kept_counts.shape == (2, 6, 6)
    assert torch.equal(found.pruned_jaccard[1], overlap(by_theta[1]).pruned_jaccard)
    assert torch.equal(
        pruned_correlations(by_theta, ["fc"])[0], pruned_correlation(by_theta[0], ["fc"])
    )


def test_the_correlation_is_pearsons_of_the_pruned_and_of_the_kept():
    kept = sets()
    kept[5] = {name: torch.ones(units).bool() for name, units in WIDTHS.items()}
    found = pruned_correlation(kept)
    rows = [torch.cat(list(one.values())).int().tolist() for one in kept]
    for first, one in enumerate(rows):
        for second, other in enumerate(rows):
            twin = slow.pearson([1 - x for x in one], [1 - x for x in other])
            assert float(found[first, second]) == pytest.approx(twin, nan_ok=True)
            assert float(found[first, second]) == pytest.approx(
                slow.pearson(one, other), nan_ok=True
            )
    assert found[5].isnan().all()
    assert found.diagonal()[:5].tolist() == [1.0] * 5


def test_units_in_another_order_change_no_overlap():
    kept, order = sets(), torch.randperm(9, generator=torch.Generator().manual_seed(1))
    moved = [{**one, "conv2": one["conv2"][order]} for one in kept]
    assert torch.equal(overlap(kept).kept_counts, overlap(moved).kept_counts)
    assert torch.equal(pruned_correlation(kept), pruned_correlation(moved))


def three_classes():
    """Class 0 jumps up from 0.1 to 0.2 as class 2 comes nearer and 1 goes, and falls after that."""
    correlations = torch.full((4, 3, 3), math.nan, dtype=torch.float64)
    for place, (first, second) in enumerate([(0.5, 0.2), (0.25, 0.7), (0.5, 0.6)], start=1):
        correlations[place] = torch.tensor(
            [[1, first, second], [first, 1, 0.3], [second, 0.3, 1]], dtype=torch.float64
        )
    accuracies = torch.tensor([[0.1, 0.5, 0.75, 0.25], [0.0, 0.5, 0.75, 0.875], [0.5] * 4])
    return [0.0, 0.1, 0.2, 0.3], correlations, accuracies


def test_neighbours_are_who_moves_where_the_accuracy_jumps():
    found = neighbours(*three_classes(), 0)
    assert (found.up.start, found.up.end, found.up.change) == (0.1, 0.2, 0.25)
    assert found.up.rising == ((2, pytest.approx(0.5)),)
    assert found.up.falling == ((1, pytest.approx(-0.25)),)
    assert (found.down.start, found.down.end, found.down.change) == (0.2, 0.3, -0.5)
    assert found.down.rising == ((1, pytest.approx(0.25)),)
    assert found.down.falling == ((2, pytest.approx(-0.1)),)


def test_the_step_from_the_whole_network_is_left_out_and_a_class_need_not_jump():
    assert neighbours(*three_classes(), 1).up.start == 0.1
    assert neighbours(*three_classes(), 1).down is None
    still = neighbours(*three_classes(), 2)
    assert still.up is still.down is None
    thetas, correlations, accuracies = three_classes()
    assert neighbours(thetas[:1], correlations[:1], accuracies[:, :1], 0).up is None


def test_no_more_neighbours_than_asked_for_and_ties_go_to_the_lower_label():
    correlations = torch.zeros(2, 5, 5)
    correlations[1, 0] = torch.tensor([1.0, 0.25, 0.5, 0.25, 0.125])
    found = neighbours([0.1, 0.2], correlations, torch.arange(10.0).reshape(5, 2), 0, k=2)
    assert [label for label, _ in found.up.rising] == [2, 1]
    assert found.up.falling == ()


def curves(link, classes=12, thetas=15, seed=0):
    """Random correlations, all drifting up with θ; accuracies follow the related mean by `link`."""
    random = np.random.default_rng(seed)
    drift = np.linspace(0, 1, thetas) ** 2
    correlations = torch.tensor(
        0.2 * random.random((thetas, classes, classes)) + drift[:, None, None]
    )
    related = torch.ones(classes, classes, dtype=torch.bool)
    off = related & ~torch.eye(classes, dtype=torch.bool)
    mean = torch.where(off, correlations, math.nan).nanmean(2).T
    noise = torch.tensor(0.02 * random.random((classes, thetas)) + 0.5 * drift)
    return correlations, link * mean + noise, related


def test_accuracies_that_follow_their_own_correlation_are_told():
    found = jump_association(*curves(link=1.0), permutations=200)
    assert found.spearman > 0.7
    assert found.p_value == 1 / 201
    assert found.pairs == 12 * 14


def test_a_common_drift_is_correlated_but_is_no_association():
    found = jump_association(*curves(link=0.0), permutations=200)
    assert found.spearman > 0.3
    assert found.by_chance == pytest.approx(found.spearman, abs=0.1)
    assert found.p_value > 0.05


def test_the_association_is_spearmans_over_classes_and_steps():
    correlations, accuracies, related = curves(link=0.1)
    related = related.clone()
    related[:, 6:] = False
    related[7] = False
    found = jump_association(correlations, accuracies, related, permutations=1)
    moves, steps = [], []
    for label in range(12):
        near = [o for o in range(12) if related[label, o] and o != label]
        for place in range(14):
            if near:
                now, after = (correlations[at, label, near].mean() for at in (place, place + 1))
                moves.append(float(after - now))
                steps.append(float(accuracies[label, place + 1] - accuracies[label, place]))
    assert found.pairs == len(moves) == 11 * 14
    assert found.spearman == pytest.approx(slow.spearman(moves, steps))
    assert found.spearman == pytest.approx(stats.spearmanr(moves, steps).statistic)


def test_the_same_seed_deals_alike():
    assert jump_association(*curves(0.3), permutations=50) == jump_association(
        *curves(0.3), permutations=50
    )
    assert (
        jump_association(*curves(0.3), permutations=50).by_chance
        != jump_association(*curves(0.3), permutations=50, seed=1).by_chance
    )


def test_nothing_to_correlate_is_undefined():
    correlations, accuracies, related = curves(0.3)
    for given_ in (
        (correlations, torch.full_like(accuracies, 0.5), related),
        (correlations, accuracies, ~related),
        (torch.full_like(correlations, math.nan), accuracies, related),
    ):
        found = jump_association(*given_, permutations=5)
        assert math.isnan(found.spearman)
        assert math.isnan(found.p_value)


def responses(classes=8, units=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, units, generator=generator, dtype=torch.float64) + 3


def test_components_are_scikit_learns():
    values = responses()
    found, twin = projected(values, 3), PCA(3, svd_solver="full").fit(values.numpy())
    assert found.explained.tolist() == pytest.approx(twin.explained_variance_ratio_)
    coordinates = twin.transform(values.numpy())
    for place in range(3):
        largest = twin.components_[place][np.abs(twin.components_[place]).argmax()]
        expected = coordinates[:, place] * np.sign(largest)
        assert found.coordinates[:, place].tolist() == pytest.approx(expected.tolist())


def test_a_component_points_where_its_largest_loading_is_positive():
    values = responses()
    found, mirrored = projected(values), projected(-values)
    assert torch.allclose(found.coordinates, -mirrored.coordinates)


def test_a_class_without_responses_is_left_out():
    values = responses()
    values[2, 5] = math.nan
    found = projected(values)
    others = [0, 1, 3, 4, 5, 6, 7]
    assert found.coordinates[2].isnan().all()
    assert torch.equal(found.coordinates[others], projected(values[others]).coordinates)
    same = projected(torch.ones(3, 4))
    assert same.explained.isnan().all()
    assert (same.coordinates == 0).all()


def test_at_each_ratio_pruned_units_answer_nothing():
    kept, all_kept = sets(), sets(share=2.0)
    answers = {name: responses(6, units, seed=units) for name, units in WIDTHS.items()}
    found = projections(answers, [all_kept, kept])
    whole = torch.cat(list(answers.values()), dim=1)
    masks = torch.stack([torch.cat(list(one.values())) for one in kept])
    for projection, expected in zip(found, (whole, whole * masks), strict=True):
        assert torch.allclose(projection.coordinates, projected(expected).coordinates)
        assert torch.allclose(projection.explained, projected(expected).explained)
    (alone,) = projections(answers, [kept], layers=["fc"])
    masks = torch.stack([one["fc"] for one in kept])
    assert torch.allclose(alone.coordinates, projected(answers["fc"] * masks).coordinates)


def test_a_class_without_responses_stays_so_though_its_units_are_pruned():
    kept = [{"fc": torch.zeros(7, dtype=torch.bool)} for _ in range(4)]
    answers = responses(4, 7)
    answers[1] = math.nan
    (found,) = projections({"fc": answers}, [kept])
    assert found.coordinates[1].isnan().all()
    assert (found.coordinates[[0, 2, 3]] == 0).all()


VALUES = st.lists(
    st.lists(st.integers(-3, 3).map(float), min_size=5, max_size=5), min_size=1, max_size=4
)


@given(VALUES)
def test_rank_correlations_are_by_their_definition(rows):
    found = rank_correlation(torch.tensor(rows))
    for first, one in enumerate(rows):
        for second, other in enumerate(rows):
            twin = slow.spearman(one, other)
            assert float(found[first, second]) == pytest.approx(twin, nan_ok=True)
        assert found[first, first] == 1 or math.isnan(found[first, first])


def test_a_class_without_responses_has_no_rank_correlation():
    values = responses(3)
    values[1, 0] = math.nan
    found = rank_correlation(values)
    assert found[1].isnan().all()
    assert found[:, 1].isnan().all()
    assert not found[[0, 2]][:, [0, 2]].isnan().any()


def ranking(model=None, **layers):
    made = {}
    for name, by_class in layers.items():
        units = 5 if by_class is None else by_class.shape[1]
        zeros = [0.0] * units
        made[name] = LayerRanking(zeros, zeros, [9] * units, "exact", by_class=by_class)
    return Ranking(made, {"model": model} if model else {})


def test_agreement_by_class_is_spearmans_row_by_row():
    one, other = responses(4, 6, seed=1), responses(4, 6, seed=2)
    one[2] = math.nan
    other[3] = 1.0
    found = agreement_by_class(
        ranking(conv=one, fc=other, lone=one, plain=None),
        ranking(fc=one, conv=other, plain=one),
    )
    assert found["layer"].tolist() == ["conv"] * 4 + ["fc"] * 4
    assert found["class"].tolist() == [0, 1, 2, 3] * 2
    assert found["units"].tolist() == [6] * 8
    for row in found.itertuples():
        x, y = one[row[2]].tolist(), other[row[2]].tolist()
        undefined = row[2] in {2, 3}
        expected = math.nan if undefined else stats.spearmanr(x, y).statistic
        assert row.spearman == pytest.approx(expected, nan_ok=True)


def test_rankings_that_do_not_go_together_are_refused():
    four = ranking(fc=responses(4, 6))
    with pytest.raises(RankingError, match="share no layer with scores by class"):
        agreement_by_class(four, ranking(conv=responses(4, 6)))
    with pytest.raises(RankingError, match="share no layer"):
        agreement_by_class(four, ranking(fc=None))
    with pytest.raises(RankingError, match=r"\(4, 6\) in one ranking and \(3, 6\)"):
        agreement_by_class(four, ranking(fc=responses(3, 6)))
    with pytest.raises(RankingError, match="different models"):
        agreement_by_class(ranking("a", fc=responses(4, 6)), ranking("b", fc=responses(4, 6)))


ONE = {"fc": torch.ones(3, dtype=torch.bool)}


@pytest.mark.parametrize(
    ("kept", "layers", "message"),
    [
        ([], None, "there is no class"),
        ([{}], None, "there is no layer"),
        ([ONE, {}], None, "layer 'fc' is not among those of class 1"),
        ([ONE], ["conv"], "layer 'conv' is not among those of class 0"),
        ([ONE, {"fc": torch.ones(4).bool()}], None, r"of class 1 is \(4,\)"),
        ([ONE, {"fc": torch.ones(3)}], None, "torch.float32"),
        ([{"fc": torch.ones(3, 1).bool()}], None, "one bool per unit"),
    ],
)
def test_sets_that_do_not_fit_are_refused(kept, layers, message):
    for refused in (overlap, pruned_correlation):
        with pytest.raises(UnitError, match=message):
            refused(kept, layers)


def test_ratios_that_do_not_fit_are_refused():
    for by_theta in ([], [[ONE], [ONE, ONE]]):
        for refused in (overlaps, pruned_correlations):
            with pytest.raises(UnitError, match="the same classes at each"):
                refused(by_theta)
    with pytest.raises(UnitError, match="for responses none"):
        projections({}, [[ONE]])
    with pytest.raises(UnitError, match=r"some of the shape \(2, 3\)"):
        projections({"fc": torch.ones(2, 3)}, [[ONE]])


def test_curves_and_responses_that_do_not_fit_are_refused():
    thetas, correlations, accuracies = three_classes()
    with pytest.raises(DataError, match=r"give \(thetas, classes, classes\)"):
        neighbours(thetas, correlations, accuracies.T, 0)
    with pytest.raises(DataError, match="3 ratios beside 4"):
        neighbours(thetas[:3], correlations, accuracies, 0)
    with pytest.raises(DataError, match="label=3 is no class of 3"):
        neighbours(thetas, correlations, accuracies, 3)
    with pytest.raises(MethodError, match="k=0"):
        neighbours(thetas, correlations, accuracies, 0, k=0)
    with pytest.raises(DataError, match="a bool for each two classes"):
        jump_association(correlations, accuracies, torch.ones(3, 3))
    with pytest.raises(MethodError, match="permutations=0"):
        jump_association(correlations, accuracies, torch.ones(3, 3).bool(), permutations=0)
    with pytest.raises(DataError, match="real numbers"):
        projected(torch.ones(3, 3).long())
    with pytest.raises(DataError, match="unit 1 to class 0 is infinite"):
        rank_correlation(torch.tensor([[1.0, math.inf]]))
    for wrong in (0, 4, True):
        with pytest.raises(MethodError, match=f"components={wrong}"):
            projected(torch.rand(3, 9), wrong)
