"""Feature maps against plain module calls."""

import pytest
import torch
from torch import nn

from neurank.errors import MethodError, UnitError
from neurank.observe.activations import layer_maps


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4 * 4, 2),
    )  # fmt: skip


PICTURES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_maps_before_and_after_the_nonlinearity_are_those_of_the_modules():
    model = network().eval()
    with torch.no_grad():
        before = model[0](PICTURES)
        after = model[1](before).relu()
    assert torch.allclose(layer_maps(model, "0", PICTURES, point="before"), before, atol=1e-6)
    assert torch.allclose(layer_maps(model, "0", PICTURES), after, atol=1e-6)
    assert bool((before < 0).any())  # the in-place ReLU has not written over it


def test_one_map_per_picture_and_unit():
    assert layer_maps(network(), "0", PICTURES).shape == (5, 3, 6, 6)


def test_the_model_comes_back_as_it_was():
    model = network().train()
    model[1].eval()
    flags = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer_maps(model, "0", PICTURES)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_without_a_nonlinearity_behind_it_is_refused_after_it():
    with pytest.raises(UnitError, match="point='before'"):
        layer_maps(network(), "4", PICTURES)
    assert layer_maps(network(), "4", PICTURES, point="before").shape == (5, 4, 2, 2)


def test_what_has_no_maps_is_refused():
    with pytest.raises(UnitError, match=r"'6' has no maps.*convolution"):
        layer_maps(network(), "6", PICTURES, point="before")
    with pytest.raises(UnitError, match="no layer 'conv9'"):
        layer_maps(network(), "conv9", PICTURES)
    with pytest.raises(MethodError, match="'after', 'before'"):
        layer_maps(network(), "0", PICTURES, point="pre")
