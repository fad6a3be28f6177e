"""Networks that keep more and more of the same units: what they share behind the cut is added up.

The units of the first layer that is cut give the same in every such network. Whoever sums over them
(a convolution, a linear layer) need not start again for each network: to the sum over the units of
the one before come those that are kept in addition.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from neurank.condense.surgery import Cut
from neurank.units.graph import Graph, Operation, Ref, Weight
from neurank.units.rules import CONVOLUTIONS, groups_of
from neurank.units.space import Layer


@dataclass(frozen=True)
class FirstReader:
    """An operation that sums over units, and whose input hangs on no other unit that is cut.

    Attributes
    ----------
    operation : the convolution or linear layer, in the whole network.
    read : name of the result that it reads.
    axis : along which the entries of that lie that it sums over, and the units of its own result.
    units : layer name to the layer's unit of each entry, -1 for none.
    """

    operation: Operation
    read: str
    axis: int
    units: Mapping[str, tuple[int, ...]]

    def left(self, removed: Mapping[str, Sequence[int]]) -> Tensor:
        """Say of each entry whether it is left, (entries,) bool."""
        gone = [
            torch.isin(torch.tensor(units), torch.tensor([int(it) for it in removed[layer]]))
            for layer, units in self.units.items()
        ]
        return ~torch.stack(gone).any(dim=0)


@dataclass(frozen=True, eq=False)
class PartialSum:
    """What one network takes of a first reader.

    Attributes
    ----------
    reader : the operation.
    left : (entries,) bool, what it sums over.
    weight : of the whole network.
    rows : which of its units are left; None for all.
    bias : of those; None for none.
    """

    reader: FirstReader
    left: Tensor
    weight: Tensor
    rows: Tensor | None
    bias: Tensor | None

    def over(self, entries: Tensor, read: Tensor) -> Tensor:
        """Sum over some of the entries, for all units and without the bias."""
        operation, places = self.reader.operation, torch.nonzero(entries)[:, 0].to(read.device)
        some = read.index_select(self.reader.axis, places)
        weight = self.weight.index_select(1, places)
        found: Tensor = operation.target(some, weight, None, *operation.args[3:])
        return found

    def of(self, total: Tensor) -> Tensor:
        """Take the units that are left, and add their biases."""
        axis = self.reader.axis
        own = total.clone() if self.rows is None else total.index_select(axis, self.rows)
        return own if self.bias is None else own.add_(self.bias.reshape(self._along(own.ndim)))

    def _along(self, dimensions: int) -> list[int]:
        return [-1 if axis == self.reader.axis else 1 for axis in range(dimensions)]


class RunningSums:
    """The sums of the network before, batch by batch."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def result(self, part: PartialSum, batch: int, read: Tensor) -> Tensor:
        """Return what the reader gives in this network, where it reads `read` of the whole one."""
        place = part.reader.operation.name, batch
        before, total = self._kept.get(place, (torch.zeros_like(part.left), None))
        if total is None or bool((before & ~part.left).any()):
            total = part.over(part.left, read)
        elif bool((part.left & ~before).any()):
            total = total.add_(part.over(part.left & ~before, read))
        self._kept[place] = part.left, total
        return part.of(total)


def first_readers(layers: Iterable[Layer], graph: Graph) -> tuple[FirstReader, ...]:
    """Find the operations at which sums can be shared by networks that lose units of these layers.

    They are those that read no unit of the layers but by a result that the other units of the
    layers do not change, and that is read by convolutions without groups and linear layers only.
    """
    reads = [(layer, read) for layer in layers for read in layer.reads]
    changed = {read.operation for _, read in reads}
    found: dict[str, FirstReader] = {}
    for layer, read in reads:
        before = graph.needed_for((read.tensor,))
        if any(it.name in changed for it in before):
            continue
        readers = graph.readers[read.tensor]
        if not all(_sums_over(it, read.tensor, read.axis, graph) for it in readers):
            continue
        (operation,) = (it for it in readers if it.name == read.operation)
        others = found[operation.name].units if operation.name in found else {}
        units = {**others, layer.name: read.units}
        found[operation.name] = FirstReader(operation, read.tensor, read.axis, units)
    return tuple(found.values())


def partial_sums(
    readers: Sequence[FirstReader],
    removed: Mapping[str, Sequence[int]],
    graph: Graph,
    whole: Mapping[str, Tensor],
    left: Mapping[str, Tensor],
    cuts: Sequence[Cut],
) -> tuple[PartialSum, ...]:
    """Say what a network without some units takes of each first reader.

    Parameters
    ----------
    readers : see `first_readers`.
    removed : layer name to the units that are off.
    graph : the forward pass of what is left.
    whole, left : tensors of the whole network, and of what is left, by name.
    cuts : what was cut.

    Returns
    -------
    tuple
        None at all if one of the operations is another one in this network.
    """
    found = []
    for reader in readers:
        now = graph.by_name.get(reader.operation.name)
        if now is None or not _is_same_sum(now, reader.operation):
            return ()
        name = reader.operation.args[1].name
        kept = [cut.keep for cut in cuts if cut.tensor == name and cut.axis == 0]
        bias = now.args[2] if len(now.args) > 2 else None
        weight = whole[name]
        found.append(
            PartialSum(
                reader,
                reader.left(removed),
                weight,
                torch.tensor(kept[0], device=weight.device) if kept else None,
                None if bias is None else left[bias.name],
            )
        )
    return tuple(found)


def are_nested(readers: Sequence[FirstReader], points: Sequence[Mapping[str, Any]]) -> bool:
    """Whether each point keeps all that the one before keeps, at these readers."""
    for reader in readers:
        lefts = [reader.left(point) for point in points]
        if any(bool((one & ~after).any()) for one, after in pairwise(lefts)):
            return False
    return True


def numbers(readers: Sequence[FirstReader], graph: Graph) -> int:
    """Count the numbers per example that readers read and give."""
    shapes = [shape for it in readers for shape in (graph.shape_of(it.read), it.operation.shape)]
    return sum(prod(size or 1 for size in shape) for shape in shapes if shape is not None)


def _sums_over(operation: Operation, read: str, axis: int, graph: Graph) -> bool:
    """Whether an operation is a sum over the entries of `read`, and of nothing else."""
    weight, bias = (*operation.args[1:3], None, None)[:2]
    shape = graph.shape_of(read)
    stored = isinstance(weight, Weight) and isinstance(bias, Weight | None)
    if operation.args[:1] != (Ref(read),) or operation.refs != (read,) or not stored:
        return False
    if operation.kwargs or shape is None or shape[0] is not None:
        return False
    if operation.kind in CONVOLUTIONS:
        return axis == 1 and groups_of(operation) == 1
    return operation.kind == "linear" and axis == len(shape) - 1


def _is_same_sum(now: Operation, before: Operation) -> bool:
    is_weight = len(now.args) > 1 and now.args[1] == before.args[1]
    bias = now.args[2] if len(now.args) > 2 else None
    same = now.target is before.target and now.args[3:] == before.args[3:]
    return is_weight and same and not now.kwargs and isinstance(bias, Weight | None)
