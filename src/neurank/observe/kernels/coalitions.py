"""Any coalitions of each example, given one by one as masks.

Per coalition: one multiply-add per unit and feature of the consumer, and one run of the head; both
on many coalitions side by side.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from neurank.observe.kernels.perceptron import FloatArray, IntArray, Perceptron, lanes_correct

LANES = 64
"""They keep the vector units busy, and their rows fit into a second-level cache."""


def coalition_values(
    base: FloatArray,
    contributions: FloatArray,
    masks: NDArray[np.bool_],
    targets: IntArray,
    head: Perceptron,
) -> NDArray[np.float64]:
    """Compute whether the target wins, 1 or 0, for some coalitions of each example.

    Parameters
    ----------
    base : (features,), the consumer's pre-activation with every unit off.
    contributions : (examples, units, features), what each unit adds to it.
    masks : (examples, coalitions, units), True = on.
    targets : (examples,) class indices.
    head : from the consumer's pre-activations to the logits.

    Returns
    -------
    NDArray
        (examples, coalitions).
    """
    values = np.empty(masks.shape[:2])
    _examples(base, contributions, masks, targets, head, values)
    return values


@numba.njit(cache=True, parallel=True)
def _examples(base, contributions, masks, targets, head, values):
    for example in numba.prange(len(contributions)):
        _example(
            base, contributions[example], masks[example], targets[example], head, values[example]
        )


@numba.njit(cache=True, fastmath={"contract"}, nogil=True)
def _example(base, contributions, masks, target, head, values):
    features = len(base)
    widest = head.widths.max()
    unbounded = np.full(max(widest, features), np.inf, base.dtype)
    kept = np.empty((widest + 3, LANES), base.dtype)
    room = np.empty((widest + 3, LANES), base.dtype)
    live = np.empty(widest + 3, np.int64)
    sums = np.empty((features, LANES), base.dtype)
    members = np.empty(LANES, base.dtype)
    for first in range(0, len(masks), LANES):
        lanes = min(LANES, len(masks) - first)
        sums[:] = 0
        for unit in range(masks.shape[1]):
            some = False
            for lane in range(lanes):
                on = masks[first + lane, unit]
                members[lane] = on
                some |= on
            if some:
                added = contributions[unit]
                for feature in range(features):
                    for lane in range(lanes):
                        sums[feature, lane] += added[feature] * members[lane]
        lanes_correct(
            sums, unbounded, base, kept, room, unbounded, live, lanes, head, target,
            values[first : first + lanes],
        )  # fmt: skip
