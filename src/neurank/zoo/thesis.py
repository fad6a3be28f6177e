"""The small networks of the dead-units thesis, for MNIST and CIFAR-10."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from neurank.errors import ModelError
from neurank.zoo.convnet import check_width, drawing

Pictures = Literal["mnist", "cifar10"]
Activation = Literal["relu", "tanh"]
Norm = Literal["none", "plain", "affine"]

_SHAPES: Mapping[str, tuple[int, int]] = MappingProxyType({"mnist": (1, 28), "cifar10": (3, 32)})
"""Channels, and the side of the pictures."""

_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"relu": functional.relu, "tanh": torch.tanh}
)
_KERNEL = 5


class ThesisCNN(nn.Module):
    """Two unpadded 5 x 5 convolutions with 2 x 2 max pooling, then two linear layers.

    Parameters
    ----------
    widths
        The units of conv1, conv2 and fc1, in that order.
    classes
        The units of the output, fc2.
    shape
        Channels and side of the square pictures.
    activation
        Behind the pooling of a convolution, and behind fc1.
    norm
        BatchNorm behind each activation: ``"none"``, ``"plain"`` without parameters of its own, or
        ``"affine"`` with scale and shift.
    """

    def __init__(
        self,
        widths: tuple[int, int, int],
        classes: int,
        *,
        shape: tuple[int, int],
        activation: Activation,
        norm: Norm,
    ) -> None:
        super().__init__()
        for name, width in zip(("c1", "c2", "f1", "classes"), (*widths, classes), strict=True):
            check_width(name, width)
        c1, c2, f1 = widths
        channels, side = shape
        for _ in range(2):
            side = (side - _KERNEL + 1) // 2
        self.activation = activation
        self.conv1 = nn.Conv2d(channels, c1, _KERNEL)
        self.conv1_norm = _normed(nn.BatchNorm2d, c1, norm)
        self.conv2 = nn.Conv2d(c1, c2, _KERNEL)
        self.conv2_norm = _normed(nn.BatchNorm2d, c2, norm)
        self.fc1 = nn.Linear(c2 * side * side, f1)
        self.fc1_norm = _normed(nn.BatchNorm1d, f1, norm)
        self.fc2 = nn.Linear(f1, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures, (examples, channels, side, side), to logits, (examples, classes)."""
        active = _FUNCTIONS[self.activation]
        x = self.conv1_norm(active(functional.max_pool2d(self.conv1(x), 2)))  # (., c1, ., .)
        x = self.conv2_norm(active(functional.max_pool2d(self.conv2(x), 2)))  # (., c2, ., .)
        x = self.fc1_norm(active(self.fc1(x.flatten(1))))  # (., f1)
        logits: Tensor = self.fc2(x)
        return logits


def thesis_cnn(
    c1: int = 8,
    c2: int = 16,
    f1: int = 64,
    *,
    pictures: Pictures = "mnist",
    activation: Activation = "relu",
    norm: Norm = "none",
    classes: int = 10,
    seed: int | None = None,
) -> ThesisCNN:
    """Build the small CNN of the dead-units thesis (appendix C).

    conv1 (5 x 5, no padding), 2 x 2 max pooling, activation; conv2 likewise; fc1, activation; fc2.
    For MNIST, 8-16-64 is the network of sections 2.2 and 4.2; the list in appendix C has 32 units
    in fc1, and section 4.1 has 256. For CIFAR-10 it is 8-16-64 throughout chapter 3. BatchNorm,
    where there is any, comes behind the activation, which is how section 3.4 reasons and how the
    thesis' own code, which has it without parameters, runs.

    The initialisation is torch's own, uniform within ±1/sqrt(incoming connections). Section 3.3
    says that it used just this, and then writes its range as ± the variance 1/n.

    Parameters
    ----------
    c1, c2
        Filters of conv1 and conv2.
    f1
        Units of fc1.
    pictures
        What the network is for: ``"mnist"``, 28 x 28 grey, or ``"cifar10"``, 32 x 32 in colour.
    activation
        ``"relu"`` or ``"tanh"``.
    norm
        BatchNorm behind every activation: ``"none"``, ``"plain"`` or ``"affine"``.
    classes
        Units of fc2.
    seed
        Draws the weights and leaves torch's generator as it is; by default they come from
        torch's generator, which `torch.manual_seed` governs.

    Raises
    ------
    ModelError
        A width is not a whole number of 1 or more, or a choice is unknown.

    Examples
    --------
    >>> def parameters(model):
    ...     return sum(weight.numel() for weight in model.parameters())
    >>> parameters(thesis_cnn()), parameters(thesis_cnn(4, 7, 26))
    (20522, 4019)
    """
    for name, choice, known in (
        ("pictures", pictures, Pictures),
        ("activation", activation, Activation),
        ("norm", norm, Norm),
    ):
        if choice not in get_args(known):
            raise ModelError(
                f"{name}={choice!r} is unknown: give one of {', '.join(map(repr, get_args(known)))}"
            )
    with drawing(seed):
        return ThesisCNN(
            (c1, c2, f1), classes, shape=_SHAPES[pictures], activation=activation, norm=norm
        )


def _normed(kind: type[nn.BatchNorm1d | nn.BatchNorm2d], width: int, norm: Norm) -> nn.Module:
    return nn.Identity() if norm == "none" else kind(width, affine=norm == "affine")
