"""A perceptron on many coalitions at once: the head of a network, packed for compiled loops.

The head may begin with max pooling, as a table of windows over the consumer's features.

The consumer's pre-activations of L coalitions lie side by side, (features, L), so that one vector
instruction serves eight coalitions; every row stays in the first-level cache.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]


class Perceptron(NamedTuple):
    """Windows, then linear stages with ReLU or nothing before each: (relu?, matrix, bias).

    Attributes
    ----------
    windows : (inputs of the first stage, window) int64, the features among which each of these
        inputs is the largest; one feature each where nothing is pooled.
    widths : (stages + 1,) int64, the features before the first stage and after each.
    relu : (stages + 1,) bool, whether a ReLU stands before each stage and before the outputs.
    matrices : all matrices, (outputs, inputs) row by row, one after another; a row of zeros makes
        an odd number of outputs even.
    biases : all biases, one after another.
    """

    windows: IntArray
    widths: IntArray
    relu: NDArray[np.bool_]
    matrices: FloatArray
    biases: FloatArray


def pack(
    windows: IntArray,
    stages: Sequence[tuple[bool, FloatArray, FloatArray]],
    *,
    relu_at_end: bool,
    dtype: np.dtype[Any],
) -> Perceptron:
    """Pack stages `(relu before?, matrix (outputs, inputs), bias (outputs,))` into one value."""
    widths = [len(windows), *(len(bias) for _, _, bias in stages)]
    empty = np.zeros(0, dtype)
    return Perceptron(
        np.ascontiguousarray(windows, np.int64),
        np.array(widths, np.int64),
        np.array([*(relu for relu, _, _ in stages), relu_at_end], np.bool_),
        np.concatenate([empty, *(_even(matrix).ravel() for _, matrix, _ in stages)]).astype(dtype),
        np.concatenate([empty, *(bias for _, _, bias in stages)]).astype(dtype),
    )


def _even(matrix: FloatArray) -> FloatArray:
    return np.pad(matrix, ((0, len(matrix) % 2), (0, 0)))


@numba.njit(cache=True, fastmath={"contract", "nnan", "nsz"}, nogil=True)
def lanes_correct(
    sums: FloatArray,
    peaks: FloatArray,
    offset: FloatArray,
    kept: FloatArray,
    room: FloatArray,
    unbounded: FloatArray,
    live: IntArray,
    lanes: int,
    head: Perceptron,
    target: int,
    correct: FloatArray,
) -> None:
    """Run the perceptron on `lanes` coalitions and write 1 where the target wins, else 0.

    The first pre-activations are ``sums + offset[:, None]``, (features, lanes), and `peaks` the
    largest of each row of `sums`: a row that the ReLU silences on every lane is dropped unseen.
    `kept` and `room` are (widest + 3, lanes) buffers, `live` is (widest + 3,) room for indices and
    `unbounded` is (widest,) infinities. Ties go to the lowest class.
    """
    windows, widths, relu, matrices, biases = head
    stages = len(widths) - 1
    matrix_at = 0
    bias_at = 0
    for stage in range(stages):
        inputs, outputs = widths[stage], widths[stage + 1]
        if stage == 0 and windows.shape[1] > 1:
            count = _pool(sums, peaks, offset, windows, relu[stage], kept, live, lanes)
        else:
            count = _close_up(sums, peaks, offset, relu[stage], kept, live, lanes, inputs)
        size = (outputs + outputs % 2) * inputs
        matrix = matrices[matrix_at : matrix_at + size].reshape(-1, inputs)
        _multiply(kept, live, count, lanes, matrix, room)
        offset = biases[bias_at : bias_at + outputs]
        matrix_at += size
        bias_at += outputs
        sums, peaks = room, unbounded
    _wins(sums, offset, relu[stages], lanes, widths[stages], target, correct, kept)


@numba.njit(cache=True, fastmath={"nnan", "nsz"}, nogil=True)
def _close_up(
    sums: FloatArray,
    peaks: FloatArray,
    offset: FloatArray,
    rectify: bool,
    kept: FloatArray,
    live: IntArray,
    lanes: int,
    inputs: int,
) -> int:
    """Add the offsets, apply ReLU, and drop the rows that it silences on every lane.

    `peaks` holds the largest sum of each row. Row r of `kept` is the input `live[r]`; the number
    of rows is returned, filled up with rows of zeros to a multiple of four.
    """
    zero = kept.dtype.type(0)
    count = 0
    for row in range(inputs):
        shift = offset[row]
        if not rectify:
            for lane in range(lanes):
                kept[count, lane] = sums[row, lane] + shift
        elif peaks[row] + shift > zero:
            for lane in range(lanes):
                value = sums[row, lane] + shift
                kept[count, lane] = value if value > zero else zero
        else:
            continue
        live[count] = row
        count += 1
    return _fill_up(kept, live, count)


@numba.njit(cache=True, fastmath={"nnan", "nsz"}, nogil=True)
def _pool(
    sums: FloatArray,
    peaks: FloatArray,
    offset: FloatArray,
    windows: IntArray,
    rectify: bool,
    kept: FloatArray,
    live: IntArray,
    lanes: int,
) -> int:
    """Do what `_close_up` does, row r being the largest feature of window r."""
    zero = kept.dtype.type(0)
    count = 0
    for row in range(len(windows)):
        window = windows[row]
        first = window[0]
        peak = peaks[first] + offset[first]
        for feature in window[1:]:
            peak = max(peak, peaks[feature] + offset[feature])
        if rectify and peak <= zero:
            continue
        shift = offset[first]
        for lane in range(lanes):
            kept[count, lane] = sums[first, lane] + shift
        for feature in window[1:]:
            shift = offset[feature]
            for lane in range(lanes):
                value = sums[feature, lane] + shift
                before = kept[count, lane]
                kept[count, lane] = value if value > before else before
        if rectify:
            for lane in range(lanes):
                value = kept[count, lane]
                kept[count, lane] = value if value > zero else zero
        live[count] = row
        count += 1
    return _fill_up(kept, live, count)


@numba.njit(cache=True, nogil=True)
def _fill_up(kept: FloatArray, live: IntArray, count: int) -> int:
    """Add rows of zeros until their number is a multiple of four."""
    while count % 4:
        kept[count] = 0
        live[count] = 0
        count += 1
    return count


@numba.njit(cache=True, fastmath={"nnan", "nsz"}, nogil=True)
def _wins(
    sums: FloatArray,
    offset: FloatArray,
    rectify: bool,
    lanes: int,
    classes: int,
    target: int,
    correct: FloatArray,
    logits: FloatArray,
) -> None:
    """Write 1 where the target's logit is the largest, the first among equals, else 0."""
    zero = logits.dtype.type(0)
    for row in range(classes):
        shift = offset[row]
        for lane in range(lanes):
            value = sums[row, lane] + shift
            logits[row, lane] = value if value > zero or not rectify else zero
    for lane in range(lanes):
        correct[lane] = 1.0
    own = logits[target]
    for row in range(target):
        for lane in range(lanes):
            correct[lane] = 0.0 if logits[row, lane] >= own[lane] else correct[lane]
    for row in range(target + 1, classes):
        for lane in range(lanes):
            correct[lane] = 0.0 if logits[row, lane] > own[lane] else correct[lane]


@numba.njit(cache=True, fastmath={"contract", "nnan", "nsz"}, nogil=True)
def _multiply(
    rows: FloatArray,
    live: IntArray,
    count: int,
    lanes: int,
    matrix: FloatArray,
    out: FloatArray,
) -> None:
    """Compute ``out = matrix[:, live] @ rows``, two outputs and four inputs at a time.

    So each load of a lane serves two multiply-adds and each store eight; loads and stores would
    set the pace otherwise. `count` is a multiple of four and `matrix` has an even number of rows.
    """
    outputs = len(matrix)
    out[:outputs] = 0
    for o in range(0, outputs, 2):
        for r in range(0, count, 4):
            i0, i1, i2, i3 = live[r], live[r + 1], live[r + 2], live[r + 3]
            a0, a1, a2, a3 = matrix[o, i0], matrix[o, i1], matrix[o, i2], matrix[o, i3]
            b0, b1 = matrix[o + 1, i0], matrix[o + 1, i1]
            b2, b3 = matrix[o + 1, i2], matrix[o + 1, i3]
            for lane in range(lanes):
                x0, x1 = rows[r, lane], rows[r + 1, lane]
                x2, x3 = rows[r + 2, lane], rows[r + 3, lane]
                out[o, lane] = out[o, lane] + a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
                out[o + 1, lane] = out[o + 1, lane] + b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
