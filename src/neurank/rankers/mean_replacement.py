"""The mean replacement penalty: the loss with one unit alone replaced, for every unit."""

from dataclasses import dataclass, replace

import numpy as np

from neurank.observe.game import Game
from neurank.observe.observer import Arrays, Observer
from neurank.observe.removal import Position, Statistic, replacing_by
from neurank.observe.value import NegativeLoss
from neurank.rankers.method import Scored
from neurank.rankers.moments import Round, Tally, layer_ranking, record, tally


@dataclass(frozen=True)
class MeanReplacementPenalty:
    """How much the loss changes when a unit is replaced by its mean.

    ``MRP(i) = mean over examples of |L(h with unit i replaced) - L(h)|``, with L the cross-entropy
    of the example: definition 3.1.1 of the dead-units thesis (Evci, 2018), which sums where this
    takes the mean. Nothing is approximated: what is below the layer is run once per example, what
    is above it once per example and unit, and units that are replaced by what they are anyway cost
    nothing. `MeanReplacementSaliency` is its first-order approximation.

    Parameters
    ----------
    statistic : what a unit is replaced by: its ``"mean"`` over examples and positions, or its
        ``"median"``, ``"minimum"`` or ``"maximum"``.
    at : ``"pre"`` replaces what the unit's own layer gives, before BatchNorm and nonlinearity, as
        the thesis does; ``"post"`` what its consumers read, where bias propagation
        (``neurank.condense(..., removal="mean")``) makes the replacement exact.

    Raises
    ------
    MethodError
        If there is no such statistic or position.

    Example
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(2, 3, 6, 4, seed=0)
    >>> data = nr.data.load("digits").validation.first(10)
    >>> ranking = nr.rank(model, data, nr.MeanReplacementPenalty(), progress=False)
    >>> bool((ranking["fc1"].scores >= 0).all())
    True
    """

    statistic: Statistic = "mean"
    at: Position = "pre"

    def __post_init__(self) -> None:
        replacing_by(self.statistic, self.at)

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        removal = replacing_by(self.statistic, self.at)
        watching = replace(observer, value=NegativeLoss(), removal=removal)
        done = Tally.zero(watching.classes, watching.width(layer))

        def compute(game: Game) -> Arrays:
            values, whole = game.left_out()
            ends = np.stack([np.full_like(whole, np.nan), whole], axis=1)
            evaluated = game.examples + int(game.active.sum())
            penalties = np.abs(values - whole[:, None])
            return tally(game, watching.classes, penalties, ends, coalitions=evaluated).arrays()

        for chunk in watching.gather(layer, "left out", compute):
            done += Tally(**chunk.arrays)
        rounds = [Round(0, done)]
        notes = record(rounds, watching.ways(layer)[0])
        del notes["value_none"]  # no example is run without all units
        return Scored(layer_ranking(rounds, "exact"), {**notes, "replacement": removal})
