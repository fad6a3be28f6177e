"""How large the numbers of a suffix can become, for loops that do not look for overflow."""

from collections.abc import Iterable

import torch
from torch import Tensor

from neurank.observe.execution import Runner, weight_and_bias
from neurank.units.graph import Operation, Weight


def stays_finite(operations: Iterable[Operation], runner: Runner, peak: float) -> bool:
    """Whether no number can leave the floating-point range on the way through the operations.

    Magnitudes are bounded one operation after another: by the largest row sum of absolute weights
    of a linear layer, by the largest scale of a BatchNorm; anything else is taken to enlarge
    nothing, as activations that are bounded by their input and pooling do.

    Parameters
    ----------
    operations : linear layers, BatchNorms with fixed statistics, ReLUs, pooling, reshapes.
    peak : no magnitude before the first operation is larger.
    """
    dtype = torch.float64
    bound = torch.tensor(peak, dtype=dtype)
    for operation in operations:
        if operation.kind == "linear":
            weight, bias = weight_and_bias(operation, runner)
            dtype = weight.dtype
            added = 0 if bias is None else bias.abs().max().double()
            bound = bound * weight.abs().double().sum(dim=1).max() + added
        elif operation.kind == "batch_norm":
            bound = _normalised(operation, runner, bound)
        if not float(bound) < torch.finfo(dtype).max / 4:
            return False
    return True


def _normalised(operation: Operation, runner: Runner, bound: Tensor) -> Tensor:
    weight, bias, mean, variance = (
        runner.tensors[argument.name].double() if isinstance(argument, Weight) else torch.zeros(1)
        for argument in operation.args[1:5]
    )
    if not isinstance(operation.args[1], Weight):
        weight = torch.ones(1)
    scale = weight.abs() / torch.sqrt(variance + operation.args[7])
    return ((bound + mean.abs()) * scale + bias.abs()).max()
