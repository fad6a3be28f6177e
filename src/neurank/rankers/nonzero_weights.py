"""How many of a unit's weights are not zero: what is left of it after pruning of weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neurank.observe.observer import Observer
from neurank.observe.unit_weights import UnitWeights
from neurank.rankers.method import Scored
from neurank.ranking import LayerRanking


@dataclass(frozen=True)
class NonzeroWeights:
    """The share of a unit's weights that are not zero, incoming or outgoing, whichever is less.

    ``min(nonzero incoming / incoming, nonzero outgoing / outgoing)``, biases left out: f_nz of the
    dead-units thesis (Evci, 2018, section 2.2). At 0 the unit gives a constant, which its readers'
    biases can take over (``neurank.condense(..., removal="mean")``), or nobody reads it: then
    ``nr.plan(ranking, above=0)`` removes what pruning of weights has emptied, and the network
    computes what it did. Where something else than a convolution or a linear layer reads the unit,
    incoming weights alone count. No data is used and no error is promised.

    Example
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(2, 3, 4, 4, seed=0)
    >>> with torch.no_grad():
    ...     _ = model.fc1.weight[1].zero_(), model.fc2.weight[:3, 2].zero_()
    >>> data = nr.data.load("digits").validation.first(10)
    >>> ranking = nr.rank(model, data, NonzeroWeights(), layers=["fc1"], progress=False)
    >>> ranking["fc1"].scores.tolist(), nr.plan(ranking, above=0).keep["fc1"]
    ([1.0, 0.0, 0.25, 1.0], (0, 2, 3))
    """

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        width = observer.width(layer)
        shares = _shares(observer.weights(layer), width)
        read = observer.outgoing(layer)
        outgoing = [weights for weights in read if weights is not None]
        if outgoing and len(outgoing) == len(read):
            shares = torch.minimum(shares, _shares(outgoing, width))
        unknown = torch.full_like(shares, torch.nan)
        counts = torch.zeros(width, dtype=torch.int64)
        return Scored(LayerRanking(shares, unknown, counts, "computed", stderr_of="none"))


def _shares(parts: Sequence[UnitWeights], width: int) -> Tensor:
    nonzero = torch.zeros(width, dtype=torch.float64)
    weights = torch.zeros(width, dtype=torch.float64)
    for part in parts:
        flat = part.weight.flatten(1).cpu()
        units = torch.tensor(part.units)
        own = units >= 0
        nonzero.index_add_(0, units[own], (flat != 0).sum(dim=1).double()[own])
        weights.index_add_(
            0, units[own], torch.full((int(own.sum()),), float(flat.shape[1])).double()
        )
    return nonzero / weights.clamp(min=1)
