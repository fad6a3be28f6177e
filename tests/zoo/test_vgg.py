import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from neurank.errors import ModelError
from neurank.zoo import vgg16
from neurank.zoo.vgg import CONVOLUTIONS, HIDDEN

NARROW = (2, 3, 4, 3, 2, 3, 4, 3, 2, 3, 4, 3, 2, 5, 6)


def test_widths_are_those_of_the_fifteen_layers_in_order():
    model = vgg16(*NARROW, classes=7)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [len(layer.weight) for layer in layers] == [*NARROW, 7]
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_the_same_seed_draws_the_same_weights_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    one, two = (vgg16(*NARROW, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("widths", [(64,), NARROW[:-1], (*NARROW, 3)])
def test_another_number_of_widths_is_refused(widths):
    with pytest.raises(ModelError, match=rf"vgg16 has 15 layers of units and {len(widths)} widths"):
        vgg16(*widths)


def test_a_width_below_one_is_refused_by_its_place():
    with pytest.raises(ModelError, match="width 14=0"):
        vgg16(*NARROW[:-1], 0)


def published(data_dir):
    stored = load_file(data_dir / "models" / "vgg16_cifar10.safetensors")
    model = vgg16().eval()
    model.load_state_dict(
        {name: it.float() if it.is_floating_point() else it for name, it in stored.items()}
    )
    return model


def test_the_published_weights_fit(data_dir):
    model = published(data_dir)
    assert sum(weight.numel() for weight in model.parameters()) == 15_253_578
    assert len(CONVOLUTIONS) + len(HIDDEN) == 15


@pytest.mark.slow
def test_the_published_weights_are_as_accurate_as_stated(data_dir, cifar10):
    # 92.60 % on the 5,000 held-out pictures; the first 1,000 of them here
    model = published(data_dir)
    pictures = cifar10.normalized((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)).validation
    with torch.inference_mode():
        right = model(pictures.inputs[:1000]).argmax(dim=1) == pictures.targets[:1000]
    assert 0.91 <= float(right.float().mean()) <= 0.94
