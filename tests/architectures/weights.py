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

    What was drawn for a bias or a running mean becomes the distance from the mean that is seen.
    Depth would else let results vanish, explode or forget the example, and many a ReLU be silent.

    Scales are powers of two and shifts are rounded, so that the weights do not hang on the order
    in which a processor sums.

    Parameters
    ----------
    inputs : examples, (examples, ...).
    balanced : whether the last layer says the logits; then each is zero in the mean.
    """
    centred: dict[nn.Module, None] = {}  # in the order in which they run

    def centre(layer: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> Tensor | None:
        if layer in centred:  # a module that runs twice
            return None
        centred[layer] = None
        if isinstance(layer, _BatchNorm):
            if layer.track_running_stats:
                layer.running_mean += _mean(given[0], channels=1)
            return layer.forward(*given)
        _scale(layer, result)
        if layer.bias is not None:
            channels = result.ndim - 1 if isinstance(layer, nn.Linear) else 1
            layer.bias -= _mean(layer.forward(*given), channels) - layer.bias
        return layer.forward(*given)

    model.eval()
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, _ConvNd | nn.Linear | _BatchNorm):
                hooks.callback(module.register_forward_hook(centre).remove)
        output = model(inputs)
    if balanced:
        last = [layer for layer in centred if not isinstance(layer, _BatchNorm)][-1]
        _scale(last, output)
        if last.bias is not None:
            last.bias -= _rounded(model(inputs).mean(dim=0))


def _scale(layer: nn.Module, result: Tensor) -> None:
    """Scale a layer so that its `result` differs from example to example by about one."""
    spread = (result - result.mean(dim=0)).square().mean().sqrt().item()
    layer.weight *= 2.0 ** -round(math.log2(spread)) if spread > 0 else 1.0


def _mean(x: Tensor, channels: int) -> Tensor:
    return _rounded(x.mean(dim=[dim for dim in range(x.ndim) if dim != channels]))


def _rounded(x: Tensor) -> Tensor:
    return (x * 64).round() / 64
