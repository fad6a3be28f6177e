"""What the filters of a convolution make of some pictures."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from neurank.errors import MethodError, UnitError
from neurank.modes import evaluating
from neurank.observe.execution import runner
from neurank.units.channelwise import NONLINEAR, is_channelwise
from neurank.units.graph import Graph
from neurank.units.space import Layer, unit_space
from neurank.units.trace import trace

Point = Literal["after", "before"]


def layer_maps(model: nn.Module, layer: str, inputs: Tensor, *, point: Point = "after") -> Tensor:
    """Return the feature maps of a convolution: one map per picture and unit.

    Parameters
    ----------
    model
        Any module that can be traced. It is run in evaluation mode and comes back as it was.
    layer
        Dotted name of a two-dimensional convolution.
    inputs
        A batch of pictures, (examples, channels, height, width), on any device.
    point
        ``"before"`` reads what the convolution itself computes, ``"after"`` what the first
        nonlinearity behind it makes of that (and a BatchNorm or a pooling in between).

    Returns
    -------
    Tensor
        (examples, units, height, width), on the CPU.

    Raises
    ------
    UnitError
        The layer is unknown, its units cannot be followed, it is not a two-dimensional
        convolution, or no nonlinearity follows it.
    MethodError
        `point` is something else.
    ModelError
        The model cannot be traced.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.Flatten())
    >>> maps = layer_maps(model, "0", torch.zeros(5, 1, 4, 4))
    >>> maps.shape, bool((maps >= 0).all())
    (torch.Size([5, 3, 2, 2]), True)
    """
    if point not in get_args(Point):
        raise MethodError(f"point={point!r} is unknown: it is one of 'after', 'before'")
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    pictures = inputs.detach().to(device)
    with evaluating(model), torch.no_grad():
        graph = trace(model, pictures)
        found = unit_space(graph, model)[layer]
        (maps,) = runner(graph, model, device).forward(pictures, _name_at(found, point, graph))
    if maps.ndim != 4:
        raise UnitError(
            f"layer {layer!r} has no maps to show, its result has the shape {tuple(maps.shape)}: "
            "name a two-dimensional convolution"
        )
    return maps.cpu()


def _name_at(layer: Layer, point: Point, graph: Graph) -> str:
    """Name the result to read: the layer's own, or that of the first nonlinearity behind it."""
    name = layer.producers[0].name
    if point == "before":
        return name
    while len(graph.readers[name]) == 1:
        operation = graph.readers[name][0]
        if operation.kind in NONLINEAR:
            return operation.name
        if not is_channelwise(operation, name, graph):
            break
        name = operation.name
    raise UnitError(
        f"no nonlinearity follows layer {layer.name!r} before it is read: ask for point='before'"
    )
