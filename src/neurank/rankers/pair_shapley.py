"""The neuron-ranking paper's second method: pairs of coalitions that differ by a single unit."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from neurank.errors import MethodError
from neurank.observe.game import Game
from neurank.observe.observer import Observer
from neurank.rankers.draws import Coalitions, coalitions_of_others
from neurank.rankers.method import Scored
from neurank.rankers.sampling import Played, sample
from neurank.rankers.stopping import Stop, check_stop

_INDICES = {"size-uniform": "Shapley", "subset-uniform": "Banzhaf"}
_MASK_ENTRIES = 1 << 16  # per example and call, so that a batch's masks stay small


@dataclass(frozen=True)
class PairShapley:
    """Shapley or Banzhaf values from pairs of coalitions that differ by one unit, paper §5.

    ``score(i) = E over C without i of (v(C + i) - v(C))``

    Each example draws a coalition C of its own for every active unit. With "size-uniform" first
    the size of C is drawn, then C among those of that size: the expectation is eq. 2, the Shapley
    value. With "subset-uniform" every other unit is in C with probability 1/2, which is what
    "uniformly at random" says literally: the expectation is the Banzhaf value. It is another
    index, whose scores do not sum to v(all) - v(none), and the record's "index" says so.

    The paper draws the unit at random too, which only makes some units less sure than others; here
    every unit has the same number of pairs. `PermutationShapley` takes half as many coalitions, as
    each serves two units, and its scores sum to v(all) - v(none) in every pass.

    ``stderr`` is the estimator's error given the data, from the spread of the pairs within each
    example; with a single pair it is the total error, of estimator and data together.

    Parameters
    ----------
    pairs : pairs per example and active unit; with `stop`, at most.
    coalitions : "size-uniform" for Shapley values, "subset-uniform" for Banzhaf values.
    stop : a rule that says when to stop before: `StderrBelow`, `TopCertain` or `Seconds`.

    Raises
    ------
    MethodError
        If `pairs` is not a positive whole number, or `coalitions` neither of the two.

    Example
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(2, 3, 6, 4, seed=0)
    >>> data = nr.data.load("digits").validation.first(50)
    >>> method = PairShapley(pairs=2, coalitions="subset-uniform")
    >>> ranking = nr.rank(model, data, method, layers=["fc1"], progress=False)
    >>> ranking.provenance["by_layer"]["fc1"]["index"]
    'Banzhaf'
    """

    pairs: int = 1
    coalitions: Coalitions = "size-uniform"
    stop: Stop | None = None

    def __post_init__(self) -> None:
        if isinstance(self.pairs, bool) or not isinstance(self.pairs, int) or self.pairs < 1:
            raise MethodError(f"pairs={self.pairs!r}: a positive whole number is needed")
        if self.coalitions not in _INDICES:
            raise MethodError(
                f"coalitions={self.coalitions!r}: give 'size-uniform' for Shapley values or "
                "'subset-uniform' for Banzhaf values"
            )
        check_stop(self.stop, self.pairs)

    @property
    def repetitions(self) -> int:
        """Number of independent estimates per example."""
        return self.pairs

    @property
    def group(self) -> int:
        """How many pairs of a unit a repetition is made of."""
        return 1

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        found = sample(self, observer, layer)
        return Scored(found.ranking, {**found.record, "index": _INDICES[self.coalitions]})

    def play(self, game: Game, seed: int, repetition: int) -> Played:
        """Estimate once: one pair for each active unit of each example."""
        active = game.active.cpu().numpy()
        players = active.sum(axis=1)
        everyone = np.argsort(~active, axis=1, kind="stable")  # the active units first
        slots = max(1, min(game.units, _MASK_ENTRIES // game.units))
        added = np.zeros((game.examples, game.units))
        for first in range(0, int(players.max()), slots):
            units = everyone[:, first : first + slots]
            without = coalitions_of_others(
                seed, repetition, game.numbers.numpy(), units, active, self.coalitions
            )
            np.put_along_axis(added, units, _differences(game, without, units), axis=1)
        added[~active] = 0  # they change nothing; rounding is not to be their score
        ends = torch.stack([torch.zeros_like(game.active), game.active], dim=1)
        values = game.values_by_example(ends).cpu().numpy()
        return Played(added, values, int((2 * players + 2).sum()))


def _differences(
    game: Game, without: NDArray[np.bool_], units: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Compute what each unit adds to its coalition, (examples, some)."""
    having = without.copy()
    np.put_along_axis(having, units[:, :, None], values=True, axis=2)
    masks = torch.from_numpy(np.concatenate([without, having], axis=1))
    values = game.values_by_example(masks.to(game.active.device)).cpu().numpy()
    some = units.shape[1]
    difference: NDArray[np.float64] = values[:, some:] - values[:, :some]
    return difference
