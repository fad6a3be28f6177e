"""The residual networks of He et al. for 32 x 32 colour pictures: shortcuts without weights."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from neurank.errors import ModelError
from neurank.zoo.convnet import check_count, check_width, drawing

WIDTHS = (16, 32, 64)
"""Channels of the three stages."""


class Block(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, added to what came in (the paper's option A).

    Where the map shrinks, the shortcut takes every second pixel and pads the channels with zeros,
    as many before as after.

    Parameters
    ----------
    before, after
        Channels that come in and go out.
    stride
        Of the first convolution.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride = stride
        self.zeros = ((after - before) // 2, (after - before + 1) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (examples, before, side, side) to (examples, after, side/stride, side/stride)."""
        found = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(found)) + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and not any(self.zeros):
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, *self.zeros))


class ResNet(nn.Module):
    """A 3 x 3 convolution, three stages of `Block`, the mean of each map, and a linear layer.

    Parameters are named ``conv1``, ``bn1``, ``layer1.0.conv1`` and so on, ``linear``.

    Parameters
    ----------
    blocks
        How many blocks each stage has.
    widths
        The channels of the three stages.
    classes
        The units of the output.
    """

    def __init__(self, blocks: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(blocks, first, first, 1)
        self.layer2 = _stage(blocks, first, second, 2)
        self.layer3 = _stage(blocks, second, third, 2)
        self.linear = nn.Linear(third, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures, (examples, 3, 32, 32), to logits, (examples, classes)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(blocks: int, before: int, after: int, stride: int) -> nn.Sequential:
    rest = [Block(after, after, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(before, after, stride), *rest)


def resnet20(*widths: int, classes: int = 10, seed: int | None = None) -> ResNet:
    """Build the residual network of 20 layers, for 32 x 32 colour pictures.

    A convolution; three stages of three blocks of 16, 32 and 64 channels, the second and third at
    half the side of the one before; the mean of each map; output.

    Parameters
    ----------
    widths
        The channels of the three stages; none gives the widths above.
    classes
        Units of output.
    seed
        As for `lenet`.

    Raises
    ------
    ModelError
        There are not three widths, one is not a whole number of 1 or more, or a stage is narrower
        than the one before.

    Examples
    --------
    >>> sum(weight.numel() for weight in resnet20().parameters())
    269722
    """
    return _resnet("resnet20", 3, widths, classes, seed)


def resnet32(*widths: int, classes: int = 10, seed: int | None = None) -> ResNet:
    """Build the residual network of 32 layers: as `resnet20`, with five blocks a stage.

    Parameters
    ----------
    widths, classes, seed
        As for `resnet20`.

    Raises
    ------
    ModelError
        As for `resnet20`.
    """
    return _resnet("resnet32", 5, widths, classes, seed)


def resnet44(*widths: int, classes: int = 10, seed: int | None = None) -> ResNet:
    """Build the residual network of 44 layers: as `resnet20`, with seven blocks a stage.

    Parameters
    ----------
    widths, classes, seed
        As for `resnet20`.

    Raises
    ------
    ModelError
        As for `resnet20`.
    """
    return _resnet("resnet44", 7, widths, classes, seed)


def resnet56(*widths: int, classes: int = 10, seed: int | None = None) -> ResNet:
    """Build the residual network of 56 layers: as `resnet20`, with nine blocks a stage.

    Parameters
    ----------
    widths, classes, seed
        As for `resnet20`.

    Raises
    ------
    ModelError
        As for `resnet20`.

    Examples
    --------
    >>> import torch
    >>> resnet56(2, 4, 8, seed=0).eval()(torch.zeros(3, 3, 32, 32)).shape
    torch.Size([3, 10])
    """
    return _resnet("resnet56", 9, widths, classes, seed)


def _resnet(
    name: str, blocks: int, widths: tuple[int, ...], classes: int, seed: int | None
) -> ResNet:
    chosen = widths or WIDTHS
    check_width("classes", classes)
    check_count(name, chosen, len(WIDTHS), of="stages")
    if list(chosen) != sorted(chosen):
        raise ModelError(
            f"{name} cannot have stages of {', '.join(map(str, chosen))} channels: its shortcuts "
            "only add channels, so give each stage at least the width of the one before"
        )
    with drawing(seed):
        return ResNet(blocks, chosen, classes)
