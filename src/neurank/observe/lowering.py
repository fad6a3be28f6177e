"""Making a suffix cheaper without changing what it computes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neurank.observe.execution import Runner, weight_and_bias
from neurank.observe.pooling import in_slices
from neurank.units.graph import Operation, Ref, Weight
from neurank.units.rules import CONVOLUTIONS


def lowered(suffix: tuple[Operation, ...], runner: Runner) -> tuple[tuple[Operation, ...], Runner]:
    """Fold every BatchNorm with fixed statistics into the convolution before it; pool by slices.

    ``scale * (W x + b) + shift = (scale * W) x + (scale * b + shift)``: one pass over the maps
    less for each. The results are equal up to rounding. Max pooling is that of
    `neurank.observe.pooling`.

    Parameters
    ----------
    suffix : operations in execution order.
    runner : the graph and its weights.

    Returns
    -------
    tuple
        The suffix without those BatchNorms, and a runner that has the folded weights besides.
    """
    kept = {operation.name: operation for operation in suffix}
    tensors = dict(runner.tensors)
    for norm in suffix:
        convolution = _folded_into(norm, kept, runner)
        if convolution is None:
            continue
        names = f"{norm.name} folded weight", f"{norm.name} folded bias"
        tensors.update(zip(names, _folded(convolution, norm, runner), strict=True))
        arguments = (convolution.args[0], *map(Weight, names), *convolution.args[3:])
        del kept[convolution.name]
        kept[norm.name] = replace(convolution, name=norm.name, args=arguments)
    operations = tuple(in_slices(operation) for operation in kept.values())
    return operations, replace(runner, tensors=tensors)


def in_bfloat16(
    suffix: tuple[Operation, ...], runner: Runner
) -> tuple[tuple[Operation, ...], Runner]:
    """Let the convolutions of a suffix multiply in bfloat16 and everything else stay as it is.

    Inputs and weights are rounded to 8 bits of mantissa, sums are kept in float32 by the
    processor and rounded once. Where the processor has instructions for it a convolution takes
    half the time. The results differ, so `Observer.decisions_changed` says how often that matters.
    """
    tensors = dict(runner.tensors)
    rounded = []
    for operation in suffix:
        is_fit = operation.kind in CONVOLUTIONS and _are_stored(operation.args[1:3])
        if not is_fit:
            rounded.append(operation)
            continue
        names = []
        for weight in operation.args[1:3]:
            if weight is not None:
                names.append(f"{weight.name} in bfloat16")
                tensors[names[-1]] = tensors[weight.name].to(torch.bfloat16)
        none = operation.args[1 + len(names) : 3]
        arguments = (operation.args[0], *map(Weight, names), *none, *operation.args[3:])
        target = _rounding(operation.target, operation.kind)
        rounded.append(replace(operation, target=target, args=arguments))
    return tuple(rounded), replace(runner, tensors=tensors)


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


def _rounding(target: Callable[..., Tensor], kind: str) -> Callable[..., Tensor]:
    def convolution(read: Tensor, *others: Any, **keywords: Any) -> Tensor:
        return target(read.to(torch.bfloat16), *others, **keywords).to(read.dtype)

    convolution.__name__ = kind  # an operation is known by its target's name
    return convolution


def _folded_into(
    norm: Operation, suffix: Mapping[str, Operation], runner: Runner
) -> Operation | None:
    """Return the convolution that a BatchNorm can be folded into, if there is one."""
    if norm.kind != "batch_norm" or norm.args[5] or not isinstance(norm.args[0], Ref):
        return None  # argument 5 says that the statistics are the batch's own
    convolution = suffix.get(norm.args[0].name)
    if convolution is None or convolution.kind not in CONVOLUTIONS:
        return None
    if not (_are_stored(norm.args[1:5]) and _are_stored(convolution.args[1:3])):
        return None
    is_read_elsewhere = len(runner.graph.readers[convolution.name]) > 1
    is_output = convolution.name == runner.graph.output
    return None if is_read_elsewhere or is_output else convolution


def _are_stored(arguments: Iterable[object]) -> bool:
    """Whether tensors are the model's own, not computed in the forward pass."""
    return all(argument is None or isinstance(argument, Weight) for argument in arguments)


def _folded(convolution: Operation, norm: Operation, runner: Runner) -> tuple[Tensor, Tensor]:
    """Compute the folded weight and bias in float64 and round them once."""
    exact = {name: runner.tensors[name].double() for name in norm.weights}
    scale, shift = scale_and_shift(norm, exact)
    weight, bias = weight_and_bias(convolution, runner)
    folded = weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))
    moved = shift if bias is None else shift + scale * bias.double()
    return folded.to(weight.dtype), moved.to(weight.dtype)
