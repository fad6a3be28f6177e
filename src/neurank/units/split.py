"""Where the forward pass is cut so that the part above a layer is never run again.

prefix (once per example) | channel-wise bridge | additive consumer | suffix (once per coalition).
"""

from dataclasses import dataclass
from typing import Literal

from neurank.errors import UnitError
from neurank.units.graph import Graph, Operation
from neurank.units.rules import CONVOLUTIONS
from neurank.units.space import Chain

Mode = Literal["additive", "suffix"]


@dataclass(frozen=True)
class Split:
    """How a coalition of one layer's units becomes logits.

    Attributes
    ----------
    mode : ``additive`` if one convolution or linear layer reads the units, so that its result is a
        sum of one contribution per unit; ``suffix`` if the masked units themselves are handed on.
    layer : the layer whose units are on or off.
    consumer : the operation whose result is the sum (None in suffix mode).
    start : name of the result from which the suffix starts.
    suffix : the operations from there to the logits, in execution order.
    side : results that the suffix reads beside `start`, computed once per example.
    """

    mode: Mode
    layer: Chain
    consumer: Operation | None
    start: str
    suffix: tuple[Operation, ...]
    side: tuple[str, ...]


def split_at(graph: Graph, layer: Chain) -> Split:
    """Split the forward pass at a layer, additively where the consumers allow it."""
    consumer = layer.consumers[0] if len(layer.consumers) == 1 else None
    if consumer is not None and _is_additive(consumer):
        return _split(graph, layer, "additive", consumer, consumer.name)
    return _split(graph, layer, "suffix", None, layer.read)


def suffix_split(graph: Graph, layer: Chain) -> Split:
    """Split the forward pass where the units are read, making no use of additivity."""
    return _split(graph, layer, "suffix", None, layer.read)


def _is_additive(consumer: Operation) -> bool:
    """Whether the consumer's result is a sum over input channels: no groups between them."""
    if consumer.kind not in CONVOLUTIONS:
        return True
    groups = consumer.args[6] if len(consumer.args) > 6 else consumer.kwargs.get("groups", 1)
    return bool(groups == 1)


def _check_examples_first(graph: Graph, layer: Chain, name: str) -> None:
    """Refuse a result that cannot be taken along example by example."""
    shape = None if name == graph.input else graph.by_name[name].shape
    if shape is not None and shape[:1] != (None,):
        line = graph.by_name[name].line
        raise UnitError(
            f"the units of layer {layer.name!r} cannot be switched off: what follows also reads "
            f"{name!r}, whose first axis is not the examples ({line}). Leave the layer out, or "
            "keep the examples first there"
        )


def _split(graph: Graph, layer: Chain, mode: Mode, consumer: Operation | None, start: str) -> Split:
    depends_on_input = {graph.input, *(operation.name for operation in graph.below(graph.input))}
    depends_on_start = {start, *(operation.name for operation in graph.below(start))}
    side = dict.fromkeys(
        name
        for operation in graph.needed_for((graph.output,), known=(start,))
        if operation.name in depends_on_start
        for name in operation.refs
        if name in depends_on_input - depends_on_start
    )
    for name in side:
        _check_examples_first(graph, layer, name)
    suffix = graph.needed_for((graph.output,), known=(start, *side))
    return Split(mode, layer, consumer, start, suffix, tuple(side))
