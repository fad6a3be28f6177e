import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neurank.errors import RankingError
from neurank.ranking import LayerRanking, Ranking
from neurank.running import RunningRanking

numbers = st.floats(-5, 5)


@given(
    decay=st.sampled_from([0, 0.3, 0.9]),
    rows=st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=6),
)
def test_is_the_weighted_mean_of_all_rankings(decay, rows):
    running = RunningRanking(decay)
    for row in rows:
        average = running.add(Ranking.from_scores({"a": row}))
    weights = [decay ** (len(rows) - 1 - place) for place in range(len(rows))]
    for unit, score in enumerate(average["a"].scores.tolist()):
        wanted = sum(w * row[unit] for w, row in zip(weights, rows, strict=True)) / sum(weights)
        assert score == pytest.approx(wanted, abs=1e-12)


def test_equal_errors_shrink_as_those_of_a_weighted_mean():
    running, decay = RunningRanking(0.5), 0.5
    for _ in range(3):
        layer = LayerRanking([1.0, 2.0], [0.1, 0.2], [10, 10], "sampled")
        average = running.add(Ranking({"a": layer}, {}))
    weights = [decay**2, decay, 1]
    share = math.sqrt(sum(w**2 for w in weights)) / sum(weights)
    assert average["a"].stderr.tolist() == pytest.approx([0.1 * share, 0.2 * share])
    assert average["a"].counts.tolist() == [30, 30]
    assert running.count == 3


def test_noise_is_averaged_away():
    draw = torch.Generator().manual_seed(0)
    truth = torch.linspace(0, 1, 20)
    running = RunningRanking(0.95)
    noisy = [truth + torch.randn(20, generator=draw) for _ in range(100)]
    for scores in noisy:
        average = running.add(Ranking.from_scores({"a": scores}))

    def error(scores):
        return float((scores - truth).square().mean())

    assert error(average["a"].scores) < 0.15 * error(noisy[-1])


def test_other_layers_or_widths_are_refused():
    running = RunningRanking()
    running.add(Ranking.from_scores({"a": [1.0, 2.0]}))
    for other in ({"a": [1.0]}, {"b": [1.0, 2.0]}):
        with pytest.raises(RankingError, match="begin a new RunningRanking"):
            running.add(Ranking.from_scores(other))


@pytest.mark.parametrize("decay", [1, -0.1, True, "0.5"])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(RankingError, match="decay="):
        RunningRanking(decay)


def test_there_is_no_average_of_nothing():
    with pytest.raises(RankingError, match="no ranking was added"):
        _ = RunningRanking().ranking
