"""Exact Shapley values by the per-example null-player reduction."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from neurank.observe.game import Ends, Game, PerUnit
from neurank.observe.observer import Arrays, Observer
from neurank.rankers.cost import check_cost
from neurank.rankers.method import Scored
from neurank.rankers.moments import Round, Tally, layer_ranking, record, tally


@dataclass(frozen=True)
class ExactShapley:
    """Shapley values over the whole power set, eq. 2 of the neuron-ranking paper.

    ``SV(i) = sum over C without i of |C|! (n - |C| - 1)! / n! * (v(C + i) - v(C))``

    The value is a mean over examples, so its Shapley value is the mean of the Shapley values of
    one small game per example; and a unit whose consumers receive the same on and off is a null
    player of that example's game and drops out. An example with k active units costs 2^k
    coalitions. The result has no estimation error: ``stderr`` is 0, and ``data_stderr`` says how
    much the choice of examples matters.

    Parameters
    ----------
    max_operations : refuse a layer that would cost more additions and multiply-adds than this;
        the default is some minutes' work for the compiled kernels on two cores.

    Raises
    ------
    MethodError
        If a layer would cost more, with the cost; `PermutationShapley` estimates the same scores.

    Example
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(2, 3, 6, 4, seed=0)
    >>> data = nr.data.load("digits").validation.first(50)
    >>> ranking = nr.rank(model, data, nr.ExactShapley(), layers=["fc2"], progress=False)
    >>> record = ranking.provenance["by_layer"]["fc2"]
    >>> gain = record["value_all"] - record["value_none"]
    >>> bool(abs(ranking["fc2"].scores.sum() - gain) < 1e-12)
    True
    """

    max_operations: float = 1e13

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        done = Tally.zero(observer.classes, observer.width(layer))

        def compute(game: Game) -> Arrays:
            coalitions = game.exact_coalitions
            check_cost(
                "exact Shapley values",
                observer,
                game,
                coalitions=int(done.coalitions) + coalitions,
                seen=int(done.examples.sum()) + game.examples,
                max_operations=self.max_operations,
                remedy="Use PermutationShapley(), which estimates the same scores with standard "
                "errors",
            )
            scores, ends = _shapley(game)
            return tally(game, observer.classes, scores, ends, coalitions=coalitions).arrays()

        for chunk in observer.gather(layer, "exact", compute):
            done += Tally(**chunk.arrays)
        rounds = [Round(0, done)]
        notes = record(rounds, observer.ways(layer)[0])
        return Scored(layer_ranking(rounds, "exact"), notes)


def shapley_of_table(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shapley values of a game given as a table of 2^k values, coalition c at index c.

    Example:
    -------
    >>> shapley_of_table(np.array([0.0, 1.0, 0.0, 3.0])).tolist()
    [2.0, 1.0]
    """
    players = int(np.log2(len(values)))
    joined, left = _weights(players)
    sizes = np.zeros(1, np.int64)
    for _ in range(players):
        sizes = np.concatenate([sizes, sizes + 1])
    lost = float(left[sizes] @ values)
    gained = (joined + left)[sizes] * values
    shapley = np.empty(players)
    for player in reversed(range(players)):
        half = len(gained) // 2
        shapley[player] = gained[half:].sum() - lost
        gained = gained[:half] + gained[half:]
    return shapley


def _weights(players: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eq. 2, sorted by coalition: what v(C) adds to members, and takes from the others."""
    joined, left = np.zeros(players + 1), np.zeros(players + 1)
    weight = 1.0 / max(players, 1)
    for size in range(players):
        left[size] = joined[size + 1] = weight
        weight *= (size + 1) / max(players - size - 1, 1)
    return joined, left


def _shapley(game: Game) -> tuple[PerUnit, Ends]:
    """Shapley values of each example's game, and its value with none and all units."""
    if game.compiled:
        return game.exact()
    scores = np.zeros((game.examples, game.units))
    ends = np.zeros((game.examples, 2))
    active = game.active.cpu().numpy()
    for row in range(game.examples):
        values = torch.cat(list(game.power_set(row))).cpu().numpy()
        scores[row, active[row]] = shapley_of_table(values)
        ends[row] = values[0], values[-1]
    return scores, ends
