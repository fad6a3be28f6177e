"""Shapley values by sampling: every example takes permutations of its own."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from neurank.errors import MethodError
from neurank.observe.game import Ends, Game, PerUnit
from neurank.observe.observer import Observer
from neurank.rankers.method import Scored
from neurank.rankers.moments import Moments, undefined
from neurank.rankers.orders import own_orders, reversed_orders
from neurank.ranking import LayerRanking


@dataclass(frozen=True)
class PermutationShapley:
    """Shapley values by eq. 1 of the neuron-ranking paper, over sampled permutations.

    ``SV(i) = E over permutations of (v(predecessors of i, and i) - v(predecessors of i))``

    One pass draws one permutation per example, independently, and lets its active units join in
    that order. The estimate is unbiased, and efficient in every pass: the scores sum to v(all) -
    v(none). Since examples do not share a permutation their errors do not add up; one pass is
    worth hundreds in which all examples share one.

    ``stderr`` is the estimator's error given the data, from the spread of the passes within each
    example; with a single pass it is the total error, of estimator and data together, and
    ``stderr_of`` says so.

    Parameters
    ----------
    passes : permutations per example.
    antithetic : take permutations in pairs, each and its reverse; `passes` must be even, and a
        pair counts as one repetition in the standard errors.

    Raises
    ------
    MethodError
        If `passes` is not a positive whole number, or odd with ``antithetic=True``.

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

    def __post_init__(self) -> None:
        if not isinstance(self.passes, int) or self.passes < 1:
            raise MethodError(f"passes={self.passes!r}: a positive whole number is needed")
        if self.antithetic and self.passes % 2:
            raise MethodError(
                f"passes={self.passes} with antithetic=True: permutations come in pairs there, so "
                "the number of passes must be even"
            )

    @property
    def repetitions(self) -> int:
        """Number of independent estimates per example."""
        return self.passes // 2 if self.antithetic else self.passes

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        units = observer.width(layer)
        moments = Moments(units)
        coalitions = 0
        for game in observer.games(layer):
            if game.examples:
                moments.add(*self._estimate(game, observer.seed))
                coalitions += self.passes * int((game.active.sum(dim=1) + 1).sum())
        if not moments.examples:
            return Scored(undefined(units))
        single = self.repetitions == 1
        error = moments.total_variance if single else moments.estimator_variance
        ranking = LayerRanking(
            scores=torch.from_numpy(moments.mean),
            stderr=torch.from_numpy(np.sqrt(error)),
            counts=torch.full((units,), moments.examples * self.passes),
            status="sampled",
            stderr_of="total" if single else "estimator",
            data_stderr=None if single else torch.from_numpy(np.sqrt(moments.data_variance)),
        )
        return Scored(ranking, moments.record(observer.way(layer), coalitions))

    def _estimate(self, game: Game, seed: int) -> tuple[PerUnit, Ends, PerUnit]:
        """Mean over the repetitions per example, the values at the ends, the mean's variance."""
        total = np.zeros((game.examples, game.units))
        squares = np.zeros_like(total)
        ends = np.zeros((game.examples, 2))
        for repetition in range(self.repetitions):
            marginals, ends = self._repetition(game, seed, repetition)
            total += marginals
            squares += marginals**2
        count = self.repetitions
        mean = total / count
        spread = np.maximum(squares / count - mean**2, 0)
        return mean, ends, spread / max(count - 1, 1)

    def _repetition(self, game: Game, seed: int, repetition: int) -> tuple[PerUnit, Ends]:
        played = [game.chain(orders) for orders in self._orders(game, seed, repetition)]
        marginals = np.mean([marginals for marginals, _ in played], axis=0)
        return marginals, played[0][1]

    def _orders(self, game: Game, seed: int, repetition: int) -> Iterator[NDArray[np.int64]]:
        numbers, active = game.numbers.numpy(), game.active.cpu().numpy()
        orders = own_orders(seed, repetition, numbers, active)
        yield orders
        if self.antithetic:
            yield reversed_orders(orders)
