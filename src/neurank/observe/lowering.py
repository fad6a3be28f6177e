"""Making a suffix cheaper without changing what it computes."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from neurank.observe.execution import Runner, weight_and_bias
from neurank.units.graph import Operation, Ref, Weight
from neurank.units.space import CONVOLUTIONS


def lowered(suffix: tuple[Operation, ...], runner: Runner) -> tuple[tuple[Operation, ...], Runner]:
    """Fold every BatchNorm with fixed statistics into the convolution before it.

    ``scale * (W x + b) + shift = (scale * W) x + (scale * b + shift)``: one pass over the maps
    less for each. The results are equal up to rounding.

    Parameters
    ----------
    suffix : operations in execution order.
    runner : the graph and its weights.

    Returns
    -------
    tuple
        The suffix without those BatchNorms, and a runner that has the folded weights besides.
    """
    by_name = {operation.name: operation for operation in suffix}
    tensors = dict(runner.tensors)
    kept: dict[str, Operation] = dict(by_name)
    for norm in suffix:
        before = norm.args[0].name if norm.args and isinstance(norm.args[0], Ref) else ""
        convolution = by_name.get(before)
        if norm.kind != "batch_norm" or convolution is None:
            continue
        alone = len(runner.graph.readers[before]) == 1 and before != runner.graph.output
        if convolution.kind not in CONVOLUTIONS or not alone:
            continue
        weight, bias = _folded(convolution, norm, runner)
        names = f"{norm.name} folded weight", f"{norm.name} folded bias"
        tensors.update(zip(names, (weight, bias), strict=True))
        arguments = (convolution.args[0], *map(Weight, names), *convolution.args[3:])
        del kept[before]
        kept[norm.name] = replace(convolution, name=norm.name, args=arguments)
    return tuple(kept.values()), replace(runner, tensors=tensors)


def scale_and_shift(norm: Operation, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return BatchNorm with fixed statistics as ``scale * x + shift`` per channel."""
    weight, bias, mean, variance = (
        None if argument is None else tensors[argument.name] for argument in norm.args[1:5]
    )
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance + norm.args[7])
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


def _folded(convolution: Operation, norm: Operation, runner: Runner) -> tuple[Tensor, Tensor]:
    """Compute in float64 and round once."""
    scale, shift = (it.double() for it in scale_and_shift(norm, runner.tensors))
    weight, bias = weight_and_bias(convolution, runner)
    folded = weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))
    moved = shift if bias is None else shift + scale * bias.double()
    return folded.to(weight.dtype), moved.to(weight.dtype)
