"""From ties to units: what stays or goes as one, and what cannot go at all.

Tied atoms form a class. A class that holds rows of a convolution or linear layer and nothing that
is pinned is a unit. Since a tensor can only lose whole slices, further ties are needed where labels
differ along two axes of a result at once; there the axis with more classes keeps them apart.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from neurank.units.graph import Graph, Operation, Ref
from neurank.units.labels import (
    FIXED,
    Labelling,
    Read,
    Shared,
    Slots,
    compact,
    stretched_axes,
    varying,
)
from neurank.units.rules import GATHERS, MOVES, indices_of, label

OUTPUT = "its units are the network's outputs"


@dataclass(frozen=True)
class Coupling:
    """Which elements of all tensors of a network stay or go together.

    Attributes
    ----------
    graph : the traced forward pass.
    classes : (atoms,), the class of each atom; class 0 is what is never removed.
    reasons : class to why it cannot be removed.
    labels : by result, the atom of each element (for one example), or a tuple of such.
    slots : which atoms the entries of parameters and buffers are, axis by axis.
    reads : the operations that mix units.
    shortcuts : by result, the result from which it is picked by index along one axis, and the
        indices.
    passed : the results that lie between; they could not lose units by themselves.
    indices : by operation that picks by index, by what it picks.
    """

    graph: Graph
    classes: Tensor
    reasons: Mapping[int, str]
    labels: Mapping[str, Any]
    slots: tuple[Slots, ...]
    reads: tuple[Read, ...]
    shortcuts: Mapping[str, "Picked"] = field(default_factory=dict)
    passed: frozenset[str] = frozenset()
    indices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def of(self, name: str) -> Tensor | None:
        """Return the class of each element of a result, None if it is no tensor."""
        labels = self.labels.get(name)
        return self.classes[labels] if isinstance(labels, Tensor) else None

    @cached_property
    def slots_of(self) -> Mapping[str, tuple[Slots, ...]]:
        """By tensor, its axes that have atoms."""
        found: dict[str, list[Slots]] = {}
        for slots in self.slots:
            found.setdefault(slots.tensor, []).append(slots)
        return {name: tuple(slots) for name, slots in found.items()}


@dataclass(frozen=True)
class Picked:
    """A result that is another one with the entries of one axis picked by index.

    Attributes
    ----------
    source : name of the other result.
    axis : the axis.
    indices : for each entry of the result, which entry of the source it is.
    """

    source: str
    axis: int
    indices: tuple[int, ...]


def couple(graph: Graph, tensors: Mapping[str, Tensor]) -> Coupling:
    """Label the forward pass and work out what stays or goes together.

    Parameters
    ----------
    graph : the traced forward pass.
    tensors : parameters, buffers and constants by name.

    Example
    -------
    >>> from torch import nn
    >>> from neurank.units.trace import trace
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> coupling = couple(trace(model, torch.zeros(4, 2)), dict(model.named_parameters()))
    >>> coupling.of("relu").tolist() == coupling.of("linear").tolist()
    True
    """
    labelling = Labelling(graph, tensors)
    operations = graph.needed_for((graph.output,))
    _label_input(labelling)
    for operation in operations:
        labelling.values[operation.name] = label(labelling, operation)
    output = labelling.values[graph.output]
    shortcuts, passed = _settle(labelling, operations)
    if isinstance(output, Tensor):
        labelling.pin(output, OUTPUT)
    classes = _classes(labelling)
    return Coupling(
        graph,
        classes,
        _reasons(labelling, classes),
        labelling.values,
        (*labelling.slots, *_sliced_elements(labelling, classes)),
        tuple(labelling.reads),
        shortcuts,
        passed,
        {
            operation.name: indices
            for operation in operations
            if operation.kind in GATHERS
            and (indices := indices_of(labelling, operation)) is not None
        },
    )


def _label_input(labelling: Labelling) -> None:
    """Give the input fixed labels of its shape, which the trace keeps beside the graph."""
    shape = labelling.graph.input_shape
    labels = torch.zeros((), dtype=torch.int64).expand([size or 1 for size in shape])
    labelling.values[labelling.graph.input] = labels


def _classes(labelling: Labelling) -> Tensor:
    """Give each component of tied atoms a number; atom 0 stays in class 0 by itself."""
    pairs = torch.cat(labelling.pairs, dim=1).numpy() if labelling.pairs else np.zeros((2, 0), int)
    ties = coo_matrix(
        (np.ones(pairs.shape[1], dtype=np.int8), (pairs[0], pairs[1])),
        shape=(labelling.atoms, labelling.atoms),
    )
    _, components = connected_components(ties, directed=False)
    # The first atom of a component comes first: classes are numbered in order of execution.
    _, first, inverse = np.unique(components, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return torch.from_numpy(rank[inverse])


def _settle(
    labelling: Labelling, operations: tuple[Operation, ...]
) -> tuple[dict[str, Picked], frozenset[str]]:
    """Add the ties that hang on others until nothing changes; return what is picked by index."""
    while True:
        before = _known(labelling)
        labelling.shared = [it for it in labelling.shared if not _decided(labelling, it)]
        found = _make_rectangular(labelling, operations)
        if _known(labelling) == before:
            _join_elements_to_slices(labelling)
        if _known(labelling) == before:
            return found


def _known(labelling: Labelling) -> int:
    """Count ties and pins."""
    return sum(pairs.shape[1] for pairs in labelling.pairs) + len(labelling.pins)


def _join_elements_to_slices(labelling: Labelling) -> None:
    """Let the elements of a tensor go with its slices where both are used; each tensor once.

    Such is the weight of a layer that is squared and summed besides.
    """
    classes = _classes(labelling)
    for name, atoms in labelling.elements.items():
        axes = [axis for tensor, axis in labelling.sliced if tensor == name]
        if not axes or name in labelling.joined or not _is_used(labelling, name):
            continue
        labelling.joined.add(name)
        along = varying(classes[atoms])
        for axis in axes:
            slices = labelling.axis_atoms(name, axis)
            if set(along) <= {axis}:
                labelling.tie(labelling.tie_over(atoms, axis, _BESIDES), slices, _BESIDES)
            else:
                labelling.pin(slices, _BESIDES)


_BESIDES = "its weight is used element by element besides"


def _decided(labelling: Labelling, shared: Shared) -> bool:
    """Tie a stretched tensor to what it is stretched over, where that is one unit per element."""
    classes = _classes(labelling)
    whole = classes[compact(shared.whole)]
    axes = stretched_axes(shared.stretched, shared.whole.shape)
    if set(varying(whole)) & set(axes):
        labelling.pin(shared.stretched, shared.reason)
        return True
    for axis in axes:
        whole = whole.narrow(axis, 0, 1)
    base = compact(shared.whole)
    for axis in axes:
        base = base.narrow(axis, 0, 1)
    labelling.tie(base, shared.stretched, shared.reason)
    return True


def _make_rectangular(
    labelling: Labelling, operations: tuple[Operation, ...]
) -> tuple[dict[str, Picked], frozenset[str]]:
    """Tie until each result loses whole slices, but for those that are only passed through."""
    classes = _classes(labelling)
    crooked = {
        operation.name
        for operation in operations
        if operation.kind in MOVES and _is_crooked(labelling.values[operation.name], classes)
    }
    shortcuts: dict[str, Picked] = {}
    for operation in operations:
        if operation.name in crooked or operation.kind not in MOVES:
            continue
        picked = _picked(labelling, operation, crooked)
        if picked is not None:
            shortcuts[operation.name] = picked
    passed = _passed_through(labelling.graph, shortcuts, crooked)
    for name in sorted(crooked - passed):
        _tie_but_one_axis(labelling, labelling.values[name], classes)
    for name, atoms in labelling.elements.items():
        if _is_crooked(atoms, classes) and _meets_units(labelling, name):
            _tie_but_one_axis(labelling, atoms, classes)
    return shortcuts, frozenset(passed)


def _is_crooked(labels: Any, classes: Tensor) -> bool:
    return isinstance(labels, Tensor) and len(varying(classes[compact(labels)])) > 1


def _meets_units(labelling: Labelling, name: str) -> bool:
    """Whether elements of a tensor are tied to anything but each other."""
    atoms = labelling.elements[name]
    low, high = int(atoms.min()), int(atoms.max())
    inside = [(pairs >= low) & (pairs <= high) for pairs in labelling.pairs]
    return any(bool((ends[0] != ends[1]).any()) for ends in inside)


def _is_used(labelling: Labelling, name: str) -> bool:
    """Whether elements of a tensor are tied or pinned, not only handed round."""
    atoms = labelling.elements[name]
    low, high = int(atoms.min()), int(atoms.max())
    pinned = any(bool(((it >= low) & (it <= high)).any()) for it, _ in labelling.pins)
    return pinned or _meets_units(labelling, name)


def _tie_but_one_axis(labelling: Labelling, labels: Tensor, classes: Tensor) -> None:
    """Keep the classes apart along the axis that has most of them."""
    found = classes[compact(labels)]
    counts = {axis: found.shape[axis] for axis in varying(found)}
    axis = max(counts, key=lambda it: (counts[it], it))
    labelling.tie_over(labels, axis, "it lies across something that cannot lose units")


def _picked(labelling: Labelling, operation: Operation, crooked: set[str]) -> Picked | None:
    """Whether a result behind crooked ones is another result, picked by index along an axis."""
    chain = [operation]
    while True:
        read = chain[-1].args[0] if chain[-1].args else None
        if not isinstance(read, Ref) or _reads_tensors(labelling, chain[-1]) > 1:
            return None
        if read.name not in crooked:
            break
        chain.append(labelling.graph.by_name[read.name])
    if len(chain) == 1 or chain[-1].kind not in MOVES:
        return None
    return _as_index(labelling, read.name, tuple(reversed(chain)))


def _reads_tensors(labelling: Labelling, operation: Operation) -> int:
    return sum(isinstance(labelling.values.get(name), Tensor | tuple) for name in operation.refs)


def _as_index(labelling: Labelling, source: str, chain: tuple[Operation, ...]) -> Picked | None:
    before = labelling.values[source]
    if not isinstance(before, Tensor):
        return None
    numbers = torch.arange(before.numel()).reshape(before.shape)
    moved: Any = numbers
    saved = labelling.values
    labelling.values = dict(saved)
    try:
        labelling.values[source] = numbers
        for operation in chain:
            moved = label(labelling, operation)
            labelling.values[operation.name] = moved
    finally:
        labelling.values = saved
    if not isinstance(moved, Tensor) or moved.ndim != before.ndim:
        return None
    for axis in range(1, before.ndim):
        others = [size for it, size in enumerate(before.shape) if it != axis]
        if others != [size for it, size in enumerate(moved.shape) if it != axis]:
            continue
        step = numbers.stride(axis)
        at_origin = moved.movedim(axis, 0).flatten(1)[:, 0]
        indices = (at_origin // step) % before.shape[axis]
        if torch.equal(numbers.index_select(axis, indices), moved):
            return Picked(source, axis, tuple(indices.tolist()))
    return None


def _passed_through(graph: Graph, shortcuts: Mapping[str, Picked], crooked: set[str]) -> set[str]:
    """Crooked results whose readers are all shortcuts, or crooked and passed through themselves."""
    passed: set[str] = set()
    for operation in reversed(graph.operations):
        if operation.name not in crooked:
            continue
        readers = [reader.name for reader in graph.readers[operation.name]]
        if readers and all(it in shortcuts or it in passed for it in readers):
            passed.add(operation.name)
    return passed


def _reasons(labelling: Labelling, classes: Tensor) -> dict[int, str]:
    found = {FIXED: "it is part of the network's input"}
    for labels, reason in labelling.pins:
        for number in torch.unique(classes[labels]).tolist():
            if number not in found or found[number] == OUTPUT:
                found[number] = reason
    return found


def _sliced_elements(labelling: Labelling, classes: Tensor) -> Iterator[Slots]:
    """Say along which axis tensors whose elements are labelled one by one lose slices."""
    for name, atoms in labelling.elements.items():
        along = varying(classes[atoms])
        known = along and (name, along[0]) in labelling.sliced
        if len(along) == 1 and not known and _meets_units(labelling, name):
            first = atoms.movedim(along[0], 0).reshape(atoms.shape[along[0]], -1)[:, 0]
            yield Slots(name, along[0], first)
