"""What each operation does to units, on networks that do little else."""

from dataclasses import replace

import pytest
import torch
from tests.units.forwards import SMALL, watched

from neurank.units.coupling import OUTPUT

EVERY = pytest.mark.parametrize("name", SMALL)


@EVERY
def test_units_are_as_many_as_can_go_each_by_itself(name):
    small, space = SMALL[name], watched(name).space
    assert {name: space[name].width for name in space.hidden} == small.widths
    refused = {name: reason for name, reason in space.refused.items() if reason != OUTPUT}
    assert refused.keys() == small.refused.keys()
    for layer, piece in small.refused.items():
        assert piece in refused[layer]
    for layer, members in small.members.items():
        assert space[layer].members == members


@EVERY
def test_labels_have_the_shapes_of_results(name):
    space = watched(name).space
    for operation in space.graph.needed_for((space.graph.output,)):
        labels = space.coupling.labels[operation.name]
        if operation.shape is not None and isinstance(labels, torch.Tensor):
            sizes = zip(labels.shape, operation.shape, strict=True)
            assert all(size == own for size, own in sizes if own is not None), operation


@EVERY
def test_a_change_of_one_unit_is_seen_where_labels_say_and_nowhere_else(name):
    """Until something mixes units, what differs is labelled as the unit's own."""
    space, before = watched(name).space, watched(name).runner
    inputs = SMALL[name].batches(2)[0][0]
    for layer in (space[hidden] for hidden in space.hidden):
        unmixed = list(unmixed_results(space, layer))
        wanted = dict(zip(unmixed, before.forward(inputs, *unmixed), strict=True))
        for unit in {0, layer.width - 1}:
            changed = other_rows(before, space, layer, unit)
            after = replace(before, tensors={**before.tensors, **changed})
            seen = False
            for result, found in zip(unmixed, after.forward(inputs, *unmixed), strict=True):
                differs = found != wanted[result]
                own = owned(space, result, layer.classes[unit], found)
                assert not (differs & ~own).any(), result
                seen = seen or bool(differs.any())
            assert seen


def unmixed_results(space, layer):
    """Results of tensors that no operation that mixes the units has had a part in."""
    mixing = [read.operation for read in layer.reads]
    mixed = {below.name for name in mixing for below in space.graph.below(name)} | set(mixing)
    for operation in space.graph.needed_for((space.graph.output,)):
        labels = space.coupling.labels[operation.name]
        if operation.name not in mixed and isinstance(labels, torch.Tensor):
            yield operation.name


def other_rows(running, space, layer, unit):
    """The weights with other numbers in the rows that compute a unit."""
    found = {}
    for rows in space.rows(layer.name):
        own = [row for row, number in enumerate(rows.units) if number == unit]
        weight = running.tensors[rows.tensor].clone()
        found[rows.tensor] = weight.index_fill(rows.axis, torch.tensor(own), 3.7)
    return found


def owned(space, name, number, result):
    """Which elements of a result the labels say are a unit's."""
    labels = space.coupling.of(name)
    for axis, (one, several) in enumerate(zip(labels.shape, result.shape, strict=True)):
        if one != several:  # examples lie on this axis, and perhaps others with them
            assert (labels == labels.narrow(axis, 0, 1)).all()
            labels = labels.narrow(axis, 0, 1)
    return (labels == number).expand(result.shape)
