"""The papers' LeNet and a sibling for 8 x 8 pictures: two convolutions, three linear layers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from neurank.errors import ModelError


class ConvNet(nn.Module):
    """Two unpadded convolutions with ReLU and 2 x 2 max pooling, then three linear layers.

    Parameters
    ----------
    widths
        The units of conv1, conv2, fc1 and fc2, in that order.
    classes
        The units of the output.
    kernels
        The side of the kernels of conv1 and conv2.
    pools
        The side of the max pooling behind conv1 and conv2; 1 is none.
    side
        The side of the square grey pictures.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        classes: int,
        *,
        kernels: tuple[int, int],
        pools: tuple[int, int],
        side: int,
    ) -> None:
        super().__init__()
        names = ("c1", "c2", "f1", "f2", "classes")
        for name, width in zip(names, (*widths, classes), strict=True):
            check_width(name, width)
        c1, c2, f1, f2 = widths
        for kernel, pool in zip(kernels, pools, strict=True):
            side = (side - kernel + 1) // pool
        self.pools = pools
        self.conv1 = nn.Conv2d(1, c1, kernels[0])
        self.conv2 = nn.Conv2d(c1, c2, kernels[1])
        self.fc1 = nn.Linear(c2 * side * side, f1)
        self.fc2 = nn.Linear(f1, f2)
        self.output = nn.Linear(f2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures, (examples, 1, side, side), to logits, (examples, classes)."""
        x = _pooled(functional.relu(self.conv1(x)), self.pools[0])  # (examples, c1, ., .)
        x = _pooled(functional.relu(self.conv2(x)), self.pools[1])  # (examples, c2, ., .)
        x = functional.relu(self.fc1(x.flatten(1)))  # (examples, f1)
        x = functional.relu(self.fc2(x))  # (examples, f2)
        logits: Tensor = self.output(x)
        return logits


def lenet(
    c1: int = 10,
    c2: int = 20,
    f1: int = 100,
    f2: int = 25,
    *,
    classes: int = 10,
    seed: int | None = None,
) -> ConvNet:
    """Build the LeNet of the neuron-ranking paper, for 28 x 28 grey pictures.

    conv1 (5 x 5, no padding), ReLU, 2 x 2 max pooling; conv2 likewise; fc1, ReLU; fc2, ReLU;
    output. The paper's full network is 10-20-100-25, its small one 5-7-45-20.

    Parameters
    ----------
    c1, c2
        Filters of conv1 and conv2.
    f1, f2
        Units of fc1 and fc2.
    classes
        Units of output.
    seed
        Draws the weights and leaves torch's generator as it is; by default they come from
        torch's generator, which `torch.manual_seed` governs.

    Raises
    ------
    ModelError
        A width is not a whole number of 1 or more.

    Examples
    --------
    >>> sum(weight.numel() for weight in lenet(5, 7, 45, 20).parameters())
    7227
    """
    with drawing(seed):
        return ConvNet((c1, c2, f1, f2), classes, kernels=(5, 5), pools=(2, 2), side=28)


def digits_net(
    c1: int = 8,
    c2: int = 16,
    f1: int = 32,
    f2: int = 16,
    *,
    classes: int = 10,
    seed: int | None = None,
) -> ConvNet:
    """Build LeNet's sibling for 8 x 8 grey pictures; its layers have the same names.

    conv1 (3 x 3, no padding), ReLU; conv2 (3 x 3, no padding), ReLU, 2 x 2 max pooling; fc1,
    ReLU; fc2, ReLU; output.

    Parameters
    ----------
    c1, c2
        Filters of conv1 and conv2.
    f1, f2
        Units of fc1 and fc2.
    classes
        Units of output.
    seed
        As for `lenet`.

    Raises
    ------
    ModelError
        A width is not a whole number of 1 or more.

    Examples
    --------
    >>> digits_net(seed=0)(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """
    with drawing(seed):
        return ConvNet((c1, c2, f1, f2), classes, kernels=(3, 3), pools=(1, 2), side=8)


@contextmanager
def drawing(seed: int | None) -> Iterator[None]:
    """Let weights be drawn from `seed`, or from torch's generator where there is none."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def check_width(name: str, width: int) -> None:
    """Refuse what is no number of units."""
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ModelError(f"{name}={width!r} is not a whole number of 1 or more")


def check_count(
    network: str, widths: Sequence[int], count: int, *, of: str = "layers of units"
) -> None:
    """Refuse a wrong number of widths, or one that is no width."""
    if len(widths) != count:
        raise ModelError(f"{network} has {count} {of} and {len(widths)} widths: {widths}")
    for place, width in enumerate(widths):
        check_width(f"width {place}", width)


def _pooled(x: Tensor, side: int) -> Tensor:
    return x if side == 1 else functional.max_pool2d(x, side)
