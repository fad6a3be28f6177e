"""SqueezeNet 1.1 for 224 x 224 colour pictures."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from neurank.zoo.convnet import check_count, check_width, drawing

FIRST = 64
FIRES = (
    *((16, 64, 64), (16, 64, 64)),
    *((32, 128, 128), (32, 128, 128)),
    *((48, 192, 192), (48, 192, 192), (64, 256, 256), (64, 256, 256)),
)
"""Of each fire module the filters of squeeze, expand1x1 and expand3x3."""
POOLED = (0, 2, 4)
"""The places of the fire modules that a max pooling precedes."""


class Fire(nn.Module):
    """A 1 x 1 convolution that squeezes, then a 1 x 1 and a 3 x 3 one side by side.

    Parameters
    ----------
    before
        Channels that come in.
    squeezed, by1, by3
        Filters of the three convolutions.
    """

    def __init__(self, before: int, squeezed: int, by1: int, by3: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(before, squeezed, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeezed, by1, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeezed, by3, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (examples, before, side, side) to (examples, by1 + by3, side, side)."""
        x = self.squeeze_activation(self.squeeze(x))
        by1 = self.expand1x1_activation(self.expand1x1(x))
        return torch.cat([by1, self.expand3x3_activation(self.expand3x3(x))], dim=1)


class SqueezeNet(nn.Module):
    """A convolution, eight fire modules, and a convolution whose maps' means are the logits.

    Parameters are named as in torchvision's ``squeezenet1_1``: ``features.0``,
    ``features.3.squeeze`` and so on, ``classifier.1``.

    Parameters
    ----------
    first
        The filters of the first convolution.
    fires
        Of each fire module the filters of its three convolutions.
    classes
        The units of the output.
    """

    def __init__(self, first: int, fires: Sequence[tuple[int, int, int]], classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, first, 3, stride=2), nn.ReLU(inplace=True), *_fires(first, fires)
        )
        output = nn.Conv2d(fires[-1][1] + fires[-1][2], classes, 1)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), output, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures, (examples, 3, height, width), to logits, (examples, classes)."""
        return torch.flatten(self.classifier(self.features(x)), 1)


def _fires(before: int, fires: Sequence[tuple[int, int, int]]) -> Iterator[nn.Module]:
    for place, (squeezed, by1, by3) in enumerate(fires):
        if place in POOLED:
            yield nn.MaxPool2d(3, stride=2, ceil_mode=True)
        yield Fire(before, squeezed, by1, by3)
        before = by1 + by3


def squeezenet1_1(*widths: int, classes: int = 1000, seed: int | None = None) -> SqueezeNet:
    """Build SqueezeNet 1.1, for 224 x 224 colour pictures.

    A 3 x 3 convolution of stride 2; eight fire modules, 3 x 3 max pooling of stride 2 before the
    first, third and fifth; dropout; a 1 x 1 convolution to the classes, ReLU, the mean of each map.

    Parameters
    ----------
    widths
        The filters of the first convolution, then of each fire module those of squeeze, expand1x1
        and expand3x3, 25 numbers in all; none gives the published widths.
    classes
        Units of output.
    seed
        As for `lenet`.

    Raises
    ------
    ModelError
        There are not 25 widths, or one is not a whole number of 1 or more.

    Examples
    --------
    >>> sum(weight.numel() for weight in squeezenet1_1().parameters())
    1235496
    """
    chosen = widths or (FIRST, *(width for fire in FIRES for width in fire))
    check_width("classes", classes)
    check_count("squeezenet1_1", chosen, 1 + 3 * len(FIRES))
    first, *rest = chosen
    fires = [(rest[at], rest[at + 1], rest[at + 2]) for at in range(0, len(rest), 3)]
    with drawing(seed):
        return SqueezeNet(first, fires, classes)
