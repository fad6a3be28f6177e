"""Scores of single weights: what every method of this room returns."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor

from neurank.errors import FileError, RankingError
from neurank.files import Json
from neurank.text import aligned, legible
from neurank.weights.tensors import ByParameter, frozen, load, origin, save

_KIND = "weight scores"


@dataclass(frozen=True, eq=False, repr=False)
class WeightScores(ByParameter):
    """One score per weight of some parameters; higher is more important, signs kept.

    A mapping from the parameters' dotted names to float64 tensors of their shapes. Tensors are
    copied and moved to the CPU; clone one before changing it in place.

    Parameters
    ----------
    tensors
        Name to scores, finite.
    provenance
        How they were made, in anything JSON can say: method, direction, seed, the digests of data
        and model. Copied; treat it as read-only.

    Raises
    ------
    RankingError
        There are no scores, one is NaN or infinite, or the provenance is not JSON.

    Examples
    --------
    >>> scores = WeightScores({"fc": torch.tensor([[0.5, -2.0], [0.5, 1.0]])})
    >>> scores.order(), scores.absolute().order()
    (tensor([3, 0, 2, 1]), tensor([1, 3, 0, 2]))
    >>> print(scores)
    WeightScores of 1 parameter (given)
    fc  2 x 2  -2 to 1  25 % below 0
    """

    tensors: Mapping[str, Tensor]
    provenance: Mapping[str, Json] = field(default_factory=lambda: {"method": "given"})

    def __post_init__(self) -> None:
        tensors = frozen(self.tensors, torch.float64, "scores")
        for scores in tensors.values():
            scores.add_(0.0)  # which makes 0 of -0
        object.__setattr__(self, "tensors", tensors)
        object.__setattr__(self, "provenance", origin(self.provenance))
        for name, scores in self.tensors.items():
            if not bool(torch.isfinite(scores).all()):
                raise RankingError(
                    f"scores of {name!r} are NaN or infinite, which cannot be ranked: correct "
                    "them, or leave the parameter out"
                )

    @property
    def method(self) -> str:
        """The method's name."""
        method = self.provenance.get("method", "unknown method")
        return str(method.get("name") if isinstance(method, Mapping) else method)

    def order(self, parameter: str | None = None) -> Tensor:
        """Return the weights' places, best first; of equal scores the lower place comes first.

        Parameters
        ----------
        parameter
            Whose weights; None takes those of all parameters, one after another.

        Returns
        -------
        Tensor
            (weights,) int64: places in the parameter, or in all of them, read row by row.

        Raises
        ------
        RankingError
            The parameter has no scores here.
        """
        flat = self.flat() if parameter is None else self[parameter].reshape(-1)
        return torch.argsort(flat, descending=True, stable=True)

    def flat(self) -> Tensor:
        """Return all scores one after another, (weights,)."""
        return torch.cat([scores.reshape(-1) for scores in self.tensors.values()])

    def absolute(self) -> "WeightScores":
        """Return the sizes of the scores: low is what changes the loss least, either way.

        The only place where signs are dropped; ``provenance["absolute"]`` says so.

        Examples
        --------
        >>> WeightScores({"fc": torch.tensor([-2.0])}).absolute()["fc"].item()
        2.0
        """
        sizes = {name: scores.abs() for name, scores in self.tensors.items()}
        return WeightScores(sizes, {**self.provenance, "absolute": True})

    def to_frame(self) -> pd.DataFrame:
        """Return one row per weight: parameter, index (row by row), score, rank in its parameter.

        Rank 1 is the best weight of its parameter.
        """
        return pd.concat([_frame(name, self) for name in self], ignore_index=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scores to a ``.safetensors`` file, as `neurank.files.write_tensors` does.

        Raises
        ------
        FileError
            The file cannot be written; one that was there is untouched.
        """
        save(path, self, _KIND)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "WeightScores":
        """Read scores that `save` wrote; they equal those that were saved.

        Raises
        ------
        FileError
            The file is missing, altered, foreign, or not of scores of weights.
        """
        tensors, provenance = load(path, _KIND)
        try:
            return cls(tensors, provenance)
        except RankingError as error:
            raise FileError(
                f"{os.fspath(path)} is refused: its content is no scores ({error}); save it anew"
            ) from error

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """Return one line per parameter: shape, smallest to largest score, share below 0."""
        count = f"{len(self)} parameter{'s' if len(self) > 1 else ''}"
        rows = [_line(name, scores) for name, scores in self.tensors.items()]
        return "\n".join([f"WeightScores of {count} ({legible(self.method, 120)})", *aligned(rows)])


def _line(name: str, scores: Tensor) -> tuple[str, ...]:
    shape = " x ".join(map(str, scores.shape)) or "1"
    if not scores.numel():
        return legible(name), shape, "empty", ""
    below = f"{100 * (scores < 0).double().mean():.3g} % below 0"
    return legible(name), shape, f"{scores.min():.3g} to {scores.max():.3g}", below


def _frame(name: str, scores: WeightScores) -> pd.DataFrame:
    flat, order = scores[name].reshape(-1), scores.order(name)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(1, len(order) + 1)
    return pd.DataFrame(
        {
            "parameter": name,
            "index": range(len(flat)),
            "score": flat.numpy(),
            "rank": ranks.numpy(),
        }
    )
