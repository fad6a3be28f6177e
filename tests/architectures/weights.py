"""Weights on which units differ and matter, and results stay of the order of one."""

import math
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@torch.no_grad()
def draw_weights(model: nn.Module) -> nn.Module:
    """Draw every parameter, and for BatchNorm running statistics that shift and scale."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            parameter.copy_(_drawn(module, name, parameter))
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def _drawn(module: nn.Module, name: str, parameter: Tensor) -> Tensor:
    if isinstance(module, NORMS) and name == "weight":
        return torch.rand_like(parameter) + 0.5
    if isinstance(module, NORMS) or name.startswith(("bias", "in_proj_bias")):
        return torch.randn_like(parameter) / 2
    if parameter.ndim < 2 or isinstance(module, nn.Embedding):  # scales of layers, embeddings
        return torch.randn_like(parameter)
    return torch.randn_like(parameter) * math.sqrt(2 / parameter[0].numel())


@torch.no_grad()
def calibrate(model: nn.Module, inputs: Tensor, *, balanced: bool) -> None:
    """Centre each layer on the examples, as training does, and bring it to the order of one.

    What was drawn for a bias or a running mean becomes the distance from the mean that is seen, a
    running variance the ratio to the variance that is seen. Depth would else let results vanish,
    explode or forget the example, gates stand still, and many a ReLU be silent.

    Scales are powers of two and shifts are rounded, so that the weights do not hang on the order
    in which a processor sums.

    Parameters
    ----------
    inputs : examples, (examples, ...).
    balanced : whether the last layer says the logits; then each is zero in the mean.
    """
    ran: list[nn.Module] = []

    def adjust(layer: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> Tensor:
        if layer in ran:
            _shrink(layer, result)
        elif isinstance(layer, _BatchNorm):
            _adjust_norm(layer, given[0])
        else:
            _adjust_linear(layer, given[0], result)
        ran.append(layer)
        return layer.forward(*given)

    model.eval()
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, _ConvNd | nn.Linear | _BatchNorm):
                hooks.callback(module.register_forward_hook(adjust).remove)
        model(inputs)
    if balanced:
        last = [layer for layer in ran if not isinstance(layer, _BatchNorm)][-1]
        _scale(last, model(inputs))
        if last.bias is not None:
            last.bias -= _rounded(model(inputs).mean(dim=0))


def _adjust_norm(norm: _BatchNorm, given: Tensor) -> None:
    if norm.track_running_stats:
        others = [dim for dim in range(given.ndim) if dim != 1]
        norm.running_mean += _rounded(given.mean(dim=others))
        norm.running_var *= 2.0 ** given.var(dim=others).clamp(min=1e-3).log2().round()


def _adjust_linear(layer: nn.Module, given: Tensor, result: Tensor) -> None:
    _scale(layer, result)
    if layer.bias is not None:
        result = layer.forward(given)
        channels = result.ndim - 1 if isinstance(layer, nn.Linear) else 1
        others = [dim for dim in range(result.ndim) if dim != channels]
        layer.bias -= _rounded(result.mean(dim=others) - layer.bias)


def _scale(layer: nn.Module, result: Tensor) -> None:
    """Scale a layer so that its `result` differs from example to example by about one."""
    spread = (result - result.mean(dim=0)).square().mean().sqrt().item()
    layer.weight *= 2.0 ** -round(math.log2(spread)) if spread > 0 else 1.0


def _shrink(layer: nn.Module, result: Tensor) -> None:
    """Scale a layer down that runs again, on something much larger than before."""
    size = result.square().mean().sqrt().item()
    if size > 4 and not isinstance(layer, _BatchNorm):
        layer.weight *= 2.0 ** -round(math.log2(size))


def _rounded(x: Tensor) -> Tensor:
    return (x * 64).round() / 64
