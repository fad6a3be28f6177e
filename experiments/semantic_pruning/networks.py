"""The trained networks of the experiment, their pictures, and which classes are related."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import neurank as nr
from neurank.data.splits import Split

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BYTES = (0.0,), (1 / 255,)
"""Pictures of cnn6 go in as they are stored, 0 to 255."""


class Cnn6(nn.Module):
    """The sequential network of cnn6_cifar10: six convolutions, three linear layers.

    ReLU comes before BatchNorm. The original has another ReLU behind its outputs, which is left
    out: it changes no prediction with a positive logit, and hides by how much the others lost.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (64, 64, None, 128, 128, None, 64, 64):
            if width is None:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3), nn.ReLU(), nn.BatchNorm2d(width, eps=1e-3)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            *(nn.Linear(64, 1024), nn.ReLU(), nn.Dropout(0.2)),
            *(nn.Linear(1024, 512), nn.ReLU(), nn.Dropout(0.2)),
            nn.Linear(512, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures (examples, 3, 32, 32) to logits (examples, 10)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


@dataclass(frozen=True)
class Network:
    """A trained network.

    Attributes
    ----------
    title : what the tables call it.
    build, weights : its module, untrained, and the file of its weights.
    pictures : the data set.
    normalised : mean and std of its inputs.
    """

    title: str
    build: Callable[[], nn.Module]
    weights: str
    pictures: str
    normalised: tuple[tuple[float, ...], tuple[float, ...]]

    def model(self) -> nn.Module:
        """Return it with its weights, in evaluation mode."""
        model = self.build()
        tensors = load_file(folder() / "models" / f"{self.weights}.safetensors")
        given = {name: it.float() if it.is_floating_point() else it for name, it in tensors.items()}
        missing, unknown = model.load_state_dict(given, strict=False)
        if unknown or any(not name.endswith("num_batches_tracked") for name in missing):
            raise SystemExit(f"{self.weights} does not fit: {missing} missing, {unknown} unknown")
        return model.eval()

    def data(self) -> tuple[Split, Split]:
        """Return the pictures for responses and those for counting, normalised."""
        if self.pictures == "cifar10":
            splits = nr.data.load(f"cifar10:{folder()}/cifar10").normalized(*self.normalised)
            return splits.validation, splits.test
        splits = nr.data.load(f"folder:{folder()}/imagenet20").normalized(*self.normalised)
        halves = splits.validation, splits.test
        inputs, targets = (
            torch.cat([getattr(half, name) for half in halves]) for name in ("inputs", "targets")
        )
        whole = replace(splits.validation, inputs=inputs, targets=targets, name="imagenet20/val")
        return splits.train, whole


NETWORKS = {
    "squeezenet": Network(
        "SqueezeNet 1.1", nr.zoo.squeezenet1_1, "squeezenet1_1_imagenet", "imagenet20", IMAGENET
    ),
    "vgg16": Network("VGG-16", nr.zoo.vgg16, "vgg16_cifar10", "cifar10", CIFAR),
    "cnn6": Network("cnn6", Cnn6, "cnn6_cifar10", "cifar10", BYTES),
    "resnet56": Network("ResNet-56", nr.zoo.resnet56, "resnet56_cifar10", "cifar10", IMAGENET),
}

DOGS = frozenset({155, 159, 162, 167, 182, 193, 207, 217, 229, 258, 273})
"""The classes of imagenet20 that are dogs, dingo among them."""
ANIMALS = frozenset(range(2, 8))
"""CIFAR-10's animals; the rest are vehicles."""


def related(pictures: str, labels: list[int]) -> Tensor:
    """Say of each two classes whether they are alike: two dogs; two animals or two vehicles."""
    if pictures == "cifar10":
        kind = torch.tensor([label in ANIMALS for label in labels])
        return kind[:, None] == kind[None, :]
    dog = torch.tensor([label in DOGS for label in labels])
    return dog[:, None] & dog[None, :]


def first_of_each(split: Split, each: int) -> Split:
    """Keep the first so many pictures of each class."""
    labels = sorted(set(split.targets.tolist()))
    rows = [torch.nonzero(split.targets == label)[:each, 0] for label in labels]
    return split.subset(torch.cat(rows).sort().values)


def portion_of(split: Split, label: int, size: int, number: int) -> Split:
    """Keep a class's pictures from ``number * size`` on, so many, in batches of at most 50."""
    rows = torch.nonzero(split.targets == label)[number * size : (number + 1) * size, 0]
    return split.subset(rows).rebatched(50)


def folder() -> Path:
    """Return the folder of the data that NEURANK_DATA names."""
    found = os.environ.get("NEURANK_DATA")
    if not found:
        raise SystemExit("NEURANK_DATA is not set: it names the folder with cifar10/ and models/")
    return Path(found)
