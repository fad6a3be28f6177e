"""Whole tables of one layer's game, as sums of the small tables of its examples.

A game of k active units in a layer of n is known by its 2^k values, and so by its 2^k Walsh
coefficients, ``w(S) = 2^-k * sum over C of (-1)^|S and C| * v(C)``. In the table of all 2^n
coalitions it has the same coefficients, at the same sets of units, and 0 wherever a null player is
in S. So the examples' coefficients are added up where they belong, and one transform of the sum
gives ``sum of v(C)`` for all 2^n coalitions: 2^k steps per example in place of 2^n.

The Möbius transform would do the same, but its coefficients grow with 2^|S| and cancel again on
the way back; Walsh coefficients never exceed the largest value, so rounding stays at a few units
in the last place. With values that are 0 or 1 nothing is rounded: every coefficient, sum and
intermediate result is a multiple of 2^-n between minus and plus the number of examples, which
float64 holds exactly while examples * 2^n <= 2^53.
"""

from itertools import pairwise

import numba
import numpy as np
from numpy.typing import NDArray

from neurank.observe.kernels.perceptron import FloatArray, IntArray, Perceptron, lanes_correct
from neurank.observe.kernels.power_set import CACHE_BYTES, LEAST_LOW_BITS

Spectrum = NDArray[np.float64]
"""(2^units,) Walsh coefficients, or the values they stand for; bit j of an index is unit j."""

BLOCK_BITS = 14
"""128 KiB of a table, which a second-level cache holds."""
COLUMNS = 64
"""Neighbouring entries that one pass over the high bits takes along: 8 cache lines."""
SHARED_ENTRIES = 1 << 22
"""Small tables are made side by side in a room of this many entries, or of the largest table."""


def add_spectra(
    base: FloatArray,
    contributions: FloatArray,
    active: NDArray[np.bool_],
    targets: IntArray,
    head: Perceptron,
    spectrum: Spectrum,
) -> None:
    """Add the Walsh coefficients of "the target wins" in the game of each example.

    Parameters
    ----------
    base : (features,), the consumer's pre-activation with every unit off.
    contributions : (examples, units, features), what each unit adds to it.
    active : (examples, units); the others are null players and drop out.
    targets : (examples,) class indices.
    head : from the consumer's pre-activations to the logits.
    spectrum : (2^units,) is added to.
    """
    players = active.sum(axis=1)
    widest = int(head.widths.max())
    low_bits = max(LEAST_LOW_BITS, min(10, int(np.log2(CACHE_BYTES / (base.itemsize * widest)))))
    first = 0
    while first < len(players):
        ends = np.cumsum(np.int64(1) << players[first:])
        count = max(1, int(np.searchsorted(ends, SHARED_ENTRIES, side="right")))
        group = slice(first, first + count)
        starts = np.concatenate([np.zeros(1, np.int64), ends[:count]])
        tables = np.empty(starts[-1])
        _fill(
            base, contributions[group], active[group], targets[group], head, low_bits, starts,
            tables,
        )  # fmt: skip
        for row, (start, end) in enumerate(pairwise(starts)):
            add_at(spectrum, np.flatnonzero(active[first + row]), tables[start:end])
        first += count


def add_table(spectrum: Spectrum, units: IntArray, values: NDArray[np.float64]) -> None:
    """Add the Walsh coefficients of one example's game.

    Parameters
    ----------
    spectrum : (2^all units,) is added to.
    units : (k,), the example's active units in ascending order.
    values : (2^k,), bit j of an index is the j-th of them; it is overwritten.
    """
    walsh(values)
    values /= len(values)
    add_at(spectrum, units, values)


@numba.njit(cache=True, nogil=True)
def add_at(spectrum, units, coefficients):
    """Add each coefficient at the set of units that its index stands for.

    The entries are added in the order of the examples, whatever the threads, so the same examples
    give the same bits.
    """
    low = min(len(units), 10)
    near = np.zeros(1 << low, np.int64)
    for bit in range(low):
        near[1 << bit : 2 << bit] = near[: 1 << bit] + (np.int64(1) << units[bit])
    for above in range(len(coefficients) >> low):
        far = np.int64(0)
        for bit in range(low, len(units)):
            far += ((above >> (bit - low)) & 1) << units[bit]
        for below in range(1 << low):
            spectrum[far + near[below]] += coefficients[(above << low) + below]


def values_of_spectrum(spectrum: Spectrum) -> Spectrum:
    """Turn Walsh coefficients into values, in place."""
    if len(spectrum) <= 1 << BLOCK_BITS:
        walsh(spectrum)
    else:
        _walsh_blocks(spectrum.reshape(-1, 1 << BLOCK_BITS))
        _walsh_across(spectrum.reshape(-1, 1 << BLOCK_BITS))
    return spectrum


@numba.njit(cache=True, nogil=True)
def walsh(values):
    """Replace values by ``sum over C of (-1)^|S and C| * v(C)``; twice is 2^k times the values."""
    half = 1
    while half < len(values):
        for start in range(0, len(values), 2 * half):
            for at in range(start, start + half):
                without, having = values[at], values[at + half]
                values[at] = without + having
                values[at + half] = without - having
        half *= 2


@numba.njit(cache=True, parallel=True)
def _walsh_blocks(rows):
    for row in numba.prange(len(rows)):
        walsh(rows[row])


@numba.njit(cache=True, parallel=True)
def _walsh_across(rows):
    for group in numba.prange(rows.shape[1] // COLUMNS):
        part = rows[:, group * COLUMNS : (group + 1) * COLUMNS].copy()
        half = 1
        while half < len(part):
            for start in range(0, len(part), 2 * half):
                for at in range(start, start + half):
                    for column in range(COLUMNS):
                        without, having = part[at, column], part[at + half, column]
                        part[at, column] = without + having
                        part[at + half, column] = without - having
            half *= 2
        rows[:, group * COLUMNS : (group + 1) * COLUMNS] = part


@numba.njit(cache=True, parallel=True, fastmath={"contract"})
def _fill(base, contributions, active, targets, head, low_bits, starts, tables):
    for example in numba.prange(len(contributions)):
        table = tables[starts[example] : starts[example + 1]]
        _values(
            base, contributions[example], np.flatnonzero(active[example]), targets[example],
            head, low_bits, table,
        )  # fmt: skip
        walsh(table)
        table /= len(table)


@numba.njit(cache=True, fastmath={"contract"}, nogil=True)
def _values(base, contributions, units, target, head, low_bits, values):
    """Write 1 for each coalition with which the target wins, else 0."""
    features = len(base)
    widest = head.widths.max()
    low = min(len(units), low_bits)
    high = len(units) - low
    lanes = 1 << low
    sums = np.zeros((features, lanes), base.dtype)
    for bit in range(low):
        added = contributions[units[bit]]
        for feature in range(features):
            for lane in range(1 << bit):
                sums[feature, lane + (1 << bit)] = sums[feature, lane] + added[feature]
    peaks = np.empty(features, base.dtype)
    for feature in range(features):
        peaks[feature] = sums[feature].max()
    unbounded = np.full(widest, np.inf, base.dtype)
    kept = np.empty((widest + 3, lanes), base.dtype)
    room = np.empty((widest + 3, lanes), base.dtype)
    live = np.empty(widest + 3, np.int64)
    partial = np.empty((high + 1, features), base.dtype)
    for bit in range(high + 1):
        partial[bit] = base
    for above in range(1 << high):
        # partial[b] is the sum over the high units b, b+1, ... that are on.
        if above > 0:
            changed = 0
            while not (above >> changed) & 1:
                changed += 1
            partial[changed] = partial[changed + 1] + contributions[units[low + changed]]
            for bit in range(changed):
                partial[bit] = partial[changed]
        correct = values[above << low : (above + 1) << low]
        lanes_correct(
            sums, peaks, partial[0], kept, room, unbounded, live, lanes, head, target, correct
        )
