"""Random orders of players that depend on nothing but the seed and the example's number."""

import numba
import numpy as np
from numpy.typing import NDArray


def own_orders(
    seed: int, repetition: int, numbers: NDArray[np.int64], active: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Draw for each example an order of its active units, uniformly and independently.

    The draw of an example is a function of `(seed, repetition, number of the example)` alone:
    batches, threads and other layers do not matter, and the same arguments give the same bits.

    Parameters
    ----------
    seed, repetition : which draw.
    numbers : (examples,) the place of each example in the data.
    active : (examples, units).

    Returns
    -------
    NDArray
        (examples, units): the active units in the order in which they join, then -1.

    Example
    -------
    >>> own_orders(0, 0, np.array([0]), np.array([[True, False, True]])).tolist()[0][2]
    -1
    """
    key = np.random.SeedSequence([seed, repetition]).generate_state(1, np.uint64)[0]
    return _shuffle(key, numbers.astype(np.uint64), active)


def reversed_orders(orders: NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn each order round, the -1 staying at the end.

    Example:
    -------
    >>> reversed_orders(np.array([[2, 0, 1, -1]])).tolist()
    [[1, 0, 2, -1]]
    """
    players = (orders >= 0).sum(axis=1, keepdims=True)
    places = np.arange(orders.shape[1])[None, :]
    turned = np.where(places < players, players - 1 - places, places)
    return np.take_along_axis(orders, turned, axis=1)


def turned_orders(orders: NDArray[np.int64], turn: int, of: int) -> NDArray[np.int64]:
    """Let each order begin at another place: `turn` parts of `of` on, the -1 staying at the end.

    Over ``turn = 0 .. of - 1`` every unit stands in every part of the order once, where `of`
    divides the number of players, and nearly so where it does not.

    Example:
    -------
    >>> turned_orders(np.array([[2, 0, 1, 3, -1]]), 1, 2).tolist()
    [[1, 3, 2, 0, -1]]
    """
    players = (orders >= 0).sum(axis=1, keepdims=True)
    places = np.arange(orders.shape[1])[None, :]
    on = (places + players * turn // of) % np.maximum(players, 1)
    return np.take_along_axis(orders, np.where(places < players, on, places), axis=1)


def own_coins(
    seed: int,
    repetition: int,
    numbers: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Draw one number from [0, 1) for each stretch of an example's order.

    Like `own_orders`, a function of its arguments alone.

    Parameters
    ----------
    seed, repetition : which draw.
    numbers : (stretches,) the place of the example in the data.
    starts, ends : (stretches,) the places of its order between which the stretch lies.

    Example
    -------
    >>> ends = np.array([4, 4, 8])
    >>> one, same, other = own_coins(0, 0, np.zeros(3, int), np.zeros(3, int), ends)
    >>> bool(one == same), bool(one == other), bool(0 <= one < 1)
    (True, False, True)
    """
    key = np.random.SeedSequence([seed, repetition, 1]).generate_state(1, np.uint64)[0]
    stretches = (starts.astype(np.uint64) << np.uint64(32)) | ends.astype(np.uint64)
    return _coins(key, numbers.astype(np.uint64), stretches)


@numba.njit(cache=True)
def _coins(key, numbers, stretches):
    coins = np.empty(len(numbers))
    for at in range(len(numbers)):
        word = _mix(_mix(key ^ _mix(numbers[at])) ^ stretches[at])
        coins[at] = (word >> np.uint64(11)) * 2.0**-53
    return coins


@numba.njit(cache=True)
def _shuffle(key, numbers, active):
    examples, units = active.shape
    orders = np.full((examples, units), -1, np.int64)
    for example in range(examples):
        state = _mix(key ^ _mix(numbers[example]))
        players = 0
        for unit in range(units):
            if active[example, unit]:
                # Fisher and Yates, inside out: the newcomer changes places with any before it.
                state += np.uint64(0x9E3779B97F4A7C15)
                place = _below(_mix(state), np.uint64(players + 1))
                orders[example, players] = orders[example, place]
                orders[example, place] = unit
                players += 1
    return orders


@numba.njit(cache=True)
def _below(word, bound):
    """Map 64 random bits to 0 .. bound - 1; the bias is below bound / 2^32."""
    return np.int64(((word >> np.uint64(32)) * bound) >> np.uint64(32))


@numba.njit(cache=True)
def _mix(word):
    """Scramble 64 bits: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
