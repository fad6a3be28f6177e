"""The weights that compute units, and those by which units are read."""

from dataclasses import dataclass

from torch import Tensor

from neurank.observe.execution import Runner
from neurank.units.graph import Weight
from neurank.units.rules import CONVOLUTIONS, PRODUCERS
from neurank.units.space import UnitRead


@dataclass(frozen=True)
class UnitWeights:
    """The weights of units in one of the layers that compute them, or that read them.

    Attributes
    ----------
    weight : (rows, ...).
    units : for each row, the unit that it belongs to; -1 if it belongs to none.
    """

    weight: Tensor
    units: tuple[int, ...]


def outgoing_weights(read: UnitRead, runner: Runner) -> UnitWeights | None:
    """Return the weights by which a reader weighs units, a row per entry that it reads.

    None if it is no convolution or linear layer with a weight of its own.
    """
    operation = runner.graph.by_name[read.operation]
    weight = operation.args[1] if operation.kind in PRODUCERS else None
    if not isinstance(weight, Weight) or read.kind != "sum":
        return None
    values = runner.tensors[weight.name]
    if operation.kind in CONVOLUTIONS:  # (outputs, inputs of a group, ...)
        groups = len(read.units) // values.shape[1]
        values = values.reshape(groups, -1, *values.shape[1:]).transpose(1, 2).flatten(0, 1)
    elif operation.kind == "linear":
        values = values.T
    return UnitWeights(values, read.units)
