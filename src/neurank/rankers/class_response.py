"""What units answer to each class: the criterion of semantic pruning."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from neurank.errors import MethodError
from neurank.observe.observer import Observer
from neurank.observe.removal import Position
from neurank.observe.responses import Responses
from neurank.observe.value import Recall
from neurank.rankers.method import Scored
from neurank.rankers.moments import error_of_mean, undefined
from neurank.ranking import LayerRanking

Total = Literal["sum", "mean"]


@dataclass(frozen=True)
class ClassResponse:
    """How strongly a unit answers to the examples of each class.

    The activation magnitude of a unit for an example is the sum of its map,
    ``r_i = sum over x, y of R[x, y, i]``; the accumulated response to a class is its sum over the
    examples of the class, ``γ_i = sum over o of r_i(o)``: equations 2 and 3 of "Semantic Pruning
    for Single Class Interpretability" (2020). All layers and classes take one pass over the data
    together; sums are kept in float64, classes times units of them.

    ``by_class`` has a row per class, NaN for a class without examples, and
    `neurank.Ranking.of_class` makes a ranking of a row. The scores are those of all examples
    together, or of one class where `rank` is given ``value=Recall(label)``.

    Parameters
    ----------
    at : ``"pre"`` reads what the unit's own layer gives, before BatchNorm and nonlinearity, as the
        paper does: it can be negative. Where layers are tied, a unit is the sum over all of them.
        ``"post"`` reads what the unit's consumers read.
    statistic : ``"sum"`` is the paper's. ``"mean"`` divides by the number of examples and of places
        that the unit gives, so that layers with large maps and with small ones, and classes with
        many examples and with few, are on one scale.

    Raises
    ------
    MethodError
        If there is no such position or statistic.

    Example
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(2, 3, 6, 4, seed=0)
    >>> data = nr.data.load("digits").validation.first(50)
    >>> ranking = nr.rank(model, data, nr.ClassResponse(), progress=False)
    >>> ranking["conv1"].by_class.shape
    torch.Size([10, 2])
    >>> ranking.of_class(3)["fc1"].scores.equal(ranking["fc1"].by_class[3])
    True
    """

    at: Position = "pre"
    statistic: Total = "sum"

    def __post_init__(self) -> None:
        for name, known in (("at", Position), ("statistic", Total)):
            given = getattr(self, name)
            if given not in get_args(known):
                raise MethodError(
                    f"{name}={given!r} is unknown: it is one of "
                    f"{', '.join(map(repr, get_args(known)))}"
                )

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        found = observer.responses(layer, self.at)
        value = observer.value
        chosen = slice(value.label, value.label + 1) if isinstance(value, Recall) else slice(None)
        record = {"classes_without_examples": int((found.examples == 0).sum())}
        return Scored(self._ranking(found, chosen), record)

    def _ranking(self, found: Responses, chosen: slice) -> LayerRanking:
        count = int(found.examples[chosen].sum())
        if not count:
            return undefined(found.sums.shape[1])
        is_mean = self.statistic == "mean"
        scale = found.places.to(torch.float64) if is_mean else 1.0
        by_class = found.sums / scale
        sums = by_class[chosen].sum(dim=0)
        squares = (found.squares / scale**2)[chosen].sum(dim=0)
        error = error_of_mean(sums, squares, count)
        if is_mean:
            by_class = by_class / found.examples[:, None]
        by_class[found.examples == 0] = torch.nan
        return LayerRanking(
            sums / count if is_mean else sums,
            stderr=torch.zeros_like(sums),
            counts=torch.full(sums.shape, count, dtype=torch.int64),
            status="computed",
            data_stderr=error if is_mean else error * count,
            by_class=by_class,
        )
