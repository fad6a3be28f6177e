"""Networks that do one thing to their units each, condensed to exactly the masked ones."""

import pytest
import torch
from tests.cases import look
from tests.condense.nets import error
from tests.condense.zoo import PATTERNS
from tests.oracles.condense import cleared
from tests.units.forwards import SMALL, vector, watched
from torch import nn

from neurank.condense.condensed import carried_out
from neurank.condense.narrowed import Narrowing, narrowed_graph
from neurank.condense.plan import Plan
from neurank.condense.surgery import gone_classes, named_tensors
from neurank.errors import CondenseError

CUTTABLE = {
    name: layers
    for name, small in SMALL.items()
    if (layers := tuple(layer for layer, width in small.widths.items() if width > 1))
}
EXACT = [name for name in CUTTABLE if not SMALL[name].uneven]
UNEVEN = [name for name in CUTTABLE if SMALL[name].uneven]


def plan_for(name, pattern, *layers):
    widths = {layer: SMALL[name].widths[layer] for layer in layers}
    return Plan({layer: PATTERNS[pattern](width) for layer, width in widths.items()}, widths)


def inputs_of(name):
    return torch.cat([inputs for inputs, _ in SMALL[name].batches(4, 3)])


def outputs(model, name):
    with torch.no_grad():
        return model(inputs_of(name))


@pytest.mark.parametrize("name", EXACT)
def test_condensed_is_masked(name):
    layers = CUTTABLE[name]
    for pattern in PATTERNS:
        for chosen in dict.fromkeys((*((layer,) for layer in layers), layers)):
            for removal in ("zero", "mean"):
                small = carried_out(plan_for(name, pattern, *chosen), watched(name), removal)
                assert small.check.max_error <= 1e-12
                assert small.report.parameters[1] < small.report.parameters[0]


@pytest.mark.parametrize("name", [name for name in EXACT if name != "two of one module"])
def test_zeros_are_as_good_as_cleared_columns(name):
    """By the network's own Python, where convolutions and linear layers alone read the units."""
    for layer in CUTTABLE[name]:
        kinds = {read.kind for read in watched(name).space[layer].reads}
        small = carried_out(plan_for(name, "second", layer), watched(name), "zero")
        if kinds == {"sum"}:
            by_hand = outputs(cleared(watched(name).model, small.cuts), name)
            assert error(outputs(small.model, name), by_hand) <= 1e-12
            assert error(by_hand, outputs(watched(name).model, name)) > 1e-6


@pytest.mark.parametrize("name", UNEVEN)
def test_what_would_move_to_other_places_is_refused_and_the_rest_is_exact(name):
    """An operation that moves units cannot always move some of them alike."""
    width = SMALL[name].widths["one"]
    refusals = []
    for pattern in PATTERNS:
        try:
            small = carried_out(plan_for(name, pattern, "one"), watched(name), "mean")
            assert small.check.max_error <= 1e-12
        except CondenseError as refusal:
            refusals.append(str(refusal))
    assert refusals
    assert all("cannot be told that units are gone" in refusal for refusal in refusals)
    everything = Plan({"one": range(width)}, {"one": width})
    assert carried_out(everything, watched(name), "zero").check.max_error <= 1e-12


STAY = [
    "deviations over places", "shares over places", "scaled by channel", "enlarged", "slopes",
    "LayerNorm without parameters", "GroupNorm, few groups, no parameters",
    "GroupNorm, many groups, no parameters", "InstanceNorm without parameters",
    "BatchNorm without parameters", "one LayerNorm twice", "RMSNorm",
    "transposed, depthwise, twice as many", "few groups, padded", "circular padding",
]  # fmt: skip
"""Networks whose Python adapts to what is left: their class stays."""


@pytest.mark.parametrize("name", STAY)
@pytest.mark.parametrize("removal", ["zero", "mean"])
def test_python_that_adapts_stays(name, removal):
    small = carried_out(plan_for(name, "second", "one"), watched(name), removal)
    assert type(small.model) is type(watched(name).model)
    assert not small.origin.rewritten


NUMBERS = {
    # the operation that is given another number, and its arguments before and after
    "narrow": ("slice", lambda n, x: n.out(n.one(x).narrow(1, 2, 3)), 3, None, (1, 1, 3)),
    "split": ("split_with_sizes",
              lambda n, x: n.out(n.one(x).split([4, 2], 1)[0]), 4, ([4, 2], 1), ([2, 1], 1)),
    "chunk": ("split_with_sizes", lambda n, x: n.out(n.one(x).chunk(2, 1)[0]), 3,
              None, ([2, 1], 1)),
    "view": ("view", lambda n, x: n.out(n.one(x).view(-1, 6, 1).squeeze(2)), 6,
             ([-1, 6, 1],), ([-1, 3, 1],)),
    "expand": ("expand", lambda n, x: n.out(n.one(x)[:, :, None].expand(-1, 6, 2).sum(2)), 6,
               ([-1, 6, 2],), ([-1, 3, 2],)),
    "unflatten": ("unflatten", lambda n, x: n.out(n.one(x).unflatten(1, (6, 1)).squeeze(2)), 6,
                  (1, [6, 1]), (1, [3, 1])),
    "select": ("select", lambda n, x: n.out(n.one(x)[:, 4][:, None]), 1, (1, 4), (1, 2)),
    "pad": ("pad", lambda n, x: n.out(nn.functional.pad(n.one(x), (2, 1))), 9,
            ([2, 1],), ([2, 1],)),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_become_those_of_what_is_left(name):
    kind, forward, out, before, after = NUMBERS[name]
    small = vector(forward, out=out)
    watching = look(small.model(), small.batches(4, 3))
    plan = Plan({"one": (0, 2, 4)}, {"one": 6})
    found = _arguments(_narrowed(watching, plan), kind)
    assert found[: len(after)] == after
    if before is not None:
        assert _arguments(watching.space.graph, kind)[: len(before)] == before
    assert carried_out(plan, watching, "mean").check.max_error <= 1e-12


def _narrowed(watching, plan):
    tensors = {**watching.space.graph.constants, **named_tensors(watching.model)}
    gone = gone_classes(plan, watching.space)
    return narrowed_graph(Narrowing(watching.space.coupling, gone, tensors, frozenset()))


def _arguments(graph, kind):
    (operation,) = (it for it in graph.operations if it.kind == kind)
    return tuple(list(it) if isinstance(it, list) else it for it in operation.args[1:])
