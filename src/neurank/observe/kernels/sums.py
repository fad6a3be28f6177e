"""Sums of rows in double precision, at the speed at which the numbers come out of memory.

torch converts a whole tensor before it sums it in another precision, which takes up to thirty times
as long where maps are large.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from neurank.observe.kernels.perceptron import FloatArray


def row_sums(rows: FloatArray) -> NDArray[np.float64]:
    """Sum every row, each number converted to float64 first.

    Parameters
    ----------
    rows : (rows, numbers), contiguous.

    Returns
    -------
    (rows,).
    """
    sums = np.empty(len(rows))
    _row_sums(rows, sums)
    return sums


# Any order of the additions will do, so that they run side by side; NaN stays NaN.
@numba.njit(cache=True, parallel=True, fastmath={"reassoc"})
def _row_sums(rows, sums):
    for row in numba.prange(len(rows)):
        total = 0.0
        for place in range(rows.shape[1]):  # by index, or the compiler adds one by one
            total += np.float64(rows[row, place])
        sums[row] = total
