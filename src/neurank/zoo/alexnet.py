"""AlexNet, in the form of the single-column paper, for 224 x 224 colour pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neurank.zoo.convnet import check_count, check_width, drawing

CONVOLUTIONS = (64, 192, 384, 256, 256)
HIDDEN = (4096, 4096)
SIDE = 6
"""The side of the maps that the first linear layer reads, whatever the side of the pictures."""


class AlexNet(nn.Module):
    """Five convolutions, three of them with max pooling, then three linear layers.

    Parameters are named as in torchvision's ``alexnet``: ``features.0``, ``features.3``,
    ``features.6``, ``features.8``, ``features.10``, ``classifier.1``, ``classifier.4`` and
    ``classifier.6``, so that its published weights load with ``strict=True``.

    Parameters
    ----------
    convolutions
        The filters of the five convolutions.
    hidden
        The units of the two hidden linear layers.
    classes
        The units of the output.
    """

    def __init__(self, convolutions: Sequence[int], hidden: tuple[int, int], classes: int) -> None:
        super().__init__()
        first, second, third, fourth, fifth = convolutions
        self.features = nn.Sequential(
            nn.Conv2d(3, first, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(first, second, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(second, third, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(third, fourth, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(fourth, fifth, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((SIDE, SIDE))
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(fifth * SIDE * SIDE, hidden[0]),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(inplace=True),
            nn.Linear(hidden[1], classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures, (examples, 3, height, width), to logits, (examples, classes)."""
        x = self.avgpool(self.features(x))  # (examples, fifth, 6, 6)
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def alexnet(*widths: int, classes: int = 1000, seed: int | None = None) -> AlexNet:
    """Build AlexNet, for 224 x 224 colour pictures; any of 63 x 63 or more will do.

    Convolutions of 11 x 11 (stride 4, padding 2), 5 x 5, 3 x 3, 3 x 3 and 3 x 3, each with ReLU;
    3 x 3 max pooling of stride 2 behind the first, second and fifth; the mean over each of 6 x 6
    places; dropout, a linear layer with ReLU, twice; output. Seven layers of units.

    Source: A. Krizhevsky, One weird trick for parallelizing convolutional neural networks,
    arXiv:1404.5997, as torchvision has it.

    Parameters
    ----------
    widths
        The filters of the five convolutions and the units of the two hidden layers, seven numbers
        in all; none gives 64, 192, 384, 256, 256, 4096, 4096.
    classes
        Units of output.
    seed
        As for `lenet`.

    Raises
    ------
    ModelError
        There are not seven widths, or one is not a whole number of 1 or more.

    Examples
    --------
    >>> sum(weight.numel() for weight in alexnet().parameters())
    61100840
    """
    chosen = widths or (*CONVOLUTIONS, *HIDDEN)
    check_width("classes", classes)
    check_count("alexnet", chosen, len(CONVOLUTIONS) + len(HIDDEN))
    *convolutions, first, second = chosen
    with drawing(seed):
        return AlexNet(convolutions, (first, second), classes)
