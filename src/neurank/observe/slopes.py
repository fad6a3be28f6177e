"""How the loss changes as units fade: derivatives with respect to all units, in one pass.

Every read of a unit is replaced by ``off + m (h - off)`` with m = 1. One forward and one backward
pass give d loss / d m of every unit of every layer, example by example:
``sum of g (h - off)`` over the unit's places, with g the gradient of the example's loss there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from neurank.errors import ModelError
from neurank.observe.examples import Examples
from neurank.observe.execution import Runner
from neurank.observe.masking import examples_inside, masked, off_tensors, on_name
from neurank.observe.removal import Removal, off_constants
from neurank.units.coupling import Coupling
from neurank.units.space import Layer


@dataclass(frozen=True)
class Slopes:
    """Sums over the examples of each class of one layer, float64.

    Attributes
    ----------
    examples : (classes,), how many.
    sizes : (classes, units), the sum of |d loss / d m|.
    squares : (classes, units), the sum of their squares.
    """

    examples: Tensor
    sizes: Tensor
    squares: Tensor


def slopes(
    layers: Sequence[Layer],
    runner: Runner,
    coupling: Coupling,
    examples: Examples,
    removal: Removal,
    classes: int,
    memory: int,
) -> Mapping[str, Slopes]:
    """Compute the slopes of all layers in one pass over the data.

    Parameters
    ----------
    layers : whose units fade.
    runner, coupling : the network.
    examples : the data; the loss is the cross-entropy of the logits.
    removal : what is received for a unit that has faded.
    classes : number of logits.
    memory : about how many bytes the results of a forward pass may take.

    Raises
    ------
    ModelError
        If a slope is NaN or infinite.
    """
    off = off_constants(removal, layers, runner, examples)
    first, _ = next(iter(examples))
    inner: dict[str, bool] = {}
    for layer in layers:
        inner.update(examples_inside(layer, runner, coupling, first))
    graph = masked(runner.graph, layers, inner)
    tensors = {name: _plain(tensor) for name, tensor in runner.tensors.items()}
    for layer in layers:
        tensors.update(off_tensors(layer, off[layer.name]))
    running = Runner(graph, tensors)
    shapes = {layer.name: (classes, layer.width) for layer in layers}
    empty = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    found = {name: Slopes(torch.zeros(classes), it, it.clone()) for name, it in empty.items()}
    for inputs, targets in _pieces(examples, running, memory):
        by_layer = _slopes_of(layers, running, inputs, targets)
        for name, values in by_layer.items():
            found[name] = _added(found[name], values.cpu().to(torch.float64), targets.cpu())
    return found


def _slopes_of(
    layers: Sequence[Layer], running: Runner, inputs: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """Return d loss / d m of each example and unit, layer by layer."""
    graph = running.graph
    on = {}
    for layer in layers:
        ones = torch.ones(len(inputs), layer.width, device=inputs.device)
        on[on_name(layer)] = ones.requires_grad_()
    known = {graph.input: inputs, **on}
    with torch.enable_grad():
        needed = graph.needed_for((graph.output,), known=known)
        logits = running.run(needed, known, len(inputs), (graph.output,))[graph.output]
        loss = functional.cross_entropy(logits, targets, reduction="sum")
        gradients = torch.autograd.grad(loss, list(on.values()), allow_unused=True)
    found = {}
    for layer, one, gradient in zip(layers, on.values(), gradients, strict=True):
        values = torch.zeros_like(one) if gradient is None else gradient
        if not bool(torch.isfinite(values).all()):
            raise ModelError(
                f"the gradient of the loss with respect to the units of layer {layer.name!r} is "
                "NaN or infinite: check the weights and the scale of the inputs"
            )
        found[layer.name] = values.detach()
    return found


def _pieces(examples: Examples, running: Runner, memory: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut batches so that the results of a forward pass, kept for the backward pass, fit."""
    floats = sum(
        prod(size or 1 for size in operation.shape or ()) for operation in running.graph.operations
    )
    size = max(1, memory // (8 * floats))
    for inputs, targets in examples:
        for start in range(0, len(targets), size):
            rows = slice(start, start + size)
            yield _plain(inputs[rows]), _plain(targets[rows])


def _added(before: Slopes, values: Tensor, targets: Tensor) -> Slopes:
    count = torch.ones(len(targets))
    return replace(
        before,
        examples=before.examples.index_add(0, targets, count),
        sizes=before.sizes.index_add(0, targets, values.abs()),
        squares=before.squares.index_add(0, targets, values.square()),
    )


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may keep, which one made in inference mode is not."""
    return tensor.clone() if tensor.is_inference() else tensor
