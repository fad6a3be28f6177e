"""Every network of `tests.architectures` is condensed to exactly the masked network.

What the masked network is, is asked of three that know nothing of each other: the check that
condensing makes itself, hooks on the modules that a person found to read the units, and the
original network with the columns cleared that were cut away.
"""

import copy

import pytest
import torch
from tests.architectures import SLOW_TO_TRACE, architecture, slow_where_tracing_is
from tests.condense.nets import error, everything
from tests.condense.zoo import (
    NAMES,
    PATTERNS,
    batches,
    condensed,
    cuttable,
    examples,
    least,
    planned,
    watched,
)
from tests.oracles.condense import cleared, masked_by_hand
from tests.oracles.reads import READS, opened

from neurank.condense.condensed import condense
from neurank.condense.load import load
from neurank.errors import CondenseError
from neurank.units.trace import logits_of

EVERY = pytest.mark.parametrize("name", NAMES)
REMOVALS = ("zero", "mean")

QUICK = pytest.mark.parametrize("name", slow_where_tracing_is(NAMES))

REFUSED = {
    **{("cbam-resnet", f"blocks.{at}.attention.space"): "stretched over several units by mul"
       for at in range(4)},
    ("deeplab-aspp", "4"): "the network's outputs",
    ("autoencoder", "decoder.2"): "the network's outputs",
    ("tied-autoencoder", "linear_3"): "its weight is shared",
    ("super-resolution", "out"): "tied by add",
    **{("mlp-mixer", f"blocks.{block}.tokens.{at}"): "lie across the units of another layer"
       for block in (0, 1) for at in (0, 3)},
    **{("gmlp", f"blocks.{block}.gating.mix"): "lie across the units of another layer"
       for block in (0, 1)},
    ("shared-head", "head.2"): "the network's outputs",
}  # fmt: skip
"""Layers without units that can be removed, and why."""

SINGLE = {
    # A convolution runs along the channels, or a norm looks at those beside: all stay or go as one.
    "eca-resnet": {"stem.0", "blocks.2.conv2"},
    "alexnet-local-response": {"features.0", "features.4"},
}
"""Layers that are one unit, which cannot be removed."""

NO_MEAN = {("non-local", "2.theta"): "multiplied with each other in matmul"}
"""Layers whose units can be removed, but leave no constant."""


def possible(name, removal):
    """The layers that lose units if this is what they leave."""
    refused = {layer for other, layer in NO_MEAN if other == name and removal == "mean"}
    return tuple(layer for layer in cuttable(name) if layer not in refused)


def outputs(model, name, dtype=torch.float64):
    given = examples(name)
    with torch.no_grad():
        return logits_of(model(given.to(dtype) if given.is_floating_point() else given))


def check_is_masked(name, plan, removal, small):
    """The three ways agree, and something was gained."""
    assert small.check.max_error <= 1e-12
    assert small.check.tolerance == 1e-12
    assert small.report.parameters[1] < small.report.parameters[0]
    assert small.report.multiply_adds[1] < small.report.multiply_adds[0]
    found = outputs(small.model, name)
    removed = {layer: plan.removed(layer) for layer in plan.keep}
    if name in READS:
        model = opened(name, copy.deepcopy(watched(name).model))
        by_hand = masked_by_hand(
            model, READS[name], removed, removal, batches(name), examples(name)
        )
        assert error(found, by_hand) <= 1e-12
    if removal == "zero" and only_sums(name, plan):
        assert error(found, outputs(cleared(watched(name).model, small.cuts), name)) <= 1e-12
    check_everything_is_smaller(name, plan, small)


def only_sums(name, plan):
    """Whether the units are read by convolutions and linear layers alone, each with its weight."""
    space = watched(name).space
    kinds = {read.kind for layer in plan.keep for read in space[layer].reads}
    return kinds == {"sum"} and name != "tied-autoencoder"


def check_everything_is_smaller(name, plan, small):
    """Each module that computes removed units, or reads them, lost weights."""
    before, after = (dict(it.named_parameters()) for it in (watched(name).model, small.model))
    space = watched(name).space
    for layer in plan.keep:
        removed = set(plan.removed(layer))
        tensors = [rows.tensor for rows in space.rows(layer) if removed & set(rows.units)]
        assert tensors
        tensors += [
            f"{at.module}.weight"
            for at in READS.get(name, {}).get(layer, ())
            if removed & set(at.units) and f"{at.module}.weight" in before
            if at.module != "layers.2.stay"  # of "wavenet", whose result nobody reads
        ]
        for tensor in tensors:
            assert after[tensor].numel() < before[tensor].numel(), (layer, tensor)


@QUICK
def test_all_layers_at_once(name):
    before = everything(watched(name).model)
    for removal in REMOVALS:
        plan = planned(name, "second", *possible(name, removal))
        check_is_masked(name, plan, removal, condensed(name, plan, removal))
    assert everything(watched(name).model) == before


@pytest.mark.slow
@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("pattern", PATTERNS)
@EVERY
def test_each_layer_by_itself_and_all_at_once(name, pattern, removal):
    before = everything(watched(name).model)
    layers = possible(name, removal)
    for chosen in (*((layer,) for layer in layers), layers):
        plan = planned(name, pattern, *chosen)
        if pattern == "all but one" and EMPTIED.get(name, set()) & set(chosen):
            with pytest.raises(CondenseError, match=r"chunk in .* it would move other units"):
                condensed(name, plan, removal)
            continue
        check_is_masked(name, plan, removal, condensed(name, plan, removal))
    assert everything(watched(name).model) == before


@pytest.mark.slow
@pytest.mark.parametrize("removal", REMOVALS)
@EVERY
def test_in_single_precision(name, removal):
    layers = possible(name, removal)
    for chosen in (*((layer,) for layer in layers), layers):
        small = condensed(name, planned(name, "second", *chosen), removal, torch.float32)
        assert small.check.max_error <= small.check.tolerance == 1e-5
        assert {it.dtype for it in small.model.parameters()} == {torch.float32}
        in_double = condensed(name, planned(name, "second", *chosen), removal)
        found = outputs(small.model, name, torch.float32).double()
        assert error(found, outputs(in_double.model, name)) <= 1e-4


@pytest.mark.parametrize("name", [name for name in READS if name not in SLOW_TO_TRACE])
def test_layers_are_those_that_a_reader_of_the_code_finds(name):
    space = watched(name).space
    found = {layer: space[layer].width for layer in cuttable(name)}
    by_hand = {layer: 1 + max(max(at.units) for at in ats) for layer, ats in READS[name].items()}
    assert found == by_hand


EMPTIED = {
    "res2net": {f"blocks.{at}.reduce.0" for at in range(4)},
    "shufflenet-v2": {"1.left.1.0"},
}
"""Layers that are read in chunks, one of which runs empty when the fewest units stay: refused."""

FEWEST = {
    ("resnet-zero-padded", "stem.0"): 1,  # but one of the first stage's
    **{("res2net", f"blocks.{at}.reduce.0"): 3 for at in range(4)},
    ("dual-path", "1.project.0"): 4,
    ("shufflenet-v2", "1.left.1.0"): 3,
}
"""Layers whose tensors share only some units, so that not any one unit is enough: what is."""


@pytest.mark.slow
def test_one_unit_is_enough_but_where_tensors_would_run_empty():
    found = {
        (name, layer): len(least(name, layer))
        for name in NAMES
        for layer in cuttable(name)
        if least(name, layer)
    }
    assert found == FEWEST


@pytest.mark.slow
def test_what_cannot_be_removed_is_known_and_little():
    refused, single, layers = {}, {}, 0
    for name in NAMES:
        space = watched(name).space
        refused |= {(name, layer): reason for layer, reason in space.refused.items()}
        one = {layer for layer in space.hidden if space[layer].width == 1}
        single |= {name: one} if one else {}
        layers += len(space.refused) + len(space.hidden)
    assert refused.keys() == REFUSED.keys()
    for layer, reason in REFUSED.items():
        assert reason in refused[layer], layer
    assert single == SINGLE
    assert layers > 400
    assert len(REFUSED) + sum(map(len, SINGLE.values())) + len(NO_MEAN) < layers / 5


@pytest.mark.parametrize(("name", "layer"), NO_MEAN)
def test_what_leaves_no_constant_is_refused(name, layer):
    with pytest.raises(CondenseError, match=NO_MEAN[name, layer]):
        condensed(name, planned(name, "second", layer), "mean")


@pytest.mark.parametrize(
    "name",
    ["resnet-basic", "mobilenet-v2", "convnext", "vit-fused-attention", "swin", "u-net", "wavenet",
     "group-norm", "gmlp", "gan-generator"],
)  # fmt: skip
def test_one_step_trains_every_parameter_that_trained_before(name):
    """What is made for removed constants trains as well."""
    small = condensed(name, planned(name, "second"), "mean").model.train()
    trained = with_gradients(copy.deepcopy(watched(name).model).train(), name)
    made = set(dict(small.named_parameters())) - set(dict(watched(name).model.named_parameters()))
    before = {key: parameter.detach().clone() for key, parameter in small.named_parameters()}
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    assert with_gradients(small, name) == trained | made
    optimizer.step()
    for key, parameter in small.named_parameters():
        assert torch.equal(parameter, before[key]) == (key not in trained | made), key
        assert parameter.isfinite().all()


def with_gradients(model, name):
    """Names of the parameters that get a gradient other than zero."""
    model.zero_grad()
    out = logits_of(model(examples(name)))
    (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters()}
    return {key for key, gradient in found.items() if gradient is not None and gradient.any()}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in {"mobilenet-v1", "group-norm", "lenet"}
                     else [pytest.mark.slow])
        for name in NAMES
    ],
)  # fmt: skip
@pytest.mark.parametrize("removal", REMOVALS)
def test_saved_and_loaded_it_gives_the_same_bits(name, removal, tmp_path):
    small = condensed(name, planned(name, "second", *possible(name, removal)), removal)
    small.save(tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", architecture(name).build)
    assert torch.equal(outputs(again.model.eval(), name), outputs(small.model, name))
    assert again.model.state_dict().keys() == small.model.state_dict().keys()
    assert again.cuts == small.cuts
    for key, tensor in small.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["resnet-basic", "vit-fused-attention", "convnext"])
def test_the_entry_point_does_the_same_and_leaves_the_model_in_training_mode(name):
    model = architecture(name).model()
    before = everything(model)
    plan = planned(name, "second")
    small = condense(model, plan, batches(name), removal="mean", progress=False)
    assert everything(model) == before
    assert all(module.training for module in small.model.modules())
    found = outputs(small.model.eval(), name)
    assert torch.equal(found, outputs(condensed(name, plan, "mean").model, name))
