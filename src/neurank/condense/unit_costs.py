"""What a condensed network costs, exactly, without building it.

The cost follows from the coupling: it says which entries a unit takes along each axis of each
tensor. So the parameters that a plan leaves are a sum of products of axis lengths, and so are its
multiply-adds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from neurank.condense.costs import positions
from neurank.condense.surgery import named_tensors
from neurank.units.graph import Operation, Weight
from neurank.units.rules import PRODUCERS
from neurank.units.space import UnitSpace

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Terms:
    """A sum of products of axis lengths.

    Attributes
    ----------
    factors : (terms,), what each product is multiplied by.
    axes : (terms, most axes of a term), numbers of axes; the last number stands for a length of 1.
    """

    factors: Integers
    axes: Integers

    def of(self, lengths: Integers) -> Integers:
        """Return the sum, (...), for axis lengths (..., axes)."""
        products: Integers = lengths[..., self.axes].prod(axis=-1)
        total: Integers = (products * self.factors).sum(axis=-1)
        return total


@dataclass(frozen=True)
class Costs:
    """What is left of a network, and what that costs, whatever is removed.

    Attributes
    ----------
    lengths : (axes + 1,), the entries of every axis that units lie along in the whole network; the
        last is a length of 1.
    taken : by layer, (units, axes + 1), how many entries each unit takes.
    terms : ``parameters`` and ``multiply_adds`` as sums of products of lengths.

    Examples
    --------
    >>> import torch
    >>> from neurank.units.space import unit_space
    >>> from neurank.units.trace import trace
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> costs = costs_of(unit_space(trace(model, torch.zeros(4, 2)), model), model)
    >>> costs.of({}), costs.of({"0": (0, 2)})
    ({'parameters': 17, 'multiply_adds': 12}, {'parameters': 7, 'multiply_adds': 4})
    """

    lengths: Integers
    taken: Mapping[str, Integers]
    terms: Mapping[str, Terms]

    def of(self, removed: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """Return parameters and multiply-adds when units of some layers are removed."""
        lengths = self.lengths.copy()
        for layer, units in removed.items():
            lengths -= self.taken[layer][list(units)].sum(axis=0)
        return {name: int(terms.of(lengths)) for name, terms in self.terms.items()}


def costs_of(space: UnitSpace, model: nn.Module) -> Costs:
    """Work out which entries of which tensors each unit takes.

    The costs of a plan are then those that `Report` gives after condensing, but for tensors that
    condensing makes, such as a bias that holds the means of removed units.

    Parameters
    ----------
    space : the layers of the network and what they are coupled to.
    model : the network.
    """
    tensors = named_tensors(model)
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    unit_of = {
        number: (name, unit)
        for name, layer in space.layers.items()
        for unit, number in enumerate(layer.classes)
    }
    axes: dict[tuple[str, int], int] = {}
    lengths: list[int] = []
    columns: list[dict[tuple[str, int], int]] = []
    for slots in space.coupling.slots:
        if slots.tensor not in tensors:
            continue
        key = (first[id(tensors[slots.tensor])], slots.axis)
        if key not in axes:  # a tensor of several names is there once
            axes[key] = len(axes)
            lengths.append(len(slots.atoms))
            columns.append(_entries(space.coupling.classes[slots.atoms].tolist(), unit_of))
    taken = {
        name: np.zeros((layer.width, len(axes) + 1), np.int64)
        for name, layer in space.layers.items()
    }
    for axis, column in enumerate(columns):
        for (name, unit), count in column.items():
            taken[name][unit, axis] = count
    parameters = {first[id(it)]: it for it in model.parameters()}
    sizes = {
        name: [
            (axes.get((name, axis), len(axes)), 1 if (name, axis) in axes else size)
            for axis, size in enumerate(it.shape)
        ]
        for name, it in {first[id(it)]: it for it in tensors.values()}.items()
    }
    terms = {
        "parameters": _terms([(1, sizes[name]) for name in parameters], len(axes)),
        "multiply_adds": _terms(list(_positions(space, tensors, first, sizes)), len(axes)),
    }
    return Costs(np.array([*lengths, 1], np.int64), taken, terms)


Sizes = Sequence[tuple[int, int]]
"""Of each axis of a tensor: its number among those that units lie along, and its length if none."""


def _entries(
    classes: Sequence[int], unit_of: Mapping[int, tuple[str, int]]
) -> dict[tuple[str, int], int]:
    found: dict[tuple[str, int], int] = {}
    for number in classes:
        if number in unit_of:
            found[unit_of[number]] = found.get(unit_of[number], 0) + 1
    return found


def _positions(
    space: UnitSpace,
    tensors: Mapping[str, Tensor],
    first: Mapping[int, str],
    sizes: Mapping[str, Sizes],
) -> Iterator[tuple[int, Sizes]]:
    """Yield for each convolution and linear layer its output positions, and its weight's sizes."""
    graph = space.graph
    for operation in graph.needed_for((graph.output,)):
        if operation.kind not in PRODUCERS:
            continue
        factor = positions(operation, graph)
        weight = operation.args[1]
        if isinstance(weight, Weight) and weight.name in tensors:
            yield factor, sizes[first[id(tensors[weight.name])]]
        else:  # computed in the forward pass, or a constant: it keeps its size
            yield factor * prod(_fixed_sizes(operation, space)), ()


def _fixed_sizes(operation: Operation, space: UnitSpace) -> tuple[int, ...]:
    weight = operation.args[1]
    if isinstance(weight, Weight):
        return tuple(space.graph.constants[weight.name].shape)
    return tuple(size for size in space.graph.by_name[weight.name].shape or () if size is not None)


def _terms(products: Sequence[tuple[int, Sizes]], axes: int) -> Terms:
    most = max((len(sizes) for _, sizes in products), default=0)
    numbers = np.full((len(products), most), axes, np.int64)
    factors = np.ones(len(products), np.int64)
    for place, (factor, sizes) in enumerate(products):
        factors[place] = factor * prod(size for _, size in sizes)
        numbers[place, : len(sizes)] = [number for number, _ in sizes]
    return Terms(factors, numbers)
