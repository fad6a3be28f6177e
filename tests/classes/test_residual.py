"""Units with nothing left to read: against hooks and loops, and by hand."""

import math
from itertools import pairwise

import pytest
import torch
from tests.cases import named
from tests.condense.nets import everything
from tests.oracles import semantic as oracle
from torch import nn

import neurank as nr
from neurank.classes.residual import residual_pruning
from neurank.classes.selection import Selection, Setting, selections
from neurank.errors import DataError, MethodError, PlanError, UnitError

CASE = named("lenet, flatten")


def chosen(**gone):
    """A selection for class 0: layer -> for each unit whether it goes."""
    return Selection(
        0, Setting(), {name: ~torch.tensor(off, dtype=torch.bool) for name, off in gone.items()}
    )


def found_by(model, data, selection, **options):
    (found,) = residual_pruning(model, data, [selection], progress=False, **options)
    return found


def units(found):
    return {name: set(torch.nonzero(it)[:, 0].tolist()) for name, it in found.residual.items()}


@pytest.mark.parametrize("threshold", [0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("name", ["lenet, flatten", "perceptron", "norm before the activation"])
def test_against_hooks_and_loops(name, threshold):
    case = named(name)
    reads = {layer: readers for layer, readers in case.reads.items() if readers}
    model, data = case.model(), case.batches(sizes=(9, 8, 7))
    ranking = nr.rank(model, data, nr.ClassResponse(), progress=False)
    picked = selections(ranking, range(3), ["LWP-50", "NWP-75"])
    every = residual_pruning(model, data, picked, threshold=threshold, progress=False)
    inputs, targets = (torch.cat(parts) for parts in zip(*data, strict=True))
    for selection, found in zip(picked, every, strict=True):
        own = inputs[targets == selection.label]
        wanted = oracle.residual(model, reads, selection.removed, own, threshold)
        assert units(found) == wanted
        assert found.selection is selection
        assert found.threshold == threshold
    assert threshold < 0.9 or any(any(units(found).values()) for found in every)


def test_behind_an_emptied_layer_everything_is_residual():
    model, data = CASE.model(), CASE.batches(sizes=(9, 8, 7))
    direct = chosen(conv1=[0, 0, 0], conv2=[1, 1, 1, 1], fc1=[0, 1, 0, 0, 0])
    found = found_by(model, data, direct)
    assert units(found) == {"conv1": set(), "conv2": set(), "fc1": {0, 2, 3, 4}}
    assert found.shares == {"conv1": (0.0, 0.0), "conv2": (1.0, 0.0), "fc1": (0.2, 0.8)}
    assert found.left["fc1"].tolist() == [0.0] * 5
    assert found.left["conv1"].tolist() == [1.0] * 3


def chain(*widths):
    """Linear layers with weights of 1, without biases, and ReLUs."""
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=False), nn.ReLU()]
        nn.init.ones_(layers[-2].weight)
    return nn.Sequential(*layers[:-1])


ONES = [(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))]


def test_units_go_since_those_before_them_went_residually():
    """Half of layer 2 reads a unit that is off; its going is what layer 4 notices."""
    model = chain(2, 2, 4, 3, 2)
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]]))
    direct = chosen(**{"0": [1, 0], "2": [0] * 4, "4": [0] * 3})
    found = found_by(model, ONES, direct, threshold=0.5)
    assert units(found) == {"0": set(), "2": {0, 1, 2}, "4": {0, 1, 2}}
    assert found.left["4"].tolist() == [0.25] * 3
    lower = found_by(model, ONES, direct, threshold=0.2)
    assert units(lower) == {"0": set(), "2": {0, 1, 2}, "4": set()}


def test_the_order_of_layers_in_a_ranking_does_not_matter():
    model = chain(2, 2, 4, 3, 2)
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]]))
        model[4].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1]]))
    turned = chosen(**{"4": [0] * 3, "2": [0] * 4, "0": [1, 0]})
    found = found_by(model, ONES, turned, threshold=0.5)
    assert units(found) == {"4": {0, 1}, "2": {0, 1, 2}, "0": set()}


def test_a_threshold_is_reached_at_equality():
    model = chain(2, 4, 3, 2)
    direct = chosen(**{"0": [1, 1, 0, 0], "2": [0] * 3})
    assert units(found_by(model, ONES, direct, threshold=0.5))["2"] == {0, 1, 2}
    assert units(found_by(model, ONES, direct, threshold=0.49))["2"] == set()
    assert found_by(model, ONES, direct, threshold=0.49).left["2"].tolist() == [0.5] * 3


def test_groups_read_their_own_channels_with_their_own_weights():
    """A unit of layer 2 is a channel and the two rows of its group, with weights of 1 or of 3."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.ReLU(),
        nn.Conv2d(2, 4, 1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in (*model[0].parameters(), model[2].weight, model[4].weight):
            parameter.fill_(1.0)
        model[2].bias.copy_(torch.tensor([0.0, 6.0]))
        model[4].weight[2:] = 3.0
    data = [(torch.ones(4, 1, 2, 2), torch.tensor([0, 1] * 2))]
    # The first channels are 2 each: those of layer 2 are 6 and 12, and 4 and 10 if one is off.
    found = found_by(model, data, chosen(**{"0": [1, 0, 0], "2": [0, 0]}))
    wanted = [(4 + 2 * 4 * 1) / (6 + 2 * 6 * 1), (4 + 2 * 10 * 3) / (6 + 2 * 12 * 3)]
    assert found.left["2"].tolist() == pytest.approx(wanted)


def test_the_first_layer_is_never_residual():
    model, data = CASE.model(), CASE.batches(sizes=(9, 8, 7))
    for off in ([0, 0, 0], [1, 1, 1]):
        found = found_by(model, data, chosen(conv1=off, conv2=[0] * 4), threshold=0.99)
        assert units(found)["conv1"] == set()
        assert found.left["conv1"].tolist() == [1.0] * 3


def test_the_network_comes_back_as_it_was():
    model, data = CASE.model(), CASE.batches(sizes=(9, 8, 7))
    before = everything(model)
    found_by(model, data, chosen(conv1=[1, 0, 0], conv2=[0] * 4, fc1=[0] * 5), threshold=0.5)
    assert everything(model) == before


def test_a_class_without_pictures_is_refused():
    with pytest.raises(DataError, match="class 2 has no pictures"):
        residual_pruning(
            chain(2, 2, 2), ONES, [Selection(2, Setting(), {"0": torch.tensor([True, False])})],
            progress=False,
        )  # fmt: skip


@pytest.mark.parametrize("threshold", [-0.1, 1, 1.5, math.nan, True, False])
def test_thresholds_out_of_range_are_refused(threshold):
    with pytest.raises(MethodError, match=r"threshold=.* is no share of an input"):
        found_by(chain(2, 2, 2), ONES, chosen(**{"0": [0, 1]}), threshold=threshold)


def test_selections_for_another_network_are_refused():
    with pytest.raises(PlanError, match="for 3 units of layer '0'"):
        found_by(chain(2, 2, 2), ONES, chosen(**{"0": [0, 1, 0]}))
    with pytest.raises(PlanError, match="outputs"):
        found_by(chain(2, 2, 2), ONES, chosen(**{"2": [0, 1]}))
    with pytest.raises(UnitError, match="no layer '7'"):
        found_by(chain(2, 2, 2), ONES, chosen(**{"7": [0, 1]}))
