"""Numbers as callers give them: plain ones, and those of NumPy and torch."""

import math
import operator
from numbers import Real
from typing import Any


def whole(value: Any) -> int | None:
    """Return a whole number as an int, None for anything else, True and False among it.

    Examples
    --------
    >>> import torch
    >>> whole(torch.tensor(3)), whole(3.0), whole(True)
    (3, None, None)
    """
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return None


def real(value: object) -> float:
    """Return a number as a float, NaN for anything else, True and False among it.

    Examples
    --------
    >>> real(3), real("3"), real(True)
    (3.0, nan, nan)
    """
    return math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
