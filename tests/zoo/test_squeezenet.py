import csv

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from neurank import zoo

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_widths_are_those_of_the_convolutions_in_order():
    widths = tuple(range(2, 27))
    model = zoo.squeezenet1_1(*widths, classes=7)
    convs = [len(module.weight) for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert convs == [*widths, 7]


def test_a_fire_module_puts_1x1_before_3x3():
    fire = zoo.squeezenet1_1(*[4] * 25, seed=0).features[3]
    x = torch.rand(2, 4, 5, 5)
    squeezed = torch.relu(fire.squeeze(x))
    found = fire(x)
    assert torch.equal(found[:, :4], torch.relu(fire.expand1x1(squeezed)))
    assert torch.equal(found[:, 4:], torch.relu(fire.expand3x3(squeezed)))


def published(data_dir):
    model = zoo.squeezenet1_1().eval()
    model.load_state_dict(load_file(data_dir / "models" / "squeezenet1_1_imagenet.safetensors"))
    return model


def test_the_published_weights_fit(data_dir):
    assert sum(weight.numel() for weight in published(data_dir).parameters()) == 1_235_496


@pytest.mark.slow
def test_the_published_weights_are_as_accurate_as_stated(data_dir):
    # top-1 of 56.4 % among 1,000 classes on all 1,000 pictures; every fifth of them here
    model = published(data_dir)
    folder = data_dir / "imagenet20"
    right = []
    with (folder / "classes.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            files = sorted((folder / "val" / row["wnid"]).iterdir())[::5]
            with torch.inference_mode():
                answers = model(torch.stack([picture(file) for file in files])).argmax(dim=1)
            right.append(answers == int(row["imagenet_index"]))
    found = torch.cat(right)
    assert len(found) == 200
    assert 0.50 <= float(found.float().mean()) <= 0.63


def picture(file):
    pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
