"""Running the part of a network below an importance switch, with gradients to the switch only."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neurank.observe.examples import Examples
from neurank.observe.execution import Runner
from neurank.observe.masking import MaskedSuffix, off_name, on_name
from neurank.observe.removal import unit_view
from neurank.units.channelwise import FLATTENING
from neurank.units.graph import Graph, Operation
from neurank.units.space import Chain

CACHE_BYTES = 2 * 2**30
"""Batches, run as far as the switch, are kept up to this size; beyond it each epoch runs anew."""

HOMOGENEOUS = FLATTENING | {
    "alias", "clone", "contiguous", "detach", "dropout", "feature_dropout", "leaky_relu", "relu",
    "mean", *(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg") for n in (1, 2, 3)),
}  # fmt: skip
"""Channel-wise operations f with ``f(s h) = s f(h)`` for every s ≥ 0."""


@dataclass(frozen=True)
class SwitchedBatch:
    """A batch, run as far as the switch.

    Attributes
    ----------
    targets : (examples,) class indices.
    forward : from a switch s ≥ 0, (units,) for all examples or (examples, units) with one for
        each, to the logits, (examples, classes): eqs. 3 to 5 of the neuron-ranking paper.
    held_bytes : the memory that the batch occupies.
    """

    targets: Tensor
    forward: Callable[[Tensor], Tensor]
    held_bytes: int


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


@dataclass(frozen=True)
class _Cut:
    """The forward pass in two pieces.

    Attributes
    ----------
    at : name of the result that is multiplied.
    side : results from above the switch that the suffix reads besides.
    suffix : the operations from there to the logits.
    """

    at: str
    side: tuple[str, ...]
    suffix: tuple[Operation, ...]


def switchboard(layer: Chain, runner: Runner, examples: Examples) -> Switchboard:
    """Set up training of a switch on a layer's pre-activations, eq. 3 of the paper.

    The switch multiplies the pre-activation. Since it is never negative it passes unchanged
    through ReLU, pooling and flattening, ``relu(s h) = s relu(h)``, and is applied behind them:
    the same logits, from a smaller tensor and with less to differentiate in every step.
    """
    plain = replace(
        runner, tensors={name: _differentiable(it) for name, it in runner.tensors.items()}
    )
    cut = _cut(layer, plain.graph)

    def prepare(inputs: Tensor, targets: Tensor) -> SwitchedBatch:
        with torch.no_grad():
            results = plain.forward(inputs, cut.at, *cut.side)
        found = dict(zip((cut.at, *cut.side), map(_differentiable, results), strict=True))
        on = unit_view(found[cut.at], layer.width)

        def forward(switch: Tensor) -> Tensor:
            factors = switch.to(on).unsqueeze(-1)
            known = {**found, cut.at: (factors * on).reshape(found[cut.at].shape)}
            output = plain.graph.output
            logits: Tensor = plain.run(cut.suffix, known, len(on), (output,))[output]
            return logits

        held_bytes = sum(tensor.nbytes for tensor in found.values())
        return SwitchedBatch(_differentiable(targets), forward, held_bytes)

    return Switchboard(layer.width, examples.count, _batches(prepare, examples))


def coupled_switchboard(split: MaskedSuffix, runner: Runner, examples: Examples) -> Switchboard:
    """Set up training of a switch on units that are read in several places.

    The switch multiplies what is read, at every place.
    """
    tensors = {name: _differentiable(it) for name, it in runner.tensors.items()}
    unused = {
        name: torch.zeros(len(read.units), device=examples.device)
        for name, read in (
            (off_name(split.layer, place), read) for place, read in enumerate(split.layer.reads)
        )
    }
    above = replace(runner, tensors=tensors)
    below = Runner(split.graph, {**tensors, **unused})
    on, output = on_name(split.layer), split.graph.output

    def prepare(inputs: Tensor, targets: Tensor) -> SwitchedBatch:
        with torch.no_grad():
            results = above.forward(inputs, *split.side) if split.side else ()
        found = dict(zip(split.side, map(_differentiable, results), strict=True))

        def forward(switch: Tensor) -> Tensor:
            factors = switch.expand(len(targets), split.layer.width)
            known = {**found, on: factors}
            logits: Tensor = below.run(split.suffix, known, len(targets), (output,))[output]
            return logits

        held_bytes = sum(tensor.nbytes for tensor in found.values())
        return SwitchedBatch(_differentiable(targets), forward, held_bytes)

    return Switchboard(split.layer.width, examples.count, _batches(prepare, examples))


def _cut(layer: Chain, graph: Graph) -> _Cut:
    at = layer.switch
    for operation in _behind(layer):
        if operation.kind not in HOMOGENEOUS:
            break
        at = operation.name
    below = {operation.name for operation in graph.below(at)}
    reached = {graph.input, *(operation.name for operation in graph.below(graph.input))}
    read = dict.fromkeys(
        name
        for operation in graph.needed_for((graph.output,), known=(at,))
        if operation.name in below
        for name in operation.refs
    )
    side = tuple(name for name in read if name in reached - below - {at})
    return _Cut(at, side, graph.needed_for((graph.output,), known=(at, *side)))


def _behind(layer: Chain) -> tuple[Operation, ...]:
    """Return the channel-wise operations between the switch and the consumers."""
    names = [layer.producer.name, *(operation.name for operation in layer.bridge)]
    return layer.bridge[names.index(layer.switch) :]


def _batches(
    prepare: Callable[[Tensor, Tensor], SwitchedBatch], examples: Examples
) -> Callable[[], Iterator[SwitchedBatch]]:
    """Run the batches as far as the switch, once if they can all be kept, else in every epoch."""
    kept: list[SwitchedBatch] = []

    def batches() -> Iterator[SwitchedBatch]:
        if len(kept) == len(examples):
            yield from kept
            return
        kept.clear()  # an epoch that was broken off leaves a part
        held_bytes = 0
        for inputs, targets in examples:
            batch = prepare(inputs, targets)
            held_bytes += batch.held_bytes
            if held_bytes <= CACHE_BYTES:
                kept.append(batch)
            else:
                kept.clear()
            yield batch

    return batches


def _differentiable(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may keep, which one made in inference mode is not."""
    return tensor.clone() if tensor.is_inference() else tensor
