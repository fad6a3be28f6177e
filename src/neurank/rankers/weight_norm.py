"""Norms of a unit's own weights: the baseline that looks at no data."""

from dataclasses import dataclass

import torch

from neurank.errors import MethodError
from neurank.observe.observer import Observer
from neurank.rankers.method import Scored
from neurank.ranking import LayerRanking


@dataclass(frozen=True)
class WeightNorm:
    """The p-norm of each unit's incoming weights, ``(sum |w|^p)^(1/p)``, bias left out.

    L1 norms of filters are the criterion of Li et al. (2016). No data is used and no error is
    promised.

    Parameters
    ----------
    p : 1 for the sum of magnitudes, 2 for the Euclidean norm, ``inf`` for the largest; positive.

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

    def __post_init__(self) -> None:
        if not self.p > 0:
            raise MethodError(f"p={self.p!r}: a norm needs a positive p, such as 1 or 2")

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        weight = observer.weight(layer).flatten(1).to(torch.float64)
        scores = torch.linalg.vector_norm(weight, ord=self.p, dim=1).cpu()
        unknown = torch.full_like(scores, torch.nan)
        counts = torch.zeros(len(scores), dtype=torch.int64)
        return Scored(LayerRanking(scores, unknown, counts, "computed", stderr_of="none"))
