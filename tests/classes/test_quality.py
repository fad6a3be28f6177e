"""What a network finds of one class, and what it wrongly takes for it."""

import json
import math
from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score
from tests.oracles import classes as slow

from neurank.classes.quality import Quality, auroc, class_scores, interval, qualities, quality
from neurank.errors import DataError, MethodError, ModelError


def made_up(examples=200, classes=5, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (examples,), generator=generator)
    logits = torch.randn(examples, classes, generator=generator, dtype=torch.float64) * spread
    logits[torch.arange(examples), targets] += 1.0
    return logits, targets


TIED = st.lists(st.tuples(st.integers(-3, 3).map(float), st.booleans()), min_size=1, max_size=12)


@given(TIED)
def test_the_area_is_the_share_of_pairs_in_order_with_half_the_ties(pictures):
    scores, own = zip(*pictures, strict=True)
    found = auroc(torch.tensor(scores), torch.tensor(own))
    assert found == pytest.approx(slow.area(scores, own), nan_ok=True)


@given(TIED)
def test_negated_scores_turn_the_area_round(pictures):
    scores, own = (torch.tensor(side) for side in zip(*pictures, strict=True))
    assert auroc(-scores, own) == pytest.approx(1 - auroc(scores, own), nan_ok=True)


@given(TIED, st.randoms(use_true_random=False))
def test_neither_the_order_of_pictures_nor_a_rising_map_changes_the_area(pictures, random):
    scores, own = (torch.tensor(side) for side in zip(*pictures, strict=True))
    shuffled = list(range(len(pictures)))
    random.shuffle(shuffled)
    changed = auroc(scores[shuffled].exp(), own[shuffled])
    assert changed == pytest.approx(auroc(scores, own), nan_ok=True)


def test_every_figure_is_as_scikit_learn_has_it():
    logits, targets = made_up()
    for label, found in enumerate(qualities(logits, targets)):
        own, called = (targets == label).numpy(), (logits.argmax(1) == label).numpy()
        score = torch.softmax(logits, 1)[:, label].numpy()
        assert found.recall == pytest.approx(recall_score(own, called))
        assert found.precision == pytest.approx(precision_score(own, called))
        assert found.f1 == pytest.approx(f1_score(own, called))
        assert found.false_positive_rate == pytest.approx(called[~own].mean())
        assert found.auroc == pytest.approx(roc_auc_score(own, score))
        assert found == quality(logits, targets, label)


def test_the_counts_are_those_of_a_slow_count_lowest_index_winning_ties():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(3, (60, 4), generator=generator).float()
    targets = torch.randint(4, (60,), generator=generator)
    calls = slow.called(logits.tolist())
    for found in qualities(logits, targets):
        own = [target == found.label for target in targets.tolist()]
        called = [call == found.label for call in calls]
        assert found.own == sum(own)
        assert found.others == 60 - sum(own)
        assert found.hits == sum(a and b for a, b in zip(own, called, strict=True))
        assert found.false_alarms == sum(b and not a for a, b in zip(own, called, strict=True))


def test_a_network_that_always_names_the_class_is_seen_through():
    logits = torch.zeros(100, 4)
    logits[:, 2] = 1.0
    found = quality(logits, torch.arange(100) % 4, 2)
    assert (found.recall, found.false_positive_rate) == (1.0, 1.0)
    assert (found.precision, found.f1, found.auroc) == (0.25, 0.4, 0.5)


def test_a_class_without_pictures_is_undefined_and_never_0():
    found = quality(torch.eye(3), torch.tensor([0, 1, 1]), 2)
    assert (found.own, found.false_alarms) == (0, 1)
    for share in (found.recall, found.precision, found.f1, found.auroc):
        assert math.isnan(share)
    assert found.false_positive_rate == pytest.approx(1 / 3)


def test_a_class_that_is_never_named_has_no_precision_but_an_f1_of_0():
    found = quality(torch.tensor([[1.0, 0.0], [1.0, 0.5]]), torch.tensor([0, 1]), 1)
    assert found.called == 0
    assert math.isnan(found.precision)
    assert (found.recall, found.f1, found.auroc) == (0.0, 0.0, 1.0)


def test_without_other_pictures_there_are_no_false_positives_to_count():
    found = quality(torch.eye(2), torch.tensor([1, 1]), 1)
    assert math.isnan(found.false_positive_rate)
    assert math.isnan(found.auroc)
    assert found.recall == 0.5


def test_no_picture_at_all_leaves_everything_undefined():
    found = quality(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), 0)
    assert (found.own, found.others) == (0, 0)
    assert all(math.isnan(share) for share in (found.recall, found.f1, found.false_positive_rate))


def test_scores_are_log_odds_of_the_softmax():
    logits, _ = made_up(20, 6)
    found = class_scores(logits, [4, 0, 5])
    for row, scores in zip(logits.tolist(), found.tolist(), strict=True):
        assert scores == pytest.approx([slow.log_odds(row, label) for label in (4, 0, 5)])


def test_scores_keep_apart_what_a_softmax_rounds_to_one_value():
    logits = torch.tensor([[800.0, 0.0, -5.0], [900.0, 0.0, -5.0], [1000.0, 0.0, -5.0]])
    assert torch.softmax(logits, 1)[:, 0].tolist() == [1.0, 1.0, 1.0]
    assert class_scores(logits, [0])[:, 0].diff().tolist() == [100.0, 100.0]
    assert auroc(class_scores(logits, [0])[:, 0], torch.tensor([False, True, True])) == 1.0


def test_scores_do_not_depend_on_the_chunks(monkeypatch):
    logits, _ = made_up(50, 7)
    whole = class_scores(logits, [1, 6])
    # The package has a function of the module's name, so the module is asked for by its path.
    monkeypatch.setattr(import_module("neurank.classes.quality"), "_CHUNK", 20)
    assert torch.equal(class_scores(logits, [1, 6]), whole)


def test_equal_rows_have_equal_scores_wherever_they_are():
    logits, _ = made_up(3, 10)
    scores = class_scores(logits.repeat(337, 1), range(10)).reshape(337, 3, 10)
    assert torch.equal(scores, scores[:1].expand(337, 3, 10))


def test_wilsons_interval_is_scipys():
    for hits, n in [(0, 10), (3, 10), (10, 10), (1, 1), (47, 50), (999, 1000)]:
        low, high = interval(hits, n, 0.9)
        twin = stats.binomtest(hits, n).proportion_ci(0.9, method="wilson")
        assert (float(low), float(high)) == pytest.approx((twin.low, twin.high), abs=1e-12)


def test_intervals_of_many_counts_keep_their_shape_and_are_undefined_without_trials():
    low, high = interval(torch.tensor([[0, 5], [10, 0]]), torch.tensor([10, 10]))
    assert low.shape == high.shape == (2, 2)
    assert low[0, 0] == 0.0
    assert high[1, 0] == 1.0
    low, high = interval([0, 1], [0, 2])
    assert math.isnan(low[0])
    assert math.isnan(high[0])
    assert 0 < low[1] < 0.5 < high[1] < 1


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.5, 0.999))
def test_an_interval_holds_its_share_and_mirrors(hits, misses, confidence):
    low, high = interval(hits, hits + misses, confidence)
    mirrored_low, mirrored_high = interval(misses, hits + misses, confidence)
    if hits + misses:
        assert 0 <= low <= hits / (hits + misses) <= high <= 1
    assert float(low) == pytest.approx(1 - float(mirrored_high), nan_ok=True, abs=1e-12)
    assert float(high) == pytest.approx(1 - float(mirrored_low), nan_ok=True, abs=1e-12)


def test_to_json_says_none_for_undefined():
    written = Quality(1, own=0, others=4, hits=0, false_alarms=1, auroc=math.nan).to_json()
    assert written["recall"] is written["f1"] is written["auroc"] is None
    assert written["false_positive_rate"] == 0.25
    assert json.loads(json.dumps(written, allow_nan=False)) == written


LOGITS, TARGETS = made_up(6, 3)
NAN = LOGITS.clone()
NAN[4, 1] = math.nan


@pytest.mark.parametrize(
    ("logits", "targets", "label", "error", "message"),
    [
        (LOGITS, TARGETS, 3, DataError, "label=3 is no class of a network with 3"),
        (LOGITS, TARGETS, -1, DataError, "from 0 to 2"),
        (LOGITS, TARGETS, True, DataError, "label=True"),
        (LOGITS, TARGETS, 1.0, DataError, "label=1.0"),
        (LOGITS, TARGETS + 2, 0, DataError, "the network has the classes 0 to 2"),
        (LOGITS, TARGETS - 3, 0, DataError, "the target of example 0 is -"),
        (LOGITS, TARGETS[:5], 0, DataError, "one whole number per example"),
        (LOGITS, TARGETS.double(), 0, DataError, "dtype torch.float64"),
        (LOGITS, TARGETS.bool(), 0, DataError, "dtype torch.bool"),
        (NAN, TARGETS, 0, ModelError, "class 1 for example 4 is nan"),
        (NAN.nan_to_num(math.inf), TARGETS, 0, ModelError, "is inf"),
        (LOGITS[:, 0], TARGETS, 0, ModelError, "shape \\(6,\\)"),
        (LOGITS[:, :1], TARGETS, 0, ModelError, "two classes or more"),
        (LOGITS.long(), TARGETS, 0, ModelError, "torch.int64"),
    ],
)
def test_what_cannot_be_counted_is_refused(logits, targets, label, error, message):
    with pytest.raises(error, match=message):
        quality(logits, targets, label)
    with pytest.raises(error, match=message):
        qualities(logits, targets, [0, label])


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="11 of 10 pictures of class 0"):
        Quality(0, own=10, others=5, hits=11, false_alarms=0, auroc=0.5)
    with pytest.raises(DataError, match="6 of 5 others"):
        Quality(0, own=10, others=5, hits=1, false_alarms=6, auroc=0.5)
    with pytest.raises(DataError, match="is no area"):
        Quality(0, own=10, others=5, hits=1, false_alarms=1, auroc=1.5)
    with pytest.raises(DataError, match="0 to trials"):
        interval([3, 11], 10)
    with pytest.raises(DataError, match="0 to trials"):
        interval(-1, 10)
    with pytest.raises(DataError, match="do not go together"):
        interval([1, 2, 3], [9, 9])
    with pytest.raises(MethodError, match="confidence=1"):
        interval(1, 10, 1)
    with pytest.raises(DataError, match="one score and one bool"):
        auroc(torch.zeros(3), torch.zeros(3))
    with pytest.raises(DataError, match="NaN"):
        auroc(torch.tensor([0.0, math.nan]), torch.tensor([True, False]))
