"""The networks of `tests.architectures`, watched, and plans for them."""

from functools import cache

import torch
from tests.architectures import ARCHITECTURES, architecture

from neurank.condense.condensed import _observed, carried_out
from neurank.condense.plan import Plan

NAMES = tuple(one.name for one in ARCHITECTURES)
CPU = torch.device("cpu")

PATTERNS = {
    "first": lambda width: tuple(range(1, width)),
    "second": lambda width: tuple(range(0, width, 2)),
    "all but one": lambda width: (width // 2,),
}
"""Which units of so many stay where the first, every second, or all but one are removed."""


def watched(name, dtype=torch.float64):
    """An architecture, traced once, in evaluation mode."""
    return _watched(name, dtype)


@cache
def _watched(name, dtype):
    return _observed(architecture(name).model(dtype).eval(), batches(name, dtype), CPU, False)


@cache
def batches(name, dtype=torch.float64):
    """Its examples."""
    return architecture(name).batches(dtype)


@cache
def examples(name):
    """The same in one batch."""
    return torch.cat([inputs for inputs, _ in batches(name)])


def cuttable(name):
    """The layers that can lose a unit."""
    space = watched(name).space
    return tuple(layer for layer in space.hidden if space[layer].width > 1)


def planned(name, pattern, *layers):
    """A plan by which these layers, or all that can, lose units."""
    space = watched(name).space
    widths = {layer: space[layer].width for layer in layers or cuttable(name)}
    return Plan({layer: PATTERNS[pattern](width) for layer, width in widths.items()}, widths)


def condensed(name, plan, removal, dtype=torch.float64):
    """Carry a plan out, border and all."""
    return carried_out(plan, watched(name, dtype), removal)
