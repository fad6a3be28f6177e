"""Random coalitions that depend on nothing but the seed and what they are drawn for."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neurank.rankers.orders import _mix

Coalitions = Literal["size-uniform", "subset-uniform"]

_STEP = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's
_OF_OTHERS, _OF_TABLES = 2, 3  # 1 is of the coins in orders.py; no two draws share their bits
_TABLE_BLOCK = 1 << 16


def coalitions_of_others(
    seed: int,
    repetition: int,
    numbers: NDArray[np.int64],
    units: NDArray[np.int64],
    active: NDArray[np.bool_],
    coalitions: Coalitions,
) -> NDArray[np.bool_]:
    """Draw a coalition of other active units for some units of each example, independently.

    Every other unit is given a random word. The words below the unit's own are those of its
    predecessors in a random order: their number is uniform, and so is the set, given its number.
    The words' first bits are fair coins, and then every set is equally likely. A draw is a function
    of `(seed, repetition, number of the example, unit)` and the layer's width alone.

    Parameters
    ----------
    seed, repetition : which draw.
    numbers : (examples,) the place of each example in the data.
    units : (examples, some), the units to draw for.
    active : (examples, all units), who may be drawn.
    coalitions : "size-uniform" for predecessors, "subset-uniform" for coins.

    Returns
    -------
    NDArray
        (examples, some, all units), never with the unit itself.
    """
    width = active.shape[1]
    counters = units[:, :, None] * width + np.arange(width)
    words = _words((seed, repetition, _OF_OTHERS), numbers[:, None, None], counters)
    own = units[:, :, None]
    if coalitions == "size-uniform":
        drawn = words < np.take_along_axis(words, own, axis=2)
    else:
        drawn = words >> np.uint64(63) == 1
        np.put_along_axis(drawn, own, values=False, axis=2)
    result: NDArray[np.bool_] = drawn & active[:, None, :]
    return result


def share_of_coalitions(seed: int, repetition: int, units: int, share: float) -> NDArray[np.bool_]:
    """Draw each coalition of a layer with the same probability, independently.

    Those of no unit, of one, of all and of all but one are always drawn: there are few of them,
    and each is the only way in which a unit can join none or all of the others.

    Parameters
    ----------
    seed, repetition : which draw.
    units : the layer's width.
    share : the probability; 1 draws them all.

    Returns
    -------
    NDArray
        (2^units,), bit j of an index being unit j.

    Example
    -------
    >>> share_of_coalitions(0, 0, 3, 0.01).tolist()  # none, one, all but one, all
    [True, True, True, True, True, True, True, True]
    """
    if share >= 1:
        return np.ones(1 << units, np.bool_)
    threshold = np.uint64(share * 2.0**64)
    drawn = np.empty(1 << units, np.bool_)
    for block in range(-(-len(drawn) // _TABLE_BLOCK)):
        here = drawn[block * _TABLE_BLOCK : (block + 1) * _TABLE_BLOCK]
        number, counters = np.array([block]), np.arange(len(here))
        here[:] = _words((seed, repetition, _OF_TABLES), number, counters) < threshold
    single = 1 << np.arange(units)
    drawn[[0, *single, *(len(drawn) - 1 - single), -1]] = True
    return drawn


def _words(
    key: tuple[int, int, int], numbers: NDArray[np.int64], counters: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Return 64 random bits for each number and counter: SplitMix64 from the number's own start."""
    root = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    starts = _mix(root ^ _mix(numbers.astype(np.uint64)))
    words: NDArray[np.uint64] = _mix(starts + (counters.astype(np.uint64) + np.uint64(1)) * _STEP)
    return words
