import pytest
import torch
from tests.cases import Forward, chain, conv
from torch import nn
from torch.nn import functional

from neurank.units.coupling import OUTPUT, couple
from neurank.units.trace import trace


def coupled(model, *shape):
    graph = trace(model.eval(), torch.zeros(2, *shape))
    tensors = {**graph.constants, **dict(model.named_parameters()), **dict(model.named_buffers())}
    return couple(graph, tensors)


def result(coupling, kind, place=0):
    return [it.name for it in coupling.graph.operations if it.kind == kind][place]


def classes_of(coupling, tensor, axis):
    (slots,) = (it for it in coupling.slots_of[tensor] if it.axis == axis)
    return coupling.classes[slots.atoms].tolist()


def test_what_goes_together_is_one_class_in_all_tensors():
    coupling = coupled(
        chain(one=nn.Linear(2, 3), norm=nn.BatchNorm1d(3), act=nn.ReLU(), two=nn.Linear(3, 2)), 2
    )
    units = classes_of(coupling, "one.weight", 0)
    assert len(set(units)) == 3
    for tensor, axis in [("one.bias", 0), ("norm.weight", 0), ("norm.running_var", 0),
                         ("two.weight", 1)]:  # fmt: skip
        assert classes_of(coupling, tensor, axis) == units
    assert coupling.of(result(coupling, "relu")).tolist() == [units]
    assert not set(units) & set(coupling.reasons)


def test_outputs_and_inputs_stay_with_a_reason():
    coupling = coupled(chain(one=nn.Linear(2, 3), two=nn.Linear(3, 2)), 2)
    outputs = classes_of(coupling, "two.weight", 0)
    assert {coupling.reasons[it] for it in outputs} == {OUTPUT}
    inputs = classes_of(coupling, "one.weight", 1)
    assert all("cannot lose units" in coupling.reasons[it] for it in inputs)
    assert coupling.reasons[0] == "it is part of the network's input"


def test_sums_tie_and_concatenations_do_not():
    def forward(net, x):
        both = torch.cat([net.one(x), net.two(x)], dim=1)
        return net.out(both[:, :3] + both[:, 3:6])

    parts = {"one": nn.Linear(2, 3), "two": nn.Linear(2, 4), "out": nn.Linear(3, 2)}
    coupling = coupled(Forward(forward, **parts), 2)
    one, two = (classes_of(coupling, f"{name}.weight", 0) for name in ("one", "two"))
    assert one == two[:3]
    assert two[3] not in one
    assert coupling.of(result(coupling, "cat")).tolist() == [one + two]


@pytest.mark.parametrize("kind", ["add", "mul", "maximum", "sub"])
def test_every_elementwise_operation_of_two_ties(kind):
    def forward(net, x):
        return net.out(getattr(torch, kind)(net.one(x), net.two(x)))

    parts = {"one": nn.Linear(2, 3), "two": nn.Linear(2, 3), "out": nn.Linear(3, 2)}
    coupling = coupled(Forward(forward, **parts), 2)
    assert classes_of(coupling, "one.weight", 0) == classes_of(coupling, "two.weight", 0)


def test_ties_that_hang_on_other_ties_are_found():
    """A gate of one channel is stretched over two that a later sum makes one unit."""

    def forward(net, x):
        pairs = net.one(x).unflatten(1, (3, 2)) * net.gate(x)[:, :, None]
        return net.out((pairs + pairs.flip(2)).flatten(1))

    parts = {"one": nn.Linear(2, 6), "gate": nn.Linear(2, 3), "out": nn.Linear(6, 2)}
    coupling = coupled(Forward(forward, **parts), 2)
    one = classes_of(coupling, "one.weight", 0)
    assert one[::2] == one[1::2] == classes_of(coupling, "gate.weight", 0)
    assert not set(one) & set(coupling.reasons)


def test_what_is_stretched_over_several_units_stays():
    def forward(net, x):
        return net.out(net.one(x) * net.gate(x))

    parts = {"one": nn.Linear(2, 3), "gate": nn.Linear(2, 1), "out": nn.Linear(3, 2)}
    coupling = coupled(Forward(forward, **parts), 2)
    (gate,) = classes_of(coupling, "gate.weight", 0)
    assert "stretched over several units by mul" in coupling.reasons[gate]
    assert not set(classes_of(coupling, "one.weight", 0)) & set(coupling.reasons)


def test_a_result_loses_whole_slices_where_labels_differ_along_two_axes():
    """Heads on one axis, features on the other: the axis with more of them is kept apart."""

    def forward(net, x):
        pairs = net.one(x).unflatten(1, (2, 3))
        return net.out(functional.relu(pairs).sum(1)) + net.out(functional.relu(pairs).amax(1))

    coupling = coupled(Forward(forward, one=nn.Linear(2, 6), out=nn.Linear(3, 2)), 2)
    one = classes_of(coupling, "one.weight", 0)
    assert one[:3] == one[3:]
    assert len(set(one)) == 3


def test_moves_that_are_one_pick_need_no_ties():
    """A view, a transpose and a view shuffle channels: no unit is tied to another."""

    def forward(net, x):
        x = net.one(x)
        x = x.view(-1, 2, 3, 4, 4).transpose(1, 2).reshape(-1, 6, 4, 4)
        return net.two(x).flatten(1)

    coupling = coupled(Forward(forward, one=conv(1, 6), two=conv(6, 2)), 1, 5, 5)
    one = classes_of(coupling, "one.weight", 0)
    assert len(set(one)) == 6
    assert classes_of(coupling, "two.weight", 1) == [one[at] for at in (0, 3, 1, 4, 2, 5)]
    (picked,) = coupling.shortcuts.values()
    assert (picked.axis, picked.indices) == (1, (0, 3, 1, 4, 2, 5))
    assert picked.source == result(coupling, "conv2d")
    assert len(coupling.passed) >= 2


def test_an_element_that_is_read_on_the_way_of_a_shuffle_is_kept_whole():
    """What lies between is read by something else, too: it must lose whole slices."""

    def forward(net, x):
        x = net.one(x).view(-1, 2, 3, 4, 4)
        shuffled = x.transpose(1, 2).reshape(-1, 6, 4, 4)
        return net.two(shuffled).flatten(1) + x.sum((1, 2, 3, 4))[:, None]

    coupling = coupled(Forward(forward, one=conv(1, 6), two=conv(6, 2)), 1, 5, 5)
    assert len(set(classes_of(coupling, "one.weight", 0))) < 6
    assert not coupling.shortcuts


def test_parameters_that_are_added_lose_slices_of_the_axis_that_units_lie_on():
    def forward(net, x):
        return net.out((net.one(x) + net.table).flatten(1))

    model = Forward(forward, one=conv(1, 3), out=nn.Linear(48, 2))
    model.table = nn.Parameter(torch.zeros(3, 4, 4))
    coupling = coupled(model, 1, 5, 5)
    assert classes_of(coupling, "table", 0) == classes_of(coupling, "one.weight", 0)
    assert [slots.axis for slots in coupling.slots_of["table"]] == [0]


def test_a_transposed_weight_swaps_its_axes():
    def forward(net, x):
        hidden = torch.relu(net.one(x))
        return functional.linear(hidden, net.one.weight.t())

    coupling = coupled(Forward(forward, one=nn.Linear(4, 3)), 4)
    units = classes_of(coupling, "one.weight", 0)
    (read,) = (it for it in coupling.reads if it.tensor == result(coupling, "relu"))
    assert coupling.classes[read.atoms].tolist() == units
    assert not set(units) & set(coupling.reasons)
    assert set(classes_of(coupling, "one.weight", 1)) <= set(coupling.reasons)


def test_each_slice_of_a_tensor_has_one_owner():
    """A bias is a layer's and is added besides: it is cut once."""

    def forward(net, x):
        return net.out(net.one(x) + net.one.bias)

    coupling = coupled(Forward(forward, one=nn.Linear(2, 3), out=nn.Linear(3, 2)), 2)
    assert len(coupling.slots_of["one.bias"]) == 1
    assert classes_of(coupling, "one.bias", 0) == classes_of(coupling, "one.weight", 0)


def test_results_that_are_no_tensors_have_no_classes():
    coupling = coupled(Forward(lambda net, x: net.out(x.chunk(2, 1)[0]), out=nn.Linear(2, 2)), 4)
    assert coupling.of(result(coupling, "chunk")) is None
    assert coupling.of("nothing") is None
