"""The networks of `tests.architectures`, watched, and plans for them."""

from functools import cache

import torch
from tests.architectures import ARCHITECTURES, architecture

from neurank.condense.condensed import _observed, carried_out
from neurank.condense.plan import Plan
from neurank.condense.surgery import cuts_for
from neurank.errors import CondenseError

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
    """A plan by which these layers, or all that can, lose units.

    Where layers are tied that share only some of their units, one unit that stays may leave a
    tensor without any: then as few stay as can.
    """
    space = watched(name).space
    widths = {layer: space[layer].width for layer in layers or cuttable(name)}
    keep = {layer: PATTERNS[pattern](width) for layer, width in widths.items()}
    if pattern == "all but one":
        keep = {layer: least(name, layer) or keep[layer] for layer in widths}
    return Plan(keep, widths)


@cache
def least(name, layer):
    """The fewest units that leave no tensor empty, if one is not enough; () if it is."""
    width = watched(name).space[layer].width
    if _leaves_something(name, layer, PATTERNS["all but one"](width)):
        return ()
    keep = tuple(range(width))
    for unit in range(width):
        fewer = tuple(it for it in keep if it != unit)
        keep = fewer if fewer and _leaves_something(name, layer, fewer) else keep
    return keep


def _leaves_something(name, layer, keep):
    watching = watched(name)
    plan = Plan({layer: keep}, {layer: watching.space[layer].width})
    try:
        cuts_for(plan, watching.space, watching.model)
    except CondenseError as refusal:
        assert "the plan leaves nothing of" in str(refusal)  # noqa: PT017
        return False
    return True


def condensed(name, plan, removal, dtype=torch.float64):
    """Carry a plan out, border and all."""
    return carried_out(plan, watched(name, dtype), removal)
