"""Marginal contributions along one chain of coalitions per example: each its own permutation.

Per example with k active units: k + 1 coalitions, which are running sums of contributions, and one
run of the head on all of them side by side.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from neurank.observe.kernels.perceptron import FloatArray, IntArray, Perceptron, lanes_correct


def chain_marginals(
    base: FloatArray,
    contributions: FloatArray,
    orders: IntArray,
    targets: IntArray,
    head: Perceptron,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Marginal contribution of every unit to "the target wins", when it joins in a given order.

    Parameters
    ----------
    base : (features,), the consumer's pre-activation with every unit off.
    contributions : (examples, units, features), what each unit adds to it.
    orders : (examples, units), the units that join, in order, and then -1.
    targets : (examples,) class indices.
    head : from the consumer's pre-activations to the logits.

    Returns
    -------
    marginals : (examples, units), 0 for units that do not join.
    ends : (examples, 2), the value before the first unit joins and after the last.
    """
    examples, units, _ = contributions.shape
    marginals = np.zeros((examples, units))
    ends = np.zeros((examples, 2))
    _chains(base, contributions, orders, targets, head, marginals, ends)
    return marginals, ends


@numba.njit(cache=True, parallel=True)
def _chains(base, contributions, orders, targets, head, marginals, ends):
    for example in numba.prange(len(contributions)):
        _chain(
            base, contributions[example], orders[example], targets[example],
            head, marginals[example], ends[example],
        )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def _chain(base, contributions, order, target, head, marginals, ends):
    features = len(base)
    widest = head.widths.max()
    players = np.sum(order >= 0)
    lanes = players + 1
    sums = np.empty((features, lanes), base.dtype)
    sums[:, 0] = 0
    for place in range(players):
        added = contributions[order[place]]
        for feature in range(features):
            sums[feature, place + 1] = sums[feature, place] + added[feature]
    peaks = np.empty(features, base.dtype)
    for feature in range(features):
        peaks[feature] = sums[feature].max()
    unbounded = np.full(widest, np.inf, base.dtype)
    kept = np.empty((widest + 3, lanes), base.dtype)
    room = np.empty((widest + 3, lanes), base.dtype)
    live = np.empty(widest + 3, np.int64)
    correct = np.empty(lanes)
    lanes_correct(sums, peaks, base, kept, room, unbounded, live, lanes, head, target, correct)
    for place in range(players):
        marginals[order[place]] = correct[place + 1] - correct[place]
    ends[0] = correct[0]
    ends[1] = correct[players]
