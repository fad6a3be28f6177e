"""First-order saliencies of units: what one forward and one backward pass say of all of them."""

from dataclasses import dataclass

import torch

from neurank.observe.observer import Observer
from neurank.observe.removal import Position, Removal, Statistic, replacing_by
from neurank.rankers.method import Scored
from neurank.rankers.moments import error_of_mean
from neurank.ranking import LayerRanking


@dataclass(frozen=True)
class Taylor:
    """How much the loss changes, to first order, when a unit is set to 0.

    ``mean over examples of |sum over places of g h|``, with h the unit where it is read and g the
    gradient of the example's cross-entropy there: the criterion of Molchanov et al. (2017). All
    layers take one forward and one backward pass together.

    Example
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(2, 3, 6, 4, seed=0)
    >>> data = nr.data.load("digits").validation.first(10)
    >>> ranking = nr.rank(model, data, nr.Taylor(), progress=False)
    >>> ranking["fc1"].units, ranking["fc1"].status
    (6, 'computed')
    """

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        return _scored(observer, layer, "zero")


@dataclass(frozen=True)
class MeanReplacementSaliency:
    """How much the loss changes, to first order, when a unit is replaced by its mean.

    ``mean over examples of |sum over places of g (mean - h)|``, with h what the unit gives, the
    mean over examples and places, and g the gradient of the example's cross-entropy there:
    definition 3.1.2 of the dead-units thesis (Evci, 2018). All layers take one forward and one
    backward pass together.

    Parameters
    ----------
    statistic : what a unit is replaced by: its ``"mean"`` over examples and positions, or its
        ``"median"``, ``"minimum"`` or ``"maximum"``, which take a pass of their own.
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
    >>> ranking = nr.rank(model, data, nr.MeanReplacementSaliency(), progress=False)
    >>> bool((ranking["fc1"].scores >= 0).all())
    True
    """

    statistic: Statistic = "mean"
    at: Position = "pre"

    def __post_init__(self) -> None:
        replacing_by(self.statistic, self.at)

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        return _scored(observer, layer, replacing_by(self.statistic, self.at))


def _scored(observer: Observer, layer: str, removal: Removal) -> Scored:
    sums = observer.slopes(removal)[layer]
    count = int(sums.examples.sum())
    scores = sums.sizes.sum(dim=0) / count
    by_class = sums.sizes / sums.examples[:, None].to(torch.float64)
    ranking = LayerRanking(
        scores,
        stderr=torch.zeros_like(scores),
        counts=torch.full(scores.shape, count, dtype=torch.int64),
        status="computed",
        data_stderr=error_of_mean(sums.sizes.sum(dim=0), sums.squares.sum(dim=0), count),
        by_class=by_class,
    )
    return Scored(ranking, {"replacement": removal})
