"""Measuring the characteristic function: the values of a layer's coalitions over all examples."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from neurank.errors import MethodError
from neurank.observe.kernels.value_table import values_of_spectrum
from neurank.observe.observer import Observer
from neurank.observe.tables import add_games
from neurank.progress import reporting
from neurank.rankers.cost import check_cost
from neurank.text import legible

MAX_UNITS = 25
"""The paper's own limit; a table of 2^25 values takes 256 MiB."""


@dataclass(frozen=True)
class Measured:
    """The values of a layer's coalitions.

    Attributes
    ----------
    values : (2^units,), means over the examples; NaN where not asked for, or without examples.
    examples : how many there were.
    coalitions : how many coalitions were evaluated, summed over the examples.
    """

    values: NDArray[np.float64]
    examples: int
    coalitions: int


def measure(
    observer: Observer,
    layer: str,
    wanted: NDArray[np.bool_] | None = None,
    *,
    max_units: int = MAX_UNITS,
    max_operations: float = 1e13,
) -> Measured:
    """Measure coalitions over all examples, at the lesser of two costs for each example.

    An example with k active units plays only 2^k coalitions that differ. If no more than that are
    wanted, they are evaluated one by one; otherwise the small table is, and its Walsh coefficients
    are added to those of the layer, see `neurank.observe.kernels.value_table`.

    Parameters
    ----------
    observer, layer : what is looked at.
    wanted : (2^units,), which coalitions; None for all.
    max_units : refuse wider layers.
    max_operations : refuse a layer that would cost more additions and multiply-adds.

    Raises
    ------
    MethodError
        If the layer is too wide or would cost too much.
    """
    units = observer.width(layer)
    check_width(layer, units, max_units)
    chosen = np.zeros(0, np.int64) if wanted is None else np.flatnonzero(wanted)
    most = 1 << units if wanted is None else len(chosen)
    spectrum, apart = np.zeros(1 << units), np.zeros(len(chosen))
    examples = coalitions = 0
    with reporting(
        f"measuring {legible(layer)}", observer.chunks(layer), show=observer.progress
    ) as advance:
        for game in observer.games(layer):
            tables = np.int64(1) << game.active.sum(dim=1).cpu().numpy()
            coalitions += int(np.minimum(tables, most).sum())
            examples += game.examples
            check_cost(
                "the value table", observer, game, coalitions=coalitions, seen=examples,
                max_operations=max_operations, remedy="Use PermutationShapley()",
            )  # fmt: skip
            add_games(game, np.flatnonzero(tables <= most), spectrum)
            for row in np.flatnonzero(tables > most).tolist():
                masks = members(chosen, units).to(game.active.device)
                apart += game.values_of(row, masks).cpu().numpy()
            advance("")
    if not examples:
        return Measured(np.full(1 << units, np.nan), 0, 0)
    values = values_of_spectrum(spectrum)
    values[chosen] += apart
    values /= examples
    if wanted is not None:
        values[~wanted] = np.nan
    return Measured(values, examples, coalitions)


def check_width(layer: str, units: int, max_units: int) -> None:
    """Refuse a layer whose table would not fit."""
    if units > max_units:
        raise MethodError(
            f"layer {layer!r} has {units} units, and a table of its coalitions 2^{units} values, "
            f"more than max_units={max_units} allows: use PermutationShapley(), which takes any "
            "number of units"
        )


def members(coalitions: NDArray[np.int64], units: int) -> torch.Tensor:
    """Turn indices of a table into masks, (coalitions, units) bool."""
    return torch.from_numpy((coalitions[:, None] >> np.arange(units)) & 1 == 1)
