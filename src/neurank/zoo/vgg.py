"""VGG-16 with BatchNorm for 32 x 32 colour pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neurank.zoo.convnet import check_count, check_width, drawing

CONVOLUTIONS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
HIDDEN = (512, 512)
POOLED = (1, 3, 6, 9, 12)
"""The places of the convolutions that a 2 x 2 max pooling follows."""


class VGG(nn.Module):
    """Thirteen 3 x 3 convolutions with BatchNorm and ReLU, then three linear layers.

    Parameters are named as in torchvision's ``vgg16_bn``: ``features.0``, ``features.1`` and so
    on, ``classifier.0``, ``classifier.3`` and ``classifier.6``.

    Parameters
    ----------
    convolutions
        The filters of each convolution.
    hidden
        The units of the two hidden linear layers.
    classes
        The units of the output.
    """

    def __init__(self, convolutions: Sequence[int], hidden: tuple[int, int], classes: int) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        before = 3
        for place, width in enumerate(convolutions):
            modules += [
                nn.Conv2d(before, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            modules += [nn.MaxPool2d(2)] if place in POOLED else []
            before = width
        self.features = nn.Sequential(*modules)
        self.classifier = nn.Sequential(
            nn.Linear(before, hidden[0]),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.Linear(hidden[1], classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures, (examples, 3, 32, 32), to logits, (examples, classes)."""
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


def vgg16(*widths: int, classes: int = 10, seed: int | None = None) -> VGG:
    """Build the VGG-16 of the neuron-ranking paper, for 32 x 32 colour pictures.

    Thirteen 3 x 3 convolutions, padding 1, each with BatchNorm and ReLU, of 64, 64, M, 128, 128,
    M, 256, 256, 256, M, 512, 512, 512, M, 512, 512, 512, M filters (M: 2 x 2 max pooling); two
    hidden linear layers of 512 units, with ReLU and dropout; output. Fifteen layers of units.

    Parameters
    ----------
    widths
        The filters of the thirteen convolutions and the units of the two hidden layers, fifteen
        numbers in all; none gives the widths above.
    classes
        Units of output.
    seed
        As for `lenet`.

    Raises
    ------
    ModelError
        There are not fifteen widths, or one is not a whole number of 1 or more.

    Examples
    --------
    >>> sum(weight.numel() for weight in vgg16().parameters())
    15253578
    """
    chosen = widths or (*CONVOLUTIONS, *HIDDEN)
    check_width("classes", classes)
    check_count("vgg16", chosen, len(CONVOLUTIONS) + len(HIDDEN))
    *convolutions, first, second = chosen
    with drawing(seed):
        return VGG(convolutions, (first, second), classes)
