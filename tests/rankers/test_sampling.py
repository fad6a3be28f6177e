from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tests.cases import look, named, watch

import neurank as nr
from neurank.rankers.sampling import Played, sample

NEVER = nr.StderrBelow(1e-12)


class Kept:
    """A journal in memory."""

    reused = 0

    def __init__(self):
        self.chunks = {}

    def get(self, key):
        found = self.chunks.get(key)
        return None if found is None else dict(found)

    def append(self, key, arrays):
        self.chunks[key] = dict(arrays)

    def rounds(self):
        steps = [key.split(" / ")[1].split() for key in self.chunks]
        return list(dict.fromkeys((int(step[1]), int(step[3])) for step in steps))


def score(observer, **parameters):
    return nr.PermutationShapley(**parameters).score(observer, "fc0")


def rounds_of(**parameters):
    journal = Kept()
    score(watch(named("perceptron"), journal=journal), **parameters)
    return journal.rounds()


@pytest.mark.parametrize(
    ("passes", "rounds"),
    [
        (2, [(0, 2)]),
        (3, [(0, 3)]),
        (4, [(0, 2), (2, 4)]),
        (5, [(0, 2), (2, 5)]),
        (8, [(0, 2), (2, 4), (4, 8)]),
        (9, [(0, 2), (2, 4), (4, 9)]),
        (20, [(0, 2), (2, 4), (4, 8), (8, 16), (16, 20)]),
    ],
)
def test_rounds_double_and_none_is_a_single_repetition(passes, rounds):
    assert rounds_of(passes=passes, stop=NEVER) == rounds
    assert rounds_of(passes=2 * passes, antithetic=True, stop=NEVER) == rounds
    assert rounds_of(passes=passes) == [(0, passes)]


def test_it_stops_at_the_first_look_that_qualifies():
    observer = watch(named("perceptron"))
    looks = {m: score(observer, passes=m, stop=NEVER).ranking for m in (2, 4, 8, 16, 32)}
    errors = {m: float(it.stderr.max()) for m, it in looks.items()}
    for wanted in [*errors.values(), 0.9 * errors[2], 1.1 * errors[8], 1.0]:
        first = next((m for m, error in errors.items() if error <= wanted), 32)
        found = score(observer, passes=32, stop=nr.StderrBelow(wanted))
        assert found.record["repetitions"] == first
        assert found.ranking == looks[first]
        assert found.record["stopped"] == f"StderrBelow(stderr={wanted!r}) reached"


def test_rounds_together_are_one_run_of_as_many_passes():
    observer = watch(named("perceptron"))
    for passes in (4, 7, 16):
        at_once, in_rounds = (score(observer, passes=passes, stop=stop) for stop in (None, NEVER))
        for field in ("scores", "by_class"):
            one, other = (getattr(it.ranking, field) for it in (at_once, in_rounds))
            torch.testing.assert_close(one, other, atol=1e-12, rtol=0, equal_nan=True)
        assert torch.equal(at_once.ranking.counts, in_rounds.ranking.counts)
        assert at_once.record["coalitions"] == in_rounds.record["coalitions"]
        assert in_rounds.record["repetitions"] == passes
        assert in_rounds.record["stopped"] == "all repetitions done"
        assert "stopped" not in at_once.record


@pytest.mark.parametrize("passes", [4, 5, 7])
def test_errors_of_rounds_are_right_on_average(passes):
    observer = watch(named("perceptron"))
    wanted = nr.ExactShapley().score(observer, "fc0").ranking.scores
    claimed, seen = [], []
    for seed in range(150):
        found = score(replace(observer, seed=seed), passes=passes, stop=NEVER).ranking
        claimed.append(found.stderr**2)
        seen.append((found.scores - wanted) ** 2)
    ratio = float(torch.stack(claimed).mean() / torch.stack(seen).mean())
    assert ratio == pytest.approx(1, abs=0.2)


def test_a_unit_whose_samples_are_all_alike_keeps_an_error_unless_it_is_null():
    case = named("many ties")
    model = case.model()
    with torch.no_grad():
        model.fc0.weight[1], model.fc0.bias[1] = 0, -1  # never active
    observer = look(model, case.batches())
    seldom = torch.tensor([True, False, True, True, True])
    alike = 0
    for passes in (2, 16):
        found = score(observer, passes=passes).ranking
        changes = found.stderr * found.counts
        assert (changes[seldom] >= 1 - 1e-9).all()
        assert changes[1] == 0
        alike += int((found.freedom[seldom] == 2).sum())
        total = score(observer).ranking
        assert (total.stderr >= 1 / 12 - 1e-9).all()  # other examples may rouse the silent unit
    assert alike
    steady = score(replace(observer, value=constant), passes=2).ranking
    assert (steady.stderr == 0).all()  # nothing is known of how far such values may jump


def constant(_outputs, targets):
    return torch.ones(len(targets), dtype=torch.float64)


def test_a_class_without_examples_is_undefined_whatever_the_rule():
    observer = watch(named("perceptron"), value=nr.Recall(99))
    found = score(observer, passes=8, stop=nr.TopCertain(1))
    assert found.ranking.status == "undefined"
    assert found.record["examples"] == 0


@dataclass
class Clock:
    """Time passes only where a method plays."""

    now: float = 0.0

    def perf_counter(self):
        return self.now


@dataclass(frozen=True)
class Slow:
    """A method that takes a second per example, or more once it is tired."""

    clock: Clock
    stop: object
    repetitions: int = 100
    tired_from: int = 10**6
    group: int = 1

    def play(self, game, seed, repetition):
        self.clock.now += game.examples * (10 if repetition >= self.tired_from else 1)
        method = nr.PermutationShapley()
        return Played(*[getattr(method.play(game, seed, repetition), name) for name in FIELDS])


FIELDS = ("scores", "ends", "coalitions")


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("neurank.observe.observer.time", clock)
    return clock


def scored(clock, seconds, **changes):
    """12 examples in chunks of 5, 4 and 3: a round of two takes 24 seconds."""
    observer = watch(named("perceptron"), seed=8)
    return sample(Slow(clock, nr.Seconds(seconds), **changes), observer, "fc0")


def test_a_first_round_that_takes_too_long_sees_the_first_examples_only(clock):
    for seconds, examples in [(0.5, 5), (10, 5), (10.5, 9), (18, 9), (18.5, 12)]:
        found = scored(clock, seconds)
        case = named("perceptron")
        few = look(case.model(), case.batches()[: {5: 1, 9: 2, 12: 3}[examples]], seed=8)
        assert found.record["examples"] == examples
        assert found.record["repetitions"] == 2
        assert found.record["stopped"] == f"Seconds(seconds={seconds}) spent"
        assert found.ranking.counts.tolist() == [2 * examples] * 5
        assert found.ranking == score(few, passes=2).ranking


def test_the_time_is_used_and_not_exceeded(clock):
    for seconds in (50, 100, 333, 1000):
        found = scored(clock, seconds)
        repetitions = found.record["repetitions"]
        assert found.record["seconds"] == 12 * repetitions <= seconds < 12 * (repetitions + 2)
        assert found.ranking.counts.tolist() == [12 * repetitions] * 5
        assert found.record["stopped"] == f"Seconds(seconds={seconds}) spent"


def test_with_time_left_all_repetitions_are_done(clock):
    found = scored(clock, 10**6, repetitions=9)
    assert found.record["repetitions"] == 9
    assert found.record["stopped"] == "all repetitions done"


def test_a_later_round_that_is_not_finished_in_time_is_dropped(clock):
    found = scored(clock, 100, tired_from=4)
    whole = score(watch(named("perceptron"), seed=8), passes=4, stop=NEVER)
    assert found.record["repetitions"] == 4
    assert found.ranking == whole.ranking
    assert found.record["seconds"] == 48 + 2 * 5 * 10  # it noticed after one chunk


def test_a_rule_recalls_its_time_from_the_journal(clock):
    journal = Kept()
    observer = watch(named("perceptron"), journal=journal)
    method = Slow(clock, nr.Seconds(100))
    one = sample(method, observer, "fc0")
    before = clock.now
    again = sample(method, observer, "fc0")
    assert clock.now == before
    assert again == one


@pytest.mark.parametrize("fastest", ["additive", "suffix"])
def test_the_fastest_way_is_chosen(monkeypatch, fastest):
    observer = watch(named("sigmoid"))
    kind = type(observer)
    monkeypatch.setattr(kind, "ways", lambda *_: ("additive", "suffix"))
    monkeypatch.setattr(kind, "trial", lambda _, _layer, way, _try: 1.0 if way == fastest else 2.0)
    found = score(observer, passes=2)
    assert found.record["way"] == fastest
    monkeypatch.undo()
    plain = score(observer, passes=2)
    np.testing.assert_allclose(found.ranking.scores, plain.ranking.scores, atol=1e-12)
