"""Which weights stay: masks made of scores, and what they would cost if applied now."""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from neurank.errors import FileError, MethodError, PlanError, RankingError
from neurank.files import Json
from neurank.observe.examples import Batch
from neurank.observe.weight_loss import Loss, watching_loss
from neurank.text import aligned, legible
from neurank.weights.scores import WeightScores
from neurank.weights.tensors import ByParameter, frozen, load, origin, save

Within = Literal["layer", "network"]
"""Whether each parameter loses the fraction, or all of them together."""

_KIND = "weight masks"


@dataclass(frozen=True, eq=False, repr=False)
class Masks(ByParameter):
    """Which weights of some parameters are kept.

    A mapping from the parameters' dotted names to bool tensors of their shapes, True = kept.

    Parameters
    ----------
    tensors
        Name to mask.
    provenance
        How they were made. Copied; treat it as read-only.

    Raises
    ------
    RankingError
        There is no mask, or one is not bool.

    Examples
    --------
    >>> masks = Masks({"fc": torch.tensor([[True, False], [False, True]])})
    >>> masks.pruned, masks.count, masks.sparsity
    (2, 4, 0.5)
    >>> print(masks)
    Masks: 2 of 4 weights pruned
    fc  2 of 4
    """

    tensors: Mapping[str, Tensor]
    provenance: Mapping[str, Json] = field(default_factory=lambda: {"method": "given"})

    def __post_init__(self) -> None:
        if isinstance(self.tensors, Mapping):
            for name, it in self.tensors.items():
                if isinstance(it, Tensor) and it.dtype != torch.bool:
                    raise RankingError(
                        f"the mask of {name!r} is {it.dtype}: give bool, True = kept"
                    )
        object.__setattr__(self, "tensors", frozen(self.tensors, torch.bool, "masks"))
        object.__setattr__(self, "provenance", origin(self.provenance))

    @property
    def pruned(self) -> int:
        """How many weights are not kept."""
        return sum(int((~it).sum()) for it in self.tensors.values())

    @property
    def sparsity(self) -> float:
        """The share of the masked parameters' weights that are not kept."""
        return self.pruned / self.count

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the masks to a ``.safetensors`` file, as `neurank.files.write_tensors` does.

        Raises
        ------
        FileError
            The file cannot be written; one that was there is untouched.
        """
        save(path, self, _KIND)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Masks":
        """Read masks that `save` wrote; they equal those that were saved.

        Raises
        ------
        FileError
            The file is missing, altered, foreign, or not of masks.
        """
        tensors, provenance = load(path, _KIND)
        try:
            return cls(tensors, provenance)
        except RankingError as error:
            raise FileError(
                f"{os.fspath(path)} is refused: its content is no masks ({error}); save it anew"
            ) from error

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """Say how many weights of each parameter are pruned."""
        rows = [
            (legible(name), f"{int((~it).sum()):,} of {it.numel():,}")
            for name, it in self.tensors.items()
        ]
        head = f"Masks: {self.pruned:,} of {self.count:,} weights pruned"
        return "\n".join([head, *aligned(rows)])


def mask(
    scores: WeightScores,
    fraction: float,
    within: Within = "layer",
    *,
    after: Masks | None = None,
) -> Masks:
    """Prune the fraction of the weights with the lowest scores.

    How many is rounded down: 0.29 of 10 weights are 2, and `Masks.pruned` says so. Of equal scores
    the lower place goes first: parameters in the order of the scores, each row by row.

    Parameters
    ----------
    scores : one per weight; ``scores.absolute()`` prunes what changes the loss least either way.
    fraction : of all weights that have scores, from 0 to 1, those already pruned included.
    within : "layer" prunes the fraction of each parameter, "network" of all of them together.
    after : masks that these follow, on a schedule: what they prune stays pruned.

    Raises
    ------
    MethodError
        `fraction` is not between 0 and 1, or less than what `after` prunes; `within` is unknown.
    PlanError
        `after` is of other parameters or shapes.

    Examples
    --------
    >>> scores = WeightScores({"fc": torch.tensor([3.0, 1.0, 1.0, 2.0])})
    >>> first = mask(scores, 0.25)
    >>> first["fc"], mask(scores, 0.75, after=first)["fc"]
    (tensor([ True, False,  True,  True]), tensor([ True, False, False, False]))
    """
    if not isinstance(scores, WeightScores):
        raise MethodError(
            f"scores are a {type(scores).__name__}: give what neurank.weights.score returns, or "
            "WeightScores(name -> tensor)"
        )
    _check_fraction(fraction)
    if within not in get_args(Within):
        raise MethodError(
            f"within={within!r}: give one of {', '.join(map(repr, get_args(Within)))}"
        )
    if after is not None:
        _check_shapes(after, scores)
    groups = [list(scores)] if within == "network" else [[name] for name in scores]
    found: dict[str, Tensor] = {}
    for names in groups:
        flat = torch.cat([scores[name].reshape(-1) for name in names])
        gone = None if after is None else torch.cat([~after[name].reshape(-1) for name in names])
        kept = _kept(flat, gone, fraction, ", ".join(names[:3]))
        parts = torch.split(kept, [scores[name].numel() for name in names])
        found |= {
            name: part.reshape(scores[name].shape) for name, part in zip(names, parts, strict=True)
        }
    provenance: dict[str, Json] = {
        "fraction": float(fraction),
        "within": within,
        "scores": scores.provenance,
        "follows": None if after is None else after.sparsity,
    }
    return Masks(found, provenance)


def loss_change(
    model: nn.Module,
    data: Iterable[Batch],
    masks: Masks,
    *,
    loss: Loss | None = None,
    device: str | torch.device | None = None,
) -> float:
    """Compute the mean loss if the model were pruned now, minus its mean loss.

    The model is run with other tensors in the place of its own and is not changed.

    Parameters
    ----------
    model, data, loss, device : as for `neurank.weights.score`.
    masks : what is kept.

    Raises
    ------
    PlanError
        The masks do not fit the model.
    DataError, ModelError, MethodError
        As for `neurank.weights.score`.

    Examples
    --------
    >>> model = nn.Linear(1, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[0.0], [100.0]]))
    >>> data = [(torch.ones(2, 1), torch.tensor([0, 0]))]
    >>> round(loss_change(model, data, Masks({"weight": torch.tensor([[True], [False]])})), 3)
    -99.307
    """
    check_fit(masks, model)
    with watching_loss(
        model, data, parameters=list(masks), loss=loss, device=device, progress=False
    ) as watched:
        pruned = {
            name: weight.masked_fill(~masks[name].to(weight.device), 0)
            for name, weight in watched.weights.items()
        }
        return watched.value(pruned) - watched.value()


def check_fit(masks: Masks, model: nn.Module) -> None:
    """Refuse masks of other parameters, or of other shapes, than the model's.

    Raises
    ------
    PlanError
        They do not fit.
    """
    if not isinstance(masks, Masks):
        raise PlanError(
            f"masks are a {type(masks).__name__}: give what neurank.weights.mask returns, or "
            "Masks(name -> bool tensor)"
        )
    parameters = dict(model.named_parameters())
    for name, it in masks.items():
        if name not in parameters:
            raise PlanError(
                f"the masks are of the parameter {name!r}, which the model does not have: it has "
                f"{', '.join(list(parameters)[:20])}. Make them of scores of this model"
            )
        if parameters[name].shape != it.shape:
            raise PlanError(
                f"the mask of {name!r} has the shape {tuple(it.shape)} and the parameter "
                f"{tuple(parameters[name].shape)}: make masks of scores of this model"
            )


def _kept(flat: Tensor, gone: Tensor | None, fraction: float, names: str) -> Tensor:
    """Return what is kept of some weights: all but the lowest, and what is gone already."""
    # read as it is written: 0.29 * 100 is 28.999999999999996 in binary
    count = math.floor(Fraction(repr(float(fraction))) * len(flat))
    first = flat if gone is None else torch.where(gone, -math.inf, flat)
    before = 0 if gone is None else int(gone.sum())
    if before > count:
        raise MethodError(
            f"fraction={fraction!r} of {names} are {count} of {len(flat)} weights, but the masks "
            f"that these follow prune {before} already: give at least {before / len(flat):.6g}, or "
            "leave `after` out"
        )
    lowest = torch.argsort(first, stable=True)[:count]
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[lowest] = False
    return kept


def _check_fraction(fraction: float) -> None:
    is_number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
    if not is_number or not 0 <= fraction <= 1:
        raise MethodError(
            f"fraction={fraction!r}: a number from 0 (prune nothing) to 1 (everything) is needed"
        )


def _check_shapes(after: Masks, scores: WeightScores) -> None:
    for name, it in scores.items():
        if name not in after or after[name].shape != it.shape:
            shape = tuple(after[name].shape) if name in after else "none"
            raise PlanError(
                f"the masks that these follow have for {name!r} the shape {shape} and the scores "
                f"{tuple(it.shape)}: both must be of the same parameters"
            )
