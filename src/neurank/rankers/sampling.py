"""What all sampled methods share: rounds of repetitions, their errors, and when to stop."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from neurank.observe.game import Ends, Game, PerUnit
from neurank.observe.observer import Arrays, Observer
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
        notes |= {"repetitions": sampling.repetitions, "stopped": sampling.reason}
    if not sampling.rounds[0].tally.examples.sum():
        return Scored(undefined(observer.width(layer)), notes)
    return Scored(layer_ranking(sampling.rounds, "sampled", method.group), notes)


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
        done = 0
        for look in range(1, most + 1):
            last = min(most, max(2, 2 * done), done + self._affordable(done))
            yield done, last
            done = last
            if self._enough(stop, look) or done >= most or not self._affordable(done):
                return

    def play(self, first: int, last: int) -> None:
        """Play a round: all examples, or as many as there is time for."""
        observer, method = self.observer, self.method
        sums = Tally.zero(observer.classes, observer.width(self.layer))

        def compute(game: Game) -> Arrays:
            return _repeated(method, game, observer, first, last).arrays()

        chunks = observer.gather(
            self.layer,
            f"repetitions {first} to {last}",
            compute,
            way=self.way,
            describe=lambda: _leaders(estimate([*self.rounds, Round(last - first, sums)])),
        )
        for chunk in chunks:
            sums += Tally(**chunk.arrays)
            self.seconds += chunk.seconds
            if self._out_of_time() and not self.rounds:
                break
        if self.rounds and sums.examples.sum() < self.rounds[0].tally.examples.sum():
            return
        self.rounds.append(Round(last - first, sums))

    def _enough(self, stop: Stop, look: int) -> bool:
        found = estimate(self.rounds)
        if found.examples and stop.reached(found, look):
            self.reason = f"{stop} reached"
            return True
        return self._out_of_time()

    def _out_of_time(self) -> bool:
        stop = self.method.stop
        if isinstance(stop, Seconds) and self.seconds >= stop.seconds:
            self.reason = f"{stop} spent"
            return True
        return False

    def _affordable(self, done: int) -> int:
        """How many more repetitions there is time for; rounds of one tell no error."""
        stop = self.method.stop
        if not isinstance(stop, Seconds) or not done:
            return self.method.repetitions
        more = int((stop.seconds - self.seconds) * done / max(self.seconds, 1e-9))
        if more < 2:
            self.reason = f"{stop} spent"
            return 0
        return more


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
    return tally(game, observer.classes, mean, ends, spread / max(count - 1, 1), coalitions)


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
    errors = np.sqrt(np.where(found.within > 0, found.within, found.total))
    best = np.argsort(-found.mean, kind="stable")[:most]
    return ", ".join(f"{unit}: {found.mean[unit]:.3g} ± {errors[unit]:.1g}" for unit in best)
