import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurank.rankers.moments import Moments, undefined

drawn = st.integers(0, 10**6).map(np.random.default_rng)


def filled(scores, within, cuts):
    moments = Moments(scores.shape[1])
    ends = np.arange(len(scores) * 2.0).reshape(-1, 2)
    for rows in np.split(np.arange(len(scores)), sorted(cuts)):
        moments.add(scores[rows], ends[rows], within[rows])
    return moments


@settings(deadline=None)
@given(drawn, st.integers(2, 9), st.integers(1, 4), st.lists(st.integers(0, 9), max_size=3))
def test_means_and_variances_whatever_the_batches(draw, examples, units, cuts):
    scores, within = draw.normal(size=(examples, units)), draw.random((examples, units))
    moments = filled(scores, within, cuts)
    assert moments.examples == examples
    np.testing.assert_allclose(moments.mean, scores.mean(axis=0), atol=1e-12)
    total = scores.var(axis=0, ddof=1) / examples
    np.testing.assert_allclose(moments.total_variance, total, atol=1e-12)
    estimator = within.sum(axis=0) / examples**2
    np.testing.assert_allclose(moments.estimator_variance, estimator, atol=1e-12)
    of_data = np.maximum(total - estimator, 0)
    np.testing.assert_allclose(moments.data_variance, of_data, atol=1e-12)
    assert moments.ends == pytest.approx((examples - 1, examples))


def test_one_example_tells_no_spread_and_none_tells_nothing():
    one = filled(np.ones((1, 2)), np.zeros((1, 2)), [])
    assert one.mean.tolist() == [1, 1]
    assert np.isnan(one.total_variance).all()
    none = Moments(2)
    assert np.isnan([*none.mean, *none.total_variance, *none.estimator_variance, *none.ends]).all()


def test_undefined_is_nan_all_over():
    ranking = undefined(3)
    assert ranking.status == "undefined"
    assert ranking.scores.isnan().all()
    assert ranking.stderr.isnan().all()
    assert ranking.counts.tolist() == [0, 0, 0]
