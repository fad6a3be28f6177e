"""Exact Shapley values of one small game per example, over the power set of its active units.

Per example with k active units: 2^k coalitions, each one addition per feature of the consumer and
one run of the head; every feature of 2^low coalitions is one row of lanes, so the additions of the
low units are shared by all high ones. Nothing is stored per coalition.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from neurank.observe.kernels.perceptron import FloatArray, IntArray, Perceptron, lanes_correct

CACHE_BYTES = 32 * 1024
"""Room for the rows of one tile; first-level caches hold 32 KiB and more."""
LEAST_LOW_BITS = 6
"""64 lanes keep the vector units busy; a wider head spills to the second-level cache."""


def power_set_shapley(
    base: FloatArray,
    contributions: FloatArray,
    active: NDArray[np.bool_],
    targets: IntArray,
    head: Perceptron,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shapley values of "the target wins" in the game of each example.

    Parameters
    ----------
    base : (features,), the consumer's pre-activation with every unit off.
    contributions : (examples, units, features), what each unit adds to it.
    active : (examples, units); the others are null players and drop out.
    targets : (examples,) class indices.
    head : from the consumer's pre-activations to the logits.

    Returns
    -------
    shapley : (examples, units).
    ends : (examples, 2), the value of the empty and of the full coalition.
    """
    examples, units, _ = contributions.shape
    shapley = np.zeros((examples, units))
    ends = np.zeros((examples, 2))
    widest = int(head.widths.max())
    low_bits = max(LEAST_LOW_BITS, min(10, int(np.log2(CACHE_BYTES / (base.itemsize * widest)))))
    _power_sets(base, contributions, active, targets, head, low_bits, shapley, ends)
    return shapley, ends


@numba.njit(cache=True, parallel=True, fastmath={"contract"})
def _power_sets(base, contributions, active, targets, head, low_bits, shapley, ends):
    for example in numba.prange(len(contributions)):
        _power_set(
            base, contributions[example], active[example], targets[example],
            head, low_bits, shapley[example], ends[example],
        )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def coalition_weights(players):
    """Eq. 2's weights: per size s, what a coalition's value adds to members, and takes from others.

    ``joined[s] = (s-1)! (k-s)! / k!`` and ``left[s] = s! (k-s-1)! / k!``.
    """
    joined = np.zeros(players + 1)
    left = np.zeros(players + 1)
    weight = 1.0 / max(players, 1)
    for size in range(players):
        left[size] = weight
        joined[size + 1] = weight
        if size + 1 < players:
            weight *= (size + 1) / (players - size - 1)
    return joined, left


@numba.njit(cache=True, fastmath={"contract"}, nogil=True)
def _power_set(base, contributions, active, target, head, low_bits, shapley, ends):
    features = len(base)
    widest = head.widths.max()
    order = _by_size(contributions, active)
    players = len(order)
    low = min(players, low_bits)
    high = players - low
    lanes = 1 << low
    table = np.zeros((features, lanes), base.dtype)
    for bit in range(low):
        added = contributions[order[bit]]
        for feature in range(features):
            for lane in range(1 << bit):
                table[feature, lane + (1 << bit)] = table[feature, lane] + added[feature]
    peaks = np.empty(features, base.dtype)
    for feature in range(features):
        peaks[feature] = table[feature].max()
    unbounded = np.full(widest, np.inf, base.dtype)
    joined, left = coalition_weights(players)
    sizes = np.zeros(lanes, np.int64)
    for lane in range(1, lanes):
        sizes[lane] = sizes[lane >> 1] + (lane & 1)
    member = np.empty((high + 1, lanes))
    outside = np.empty((high + 1, lanes))
    for size in range(high + 1):
        for lane in range(lanes):
            member[size, lane] = joined[size + sizes[lane]] + left[size + sizes[lane]]
            outside[size, lane] = left[size + sizes[lane]]
    partial = np.empty((high + 1, features), base.dtype)
    for bit in range(high + 1):
        partial[bit] = base
    kept = np.empty((widest + 3, lanes), base.dtype)
    room = np.empty((widest + 3, lanes), base.dtype)
    live = np.empty(widest + 3, np.int64)
    correct = np.empty(lanes)
    gained = np.zeros(lanes)
    lost = np.zeros(lanes)
    totals = np.zeros(high)
    for above in range(1 << high):
        # partial[b] is the sum over the high units b, b+1, ... that are on.
        if above > 0:
            changed = 0
            while not (above >> changed) & 1:
                changed += 1
            partial[changed] = partial[changed + 1] + contributions[order[low + changed]]
            for bit in range(changed):
                partial[bit] = partial[changed]
        size = 0
        for bit in range(high):
            size += (above >> bit) & 1
        lanes_correct(
            table, peaks, partial[0], kept, room, unbounded, live, lanes, head, target, correct
        )
        weights = member[size]
        losses = outside[size]
        total = 0.0
        for lane in range(lanes):
            gain = weights[lane] * correct[lane]
            gained[lane] += gain
            lost[lane] += losses[lane] * correct[lane]
            total += gain
        for bit in range(high):
            if (above >> bit) & 1:
                totals[bit] += total
        if above == 0:
            ends[0] = correct[0]
        if above == (1 << high) - 1:
            ends[1] = correct[lanes - 1]
    outside_sum = lost.sum()
    for bit in range(high):
        shapley[order[low + bit]] = totals[bit] - outside_sum
    for bit in range(low - 1, -1, -1):
        half = 1 << bit
        total = 0.0
        for lane in range(half):
            total += gained[half + lane]
            gained[lane] += gained[half + lane]
        shapley[order[bit]] = total - outside_sum


@numba.njit(cache=True, nogil=True)
def _by_size(contributions, active):
    """List the active units, the smallest contribution first.

    The low units share a tile; if they change little, most of the head's ReLUs are silent on the
    whole tile and are skipped.
    """
    found = np.flatnonzero(active)
    sizes = np.empty(len(found))
    for at in range(len(found)):
        sizes[at] = np.abs(contributions[found[at]]).sum()
    return found[np.argsort(sizes, kind="mergesort")]
