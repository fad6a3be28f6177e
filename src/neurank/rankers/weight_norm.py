"""Norms of a unit's own weights: the baseline that looks at no data."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from neurank.errors import MethodError
from neurank.observe.observer import Observer
from neurank.rankers.method import Scored
from neurank.ranking import LayerRanking

Tied = Literal["mean", "sum", "max"]


@dataclass(frozen=True)
class WeightNorm:
    """The p-norm of each unit's incoming weights, ``(sum |w|^p)^(1/p)``, bias left out.

    L1 norms of filters are the criterion of Li et al. (2016); the dead-units thesis (Evci, 2018,
    Table 4.1) compares them with squared L2 norms, ``WeightNorm(2, power=2)``. No data is used and
    no error is promised.

    Parameters
    ----------
    p : 1 for the sum of magnitudes, 2 for the Euclidean norm, ``inf`` for the largest; positive.
    tied : how the norms of the rows that are tied to one unit, by a residual sum for example, are
        combined: ``"mean"``, ``"sum"`` or ``"max"``.
    power : to which the norm is raised; positive.

    Example
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(2, 3, 6, 4, seed=0)
    >>> data = nr.data.load("digits").validation.first(10)
    >>> ranking = nr.rank(model, data, nr.WeightNorm(1), layers=["fc2"], progress=False)
    >>> bool(torch.allclose(ranking["fc2"].scores, model.fc2.weight.double().abs().sum(dim=1)))
    True
    """

    p: float = 1.0
    tied: Tied = "mean"
    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.p > 0:
            raise MethodError(f"p={self.p!r}: a norm needs a positive p, such as 1 or 2")
        if not self.power > 0:
            raise MethodError(f"power={self.power!r}: give a positive one, such as 1 or 2")
        if self.tied not in get_args(Tied):
            raise MethodError(f"tied={self.tied!r} is unknown: it is 'mean', 'sum' or 'max'")

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        norms: list[torch.Tensor] = []
        units: list[int] = []
        for rows in observer.weights(layer):
            weight = rows.weight.flatten(1).to(torch.float64)
            norm = torch.linalg.vector_norm(weight, ord=self.p, dim=1)
            norms.append(norm.pow(self.power).cpu())
            units += rows.units
        own = torch.tensor(units)
        scores = torch.zeros(observer.width(layer), dtype=torch.float64)
        how = {"mean": "mean", "sum": "sum", "max": "amax"}[self.tied]
        scores.scatter_reduce_(
            0, own[own >= 0], torch.cat(norms)[own >= 0], how, include_self=False
        )
        unknown = torch.full_like(scores, torch.nan)
        counts = torch.zeros(len(scores), dtype=torch.int64)
        return Scored(LayerRanking(scores, unknown, counts, "computed", stderr_of="none"))
