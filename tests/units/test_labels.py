import pytest
import torch
from tests.cases import Forward
from torch import nn

from neurank.units.labels import (
    FIXED,
    Labelling,
    compact,
    stretched_axes,
    tensors_in,
    varying,
    where,
)
from neurank.units.trace import trace


@pytest.fixture
def labelling():
    """Of a network with a weight of three rows and a constant of the code."""

    def forward(net, x):
        picked = torch.arange(3).flip(0)
        return torch.relu(net.fc(x))[:, picked] * torch.tensor([1.0, 2.0, 3.0])

    model = Forward(forward, fc=nn.Linear(2, 3))
    graph = trace(model, torch.zeros(2, 2))
    return Labelling(graph, {**graph.constants, **dict(model.named_parameters())})


def ties(labelling):
    """The pairs that were tied, each once."""
    found = torch.cat(labelling.pairs, dim=1) if labelling.pairs else torch.zeros(2, 0)
    return {tuple(sorted(pair)) for pair in found.T.tolist()}


def test_atoms_are_new_and_never_the_fixed_one(labelling):
    one, other = labelling.fresh(2, 3), labelling.fresh(4)
    assert one.shape == (2, 3)
    every = torch.cat([one.flatten(), other])
    assert len(every.unique()) == 10
    assert FIXED not in every
    assert labelling.atoms == 11


def test_a_tensors_slices_have_one_atom_each_whenever_they_are_asked(labelling):
    rows = labelling.axis_atoms("fc.weight", 0)
    columns = labelling.axis_atoms("fc.weight", 1)
    assert (len(rows), len(columns)) == (3, 2)
    assert labelling.axis_atoms("fc.weight", 0) is rows
    assert not set(rows.tolist()) & set(columns.tolist())
    assert [(it.tensor, it.axis) for it in labelling.slots] == [("fc.weight", 0), ("fc.weight", 1)]
    assert set(labelling.sliced) == {("fc.weight", 0), ("fc.weight", 1)}


def test_elements_of_parameters_have_atoms_and_constants_are_fixed(labelling):
    elements = labelling.element_atoms("fc.weight")
    assert elements.shape == (3, 2)
    assert len(elements.unique()) == 6
    assert labelling.element_atoms("fc.weight") is elements
    for name in labelling.graph.constants:
        assert not labelling.element_atoms(name).any()
    assert labelling.graph.constants
    assert set(labelling.elements) == {"fc.weight"}


def test_ties_are_kept_once_and_what_is_tied_to_the_fixed_is_pinned(labelling):
    one = labelling.fresh(3)
    labelling.tie(one, torch.tensor([one[1], FIXED, one[2]]), "for a reason")
    assert ties(labelling) == {(1, 2)}
    ((pinned, reason),) = labelling.pins
    assert (pinned.tolist(), reason) == ([2], "for a reason")


def test_ties_stretch(labelling):
    one, other = labelling.fresh(2, 1), labelling.fresh(1, 2)
    labelling.tie(one, other, "")
    assert ties(labelling) == {(1, 3), (1, 4), (2, 3), (2, 4)}


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_ties_over_an_axis_leave_one_label_for_each_place(labelling, axis):
    labels = labelling.fresh(2, 3)
    found = labelling.tie_over(labels, axis, "")
    by_place = labels.movedim(axis, 0)
    assert found.tolist() == by_place[:, 0].tolist()
    assert ties(labelling) == {
        (int(place[0]), int(other)) for place in by_place for other in place[1:]
    }


def test_ties_over_the_only_axis_tie_nothing(labelling):
    labels = labelling.fresh(3)
    assert labelling.tie_over(labels, 0, "").tolist() == labels.tolist()
    assert ties(labelling) == set()


def test_ties_over_labels_that_are_stretched(labelling):
    labels = labelling.fresh(3)[:, None].expand(3, 4)
    assert labelling.tie_over(labels, 0, "").tolist() == [1, 2, 3]
    assert ties(labelling) == set()
    assert labelling.tie_over(labels, 1, "").tolist() == [1, 1, 1, 1]
    assert ties(labelling) == {(1, 2), (1, 3)}


def test_nothing_is_pinned_that_is_fixed_already(labelling):
    labelling.pin(torch.zeros(3, dtype=torch.int64), "never seen")
    assert labelling.pins == []


def test_constants_are_computed_and_what_hangs_on_the_input_is_not(labelling):
    graph = labelling.graph
    (index,) = (it for it in graph.operations if it.kind == "index")
    picked = next(leaf for leaf in index.args[1] if leaf is not None)
    assert labelling.constant(picked).tolist() == [2, 1, 0]
    assert labelling.constant(index.args[0]) is None
    assert labelling.constant(7) == 7


def test_axes_that_are_one_memory_over_and_over_are_made_small():
    labels = torch.arange(3)[None, :, None].expand(2, 3, 4)
    assert compact(labels).shape == (1, 3, 1)
    assert compact(labels.contiguous()).shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("labels", "axes"),
    [
        ([[1, 2], [1, 2]], (1,)),
        ([[1, 1], [2, 2]], (0,)),
        ([[1, 2], [2, 1]], (0, 1)),
        ([[1, 1], [1, 1]], ()),
    ],
)
def test_axes_along_which_labels_differ(labels, axes):
    assert varying(torch.tensor(labels)) == axes


def test_stretched_axes_are_those_of_size_one_that_stand_for_more():
    assert stretched_axes(torch.zeros(1, 3, 1), (2, 3, 1)) == (0,)


def test_an_operation_is_named_with_its_module_and_line(labelling):
    (linear,) = (it for it in labelling.graph.operations if it.kind == "linear")
    assert where(linear).startswith("linear in 'fc' (")


def test_labels_are_picked_out_of_arguments():
    labels = torch.zeros(2)
    assert tensors_in([1, labels, None, "text"]) == [labels]
