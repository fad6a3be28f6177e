"""Shapley values by sampling: every example takes permutations of its own."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurank.errors import MethodError
from neurank.observe.game import Game
from neurank.observe.leaps import Leaps, leap
from neurank.observe.observer import Observer
from neurank.observe.value import is_accuracy
from neurank.rankers.method import Scored
from neurank.rankers.orders import own_coins, own_orders, reversed_orders, turned_orders
from neurank.rankers.sampling import Played, sample
from neurank.rankers.stopping import Stop, check_stop


@dataclass(frozen=True)
class PermutationShapley:
    """Shapley values by eq. 1 of the neuron-ranking paper, over sampled permutations.

    ``SV(i) = E over permutations of (v(predecessors of i, and i) - v(predecessors of i))``

    One pass draws one permutation per example, independently, and lets its active units join in
    that order. The estimate is unbiased, and efficient in every pass: the scores sum to v(all) -
    v(none). Since examples do not share a permutation their errors do not add up; one pass is
    worth hundreds in which all examples share one.

    Where the value is an accuracy and no compiled kernel can run what follows, a chain is walked
    in leaps (`neurank.observe.leaps`): most units change nothing where they join, and stretches
    that seem to change nothing are looked into at random, what is found counting for more. The
    estimate stays unbiased, and efficient, for a fraction of the coalitions.

    ``stderr`` is the estimator's error given the data, from the spread of the passes within each
    example; with a single pass it is the total error, of estimator and data together, and
    ``stderr_of`` says so.

    Parameters
    ----------
    passes : permutations per example; with `stop`, at most.
    antithetic : take permutations in pairs, each and its reverse.
    strata : take permutations in groups of so many, which are one permutation begun at as many
        places evenly spaced, so that each unit joins early, midway and late. 1 is none.
    leaps : whether to walk in leaps where that applies; False visits every coalition.
    stop : a rule that says when to stop before: `StderrBelow`, `TopCertain` or `Seconds`.

    A pair, a group, or a group of pairs counts as one repetition in the standard errors, and
    `passes` must be a multiple of its size.

    Raises
    ------
    MethodError
        If `passes` or `strata` is not a positive whole number, or `passes` not such a multiple.

    Example
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(2, 3, 6, 4, seed=0)
    >>> data = nr.data.load("digits").validation.first(50)
    >>> method = nr.PermutationShapley(passes=2)
    >>> ranking = nr.rank(model, data, method, layers=["fc1"], progress=False)
    >>> ranking["fc1"].status, ranking["fc1"].stderr_of
    ('sampled', 'estimator')
    """

    passes: int = 1
    antithetic: bool = False
    strata: int = 1
    leaps: bool = True
    stop: Stop | None = None

    def __post_init__(self) -> None:
        for name in ("passes", "strata"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise MethodError(f"{name}={number!r}: a positive whole number is needed")
        if self.antithetic and self.passes % 2:
            raise MethodError(
                f"passes={self.passes} with antithetic=True: permutations come in pairs there, so "
                "the number of passes must be even"
            )
        if self.passes % self.group:
            raise MethodError(
                f"passes={self.passes} with strata={self.strata}: permutations come in groups of "
                f"{self.group} there, so the number of passes must be a multiple of that"
            )
        check_stop(self.stop, self.repetitions)

    @property
    def repetitions(self) -> int:
        """Number of independent estimates per example."""
        return self.passes // self.group

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        return sample(self, observer, layer)

    def play(self, game: Game, seed: int, repetition: int) -> Played:
        """Estimate once: one permutation of each example, or one group of them."""
        walks = [
            self._walk(game, seed, repetition * self.group + member, orders)
            for member, orders in enumerate(self._orders(game, seed, repetition))
        ]
        scores = np.mean([walk.marginals for walk in walks], axis=0)
        return Played(scores, walks[0].ends, sum(walk.coalitions for walk in walks))

    def _walk(self, game: Game, seed: int, draw: int, orders: NDArray[np.int64]) -> Leaps:
        if self.leaps and is_accuracy(game.value) and not game.compiled:
            numbers = game.numbers.numpy()
            return leap(
                game,
                orders,
                lambda rows, starts, ends: own_coins(seed, draw, numbers[rows], starts, ends),
            )
        return Leaps(*game.chain(orders), coalitions=int((orders >= 0).sum()) + game.examples)

    def _orders(self, game: Game, seed: int, repetition: int) -> Iterator[NDArray[np.int64]]:
        numbers, active = game.numbers.numpy(), game.active.cpu().numpy()
        drawn = own_orders(seed, repetition, numbers, active)
        for turn in range(self.strata):
            orders = turned_orders(drawn, turn, self.strata)
            yield orders
            if self.antithetic:
                yield reversed_orders(orders)

    @property
    def group(self) -> int:
        """Permutations that are not independent of each other."""
        return self.strata * (2 if self.antithetic else 1)
