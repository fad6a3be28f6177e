"""The constant that removed units leave behind, folded into their consumers' biases.

A unit that is off gives its consumers a constant (``neurank.observe.removal``). Where the unit is
cut away, a consumer's result lacks W[:, removed] · constant, which is the same for every example:
it is added to the bias. That is exact for a linear layer and for a convolution without padding.
Behind zero padding the border sees the constant fewer times than the middle, so no bias is exact
and the removal is refused there.
"""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from neurank.condense.plan import Plan
from neurank.condense.surgery import bias_of, cut_layers, refuse_shared
from neurank.errors import CondenseError
from neurank.observe.execution import Runner
from neurank.units.graph import Operation
from neurank.units.space import CONVOLUTIONS, UnitSpace

_ULPS = 16
"""By how many units in the last place one constant may vary over positions: vectorised and plain
code round a tanh differently."""


def bias_shifts(
    plan: Plan, space: UnitSpace, off: Mapping[str, Tensor], runner: Runner, model: nn.Module
) -> dict[str, Tensor]:
    """Work out what must be added to which bias, by dotted name; biases that stay are left out.

    Parameters
    ----------
    plan : what is removed.
    space, runner, model : the network before surgery.
    off : by layer, (units, positions), what the consumers receive from units that are off.

    Returns
    -------
    dict
        Each shift is (features,), in float64, for the consumer's features before it is cut itself.

    Raises
    ------
    CondenseError
        If a constant lies behind zero padding, or there is no bias to add it to.
    """
    shifts: dict[str, Tensor] = {}
    for layer in cut_layers(plan, space):
        removed = list(plan.removed(layer.name))
        constants = off[layer.name][removed].to(torch.float64)
        if not bool(constants.any()):
            continue
        for consumer in layer.consumers:
            weight = runner.tensors[consumer.weights[0]].to(torch.float64)
            if consumer.kind in CONVOLUTIONS:
                if _pads(consumer, weight):
                    raise _padded(consumer, layer.name, removed, constants)
                per_position = weight.flatten(2).sum(dim=2, keepdim=True)
                seen = _per_channel(constants, off[layer.name].dtype, consumer, layer.name)
            else:
                per_position = weight.reshape(len(weight), layer.width, -1)
                seen = constants
            name = bias_of(consumer, model)
            if name in runner.tensors:
                refuse_shared(name, space, model)
            shifts[name] = torch.einsum("fup,up->f", per_position[:, removed], seen)
    return shifts


def _pads(consumer: Operation, weight: Tensor) -> bool:
    """Whether a convolution sees zeros around its input."""
    padding = consumer.args[4] if len(consumer.args) > 4 else consumer.kwargs.get("padding", 0)
    if padding == "same":
        return prod(weight.shape[2:]) > 1
    if isinstance(padding, str):
        return False
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def _padded(
    consumer: Operation, layer: str, removed: Sequence[int], constants: Tensor
) -> CondenseError:
    largest = int(constants.abs().amax(dim=1).argmax())
    return CondenseError(
        f"unit {removed[largest]} of layer {layer!r} leaves a constant of up to "
        f"{float(constants[largest].abs().max()):.3g} in front of the zero padding of "
        f"{_owner(consumer)!r}: its border sees the constant fewer times than its middle, so no "
        "bias makes up for the unit exactly. Use removal='zero', or leave the layer out of the plan"
    )


def _per_channel(constants: Tensor, dtype: torch.dtype, consumer: Operation, layer: str) -> Tensor:
    """Return the one constant of each channel, (units, 1), that a convolution sees everywhere."""
    spread = float((constants.amax(dim=1) - constants.amin(dim=1)).max())
    if spread > _ULPS * torch.finfo(dtype).eps * float(constants.abs().max()):
        raise CondenseError(
            f"what removed units of layer {layer!r} leave varies by {spread:.3g} over the "
            f"positions that {_owner(consumer)!r} convolves (a pooling that counts its padding, "
            "say), so no bias makes up for them exactly. Use removal='zero', or leave the layer "
            "out of the plan"
        )
    return constants.mean(dim=1, keepdim=True)


def _owner(consumer: Operation) -> str:
    return consumer.weights[0].rpartition(".")[0]
