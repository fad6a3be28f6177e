"""Which elements of which tensors belong to one unit: labels, carried through the forward pass.

Every row of a weight is an atom. Each result of the forward pass is given an array of the same
shape, for one example, that says which atom each of its elements comes from; 0 stands for what
can never be removed, such as the network's input. Operations that only move numbers (views,
concatenations, shuffles ...) move the atoms in the same way. Operations that add, multiply or mix
numbers tie atoms together: tied atoms stay or go as one. ``neurank.units.rules`` has the rule of
each operation; ``neurank.units.coupling`` makes units of what is tied.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from neurank.units.graph import Graph, Operation, Ref, Weight, leaves, map_leaves

FIXED = 0
"""The label of elements that stay whatever is removed."""

ReadKind = Literal["sum", "norm", "product", "reduction"]


@dataclass(frozen=True)
class Slots:
    """Which atoms the entries of a tensor along one axis are.

    Attributes
    ----------
    tensor : dotted name of a parameter or buffer.
    axis : its axis.
    atoms : (entries along the axis,).
    """

    tensor: str
    axis: int
    atoms: Tensor


@dataclass(frozen=True)
class Read:
    """An operation that mixes units, and so must be given something for each that is off.

    Attributes
    ----------
    operation : its name.
    tensor : name of the result that it reads.
    axis : the axis of that result along which the units lie.
    atoms : (entries along the axis,).
    kind : ``sum`` for convolutions and linear layers, ``norm`` for normalisations over units,
        ``product`` for sums of products of two units, ``reduction`` for a mean or maximum of units.
    """

    operation: str
    tensor: str
    axis: int
    atoms: Tensor
    kind: ReadKind


@dataclass(frozen=True)
class Shared:
    """A tensor that is stretched over another in an elementwise operation.

    Whether that ties units or pins them can only be said when all other ties are known.

    Attributes
    ----------
    whole : labels of the full shape.
    stretched : labels of as many axes, of size 1 where the tensor is stretched.
    reason : why its units stay, if it turns out that several units share an element.
    """

    whole: Tensor
    stretched: Tensor
    reason: str


class Labelling:
    """The labels of a graph while they are being worked out; `units.coupling` reads the result.

    Attributes
    ----------
    graph : the traced forward pass.
    tensors : parameters, buffers and constants by name; only shapes and index values are used.
    values : by result, its labels (for one example), a tuple of them, or a number.
    slots : what is cut in which parameter or buffer.
    reads : the operations that mix units.
    shared : what is decided last.
    pins : labels that stay, with the reason.
    joined : tensors whose elements were tied to their slices.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
        self.graph = graph
        self.tensors = tensors
        self.values: dict[str, Any] = {}
        self.slots: list[Slots] = []
        self.reads: list[Read] = []
        self.shared: list[Shared] = []
        self.pins: list[tuple[Tensor, str]] = []
        self.pairs: list[Tensor] = []
        self.joined: set[str] = set()
        self.atoms = 1  # atom 0 is FIXED
        self._by_axis: dict[tuple[str, int], Tensor] = {}
        self._by_element: dict[str, Tensor] = {}

    def fresh(self, *shape: int) -> Tensor:
        """Make new atoms."""
        count = 1
        for size in shape:
            count *= size
        made = torch.arange(self.atoms, self.atoms + count).reshape(shape)
        self.atoms += count
        return made

    def axis_atoms(self, tensor: str, axis: int) -> Tensor:
        """Return the atoms of a tensor's entries along an axis, the same whenever it is asked."""
        key = (tensor, axis)
        if key not in self._by_axis:
            made = self.fresh(self.tensors[tensor].shape[axis])
            self._by_axis[key] = made
            self.slots.append(Slots(tensor, axis, made))
        return self._by_axis[key]

    def element_atoms(self, tensor: str) -> Tensor:
        """Return an atom for each element of a tensor that is added, multiplied or moved."""
        if tensor in self.graph.constants:
            return torch.zeros(self.tensors[tensor].shape, dtype=torch.int64)
        if tensor not in self._by_element:
            self._by_element[tensor] = self.fresh(*self.tensors[tensor].shape)
        return self._by_element[tensor]

    @property
    def sliced(self) -> Iterable[tuple[str, int]]:
        """The tensors whose entries along an axis are labelled, with the axis."""
        return self._by_axis.keys()

    @property
    def elements(self) -> Mapping[str, Tensor]:
        """The atoms of tensors whose elements are labelled one by one."""
        return self._by_element

    def resolved(self, leaf: Any) -> Any:
        """Return the labels of an argument; numbers and others stay as they are."""
        if isinstance(leaf, Ref):
            return self.values[leaf.name]
        return self.element_atoms(leaf.name) if isinstance(leaf, Weight) else leaf

    def arguments(self, operation: Operation) -> tuple[Any, ...]:
        """Return the labels of all positional arguments."""
        found: tuple[Any, ...] = map_leaves(self.resolved, operation.args)
        return found

    def tie(self, one: Tensor, other: Tensor, reason: str) -> None:
        """Tie labels element by element; what is tied to something fixed is fixed itself."""
        if one.ndim == other.ndim:
            one, other = compact(one), compact(other)
        zeros = torch.zeros_like(one) * torch.zeros_like(other)
        pairs = torch.stack([(one + zeros).reshape(-1), (other + zeros).reshape(-1)])
        pairs = torch.unique(pairs[:, pairs[0] != pairs[1]], dim=1)
        fixed = (pairs == FIXED).any(dim=0)
        self.pairs.append(pairs[:, ~fixed])
        self.pin(pairs[:, fixed], reason)

    def tie_over(self, labels: Tensor, axis: int, reason: str) -> Tensor:
        """Tie all elements at one place of an axis; return the label of each place."""
        by_place = compact(labels).movedim(axis, 0)
        by_place = by_place.reshape(len(by_place), -1).expand(labels.shape[axis], -1)
        first = by_place[:, :1]
        if by_place.shape[1] > 1:
            self.tie(first.expand_as(by_place), by_place, reason)
        return first[:, 0].clone()

    def pin(self, labels: Tensor, reason: str) -> None:
        """Say that the units of these labels must stay, and why."""
        found = torch.unique(compact(labels))
        if bool((found != FIXED).any()):
            self.pins.append((found[found != FIXED], reason))

    def constant(self, leaf: Any) -> Any:
        """Compute an argument that depends on parameters and buffers alone; None if it does not."""
        if isinstance(leaf, Weight):
            return self.tensors[leaf.name].detach().cpu()
        if not isinstance(leaf, Ref):
            return leaf
        operation = self.graph.by_name.get(leaf.name)
        if operation is None:
            return None
        arguments = map_leaves(self.constant, operation.args)
        given = [it for it in leaves(operation.args) if isinstance(it, Ref)]
        if any(self.constant(it) is None for it in given):
            return None
        return operation.target(*arguments, **operation.kwargs)

    def read(
        self, operation: Operation, name: str, axis: int, atoms: Tensor, kind: ReadKind
    ) -> None:
        """Note that an operation mixes the units along an axis of the result `name`."""
        self.reads.append(Read(operation.name, name, axis, atoms, kind))


def compact(labels: Tensor) -> Tensor:
    """Reduce axes along which a tensor is the same memory over and over to size 1."""
    for axis, stride in enumerate(labels.stride()):
        if stride == 0 and labels.shape[axis] > 1:
            labels = labels.narrow(axis, 0, 1)
    return labels


def varying(labels: Tensor) -> tuple[int, ...]:
    """Return the axes along which labels differ.

    Example
    -------
    >>> varying(torch.tensor([[1, 2], [1, 2]]))
    (1,)
    """
    labels = compact(labels)
    return tuple(
        axis
        for axis, size in enumerate(labels.shape)
        if size > 1 and bool((labels.narrow(axis, 0, 1) != labels).any())
    )


def stretched_axes(labels: Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes along which labels of size 1 stand for a whole axis of `shape`."""
    return tuple(axis for axis, size in enumerate(shape) if labels.shape[axis] == 1 and size > 1)


def where(operation: Operation) -> str:
    """Name an operation for people: its kind, the module it is in, the line of code."""
    inside = f" in {operation.module!r}" if operation.module else ""
    line = f" ({operation.line})" if operation.line else ""
    return f"{operation.kind}{inside}{line}"


def tensors_in(leaves: Iterable[Any]) -> list[Tensor]:
    """Pick the labels out of arguments, leaving numbers away."""
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
