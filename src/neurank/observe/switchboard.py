"""Running the part of a network below an importance switch, with gradients to the switch only."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neurank.observe.examples import Examples
from neurank.observe.execution import Runner
from neurank.units.space import Layer

CACHE_BYTES = 2 * 2**30
"""Pre-activations up to this size are computed once and kept; beyond it, again in every epoch."""


@dataclass(frozen=True)
class SwitchedBatch:
    """A batch, run as far as the switch.

    Attributes
    ----------
    targets : (examples,) class indices.
    forward : from a switch, (units,), to the logits, (examples, classes): eqs. 3 to 5.
    """

    targets: Tensor
    forward: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Switchboard:
    """A layer whose pre-activations can be multiplied by a switch; weights are frozen.

    Attributes
    ----------
    units : length of the switch.
    examples : number of examples N.
    batches : yields the batches of one epoch, in the order of the data.
    """

    units: int
    examples: int
    batches: Callable[[], Iterator[SwitchedBatch]]


def switchboard(layer: Layer, runner: Runner, examples: Examples) -> Switchboard:
    """Cut the forward pass at the layer's pre-activation, eq. 3."""
    graph = runner.graph
    below = {operation.name for operation in graph.below(layer.switch)}
    above = {graph.input, *(operation.name for operation in graph.below(graph.input))} - below
    needed = graph.needed_for((graph.output,), known=(layer.switch,))
    side = tuple(
        dict.fromkeys(
            name
            for operation in needed
            if operation.name in below
            for name in operation.refs
            if name in above - {layer.switch}
        )
    )
    suffix = graph.needed_for((graph.output,), known=(layer.switch, *side))

    def prepare(inputs: Tensor, targets: Tensor) -> SwitchedBatch:
        with torch.no_grad():
            results = runner.forward(inputs, layer.switch, *side)
        known = dict(zip((layer.switch, *side), results, strict=True))
        before = known[layer.switch]

        def forward(switch: Tensor) -> Tensor:
            shape = (1, -1, *([1] * (before.ndim - 2)))
            started = {**known, layer.switch: switch.to(before.dtype).reshape(shape) * before}
            logits: Tensor = runner.run(suffix, started, len(before))[graph.output]
            return logits

        return SwitchedBatch(targets, forward)

    return Switchboard(layer.width, examples.count, _cached(prepare, layer, examples, runner))


def _cached(
    prepare: Callable[[Tensor, Tensor], SwitchedBatch],
    layer: Layer,
    examples: Examples,
    runner: Runner,
) -> Callable[[], Iterator[SwitchedBatch]]:
    shape = runner.graph.by_name[layer.switch].shape or ()
    floats = examples.count
    for size in shape:
        floats *= size or 1
    if floats * runner.tensors[layer.weight].element_size() > CACHE_BYTES:
        return lambda: (prepare(*batch) for batch in examples)
    kept: list[SwitchedBatch] = []

    def batches() -> Iterator[SwitchedBatch]:
        if not kept:
            kept.extend(prepare(*batch) for batch in examples)
        yield from kept

    return batches
