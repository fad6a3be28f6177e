"""Max pooling on the CPU, as the maximum of slices.

Where windows lie side by side, pooling is the maximum of as many strided slices as a window has
rows, and then of as many as it has columns. The numbers are the same; torch's own loop looks at one
window after the other and takes about ten times as long.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neurank.units.graph import Operation

Pair = tuple[int, int]

LARGEST_WINDOW = 9
"""Windows of at most so many places are taken as slices."""


def in_slices(operation: Operation) -> Operation:
    """Replace max pooling by the maximum of slices, where windows lie side by side.

    Other operations are handed back as they are. Where gradients may be asked for, torch's own
    pooling runs: of equal values it gives the gradient to the first, a maximum shares it out.
    """
    if operation.kind != "max_pool2d" or operation.kwargs:
        return operation
    window, stride, padding, dilation, ceil = _pooling(operation.args[1:])
    fits = window == stride and padding == (0, 0) and dilation == (1, 1) and not ceil
    if not fits or window[0] * window[1] > LARGEST_WINDOW:
        return operation
    pool = operation.target

    def max_pool2d(read: Tensor, *others: Any) -> Tensor:
        if read.device.type != "cpu" or not torch.is_inference_mode_enabled():
            pooled: Tensor = pool(read, *others)
            return pooled
        height, width = (read.shape[axis - 2] // window[axis] * window[axis] for axis in (0, 1))
        rows = _largest(read[..., down : height : window[0], :width] for down in range(window[0]))
        return _largest(rows[..., right :: window[1]] for right in range(window[1]))

    return replace(operation, target=max_pool2d)


def _largest(slices: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.maximum, slices)


def _pooling(given: Sequence[Any]) -> tuple[Pair, Pair, Pair, Pair, bool]:
    """Read window, stride, padding, dilation and ceil mode of a call, with torch's defaults."""
    window = _pair(given[0])
    stride = _pair(given[1]) if len(given) > 1 and given[1] else window
    padding = _pair(given[2]) if len(given) > 2 else (0, 0)
    dilation = _pair(given[3]) if len(given) > 3 else (1, 1)
    return window, stride, padding, dilation, bool(given[4]) if len(given) > 4 else False


def _pair(size: int | Sequence[int]) -> Pair:
    if isinstance(size, int):
        return size, size
    sizes = tuple(size)
    return (sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])
