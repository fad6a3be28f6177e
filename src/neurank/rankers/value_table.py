"""The characteristic function of a layer as a table: the value of every coalition."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neurank.errors import FileError, MethodError, UnitError
from neurank.files import Json, read_tensors, write_tensors
from neurank.observe.examples import Batch
from neurank.observe.observer import choose_layers, described
from neurank.observe.removal import Removal
from neurank.observe.value import Value, value_name
from neurank.rankers.draws import share_of_coalitions
from neurank.rankers.exact_shapley import shapley_of_table
from neurank.rankers.indices import Walked, banzhaf_of_table, interactions_of_table, walk
from neurank.rankers.measure import MAX_UNITS, measure
from neurank.rankers.opening import check_seed, versions, watching
from neurank.ranking import LayerRanking

_KIND = "value_table"


@dataclass(frozen=True, eq=False, repr=False)
class ValueTable:
    """The values v(C) of the coalitions of one layer's units, means over the examples.

    Parameters
    ----------
    layer : dotted name of the layer.
    values : (2^units,); bit j of an index says that unit j is on. NaN where a value is not known.
        Stored as float64 on the CPU.
    examples : how many examples the values are means over.
    provenance : how the table was made, in anything JSON can say.

    Raises
    ------
    MethodError
        If the values are not those of all coalitions of some units.

    Example
    -------
    >>> table = ValueTable("fc2", torch.tensor([0.0, 0.5, 0.25, 1.0]), examples=4)
    >>> table.units, table.value([0]), table.value([0, 1])
    (2, 0.5, 1.0)
    >>> table.shapley().tolist()
    [0.625, 0.375]
    >>> table.interactions()[0, 1].item()
    0.25
    """

    layer: str
    values: Tensor
    examples: int
    provenance: dict[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = self.values.detach().to("cpu", torch.float64)
        if values.ndim != 1 or len(values) < 2 or len(values) & (len(values) - 1):
            raise MethodError(
                f"a value table of the shape {tuple(values.shape)}: give one value for each of "
                "the 2^units coalitions"
            )
        object.__setattr__(self, "values", values)

    @property
    def units(self) -> int:
        """How many units the layer has."""
        return len(self.values).bit_length() - 1

    @property
    def known(self) -> Tensor:
        """Which values are known, (2^units,) bool."""
        return ~self.values.isnan()

    @property
    def complete(self) -> bool:
        """Whether all values are known."""
        return bool(self.known.all())

    def value(self, coalition: Iterable[int]) -> float:
        """Return the value of a coalition of unit indices.

        Raises
        ------
        UnitError
            If the layer has no such unit.
        MethodError
            If the value is not known.
        """
        units = sorted(set(coalition))
        for unit in units:
            if not 0 <= unit < self.units:
                raise UnitError(
                    f"layer {self.layer!r} has no unit {unit}: its {self.units} units are counted "
                    "from 0"
                )
        found = float(self.values[sum(1 << unit for unit in units)])
        if np.isnan(found):
            raise MethodError(f"the value of {units} is not in the table: {self._known_only()}")
        return found

    def shapley(self) -> Tensor:
        """Compute the Shapley values, eq. 2 of the neuron-ranking paper, (units,)."""
        return torch.from_numpy(shapley_of_table(self._all("Shapley values")))

    def banzhaf(self) -> Tensor:
        """Compute the Banzhaf values, the mean of v(C + i) - v(C) over every C, (units,)."""
        return torch.from_numpy(banzhaf_of_table(self._all("Banzhaf values")))

    def interactions(self) -> Tensor:
        """Compute the Shapley interaction indices of pairs, (units, units).

        Positive where two units are worth more together than apart; the diagonal has the Shapley
        values, which are the same index of a single unit (Grabisch and Roubens 1999).
        """
        return torch.from_numpy(interactions_of_table(self._all("interactions")))

    def permutation_shapley(
        self, permutations: int = 1000, seed: int = 0, *, repetition: int = 0
    ) -> LayerRanking:
        """Estimate Shapley values by eq. 1 over random permutations of the units.

        Over a complete table the score is the mean over the permutations, and its standard error
        follows from their spread. Over a table with gaps, a marginal counts where both values are
        known. Few pairs of small or of large coalitions exist, so the plain mean of what is known
        would favour sizes that happen to be there; the score is the mean over the sizes of the
        mean at each size, as in eq. 2, which is unbiased if the known coalitions of each size are
        a uniform sample. A single such table cannot tell its error: ``stderr`` is NaN.

        Parameters
        ----------
        permutations : how many, at least 2.
        seed, repetition : which draw.

        Raises
        ------
        MethodError
            If no permutation lets some unit join some number of others with both values known.
        """
        if not isinstance(permutations, int) or permutations < 2:
            raise MethodError(f"permutations={permutations!r}: a whole number from 2 on is needed")
        check_seed(seed)
        walked = walk(self.values.numpy(), permutations, seed, repetition)
        counts = torch.from_numpy(walked.counts.sum(axis=1) * self.examples)
        if not self.complete:
            self._check_pairs(walked, permutations)
            nothing = torch.full((self.units,), torch.nan)
            scores = torch.from_numpy(walked.by_size)
            return LayerRanking(scores, nothing, counts, "sampled", stderr_of="none")
        error = torch.from_numpy(np.sqrt(walked.variance))
        freedom = torch.full((self.units,), permutations - 1.0)
        scores = torch.from_numpy(walked.mean)
        return LayerRanking(scores, error, counts, "sampled", freedom=freedom)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as one sealed ``.safetensors`` file.

        Raises
        ------
        FileError
            If the file cannot be written.
        """
        notes: dict[str, Json] = {
            "layer": self.layer,
            "examples": self.examples,
            "provenance": self.provenance,
        }
        write_tensors(path, {"values": self.values}, notes, kind=_KIND)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ValueTable":
        """Read a table that `save` wrote.

        Raises
        ------
        FileError
            If the file is missing, foreign or altered in any byte.
        """
        tensors, notes = read_tensors(path, kind=_KIND)
        known: dict[str, Any] = dict(notes)
        try:
            return cls(known["layer"], tensors["values"], known["examples"], known["provenance"])
        except (KeyError, MethodError) as error:
            raise FileError(f"{path} is refused: it holds no value table ({error})") from error

    def __eq__(self, other: object) -> bool:
        """Compare every field by value; NaN equals NaN."""
        if not isinstance(other, ValueTable):
            return NotImplemented
        return (
            (self.layer, self.examples, self.provenance)
            == (other.layer, other.examples, other.provenance)
            and self.values.shape == other.values.shape
            and torch.equal(self.values.nan_to_num(torch.inf), other.values.nan_to_num(torch.inf))
        )

    __hash__ = None  # type: ignore[assignment]  # compared by the content of a tensor

    def __repr__(self) -> str:
        known = int(self.known.sum())
        return (
            f"ValueTable({self.layer!r}: {known:,} of {len(self.values):,} coalitions of "
            f"{self.units} units, {self.examples:,} examples)"
        )

    def _all(self, what: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        if not self.complete:
            raise MethodError(f"{what} need every coalition: {self._known_only()}")
        return self.values.numpy()

    def _known_only(self) -> str:
        return (
            f"{int(self.known.sum()):,} of {len(self.values):,} values are known; measure the "
            "table with share=None, or use permutation_shapley()"
        )

    def _check_pairs(self, walked: Walked, permutations: int) -> None:
        missing = np.argwhere(walked.counts == 0)
        if len(missing):
            unit, others = missing[0].tolist()
            raise MethodError(
                f"none of {permutations:,} permutations lets unit {unit} of layer {self.layer!r} "
                f"join {others} others with both values known ({len(missing)} such gaps): take "
                "more permutations, or a larger share of the coalitions"
            )


def value_table(
    model: nn.Module,
    data: Iterable[Batch],
    layer: str,
    *,
    value: Value | None = None,
    removal: Removal = "zero",
    share: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
    max_units: int = MAX_UNITS,
    max_operations: float = 1e13,
) -> ValueTable:
    """Measure the value of every coalition of a layer's units, the power set of the paper.

    Values that are 0 or 1 per example are summed without any rounding; others are off by a few
    units in the last place of the largest.

    Parameters
    ----------
    model, data, value, removal, device, progress : as in `neurank.rank`.
    layer : dotted name of the layer.
    share : measure each coalition with this probability only; those of no unit, one, all but one
        and all are always measured. None measures all of them.
    seed : which share.
    max_units : refuse wider layers; the table has 8 * 2^units bytes.
    max_operations : refuse a layer that would cost more additions and multiply-adds than this.

    Raises
    ------
    MethodError
        If the layer is too wide or would cost too much, or an argument is out of range, or there
        is not one example to count.
    UnitError, DataError, ModelError
        As `neurank.rank`.

    Example
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(2, 3, 6, 4, seed=0)
    >>> data = nr.data.load("digits").validation.first(50)
    >>> table = value_table(model, data, "fc2", progress=False)
    >>> table
    ValueTable('fc2': 16 of 16 coalitions of 4 units, 50 examples)
    >>> exact = nr.rank(model, data, nr.ExactShapley(), layers=["fc2"], progress=False)
    >>> bool((table.shapley() - exact["fc2"].scores).abs().max() < 1e-12)
    True
    """
    check_share(share)
    with watching(
        model, data, value=value, removal=removal, seed=seed, device=device, progress=progress
    ) as observer:
        (name,) = choose_layers(observer, [layer])
        started = time.perf_counter()
        wanted = None
        if share is not None and observer.width(name) <= max_units:
            wanted = share_of_coalitions(seed, 0, observer.width(name), share)
        found = measure(observer, name, wanted, max_units=max_units, max_operations=max_operations)
        if not found.examples:
            raise MethodError(
                f"the value {value_name(observer.value)} counts not one of the "
                f"{observer.examples.count} examples: give data that has some"
            )
        provenance: dict[str, Json] = {
            "value": value_name(observer.value),
            **described(observer),
            "share": share,
            "way": observer.ways(name)[0],
            "coalitions": found.coalitions,
            "seconds": round(time.perf_counter() - started, 3),
            "versions": versions(),
        }
    return ValueTable(name, torch.from_numpy(found.values), found.examples, provenance)


def check_share(share: float | None) -> None:
    """Refuse what is no probability above 0."""
    if share is not None and not 0 < share <= 1:
        raise MethodError(f"share={share!r}: a number above 0 and up to 1 is needed")
