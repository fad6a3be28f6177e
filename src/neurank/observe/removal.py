"""What "off" means: the tensor that a unit's consumers receive instead of the unit.

`zero`
    Consumers receive 0. What physical removal gives.
`mean`
    Consumers receive the unit's mean at the point where they read it, before padding, over the
    examples of the data and over positions. What removal with bias propagation gives.
`parameters`
    The unit's own weights and bias are 0, the paper's literal procedure: a BatchNorm shift or an
    activation with f(0) ≠ 0 behind the unit lives on, as a constant.
"""

from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor

from neurank.errors import MethodError
from neurank.observe.examples import Examples
from neurank.observe.execution import Runner
from neurank.units.space import Layer

Removal = Literal["zero", "mean", "parameters"]


def check_removal(removal: str) -> Removal:
    """Return the removal, or say which there are.

    Example:
    -------
    >>> check_removal("zero")
    'zero'
    """
    for known in get_args(Removal):
        if removal == known:
            return known  # type: ignore[no-any-return]
    raise MethodError(
        f"removal={removal!r} is unknown: it is one of {', '.join(map(repr, get_args(Removal)))}"
    )


def off_values(removal: Removal, layer: Layer, runner: Runner, examples: Examples) -> Tensor:
    """Compute what the consumers of a layer receive for a unit that is off.

    Returns
    -------
    Tensor
        (units, positions): the same for every example; positions as in `unit_view`.
    """
    if removal == "mean":
        return _means(layer, runner, examples)
    inputs, _ = next(iter(examples))
    with torch.inference_mode():
        (produced,) = runner.forward(inputs[:1], layer.producer.name)
        nothing = torch.zeros_like(produced)
        if removal == "parameters":
            known = {layer.producer.name: nothing}
            bridge = runner.graph.needed_for((layer.read,), known=known)
            results = runner.run(bridge, known, 1, (layer.read,))
            return unit_view(results[layer.read], layer.width)[0]
        (read,) = runner.forward(inputs[:1], layer.read)
        return torch.zeros_like(unit_view(read, layer.width)[0])


def unit_view(read: Tensor, units: int) -> Tensor:
    """View what consumers read as (examples, units, positions).

    A map has its positions on the axes after the channels, a flattened map keeps those of one
    channel together: the same view serves both.

    Example:
    -------
    >>> unit_view(torch.arange(8).reshape(1, 8), 2)
    tensor([[[0, 1, 2, 3],
             [4, 5, 6, 7]]])
    """
    positions = prod(read.shape[1:]) // units
    return read.reshape(len(read), units, positions)


def _means(layer: Layer, runner: Runner, examples: Examples) -> Tensor:
    total = torch.zeros(layer.width, dtype=torch.float64, device=examples.device)
    count = 0
    positions = 0
    dtype = torch.float64
    with torch.inference_mode():
        for inputs, _ in examples:
            read = unit_view(runner.forward(inputs, layer.read)[0], layer.width)
            total += read.sum(dim=(0, 2), dtype=torch.float64)
            count += len(read) * read.shape[2]
            positions, dtype = read.shape[2], read.dtype
    mean = (total / count).to(dtype)
    return mean[:, None].expand(-1, positions).contiguous()
