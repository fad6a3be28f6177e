from itertools import pairwise

import pytest
import torch
from tests.oracles.condense import masked_outputs
from torch.nn import functional

from neurank import zoo
from neurank.condense.condensed import condense
from neurank.condense.plan import Plan
from neurank.errors import ModelError
from neurank.units.space import unit_space
from neurank.units.trace import trace

# What torchvision.models.alexnet().state_dict() holds, in its order.
TORCHVISION = {
    "features.0.weight": (64, 3, 11, 11),
    "features.0.bias": (64,),
    "features.3.weight": (192, 64, 5, 5),
    "features.3.bias": (192,),
    "features.6.weight": (384, 192, 3, 3),
    "features.6.bias": (384,),
    "features.8.weight": (256, 384, 3, 3),
    "features.8.bias": (256,),
    "features.10.weight": (256, 256, 3, 3),
    "features.10.bias": (256,),
    "classifier.1.weight": (4096, 9216),
    "classifier.1.bias": (4096,),
    "classifier.4.weight": (4096, 4096),
    "classifier.4.bias": (4096,),
    "classifier.6.weight": (1000, 4096),
    "classifier.6.bias": (1000,),
}
LAYERS = tuple(name.removesuffix(".weight") for name in TORCHVISION if name.endswith("weight"))
READERS = {layer: (reader,) for layer, reader in pairwise(LAYERS)}
NARROW = (4, 5, 6, 5, 4, 9, 8)


def narrow(side, dtype=torch.float64):
    """A small AlexNet and two batches of pictures of that side."""
    model = zoo.alexnet(*NARROW, classes=3, seed=0).to(dtype).eval()
    drawn = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(count, 3, side, side, dtype=dtype, generator=drawn), torch.arange(count))
        for count in (3, 2)
    ]
    return model, batches


def test_names_and_shapes_are_torchvisions():
    with torch.device("meta"):
        found = {name: tuple(it.shape) for name, it in zoo.alexnet().state_dict().items()}
    assert list(found.items()) == list(TORCHVISION.items())
    assert sum(torch.Size(shape).numel() for shape in found.values()) == 61_100_840


def by_hand(state, x):
    """AlexNet without a module: the weights and the order of operations, written out."""

    def convolved(x, layer, **how):
        return functional.relu(
            functional.conv2d(x, state[f"{layer}.weight"], state[f"{layer}.bias"], **how)
        )

    def joined(x, layer):
        return functional.linear(x, state[f"{layer}.weight"], state[f"{layer}.bias"])

    x = functional.max_pool2d(convolved(x, "features.0", stride=4, padding=2), 3, 2)
    x = functional.max_pool2d(convolved(x, "features.3", padding=2), 3, 2)
    x = convolved(x, "features.6", padding=1)
    x = convolved(x, "features.8", padding=1)
    x = functional.max_pool2d(convolved(x, "features.10", padding=1), 3, 2)
    x = functional.adaptive_avg_pool2d(x, (6, 6)).flatten(1)
    x = functional.relu(joined(x, "classifier.1"))
    x = functional.relu(joined(x, "classifier.4"))
    return joined(x, "classifier.6")


@pytest.mark.parametrize("side", [63, 96, 224, 256])
def test_it_is_what_its_weights_give_by_hand(side):
    model, ((x, _), _) = narrow(side)
    with torch.no_grad():
        found = model(x)
        assert found.std() > 1e-3
        torch.testing.assert_close(found, by_hand(model.state_dict(), x), rtol=1e-12, atol=0)


def test_dropout_is_in_front_of_the_hidden_layers_and_only_in_training():
    model, ((x, _), _) = narrow(63)
    given = {}
    for at in (1, 4, 6):
        model.classifier[at].register_forward_pre_hook(
            lambda _, arguments, at=at: given.__setitem__(at, arguments[0])
        )
    share = {}
    with torch.no_grad():
        for training in (False, True):
            model.train(training)(x.repeat(40, 1, 1, 1))
            for at in (1, 4, 6):
                share[training, at] = float((given[at] == 0).double().mean())
    assert share[True, 1] > share[False, 1] + 0.1
    assert share[True, 4] > share[False, 4] + 0.1
    assert model.classifier[0].p == model.classifier[3].p == 0.5
    assert len(model.classifier) == 7


def test_a_seed_decides_the_weights_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    one, same, other = (zoo.alexnet(*NARROW, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.features[0].weight, same.features[0].weight)
    assert not torch.equal(one.features[0].weight, other.features[0].weight)


@pytest.mark.parametrize("widths", [(64,), NARROW[:-1], (*NARROW, 3)])
def test_another_number_of_widths_is_refused(widths):
    with pytest.raises(ModelError, match=f"alexnet has 7 layers of units and {len(widths)} widths"):
        zoo.alexnet(*widths)


@pytest.mark.parametrize("width", [0, -1, 2.0, True])
def test_what_is_no_width_is_refused_by_its_place(width):
    with pytest.raises(ModelError, match=f"width 4={width}"):
        zoo.alexnet(*NARROW[:4], width, *NARROW[5:])


def test_no_classes_are_refused():
    with pytest.raises(ModelError, match="classes=0"):
        zoo.alexnet(*NARROW, classes=0)


@pytest.mark.parametrize("side", [96, 224])
def test_every_layer_but_the_output_has_units(side):
    model, ((x, _), _) = narrow(side, torch.float32)
    space = unit_space(trace(model, x), model)
    assert {layer: space[layer].width for layer in space.hidden} == dict(
        zip(LAYERS[:-1], NARROW, strict=True)
    )


@pytest.mark.parametrize("removal", ["zero", "mean"])
@pytest.mark.parametrize("side", [96, 224])
def test_condensed_is_masked(side, removal):
    model, batches = narrow(side)
    widths = dict(zip(LAYERS[:-1], NARROW, strict=True))
    plan = Plan({layer: tuple(range(1, width, 2)) for layer, width in widths.items()}, widths)
    small = condense(model, plan, batches, removal=removal)
    removed = {layer: plan.removed(layer) for layer in widths}
    inputs = torch.cat([inputs for inputs, _ in batches])
    wanted = masked_outputs(model, READERS, removed, removal, batches, inputs)
    with torch.no_grad():
        found, whole = small.model.eval()(inputs), model(inputs)
    assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()
    assert (whole - wanted).abs().max() > 1e-3 * wanted.abs().max()
    # the 6 x 6 columns of each of the channels 1 and 3 of 4, and of them alone
    columns = model.classifier[1].weight.unflatten(1, (4, 36))[1::2, 1::2].flatten(1)
    assert torch.equal(small.model.classifier[1].weight, columns)
