"""Scores of units with their errors and origin: what every ranking method returns.

A `Ranking` is a value: it is checked when it is made, compared by content, and never changed.
Everything that follows (comparing, planning, plotting) reads it and nothing else.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor

from neurank.errors import FileError, RankingError
from neurank.files import Json, as_json, read_tensors, write_tensors
from neurank.text import aligned, legible

Status = Literal["exact", "sampled", "learned", "computed", "random", "given", "undefined"]
"""How the scores of a layer came about.

exact (over all coalitions), sampled (an estimate with an error), learned (trained, as switches
are), computed (a formula of the weights), random, given (brought by the user), undefined (there is
nothing to score, such as the recall of a class without examples: all scores are NaN).
"""

StderrOf = Literal["estimator", "total", "none"]
"""What the standard error covers.

estimator: the method's own error, given the data. total: that and the sampling of the data
together, which is all that one pass can tell. none: the method promises no error.
"""

_OPTIONAL = ("data_stderr", "freedom", "by_class", "by_class_stderr")
_KIND = "ranking"
_SHOWN = 5


@dataclass(frozen=True, eq=False, repr=False)
class LayerRanking:
    """The scores of one layer's units; higher is more important, signs kept.

    Tensors are copied, detached and moved to the CPU, so a later change of what was passed in does
    not matter. They are shared with whoever reads them: clone one before changing it in place.

    Parameters
    ----------
    scores
        Score per unit, in unit order. Stored as float64, shape (units,).
    stderr
        Standard error per unit, in the scores' units; 0 for exact scores, NaN where nothing is
        promised. Sampled scores of units that were never seen to change anything, though they
        might, have the error that one change would make. Stored as float64, shape (units,).
    counts
        Examples × samples behind each score. Stored as int64, shape (units,).
    status
        How the scores came about, see `Status`.
    stderr_of
        What `stderr` covers, see `StderrOf`.
    data_stderr
        Standard error from the sampling of the data alone, shape (units,); None if not known.
    freedom
        Degrees of freedom behind each `stderr`, shape (units,), for Student's t; None takes the
        normal distribution.
    by_class
        The same scores for the recall of each class in place of the accuracy, or in general for
        the value's mean over the examples of that class, shape (classes, units); NaN for a class
        without examples. None if not known.
    by_class_stderr
        Standard errors of `by_class`, covering what `stderr_of` says, shape (classes, units).

    Raises
    ------
    RankingError
        Shapes or dtypes do not fit; a score is NaN (unless all are and `status` says undefined) or
        infinite; an error is negative or infinite; a status is unknown or contradicts the errors.

    Examples
    --------
    >>> layer = LayerRanking([0.1, 0.7], stderr=[0, 0], counts=[99, 99], status="exact")
    >>> layer.scores
    tensor([0.1000, 0.7000], dtype=torch.float64)
    >>> layer.units, layer.order()
    (2, (1, 0))
    """

    scores: Tensor
    stderr: Tensor
    counts: Tensor
    status: Status
    stderr_of: StderrOf = "estimator"
    data_stderr: Tensor | None = None
    freedom: Tensor | None = None
    by_class: Tensor | None = None
    by_class_stderr: Tensor | None = None

    def __post_init__(self) -> None:
        for field in ("scores", "stderr", *_OPTIONAL):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, _reals(field, getattr(self, field)))
        object.__setattr__(self, "counts", _whole_numbers("counts", self.counts))
        self._check_shapes()
        self._check_scores()
        self._check_errors()

    @property
    def units(self) -> int:
        """How many units the layer has."""
        return len(self.scores)

    def order(self) -> tuple[int, ...]:
        """Return the unit indices, best first; of equal scores the lower index comes first.

        Raises
        ------
        RankingError
            The scores are undefined.
        """
        if self.status == "undefined":
            raise RankingError(
                "the scores are undefined (NaN), so their units have no order; leave the layer out"
            )
        return tuple(torch.argsort(self.scores, descending=True, stable=True).tolist())

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the ends of an interval around each score, (units,) each.

        ``score ± t * stderr`` with Student's t for `freedom` degrees of freedom. It covers the
        score that endless sampling would give on the same data (on all data, where `stderr_of`
        says total) in a share `confidence` of cases, each unit by itself, looked at once.

        Raises
        ------
        RankingError
            `confidence` is not between 0 and 1.

        Examples
        --------
        >>> layer = LayerRanking([0.5], stderr=[0.1], counts=[100], status="sampled")
        >>> low, high = layer.interval()
        >>> round(low.item(), 3), round(high.item(), 3)
        (0.304, 0.696)
        """
        if not 0 < confidence < 1:
            raise RankingError(f"confidence={confidence!r}: a number between 0 and 1 is needed")
        freedom = math.inf if self.freedom is None else self.freedom.numpy()
        reach = torch.as_tensor(stats.t.ppf((1 + confidence) / 2, freedom)) * self.stderr
        return self.scores - reach, self.scores + reach

    def __eq__(self, other: object) -> bool:
        """Compare every field by value; NaN equals NaN."""
        if not isinstance(other, LayerRanking):
            return NotImplemented
        return all(
            _same(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)
        )

    __hash__ = None  # type: ignore[assignment]  # compared by the content of tensors

    def __repr__(self) -> str:
        return f"LayerRanking({self.units} units, {self.status}: {_best(self)})"

    def _check_shapes(self) -> None:
        if self.scores.ndim != 1 or len(self.scores) == 0:
            raise RankingError(
                f"scores have the shape {tuple(self.scores.shape)}; give one score per unit, "
                "shape (units,), of at least one unit"
            )
        for field in ("stderr", "counts", "data_stderr", "freedom"):
            tensor = getattr(self, field)
            if tensor is not None and tensor.shape != self.scores.shape:
                raise RankingError(
                    f"{field} has the shape {tuple(tensor.shape)} beside scores of the shape "
                    f"{tuple(self.scores.shape)}; give one entry per unit"
                )
        for field in ("by_class", "by_class_stderr"):
            tensor = getattr(self, field)
            if tensor is not None and (tensor.ndim != 2 or tensor.shape[1:] != self.scores.shape):
                raise RankingError(
                    f"{field} has the shape {tuple(tensor.shape)} beside scores of the shape "
                    f"{tuple(self.scores.shape)}; give one row per class, (classes, units)"
                )

    def _check_scores(self) -> None:
        if self.status not in get_args(Status):
            raise RankingError(
                f"the status {self.status!r} is unknown; use one of {', '.join(get_args(Status))}"
            )
        finite = self.scores.isfinite()
        if self.status == "undefined":
            if not self.scores.isnan().all():
                raise RankingError("undefined scores must all be NaN; give the others a status")
        elif not finite.all():
            unit = int((~finite).nonzero()[0, 0])
            raise RankingError(
                f"the score of unit {unit} is {self.scores[unit].item()}, which cannot be ranked; "
                "correct it, or call the whole layer undefined with every score NaN"
            )
        if bool((self.counts < 0).any()):
            raise RankingError(f"counts hold {int(self.counts.min())}; a count is at least 0")

    def _check_errors(self) -> None:
        if self.stderr_of not in get_args(StderrOf):
            raise RankingError(
                f"stderr_of={self.stderr_of!r} is unknown; use one of "
                f"{', '.join(get_args(StderrOf))}"
            )
        for field in ("stderr", "data_stderr", "by_class_stderr"):
            tensor = getattr(self, field)
            if tensor is not None and bool(((tensor < 0) | tensor.isinf()).any()):
                raise RankingError(
                    f"{field} holds a negative or infinite value ({tensor.tolist()}); "
                    "a standard error is at least 0, and NaN where it is not known"
                )
        if self.stderr_of == "none" and not self.stderr.isnan().all():
            raise RankingError("stderr_of='none' promises no error, so every stderr must be NaN")
        if (self.status, self.stderr_of) == ("exact", "estimator") and bool(
            (self.stderr != 0).any()
        ):
            raise RankingError(
                "exact scores have no estimator's error: give stderr 0, and the data's own error "
                "as data_stderr"
            )


@dataclass(frozen=True, eq=False, repr=False)
class Ranking:
    """The scores of one or more layers of a network, and where they come from.

    Parameters
    ----------
    layers
        Layer name to its scores, in network order. Kept as a read-only mapping.
    provenance
        How the scores were made, in anything JSON can say. ``"model"``, where it is there, is the
        digest by which two rankings of one model are recognised; ``"method"`` names the method.
        Copied; treat it as read-only.

    Raises
    ------
    RankingError
        There is no layer, or the provenance is not JSON.

    Examples
    --------
    >>> ranking = Ranking.from_scores({"conv1": [0.1, 0.5, 0.2], "fc1": [0.3, 0.3]})
    >>> list(ranking), "fc1" in ranking, len(ranking)
    (['conv1', 'fc1'], True, 2)
    >>> ranking["conv1"].scores[1].item()
    0.5
    >>> ranking.order("conv1"), ranking.top(1, "fc1")
    ((1, 2, 0), (0,))
    >>> print(ranking)
    Ranking of 2 layers (given)
    conv1 (3)  given  1: 0.5, 2: 0.2, 0: 0.1
    fc1 (2)    given  0: 0.3, 1: 0.3
    """

    layers: Mapping[str, LayerRanking]
    provenance: Mapping[str, Json]

    def __post_init__(self) -> None:
        if not self.layers:
            raise RankingError("a ranking needs at least one layer; the mapping is empty")
        for name, layer in self.layers.items():
            if not isinstance(name, str) or not isinstance(layer, LayerRanking):
                raise RankingError(
                    f"{name!r} maps to a {type(layer).__name__}; give layer name to LayerRanking, "
                    "or use Ranking.from_scores for plain scores"
                )
        try:
            provenance = as_json(self.provenance, "provenance")
        except FileError as error:
            raise RankingError(str(error)) from error
        if not isinstance(provenance, dict):
            raise RankingError(f"provenance is {provenance!r}; give a mapping")
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))
        object.__setattr__(self, "provenance", provenance)

    @classmethod
    def from_scores(
        cls,
        scores: Mapping[str, Tensor | ArrayLike],
        *,
        provenance: Mapping[str, Json] | None = None,
    ) -> "Ranking":
        """Make a ranking of scores that come from elsewhere.

        Their status is "given", their standard errors are NaN (`stderr_of` is "none") and their
        counts 0: nothing is known about them but their values.

        Parameters
        ----------
        scores
            Layer name to one score per unit, finite, in unit order.
        provenance
            Where they come from; ``{"method": "given"}`` if not said.

        Raises
        ------
        RankingError
            A layer's scores are not finite numbers of the shape (units,).

        Examples
        --------
        >>> Ranking.from_scores({"fc1": [0.25, -1.0, 4.0]}).order()
        (2, 0, 1)
        """
        layers = {}
        for name, given in scores.items():
            with _named(name):
                values = _reals("scores", given)
                layers[name] = LayerRanking(
                    values,
                    stderr=torch.full_like(values, math.nan),
                    counts=torch.zeros_like(values, dtype=torch.int64),
                    status="given",
                    stderr_of="none",
                )
        return cls(layers, {"method": "given"} if provenance is None else provenance)

    @property
    def method(self) -> str:
        """The name of the method, as the provenance has it; of a merged ranking, all of them."""
        return " + ".join(dict.fromkeys(_method(part) for part in _parts(self)))

    def order(self, layer: str | None = None) -> tuple[int, ...]:
        """Return a layer's unit indices, best first; of equal scores the lower index comes first.

        Parameters
        ----------
        layer
            The layer; may be left out where there is only one.

        Raises
        ------
        RankingError
            The layer is not in the ranking, or its scores are undefined.
        """
        name = self._only_layer() if layer is None else layer
        with _named(name):
            return self[name].order()

    def top(self, k: int, layer: str | None = None) -> tuple[int, ...]:
        """Return the indices of the `k` best units of a layer, best first.

        Parameters
        ----------
        k
            How many, from 1 to the number of units.
        layer
            The layer; may be left out where there is only one.

        Raises
        ------
        RankingError
            `k` is out of range, or as for `order`.
        """
        order = self.order(layer)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(order):
            name = self._only_layer() if layer is None else layer
            raise RankingError(
                f"the top {k!r} of layer {name!r} cannot be taken: it has {len(order)} units; "
                f"give a whole number from 1 to {len(order)}"
            )
        return order[:k]

    def of_class(self, label: int) -> "Ranking":
        """Return the ranking for one class: the rows of `by_class` as scores.

        A layer for which there is no example of the class is undefined. Counts, which are not kept
        by class, are 0; so is `stderr` where the scores of all classes together have none.

        Parameters
        ----------
        label
            The class.

        Raises
        ------
        RankingError
            A layer was not scored by class, or has no such class.

        Examples
        --------
        >>> by_class = [[1.0, 2.0], [4.0, 3.0]]
        >>> layer = LayerRanking(
        ...     [2.5, 2.5], stderr=[0, 0], counts=[8, 8], status="exact", by_class=by_class
        ... )
        >>> Ranking({"fc1": layer}, {}).of_class(1).order()
        (0, 1)
        """
        layers = {name: _of_class(layer, name, label) for name, layer in self.layers.items()}
        return Ranking(layers, {**self.provenance, "of_class": label})

    def select(self, layers: Iterable[str]) -> "Ranking":
        """Return the ranking of some layers only, in the order in which they are named.

        Raises
        ------
        RankingError
            A layer is not in the ranking, or named twice; or none is named.
        """
        if isinstance(layers, str):
            raise RankingError(f"layers={layers!r} is one name; give a list: [{layers!r}]")
        names = list(layers)
        if len(set(names)) < len(names):
            raise RankingError(f"the layers {names} name one twice; name each once")
        provenance = dict(self.provenance)
        if "parts" in provenance:
            parts = [_narrowed(part, names) for part in _parts(self)]
            provenance["parts"] = [part for part in parts if part["layers"]]
        return Ranking({name: self[name] for name in names}, provenance)

    def merge(self, other: "Ranking") -> "Ranking":
        """Return one ranking of this one's layers followed by another's.

        Both must be rankings of one model: where both provenances have ``"model"``, these must be
        equal. The provenance of the result is ``{"model": ..., "parts": [...]}``: each part is the
        provenance of the layers named under its ``"layers"``.

        Raises
        ------
        RankingError
            A layer is in both, or they rank different models.

        Examples
        --------
        >>> conv = Ranking.from_scores({"conv1": [0.1, 0.5]})
        >>> both = conv.merge(Ranking.from_scores({"fc1": [0.3, 0.2]}))
        >>> list(both), [part["layers"] for part in both.provenance["parts"]]
        (['conv1', 'fc1'], [['conv1'], ['fc1']])
        """
        shared = [name for name in self.layers if name in other.layers]
        if shared:
            raise RankingError(
                f"both rankings have the layers {shared}; select the layers to take from each first"
            )
        refuse_other_model(self, other)
        provenance: dict[str, Json] = {"parts": [*_parts(self), *_parts(other)]}
        for ranking in (self, other):
            if "model" in ranking.provenance:
                provenance["model"] = ranking.provenance["model"]
        return Ranking({**self.layers, **other.layers}, provenance)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per unit: layer, unit, score, stderr, data_stderr, count, status, rank.

        Rank 1 is the best unit of its layer; where scores are undefined the rank is missing.
        """
        return pd.concat(
            [_frame(name, layer) for name, layer in self.layers.items()], ignore_index=True
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ranking to a ``.safetensors`` file, as `neurank.files.write_tensors` does.

        Raises
        ------
        FileError
            The file cannot be written; one that was there is untouched.
        """
        tensors = {
            f"{name}/{field}": tensor
            for name, layer in self.layers.items()
            for field, tensor in _tensors(layer).items()
        }
        layers = [
            {"name": name, "status": layer.status, "stderr_of": layer.stderr_of}
            for name, layer in self.layers.items()
        ]
        metadata: dict[str, Json] = {"layers": layers, "provenance": self.provenance}
        write_tensors(path, tensors, metadata, kind=_KIND)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Ranking":
        """Read a ranking that `save` wrote; it equals the one that was saved.

        Raises
        ------
        FileError
            The file is missing, altered, foreign, or not of a ranking.
        """
        tensors, metadata = read_tensors(path, kind=_KIND)
        try:
            return cls(_layers_from(metadata["layers"], tensors), metadata["provenance"])  # type: ignore[arg-type]
        except (KeyError, TypeError, RankingError) as error:
            raise FileError(
                f"{os.fspath(path)} is refused: its content is no ranking ({error!r}); save it anew"
            ) from error

    def __getitem__(self, layer: str) -> LayerRanking:
        """Return the scores of one layer; a RankingError lists the layers if it is not there."""
        if layer not in self.layers:
            raise RankingError(
                f"there is no layer {layer!r} in this ranking; it has {', '.join(self.layers)}"
            )
        return self.layers[layer]

    def __contains__(self, layer: object) -> bool:
        return layer in self.layers

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __eq__(self, other: object) -> bool:
        """Compare layers, their order, every value (NaN equals NaN) and the provenance."""
        if not isinstance(other, Ranking):
            return NotImplemented
        return (
            list(self) == list(other)
            and dict(self.layers) == dict(other.layers)
            and self.provenance == other.provenance
        )

    __hash__ = None  # type: ignore[assignment]  # compared by the content of tensors

    def __reduce__(self) -> tuple[Any, ...]:
        """Let copy.deepcopy work, which the read-only mapping alone does not allow."""
        return Ranking, (dict(self.layers), dict(self.provenance))

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """Return the best units of each layer, with score ± standard error."""
        count = f"{len(self)} layer{'s' if len(self) > 1 else ''}"
        rows = [
            (f"{legible(name)} ({layer.units})", layer.status, _best(layer))
            for name, layer in self.layers.items()
        ]
        return "\n".join([f"Ranking of {count} ({legible(self.method, 120)})", *aligned(rows)])

    def _only_layer(self) -> str:
        if len(self.layers) > 1:
            raise RankingError(f"say which layer: this ranking has {', '.join(self.layers)}")
        return next(iter(self.layers))


def refuse_other_model(one: Ranking, other: Ranking) -> None:
    """Raise a RankingError if both provenances name a model and these differ."""
    first, second = (ranking.provenance.get("model") for ranking in (one, other))
    if first is not None and second is not None and first != second:
        raise RankingError(
            f"the rankings are of different models ({str(first)[:16]} and {str(second)[:16]}, by "
            "provenance['model']); rank both with the same trained model"
        )


@contextmanager
def _named(layer: str) -> Iterator[None]:
    """Begin the message of a RankingError with the layer that it is about."""
    try:
        yield
    except RankingError as error:
        raise RankingError(f"layer {layer!r}: {error}") from error


def _of_class(layer: LayerRanking, name: str, label: int) -> LayerRanking:
    if layer.by_class is None:
        raise RankingError(
            f"layer {name!r} was not scored by class: use a method that is, such as ClassResponse, "
            "Taylor or a Shapley value"
        )
    classes = len(layer.by_class)
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < classes:
        raise RankingError(
            f"there is no class {label!r} in layer {name!r}: its classes are 0 to {classes - 1}"
        )
    scores = layer.by_class[label]
    counts = torch.zeros_like(layer.counts)
    if bool(scores.isnan().all()):
        return LayerRanking(scores, scores, counts, "undefined", stderr_of="none")
    stderr, stderr_of = torch.full_like(scores, math.nan), layer.stderr_of
    if layer.by_class_stderr is not None:
        stderr = layer.by_class_stderr[label]
    elif bool((layer.stderr == 0).all()):
        stderr = torch.zeros_like(scores)
    else:
        stderr_of = "none"
    return LayerRanking(scores, stderr, counts, layer.status, stderr_of=stderr_of)


def _reals(field: str, values: Tensor | ArrayLike) -> Tensor:
    tensor = _copied(field, values)
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise RankingError(f"{field} are of dtype {tensor.dtype}; give real numbers")
    return tensor.to(torch.float64)


def _whole_numbers(field: str, values: Tensor | ArrayLike) -> Tensor:
    tensor = _copied(field, values)
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise RankingError(f"{field} are of dtype {tensor.dtype}; give whole numbers")
    return tensor.to(torch.int64)


def _copied(field: str, values: Tensor | ArrayLike) -> Tensor:
    """Return a detached CPU copy; of lists by way of numpy, whose floats are float64."""
    if isinstance(values, Tensor):
        if values.is_meta or values.layout != torch.strided:
            raise RankingError(f"{field} are sparse or without data; give a dense tensor")
        return values.detach().cpu().clone(memory_format=torch.contiguous_format)
    try:
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise RankingError(f"{field} are not one number per unit ({error})") from error


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.allclose(one, other, 0, 0, equal_nan=True)
    return type(one) is type(other) and one == other


def _best(layer: LayerRanking) -> str:
    if layer.status == "undefined":
        return "no unit has a score"
    shown = ", ".join(_score(layer, unit) for unit in layer.order()[:_SHOWN])
    return shown + (", …" if layer.units > _SHOWN else "")


def _score(layer: LayerRanking, unit: int) -> str:
    error = layer.stderr[unit].item()
    spread = "" if math.isnan(error) else f" ± {error:.2g}"
    return f"{unit}: {layer.scores[unit].item():.4g}{spread}"


def _frame(name: str, layer: LayerRanking) -> pd.DataFrame:
    ranks: list[Any] = [pd.NA] * layer.units
    if layer.status != "undefined":
        for rank, unit in enumerate(layer.order(), start=1):
            ranks[unit] = rank
    unknown = torch.full_like(layer.scores, math.nan)
    return pd.DataFrame(
        {
            "layer": name,
            "unit": range(layer.units),
            "score": layer.scores.tolist(),
            "stderr": layer.stderr.tolist(),
            "data_stderr": (unknown if layer.data_stderr is None else layer.data_stderr).tolist(),
            "count": layer.counts.tolist(),
            "status": layer.status,
            "rank": pd.array(ranks, dtype="Int64"),
        }
    )


def _tensors(layer: LayerRanking) -> dict[str, Tensor]:
    known = {"scores": layer.scores, "stderr": layer.stderr, "counts": layer.counts}
    optional = {field: getattr(layer, field) for field in _OPTIONAL}
    return {**known, **{field: tensor for field, tensor in optional.items() if tensor is not None}}


def _layers_from(entries: Any, tensors: dict[str, Tensor]) -> dict[str, LayerRanking]:
    return {
        entry["name"]: LayerRanking(
            tensors[f"{entry['name']}/scores"],
            tensors[f"{entry['name']}/stderr"],
            tensors[f"{entry['name']}/counts"],
            status=entry["status"],
            stderr_of=entry["stderr_of"],
            **{field: tensors.get(f"{entry['name']}/{field}") for field in _OPTIONAL},
        )
        for entry in entries
    }


def _parts(ranking: Ranking) -> list[dict[str, Json]]:
    """Return the provenance of each part of a merged ranking; of another, its own."""
    parts = ranking.provenance.get("parts")
    if isinstance(parts, list) and parts and all(isinstance(part, dict) for part in parts):
        return parts
    return [{**ranking.provenance, "layers": list(ranking.layers)}]


def _narrowed(part: dict[str, Json], names: Sequence[str]) -> dict[str, Json]:
    covered = part.get("layers")
    kept = [name for name in covered if name in names] if isinstance(covered, list) else []
    return {**part, "layers": kept}


def _method(part: Mapping[str, Json]) -> str:
    method = part.get("method", "unknown method")
    if isinstance(method, Mapping):
        method = method.get("name", "unknown method")
    return str(method)
