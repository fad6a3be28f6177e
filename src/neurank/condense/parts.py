"""Layers that know what was removed in front of them.

A constant behind zero padding is not the same for the border as for the middle, and a normalisation
over units counts those that are gone. Both are made up for exactly, at any resolution, by torch's
own layers with one more tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def group_norm_of_rest(
    read: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    removed: Tensor,
) -> Tensor:
    """Normalise channels as if those that were removed were there, each a constant.

    Parameters
    ----------
    read : (examples, channels that are left, ...).
    groups : in how many groups they are normalised.
    weight, bias, eps : as of `torch.nn.functional.group_norm`.
    removed : (groups, 3): how many channels were removed, the sum of their constants, and the
        sum of their squares.

    Example
    -------
    >>> whole = torch.tensor([[1.0, 3.0, 5.0, 2.0]])
    >>> removed = torch.tensor([[1.0, 2.0, 4.0]])  # the last channel, which is 2 for all examples
    >>> found = group_norm_of_rest(whole[:, :3], 1, None, None, 1e-5, removed)
    >>> bool(torch.allclose(found, functional.group_norm(whole, 1)[:, :3]))
    True
    """
    # shape[0], since len() of a tensor is a plain number, which an export would hold
    by_group = read.reshape(read.shape[0], groups, read.shape[1] // groups, -1)
    everywhere = by_group.shape[3] * removed.to(read.dtype)[:, :, None, None]
    found = _normalised(by_group, (2, 3), eps, everywhere.unbind(1)).reshape(read.shape)
    shape = (1, -1, *[1] * (read.ndim - 2))
    if weight is not None:
        found = found * weight.reshape(shape)
    return found if bias is None else found + bias.reshape(shape)


def layer_norm_of_rest(
    read: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    removed: Tensor,
) -> Tensor:
    """Normalise the last axes as if the units that were removed were there, each a constant.

    Parameters
    ----------
    read : (..., *normalized_shape), what is left.
    normalized_shape, weight, bias, eps : as of `torch.nn.functional.layer_norm`.
    removed : (3,): how many entries were removed, the sum of their constants, and the sum of
        their squares.

    Example
    -------
    >>> whole = torch.tensor([[1.0, 3.0, 5.0, 2.0]])
    >>> removed = torch.tensor([1.0, 2.0, 4.0])
    >>> found = layer_norm_of_rest(whole[:, :3], (3,), None, None, 1e-5, removed)
    >>> bool(torch.allclose(found, functional.layer_norm(whole, (4,))[:, :3]))
    True
    """
    axes = tuple(range(read.ndim - len(normalized_shape), read.ndim))
    found = _normalised(read, axes, eps, removed.to(read.dtype).unbind())
    if weight is not None:
        found = found * weight
    return found if bias is None else found + bias


def rms_norm_of_rest(
    read: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    removed: Tensor,
) -> Tensor:
    """Divide by the root mean square as if the units that were removed were there.

    Parameters
    ----------
    read : (..., *normalized_shape), what is left.
    normalized_shape, weight, eps : as of `torch.nn.functional.rms_norm`.
    removed : as for `layer_norm_of_rest`.
    """
    axes = tuple(range(read.ndim - len(normalized_shape), read.ndim))
    number, _, squares = removed.to(read.dtype).unbind()
    whole = prod(read.shape[axis] for axis in axes) + number
    small = torch.finfo(read.dtype).eps if eps is None else eps
    square = (read.square().sum(dim=axes, keepdim=True) + squares) / whole
    found = read * torch.rsqrt(square + small)
    return found if weight is None else found * weight


def reduction_of_rest(
    kind: str, read: Tensor, axes: Sequence[int], keepdim: bool, removed: Tensor
) -> Tensor:
    """Reduce over units as if those that were removed were there, each a constant.

    Parameters
    ----------
    kind : ``mean``, ``sum``, ``amax`` or ``amin``.
    read : what is left.
    axes, keepdim : over which axes, and whether these stay with size 1.
    removed : (4,): how many entries were removed, the sum of their constants, the least and the
        largest.

    Example
    -------
    >>> removed = torch.tensor([1.0, 2.0, 2.0, 2.0])
    >>> reduction_of_rest("mean", torch.tensor([[1.0, 3.0]]), [1], False, removed)
    tensor([2.])
    """
    number, total, least, largest = removed.to(read.dtype).unbind()
    over = tuple(axes)
    if kind == "amax":
        return torch.maximum(read.amax(dim=over, keepdim=keepdim), largest)
    if kind == "amin":
        return torch.minimum(read.amin(dim=over, keepdim=keepdim), least)
    found: Tensor = read.sum(dim=over, keepdim=keepdim) + total
    return found if kind == "sum" else found / (prod(read.shape[it] for it in over) + number)


def _normalised(
    read: Tensor, axes: tuple[int, ...], eps: float, removed: Sequence[Tensor]
) -> Tensor:
    """Subtract the mean and divide by the deviation of what is left and what was removed."""
    number, total, squares = removed
    whole = prod(read.shape[axis] for axis in axes) + number
    mean = (read.sum(dim=axes, keepdim=True) + total) / whole
    apart = read - mean
    spread = apart.square().sum(dim=axes, keepdim=True)
    lost = squares - 2 * mean * total + number * mean.square()
    return apart * torch.rsqrt((spread + lost) / whole + eps)


def constant_term(
    kind: str,
    read: Tensor,
    kernel: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    output_padding: Any = 0,
) -> Tensor:
    """Compute what removed channels, each a constant, added to the result of a convolution.

    Parameters
    ----------
    kind : ``conv1d`` to ``conv_transpose3d``.
    read : (examples, channels that are left, ...); only its size counts.
    kernel : the removed channels' weights times their constants, summed, as the kernel of one
        channel.
    stride, padding, dilation, output_padding : as of the convolution.

    Returns
    -------
    Tensor
        (1, channels, ...): the same for all examples, smaller at a padded border.

    Example
    -------
    >>> constant_term("conv1d", torch.zeros(1, 5, 4), torch.ones(1, 1, 3), 1, 1, 1)
    tensor([[[2., 3., 3., 2.]]])
    """
    ones = torch.ones(1, 1, *read.shape[2:], dtype=read.dtype, device=read.device)
    convolve: Callable[..., Tensor] = getattr(functional, kind)
    if "transpose" in kind:
        return convolve(ones, kernel, None, stride, padding, output_padding, 1, dilation)
    return convolve(ones, kernel, None, stride, padding, dilation)


class LayerNormOfRest(nn.LayerNorm):
    """LayerNorm over the units that are left, counting those that were removed."""

    removed: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last axes."""
        return layer_norm_of_rest(
            input, self.normalized_shape, self.weight, self.bias, self.eps, self.removed
        )


class GroupNormOfRest(nn.GroupNorm):
    """GroupNorm over the channels that are left, counting those that were removed."""

    removed: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the channels, on axis 1, group by group."""
        return group_norm_of_rest(
            input, self.num_groups, self.weight, self.bias, self.eps, self.removed
        )


class RMSNormOfRest(nn.RMSNorm):
    """RMSNorm over the units that are left, counting those that were removed."""

    removed: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the root mean square of the last axes."""
        return rms_norm_of_rest(x, self.normalized_shape, self.weight, self.eps, self.removed)


class _WithConstant:
    """A convolution that adds what removed channels gave, less at a padded border."""

    constant: nn.Parameter
    _kind: str

    def forward(self, input: Tensor, *size: Any) -> Tensor:
        """Convolve maps, (examples, channels, ...)."""
        settings: Any = self
        added = constant_term(
            self._kind,
            input,
            self.constant,
            settings.stride,
            settings.padding,
            settings.dilation,
            settings.output_padding,
        )
        found: Tensor = super().forward(input, *size)  # type: ignore[misc]  # the convolution's own
        return found + added


class Conv1dWithConstant(_WithConstant, nn.Conv1d):
    """`torch.nn.Conv1d` and what removed channels gave."""

    _kind = "conv1d"


class Conv2dWithConstant(_WithConstant, nn.Conv2d):
    """`torch.nn.Conv2d` and what removed channels gave."""

    _kind = "conv2d"


class Conv3dWithConstant(_WithConstant, nn.Conv3d):
    """`torch.nn.Conv3d` and what removed channels gave."""

    _kind = "conv3d"


class ConvTranspose1dWithConstant(_WithConstant, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` and what removed channels gave."""

    _kind = "conv_transpose1d"


class ConvTranspose2dWithConstant(_WithConstant, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` and what removed channels gave."""

    _kind = "conv_transpose2d"


class ConvTranspose3dWithConstant(_WithConstant, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` and what removed channels gave."""

    _kind = "conv_transpose3d"


PARTS: Mapping[tuple[type[nn.Module], str], type[nn.Module]] = {
    (nn.LayerNorm, "removed"): LayerNormOfRest,
    (nn.GroupNorm, "removed"): GroupNormOfRest,
    (nn.RMSNorm, "removed"): RMSNormOfRest,
    (nn.Conv1d, "constant"): Conv1dWithConstant,
    (nn.Conv2d, "constant"): Conv2dWithConstant,
    (nn.Conv3d, "constant"): Conv3dWithConstant,
    (nn.ConvTranspose1d, "constant"): ConvTranspose1dWithConstant,
    (nn.ConvTranspose2d, "constant"): ConvTranspose2dWithConstant,
    (nn.ConvTranspose3d, "constant"): ConvTranspose3dWithConstant,
}
"""By torch's layer and the tensor that it needs besides."""
