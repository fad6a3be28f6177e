from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurank.rankers.moments import (
    Round,
    Tally,
    estimate,
    layer_ranking,
    record,
    tally,
    undefined,
)

CLASSES = 3
drawn = st.integers(0, 10**6).map(np.random.default_rng)


def one_round(samples, targets, ends, cuts=()):
    """A round of samples, (examples, repetitions, units), its examples cut into chunks."""
    repetitions = samples.shape[1]
    means = samples.mean(axis=1)
    within = samples.var(axis=1, ddof=1) / repetitions if repetitions > 1 else 0 * means
    chunks = [
        tally(
            SimpleNamespace(targets=torch.from_numpy(targets[rows])),
            CLASSES,
            means[rows],
            ends[rows],
            within[rows],
            coalitions=len(rows),
        ).arrays()
        for rows in np.split(np.arange(len(samples)), sorted(cuts))
    ]
    total = sum((Tally(**it) for it in chunks), Tally.zero(CLASSES, samples.shape[2]))
    return Round(repetitions, total)


def draw_data(draw, examples, units, *repetitions):
    samples = [draw.normal(size=(examples, count, units)) for count in repetitions]
    targets = draw.integers(0, CLASSES - 1, size=examples)  # the last class has no example
    return samples, targets, draw.random((examples, 2))


@settings(deadline=None)
@given(drawn, st.integers(2, 9), st.integers(1, 4), st.lists(st.integers(0, 9), max_size=3))
def test_means_and_variances_whatever_the_chunks(draw, examples, units, cuts):
    (samples,), targets, ends = draw_data(draw, examples, units, 3)
    rounds = [one_round(samples, targets, ends, cuts)]
    found = estimate(rounds)
    means = samples.mean(axis=1)
    assert found.examples == examples
    np.testing.assert_allclose(found.mean, means.mean(axis=0), atol=1e-12)
    within = samples.var(axis=1, ddof=1) / 3
    np.testing.assert_allclose(found.within, within.sum(axis=0) / examples**2, atol=1e-12)
    total = means.var(axis=0, ddof=1) / examples
    np.testing.assert_allclose(found.total, total, atol=1e-12)
    of_data = np.maximum(total - found.within, 0)
    np.testing.assert_allclose(found.of_data, of_data, atol=1e-12)
    freedom = 2 * within.sum(axis=0) ** 2 / (within**2).sum(axis=0)
    np.testing.assert_allclose(found.freedom, freedom)
    notes = record(rounds, "some way")
    assert notes["coalitions"] == examples
    none, everything = ends.mean(axis=0)
    assert (notes["value_none"], notes["value_all"]) == pytest.approx((none, everything))


def test_two_rounds_weigh_as_many_repetitions_as_they_have():
    draw = np.random.default_rng(3)
    samples, targets, ends = draw_data(draw, 40, 2, 2, 6)
    found = estimate([one_round(it, targets, ends) for it in samples])
    both = np.concatenate(samples, axis=1)
    np.testing.assert_allclose(found.mean, both.mean(axis=(0, 1)), atol=1e-12)
    parts = [it.var(axis=1, ddof=1).sum(axis=0) / it.shape[1] / 40**2 for it in samples]
    np.testing.assert_allclose(found.within, parts[0] / 16 + parts[1] * 9 / 16, atol=1e-12)


def test_a_class_is_what_its_examples_alone_would_give():
    draw = np.random.default_rng(4)
    (samples,), targets, ends = draw_data(draw, 30, 4, 2)
    ranking = layer_ranking([one_round(samples, targets, ends)], "sampled")
    for label in range(CLASSES - 1):
        rows = targets == label
        alone = layer_ranking([one_round(samples[rows], targets[rows], ends[rows])], "sampled")
        np.testing.assert_allclose(ranking.by_class[label], alone.scores, atol=1e-12)
        np.testing.assert_allclose(ranking.by_class_stderr[label], alone.stderr, atol=1e-12)
    assert ranking.by_class[CLASSES - 1].isnan().all()
    assert ranking.by_class_stderr[CLASSES - 1].isnan().all()
    share = np.bincount(targets, minlength=CLASSES)[: CLASSES - 1] / len(targets)
    np.testing.assert_allclose(ranking.scores, share @ ranking.by_class[: CLASSES - 1].numpy())


def test_one_repetition_tells_the_total_error_only():
    draw = np.random.default_rng(5)
    (samples,), targets, ends = draw_data(draw, 9, 2, 1)
    ranking = layer_ranking([one_round(samples, targets, ends)], "sampled")
    assert (ranking.stderr_of, ranking.data_stderr) == ("total", None)
    expected = samples[:, 0].std(axis=0, ddof=1) / 3
    np.testing.assert_allclose(ranking.stderr, expected)
    assert ranking.freedom.tolist() == [8, 8]


def test_exact_scores_have_no_error_but_that_of_the_data():
    draw = np.random.default_rng(6)
    (samples,), targets, ends = draw_data(draw, 9, 2, 1)
    sums = one_round(samples, targets, ends).tally
    ranking = layer_ranking([Round(0, sums)], "exact")
    assert ranking.stderr.tolist() == [0, 0]
    assert ranking.counts.tolist() == [9, 9]
    expected = samples[:, 0].std(axis=0, ddof=1) / 3
    np.testing.assert_allclose(ranking.data_stderr, expected)


def test_one_example_tells_no_spread_and_none_tells_nothing():
    draw = np.random.default_rng(7)
    (samples,), targets, ends = draw_data(draw, 1, 2, 2)
    assert np.isnan(estimate([one_round(samples, targets, ends)]).total).all()
    empty = [one_round(samples[:0], targets[:0], ends[:0])]
    assert np.isnan(estimate(empty).mean).all()
    assert layer_ranking(empty, "sampled").status == "undefined"
    assert record(empty, "some way")["value_all"] is None


def test_undefined_is_nan_all_over():
    ranking = undefined(3)
    assert ranking.status == "undefined"
    assert ranking.scores.isnan().all()
    assert ranking.stderr.isnan().all()
    assert ranking.counts.tolist() == [0, 0, 0]
