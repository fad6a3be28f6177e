"""Several rankings of one network made into one."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy import stats
from torch import Tensor

from neurank.errors import RankingError
from neurank.files import Json
from neurank.ranking import LayerRanking, Ranking, StderrOf, refuse_other_model

How = Literal["rank", "mean", "share", "geometric", "min"]
"""The ways to combine, see `combine`."""


def combine(
    rankings: Sequence[Ranking],
    how: How = "rank",
    *,
    weights: Sequence[float] | None = None,
) -> Ranking:
    r"""Make one ranking of several, such as those by different methods, data or seeds.

    With :math:`s_i(u)` the score of unit u by the ranking i, :math:`n` the number of units of the
    layer, :math:`r_i(u)` its rank, 1 for the worst, tied scores sharing their mean rank, and
    :math:`w_i` the weights, made to sum to 1:

    ============= ================================================================ ===============
    how           score                                                            does not change
    ============= ================================================================ ===============
    ``rank``      :math:`\sum_i w_i (r_i(u) - 1) / (n - 1)`, the share of the      if scores rise
                  other units that it beats (Borda's count)                        in any way
    ``min``       :math:`\min_i (r_i(u) - 1) / (n - 1)`: a unit is as good as its  if scores rise
                  worst judge says; `weights` have no effect and are refused       in any way
    ``share``     :math:`\sum_i w_i s_i(u) / \sum_v |s_i(v)|`, signed shares       if scores are
                  of a layer                                                       scaled
    ``geometric`` :math:`\prod_i (|s_i(u)| / \sum_v |s_i(v)|)^{w_i}`: what one     if scores are
                  judge calls worthless is; scores must be 0 or more               scaled
    ``mean``      :math:`\sum_i w_i s_i(u)`, for scores of one kind and scale,     \-
                  as by the same method on different data
    ============= ================================================================ ===============

    Each layer is combined by itself. Units of equal combined score keep the order of their index.

    Parameters
    ----------
    rankings
        One or more rankings of the same layers of one network.
    how
        The way, from the table.
    weights
        How much each ranking counts, positive numbers, one per ranking; by default all the same.

    Returns
    -------
    Ranking
        Its layers are in the first ranking's order, their status is ``"computed"``; counts are
        added. Standard errors are known for ``mean`` alone, where the combined score is linear in
        the scores, :math:`\sqrt{\sum_i w_i^2 e_i^2}`, which takes the rankings to be independent
        of each other; they are unknown (NaN) where one of the errors is, or where the rankings'
        errors do not cover the same. ``provenance["combined"]`` lists the provenances.

    Raises
    ------
    RankingError
        There is no ranking; they are of different models, layers or widths; scores are undefined,
        or negative for ``geometric``; a weight is not positive; the way is unknown.

    Examples
    --------
    >>> one = Ranking.from_scores({"fc1": [0.1, 0.5, 0.2]})
    >>> other = Ranking.from_scores({"fc1": [30.0, 20.0, 10.0]})
    >>> combine([one, other])["fc1"].scores.tolist()
    [0.5, 0.75, 0.25]
    >>> combine([one, other], "min").order()
    (1, 0, 2)
    """
    if how not in _WAYS:
        raise RankingError(f"how={how!r} is unknown: it is one of {', '.join(map(repr, _WAYS))}")
    _check_belong(rankings)
    shares = _shares(weights, len(rankings), how)
    layers = {
        name: _combined(name, [ranking[name] for ranking in rankings], shares, _WAYS[how])
        for name in rankings[0]
    }
    provenance: dict[str, Json] = {
        "method": {"name": "combine", "parameters": {"how": how, "weights": shares}},
        "combined": [ranking.provenance for ranking in rankings],
    }
    for ranking in rankings:
        if "model" in ranking.provenance:
            provenance["model"] = ranking.provenance["model"]
    return Ranking(layers, provenance)


Scores = Sequence[Tensor]
"""The scores of one layer by each ranking, (units,) float64 each."""


@dataclass(frozen=True)
class _Way:
    """How scores of a layer are combined.

    Attributes
    ----------
    combined : from scores and weights to scores.
    least : the lowest score that is allowed.
    is_linear : whether errors of the scores carry over.
    weighs : whether weights have an effect.
    """

    combined: Callable[[Scores, Sequence[float]], Tensor]
    least: float = -math.inf
    is_linear: bool = False
    weighs: bool = True


def _sum(scores: Scores, weights: Sequence[float]) -> Tensor:
    return torch.stack([w * it for w, it in zip(weights, scores, strict=True)]).sum(dim=0)


def _mean_rank(scores: Scores, weights: Sequence[float]) -> Tensor:
    return _sum([_beaten(it) for it in scores], weights)


def _least_rank(scores: Scores, _: Sequence[float]) -> Tensor:
    return torch.stack([_beaten(it) for it in scores]).amin(dim=0)


def _mean_share(scores: Scores, weights: Sequence[float]) -> Tensor:
    return _sum([_share(it) for it in scores], weights)


def _geometric(scores: Scores, weights: Sequence[float]) -> Tensor:
    parts = [_share(it) ** w for w, it in zip(weights, scores, strict=True)]
    return torch.stack(parts).prod(dim=0)


_WAYS: Mapping[str, _Way] = {
    "rank": _Way(_mean_rank),
    "mean": _Way(_sum, is_linear=True),
    "share": _Way(_mean_share),
    "geometric": _Way(_geometric, least=0.0),
    "min": _Way(_least_rank, weighs=False),
}


def _beaten(scores: Tensor) -> Tensor:
    """Return which share of the other units each beats, half of those it is equal to."""
    ranks = torch.from_numpy(stats.rankdata(scores.numpy()))
    return (ranks - 1) / max(len(scores) - 1, 1)


def _share(scores: Tensor) -> Tensor:
    """Return scores as shares of their absolute sum; a layer without any worth has none to give."""
    total = float(scores.abs().sum())
    return scores / total if total else torch.zeros_like(scores)


def _combined(
    name: str, layers: Sequence[LayerRanking], weights: Sequence[float], way: _Way
) -> LayerRanking:
    for number, layer in enumerate(layers, start=1):
        lowest = float(layer.scores.min())
        if lowest < way.least:
            raise RankingError(
                f"ranking {number} gives a unit of layer {name!r} the score {lowest:.4g}, and a "
                "product of powers needs scores of 0 or more: use how='share' or 'rank'"
            )
    scores = way.combined([layer.scores for layer in layers], weights)
    covers = _covers(layers) if way.is_linear else "none"
    unknown = torch.full_like(scores, math.nan)
    return LayerRanking(
        scores,
        unknown if covers == "none" else _added(layers, weights),
        torch.stack([layer.counts for layer in layers]).sum(dim=0),
        status="computed",
        stderr_of=covers,
    )


def _covers(layers: Sequence[LayerRanking]) -> StderrOf:
    """Say what all standard errors cover, none if they do not cover the same."""
    covered = {layer.stderr_of for layer in layers}
    return covered.pop() if len(covered) == 1 else "none"


def _added(layers: Sequence[LayerRanking], weights: Sequence[float]) -> Tensor:
    """Return the error of a weighted sum of independent scores."""
    return _sum([it.stderr**2 for it in layers], [w**2 for w in weights]).sqrt()


def _shares(weights: Sequence[float] | None, count: int, how: str) -> list[float]:
    """Make the weights sum to 1."""
    if weights is None:
        return [1 / count] * count
    if not _WAYS[how].weighs:
        raise RankingError(f"weights have no effect on how={how!r}: leave them out")
    found = [float(it) for it in weights]
    if len(found) != count or not all(0 < it < math.inf for it in found):
        raise RankingError(
            f"weights={list(weights)} for {count} rankings: give one positive number for each"
        )
    return [it / sum(found) for it in found]


def _check_belong(rankings: Sequence[Ranking]) -> None:
    """Refuse rankings that are not of the same layers of one network."""
    one: object = rankings
    if isinstance(one, Ranking) or not rankings:
        raise RankingError(
            "there is nothing to combine: give a list of one ranking or more, such as [one, other]"
        )
    first = rankings[0]
    for number, ranking in enumerate(rankings, start=1):
        for other in rankings[: number - 1]:
            refuse_other_model(other, ranking)
        if set(ranking) != set(first):
            alone = ", ".join(sorted(set(ranking) ^ set(first)))
            raise RankingError(
                f"rankings 1 and {number} are of different layers: only one of them has {alone}. "
                "Select the layers that all have: ranking.select([...])"
            )
        for name, layer in ranking.layers.items():
            if layer.units != first[name].units:
                raise RankingError(
                    f"layer {name!r} has {first[name].units} units in ranking 1 and {layer.units} "
                    f"in ranking {number}: rank the same network"
                )
            if layer.status == "undefined":
                raise RankingError(
                    f"the scores of layer {name!r} are undefined in ranking {number}: leave the "
                    "layer out with ranking.select([...])"
                )
