"""How single weights are scored: one frozen dataclass per method of the thesis' Table 2.1.

A move Δw says where each weight would go: to 0 (pruning, Δw = -w) or a step towards 0
(sensitivity, Δw = -ε sign w). g is the gradient of the mean loss, H its Hessian over the weights
that are scored. Of two weights the lower score is the one to remove first.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from neurank.errors import MethodError
from neurank.files import Json
from neurank.observe.weight_changes import loss_changes
from neurank.observe.weight_loss import Tensors, WeightLoss
from neurank.observe.weight_places import NOTHING


@dataclass(frozen=True)
class Scored:
    """What a method found.

    Attributes
    ----------
    scores : by parameter, of its shape, float64.
    record : what the provenance should say besides.
    """

    scores: Mapping[str, Tensor]
    record: Mapping[str, Json] = field(default_factory=dict)


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass whose fields are the method's parameters."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def score(self, watched: WeightLoss, moves: Tensors, seed: int) -> Scored:
        """Score every weight of the watched parameters."""
        ...


@dataclass(frozen=True)
class Magnitude:
    """The size of a weight, ``|w|``: Table 2.1's magnitudeScorer. No data, no direction.

    Example
    -------
    >>> import neurank as nr
    >>> from neurank import weights
    >>> model = torch.nn.Linear(2, 1)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -4.0]]))
    >>> data = [(torch.ones(2, 2), torch.tensor([0, 0]))]
    >>> weights.score(model, data, weights.Magnitude())["weight"]
    tensor([[3., 4.]], dtype=torch.float64)
    """

    def score(self, watched: WeightLoss, moves: Tensors, seed: int) -> Scored:
        """Score every weight of the watched parameters."""
        del moves, seed
        return Scored({name: it.to(torch.float64).abs() for name, it in watched.weights.items()})


@dataclass(frozen=True)
class Taylor1:
    """The change of the loss to first order, ``Δw g``: one forward and one backward pass.

    Example
    -------
    >>> from neurank import weights
    >>> model = torch.nn.Linear(1, 2, bias=False)
    >>> _ = model.weight.data.zero_()
    >>> _ = model.weight.data[0].fill_(1e-6)  # outputs are all but equal, so g is -1/2 and 1/2
    >>> data = [(torch.ones(2, 1), torch.tensor([0, 0]))]
    >>> weights.score(model, data, weights.Taylor1())["weight"].mul(1e6).round(decimals=2).tolist()
    [[0.5], [0.0]]
    """

    def score(self, watched: WeightLoss, moves: Tensors, seed: int) -> Scored:
        """Score every weight of the watched parameters."""
        del seed
        slopes, record = _slopes(watched)
        return Scored({name: moves[name] * slopes[name] for name in slopes}, record)


@dataclass(frozen=True)
class Taylor2:
    """The share of a weight in the change to second order, ``Δw (g + λ H Δw)``.

    All weights are moved together: H Δw is a Hessian-vector product, and the scores sum to
    ``Δw·g + λ Δw·H·Δw``. Taylor's theorem has λ = 1/2, for which this sum is the loss change of
    moving all of them where the loss is quadratic; the thesis (equation 2.3) has λ = 1.

    Parameters
    ----------
    curvature
        λ, the weight of the second-order part.

    Raises
    ------
    MethodError
        `curvature` is no finite number.

    Example
    -------
    >>> from neurank import weights
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = model.weight.data.fill_(3.0)
    >>> def squares(outputs, targets):  # L(w) = w², so L(0) - L(3) = -9
    ...     return outputs.square().sum(dim=1)
    >>> data = [(torch.ones(2, 1), torch.tensor([0, 0]))]
    >>> [
    ...     weights.score(model, data, weights.Taylor2(part), loss=squares)["weight"].item()
    ...     for part in (0.0, 0.5, 1.0)
    ... ]
    [-18.0, -9.0, 0.0]
    """

    curvature: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.curvature, bool) or not isinstance(self.curvature, int | float):
            raise MethodError(f"curvature={self.curvature!r}: a number is needed, 0.5 is Taylor's")
        if not math.isfinite(self.curvature):
            raise MethodError(f"curvature={self.curvature!r}: a finite number is needed")

    def score(self, watched: WeightLoss, moves: Tensors, seed: int) -> Scored:
        """Score every weight of the watched parameters."""
        del seed
        slopes, record = _slopes(watched)
        bends = watched.times_hessian(moves)
        scores = {
            name: move * (slopes[name] + self.curvature * bends[name])
            for name, move in moves.items()
        }
        return Scored(scores, record)


@dataclass(frozen=True)
class Hessian:
    """The second-order part by itself, ``Δw (H Δw)``: Table 2.1's hessianScorer.

    Example
    -------
    >>> from neurank import weights
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = model.weight.data.fill_(3.0)
    >>> data = [(torch.ones(2, 1), torch.tensor([0, 0]))]
    >>> def squares(outputs, targets):
    ...     return outputs.square().sum(dim=1)
    >>> weights.score(model, data, weights.Hessian(), loss=squares)["weight"].item()
    18.0
    """

    def score(self, watched: WeightLoss, moves: Tensors, seed: int) -> Scored:
        """Score every weight of the watched parameters."""
        del seed
        bends = watched.times_hessian(moves)
        return Scored({name: move * bends[name] for name, move in moves.items()})


@dataclass(frozen=True)
class LossChange:
    """The change of the mean loss when a weight alone is moved, measured: no approximation.

    Computed in float64 whatever the model's precision; ``provenance["ways"]`` says how for each
    parameter. A model that cannot be traced costs one forward pass over the data per weight, in
    its own precision.

    Example
    -------
    >>> from neurank import weights
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 1.0]]))
    >>> def squares(outputs, targets):
    ...     return outputs.square().sum(dim=1)
    >>> data = [(torch.ones(2, 2), torch.tensor([0, 0]))]
    >>> weights.score(model, data, weights.LossChange(), loss=squares)["weight"].tolist()
    [[-15.0, -7.0]]
    """

    def score(self, watched: WeightLoss, moves: Tensors, seed: int) -> Scored:
        """Score every weight of the watched parameters."""
        del seed
        found = loss_changes(watched, moves)
        unread: list[Json] = [name for name, way in found.ways.items() if way == NOTHING]
        return Scored(found.changes, {"ways": dict(found.ways), "never_run": unread})


@dataclass(frozen=True)
class Random:
    """Uniform in [0, 1), from the seed and the parameter's name: what others must beat.

    Example
    -------
    >>> from neurank import weights
    >>> model = torch.nn.Linear(2, 3)
    >>> data = [(torch.ones(2, 2), torch.tensor([0, 0]))]
    >>> once, again, other = (
    ...     weights.score(model, data, weights.Random(), seed=seed)["weight"] for seed in (1, 1, 2)
    ... )
    >>> torch.equal(once, again), torch.equal(once, other)
    (True, False)
    """

    def score(self, watched: WeightLoss, moves: Tensors, seed: int) -> Scored:
        """Score every weight of the watched parameters."""
        del watched
        return Scored({name: _draws(seed, name, move.shape) for name, move in moves.items()})


def _slopes(watched: WeightLoss) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Return the gradient, with 0 for parameters that never count, and which those are."""
    found = watched.gradient()
    unread: list[Json] = [name for name, slope in found.items() if slope is None]
    slopes = {
        name: torch.zeros_like(watched.tensors[name], dtype=torch.float64)
        if slope is None
        else slope
        for name, slope in found.items()
    }
    return slopes, {"never_run": unread}


def _draws(seed: int, name: str, shape: torch.Size) -> Tensor:
    entropy = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    return torch.from_numpy(np.random.default_rng(entropy).random(tuple(shape)))
