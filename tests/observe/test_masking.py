"""Coalitions of units that are read in many places, against hooks on the modules that read them."""

from dataclasses import replace

import pytest
import torch
from tests.cases import Forward, look, seeded
from tests.condense.zoo import batches, watched
from tests.oracles.condense import masked_by_hand
from tests.oracles.reads import READS
from torch import nn

import neurank as nr
from neurank.observe.execution import Runner
from neurank.observe.masking import (
    Switch,
    examples_inside,
    masked,
    masked_suffix,
    off_name,
    off_tensors,
    on_name,
    switched_off,
)
from neurank.observe.observer import SUFFIX
from neurank.observe.removal import off_constants
from neurank.units.space import Chain

COUPLED = [
    ("resnet-basic", "stem.0"), ("resnet-zero-padded", "stem.0"), ("se-resnet", "blocks.2.conv2"),
    ("densenet", "block1.0.conv2"), ("shufflenet-v2", "1.left.1.0"), ("wavenet", "stem"),
    ("vit-fused-attention", "blocks.0.attn.qkv"), ("vit-fused-attention", "patches"),
    ("swin", "patches"), ("swin", "stage1.1.attn.qkv"), ("swin", "merge.reduction"),
    ("gated-mlp", "1.gate"), ("unrolled-cell", "input"), ("group-norm", "4"), ("recursive", "stem"),
    ("poolformer", "0"), ("text-cnn", "convs.1"), ("two-sided-relu", "conv1"),
]  # fmt: skip


def observed(name, removal, value=None):
    return replace(watched(name), removal=removal, value=value or nr.NegativeLoss())


@pytest.mark.parametrize(("name", "layer"), COUPLED)
@pytest.mark.parametrize("removal", ["zero", "mean"])
def test_each_example_has_a_coalition_of_its_own(name, layer, removal):
    observer = observed(name, removal)
    width = observer.width(layer)
    assert observer.ways(layer) == (SUFFIX,)
    with seeded(name):
        masks = torch.rand(3, width) < torch.tensor([[0.3], [0.6], [0.9]])
    for (inputs, _), game in zip(batches(name), observer.games(layer), strict=True):
        wanted = torch.stack([by_hand(name, layer, removal, mask, inputs) for mask in masks])
        rows = torch.arange(len(inputs)).repeat(3)
        own = masks.repeat_interleave(len(inputs), 0)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
        found = game.logits(rows[order], own[order])
        scale = wanted.abs().max()
        assert ((found - wanted.flatten(0, 1)[order]).abs().max() / scale) <= 1e-12


def by_hand(name, layer, removal, mask, inputs):
    removed = {layer: torch.nonzero(~mask)[:, 0].tolist()}
    return masked_by_hand(watched(name).model, READS[name], removed, removal, batches(name), inputs)


@pytest.mark.parametrize(("name", "layer"), COUPLED)
def test_all_units_on_is_the_network(name, layer):
    observer = observed(name, "mean")
    for (inputs, _), game in zip(batches(name), observer.games(layer), strict=True):
        ones = torch.ones(len(inputs), observer.width(layer), dtype=torch.bool)
        found = game.logits(torch.arange(len(inputs)), ones)
        torch.testing.assert_close(found, observer.model(inputs).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "layer"), COUPLED)
def test_nothing_that_the_units_do_not_change_is_run_again(name, layer):
    watching = watched(name)
    inputs, _ = batches(name)[0]
    split = masked_suffix(watching.space[layer], watching.runner, watching.space.coupling, inputs)
    below = {operation.name for operation in split.graph.below(on_name(split.layer))}
    again = [operation for operation in split.suffix if operation.name not in below]
    assert not below & set(split.side)
    from_input = {it.name for it in split.graph.below(split.graph.input)}
    # What is run again besides does not keep examples on its first axis, or hangs on none.
    labels = watching.space.coupling.labels
    for operation in again:
        own = labels.get(operation.name)
        keeps = isinstance(own, torch.Tensor) and own.shape[0] == 1 and operation.shape
        assert operation.name not in from_input or not keeps or operation.shape[0] is not None


def test_layers_that_are_one_stretch_are_played_the_old_way():
    space = watched("resnet-basic").space
    assert isinstance(space["blocks.0.conv1"], Chain)
    assert not isinstance(space["stem.0"], Chain)


def test_two_layers_of_one_reader_have_a_switch_each():
    def forward(net, x):
        return net.out(torch.cat([net.one(x), net.two(x)], dim=1))

    model = Forward(forward, one=nn.Linear(4, 3), two=nn.Linear(4, 2), out=nn.Linear(5, 3)).double()
    inputs = torch.randn(6, 4, dtype=torch.float64)
    watching = look(model, [(inputs, torch.zeros(6).long())])
    layers = [watching.space[name] for name in ("one", "two")]
    graph = masked(watching.space.graph, layers)
    assert [it.kind for it in graph.operations].count("switch") == 2
    offs = [torch.full((5,), value, dtype=torch.float64) for value in (2.0, -1.0)]
    tensors = {**watching.runner.tensors}
    known = {graph.input: inputs}
    for layer, off in zip(layers, offs, strict=True):
        tensors.update(off_tensors(layer, [off]))
        known[on_name(layer)] = torch.zeros(1, layer.width, dtype=torch.bool)
    needed = graph.needed_for((graph.output,), known=known)
    found = Runner(graph, tensors).run(needed, known, 6, (graph.output,))[graph.output]
    constants = torch.tensor([2.0, 2, 2, -1, -1], dtype=torch.float64)
    torch.testing.assert_close(found, model.out(constants).expand(6, 3))
    assert set(off_tensors(layers[0], [offs[0]])) == {off_name(layers[0], 0)}


@pytest.mark.parametrize("removal", ["zero", "mean"])
def test_the_same_units_are_off_for_all_examples(removal):
    watching = observed("resnet-basic", removal)
    removed = {"stem.0": (0, 2), "blocks.0.conv1": (1,)}
    layers = [watching.space[name] for name in removed]
    before = dict(watching.runner.tensors)
    off = off_constants(removal, layers, watching.runner, watching.examples)
    running, given = switched_off(watching.runner, layers, removed, off)
    assert dict(watching.runner.tensors) == before
    reads, examples = READS["resnet-basic"], batches("resnet-basic")
    inputs = torch.cat([it for it, _ in examples])
    out, known = running.graph.output, {running.graph.input: inputs, **given}
    needed = running.graph.needed_for((out,), known=known)
    found = running.run(needed, known, len(inputs), (out,))[out]
    wanted = masked_by_hand(watching.model, reads, removed, removal, examples, inputs)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_a_switch_hands_on_what_is_on_and_constants_for_the_rest():
    switch = Switch(axis=1, units=(0, -1, 1, 1))
    read = torch.arange(8.0).reshape(2, 4)
    on = torch.tensor([[True, False], [False, True]])
    off = torch.tensor([10.0, 20.0, 30.0, 40.0])
    assert switch(read, on, off).tolist() == [[0, 1, 30, 40], [10, 5, 6, 7]]
    assert switch(read, on[:1], off).tolist() == [[0, 1, 30, 40], [4, 5, 30, 40]]


def test_a_switch_may_be_half_on():
    switch = Switch(axis=2, units=(0, 1))
    read, off = torch.tensor([[[4.0, 4.0]]]), torch.tensor([0.0, 2.0])
    assert switch(read, torch.tensor([[0.5, 0.5]]), off).tolist() == [[[2.0, 3.0]]]


@pytest.mark.parametrize("inner", [True, False])
def test_a_batch_axis_may_hold_more_than_examples(inner):
    """Two examples of three windows: outermost or innermost."""
    switch = Switch(axis=1, units=(0,), inner=inner)
    on = torch.tensor([[True], [False]])
    found = switch(torch.ones(6, 1), on, torch.zeros(1)).flatten().tolist()
    assert found == ([1, 0, 1, 0, 1, 0] if inner else [1, 1, 1, 0, 0, 0])


def test_units_may_lie_before_the_batch():
    switch = Switch(axis=0, units=(0, 1), batch=1)
    on = torch.tensor([[True, False], [True, True], [False, True]])
    found = switch(torch.ones(2, 3), on, torch.zeros(2))
    assert found.tolist() == [[1, 1, 0], [0, 1, 1]]


def test_where_examples_lie_is_found_by_trying():
    """Windows come behind one another example by example in Swin; tokens of all first here."""
    inputs, _ = batches("swin")[0]
    watching = watched("swin")
    layer = watching.space["stage1.0.attn.qkv"]
    reads = [read.tensor for read in layer.reads]
    inside = examples_inside(reads, watching.runner, watching.space.coupling, inputs)
    assert set(inside.values()) <= {False}

    def forward(net, x):
        return net.out(net.one(x.transpose(0, 1).reshape(-1, 4)).view(7, -1, 6).mean(0))

    model = Forward(forward, one=nn.Linear(4, 6), two=nn.Linear(6, 6), out=nn.Linear(6, 3))
    model.body = lambda net, x: net.out(
        net.two(net.one(x.transpose(0, 1).reshape(-1, 4))).view(7, -1, 6).mean(0)
    )
    tokens = torch.randn(5, 7, 4)
    seen = look(model, [(tokens, torch.zeros(5).long())])
    layer = seen.space["one"]
    reads = [read.tensor for read in layer.reads]
    assert set(examples_inside(reads, seen.runner, seen.space.coupling, tokens).values()) == {True}
