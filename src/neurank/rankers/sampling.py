"""What all sampled methods share: rounds of repetitions, their errors, and when to stop."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from neurank.observe.game import Ends, Game, PerUnit
from neurank.observe.observer import Arrays, Observer
from neurank.observe.value import is_accuracy
from neurank.rankers.method import Scored
from neurank.rankers.moments import (
    Estimate,
    Round,
    Tally,
    estimate,
    layer_ranking,
    record,
    tally,
    undefined,
)
from neurank.rankers.stopping import Seconds, Stop


@dataclass(frozen=True)
class Played:
    """One repetition on a batch.

    Attributes
    ----------
    scores : (examples, units), an estimate for each example by itself.
    ends : (examples, 2), its value with no unit and with all.
    coalitions : how many were evaluated.
    """

    scores: PerUnit
    ends: Ends
    coalitions: int


class Sampled(Protocol):
    """A method that repeats an unbiased estimate of each example's scores."""

    @property
    def repetitions(self) -> int:
        """How often at most."""
        ...

    @property
    def group(self) -> int:
        """How many samples, not independent of each other, a repetition is made of."""
        ...

    @property
    def stop(self) -> Stop | None:
        """When to stop before."""
        ...

    def play(self, game: Game, seed: int, repetition: int) -> Played:
        """Estimate once, independently of the other repetitions."""
        ...


def sample(method: Sampled, observer: Observer, layer: str) -> Scored:
    """Repeat a method's estimate until it has been sampled enough, and say how sure it is."""
    sampling = _Sampling(method, observer, layer, _fastest(method, observer, layer))
    for first, last in sampling.plan():
        sampling.play(first, last)
    notes = record(sampling.rounds, sampling.way) | {"seconds": round(sampling.seconds, 3)}
    if method.stop is not None:
        examples = int(sampling.rounds[0].tally.examples.sum())
        notes |= {
            "repetitions": sampling.repetitions,
            "examples": examples,
            "stopped": sampling.reason,
        }
    if not sampling.rounds[0].tally.examples.sum():
        return Scored(undefined(observer.width(layer)), notes)
    return Scored(layer_ranking(sampling.rounds, "sampled"), notes)


@dataclass
class _Sampling:
    """The rounds so far."""

    method: Sampled
    observer: Observer
    layer: str
    way: str
    rounds: list[Round] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = "all repetitions done"

    @property
    def repetitions(self) -> int:
        """How many there have been."""
        return sum(it.repetitions for it in self.rounds)

    def plan(self) -> Iterator[tuple[int, int]]:
        """Yield the repetitions of each round, first to last."""
        most, stop = self.method.repetitions, self.method.stop
        if stop is None:
            yield 0, most
            return
        done = look = 0
        while done < most:
            last = min(most, done + self._next(done))
            if most - last == 1:
                last = most  # a round of a single repetition would tell no error
            yield done, last
            done, look = last, look + 1
            found = estimate(self.rounds)
            if found.examples and stop.reached(found, look):
                self.reason = f"{stop} reached"
                return
            if self._is_out_of_time() or (done < most and self._affordable(done) < 2):
                self.reason = f"{stop} spent"
                return

    def play(self, first: int, last: int) -> None:
        """Play a round: all examples, or as many as there is time for."""
        observer, method = self.observer, self.method
        sums = Tally.zero(observer.classes, observer.width(self.layer))

        def compute(game: Game) -> Arrays:
            return _repeated(method, game, observer, first, last).arrays()

        def leaders() -> str:
            return _leaders(estimate([*self.rounds, Round(last - first, sums, method.group)]))

        chunks = observer.gather(
            self.layer,
            f"repetitions {first} to {last}",
            compute,
            way=self.way,
            describe=leaders,
        )
        for chunk in chunks:
            sums += Tally(**chunk.arrays)
            self.seconds += chunk.seconds
            if self._is_out_of_time():
                break
        if self.rounds and sums.examples.sum() < self.rounds[0].tally.examples.sum():
            return  # not all examples have these repetitions
        self.rounds.append(Round(last - first, sums, method.group))

    def _next(self, done: int) -> int:
        """How many repetitions the next round has: as many as there were, if there is time.

        A round that is not finished in time is lost, so it takes half of the time at most, or is
        the smallest that tells an error.
        """
        if not done:
            return 2
        return int(min(done, max(2, self._affordable(done) / 2)))

    def _affordable(self, done: int) -> float:
        """How many more repetitions there is time for."""
        stop = self.method.stop
        if not isinstance(stop, Seconds):
            return math.inf
        return (stop.seconds - self.seconds) * done / max(self.seconds, 1e-9)

    def _is_out_of_time(self) -> bool:
        stop = self.method.stop
        return isinstance(stop, Seconds) and self.seconds >= stop.seconds


def _repeated(method: Sampled, game: Game, observer: Observer, first: int, last: int) -> Tally:
    """Sum up the means over some repetitions on a batch."""
    if not game.examples:
        return Tally.zero(observer.classes, game.units)
    count = last - first
    total = np.zeros((game.examples, game.units))
    squares = np.zeros_like(total)
    ends = np.zeros((game.examples, 2))
    coalitions = 0
    for repetition in range(first, last):
        played = method.play(game, observer.seed, repetition)
        total += played.scores
        squares += played.scores**2
        ends = played.ends
        coalitions += played.coalitions
    mean = total / count
    spread = np.maximum(squares / count - mean**2, 0)
    within = spread / max(count - 1, 1)
    live = game.active.cpu().numpy() if is_accuracy(game.value) else None
    return tally(game, observer.classes, mean, ends, within, live, coalitions)


def _fastest(method: Sampled, observer: Observer, layer: str) -> str:
    """Try the ways that there are on a few examples and choose the one that takes least time."""
    ways = observer.ways(layer)
    if len(ways) == 1:
        return ways[0]

    def compute() -> Arrays:
        return {way: np.array(observer.trial(layer, way, attempt)) for way in ways}

    def attempt(game: Game) -> None:
        method.play(game, observer.seed, 0)

    seconds = observer.once(f"{layer} / trial of ways", compute).arrays
    return min(ways, key=lambda way: float(seconds[way]))


def _leaders(found: Estimate, most: int = 3) -> str:
    """Name the best units so far with their errors."""
    if not found.examples:
        return ""
    errors = np.sqrt(found.error)
    best = np.argsort(-found.mean, kind="stable")[:most]
    return ", ".join(f"{unit}: {found.mean[unit]:.3g} ± {errors[unit]:.1g}" for unit in best)
