import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from neurank import zoo
from neurank.errors import ModelError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("layers", [20, 32, 44, 56])
def test_the_name_counts_the_layers(layers):
    modules = zoo.by_name(f"resnet{layers}")().modules()
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in modules) == layers


def test_the_shortcut_takes_every_second_pixel_and_pads_with_zeros_on_both_sides():
    block = zoo.resnet20(4, 8, 8).eval().layer2[0]
    for conv in (block.conv1, block.conv2):
        nn.init.zeros_(conv.weight)
    x = torch.rand(2, 4, 6, 6)
    wanted = torch.zeros(2, 8, 3, 3)
    wanted[:, 2:6] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), wanted)


def test_an_odd_number_of_zeros_has_one_more_behind():
    block = zoo.resnet20(2, 5, 5).layer2[0]
    assert block.zeros == (1, 2)


def test_a_block_is_two_convolutions_and_a_sum():
    block = zoo.resnet20(3, 4, 5, seed=0).eval().layer1[1]
    x = torch.rand(2, 3, 6, 6)
    relu = torch.relu
    inner = relu(block.bn1(block.conv1(x)))
    assert torch.equal(block(x), relu(block.bn2(block.conv2(inner)) + x))


def test_stages_that_lose_channels_are_refused():
    with pytest.raises(ModelError, match="stages of 16, 8, 64 channels"):
        zoo.resnet20(16, 8, 64)


def test_a_seed_decides_the_weights_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    one, same, other = (zoo.resnet20(2, 3, 4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.conv1.weight, same.conv1.weight)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)


def published(name, data_dir):
    model = zoo.by_name(name)().eval()
    stored = load_file(data_dir / "models" / f"{name}_cifar10.safetensors")
    missing, unexpected = model.load_state_dict(stored, strict=False)
    assert unexpected == []
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return model


@pytest.mark.parametrize(("name", "parameters"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_the_published_weights_fit(name, parameters, data_dir):
    model = published(name, data_dir)
    assert sum(weight.numel() for weight in model.parameters()) == parameters


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("resnet20", 0.90), ("resnet56", 0.92)])
def test_the_published_weights_are_as_accurate_as_stated(name, least, data_dir, cifar10):
    # 91.73 % and 93.39 % on the whole test file; its first 1,000 pictures here
    model = published(name, data_dir)
    pictures = cifar10.normalized(MEAN, STD).test
    with torch.inference_mode():
        right = model(pictures.inputs[:1000]).argmax(dim=1) == pictures.targets[:1000]
    assert least <= float(right.float().mean()) <= least + 0.03
