"""Which operations leave the channels of a tensor apart: one rule each.

A channel-wise operation computes channel c of its result from channel c of its input, so a unit
that is switched off before it is still the same unit after it. Operations without a rule are
not guessed at.
"""

from collections.abc import Callable
from math import prod

from neurank.units.graph import Graph, Operation, Ref

ELEMENTWISE = frozenset(
    {
        "alias", "celu", "clone", "contiguous", "detach", "dropout", "elu", "feature_dropout",
        "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_sigmoid",
        "mish", "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softshrink", "softsign",
        "tanh", "tanhshrink", "threshold",
    }
)  # fmt: skip
"""Activations and identities: shape and channels stay as they are."""

NONLINEAR = ELEMENTWISE - {"alias", "clone", "contiguous", "detach", "dropout", "feature_dropout"}
"""The activations among them."""

POOLING = frozenset(
    f"{kind}_pool{dimensions}d"
    for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg")
    for dimensions in (1, 2, 3)
)
"""Each map shrinks by itself."""

FLATTENING = frozenset({"flatten", "view", "reshape", "unsafe_view"})
"""(examples, channels, positions...) to (examples, channels x positions), channel by channel."""


def _pools_positions(operation: Operation, before: tuple[int | None, ...]) -> bool:
    """Whether it pools all axes behind the channels, and only those.

    Of a tensor with one axis less torch takes the units for positions.
    """
    dimensions = int(operation.kind[-2])
    pooled = len(before) == dimensions + 2
    return pooled and operation.shape is not None and operation.shape[:2] == before[:2]


def _normalises_with_fixed_statistics(operation: Operation, _: tuple[int | None, ...]) -> bool:
    training = operation.args[5]
    return training is False


def _flattens_all(operation: Operation, before: tuple[int | None, ...]) -> bool:
    sizes = [size for size in before[1:] if size is not None]
    return len(sizes) == len(before) - 1 and operation.shape == (None, prod(sizes))


def _averages_positions(operation: Operation, before: tuple[int | None, ...]) -> bool:
    dimensions = operation.args[1] if len(operation.args) > 1 else None
    if not isinstance(dimensions, list | tuple):
        return False
    positions = set(range(2, len(before)))
    return {dimension % len(before) for dimension in dimensions} == positions


_Rule = Callable[[Operation, tuple[int | None, ...]], bool]

_RULES: dict[str, _Rule] = {
    **dict.fromkeys(ELEMENTWISE, lambda operation, before: operation.shape == before),
    **dict.fromkeys(POOLING, _pools_positions),
    **dict.fromkeys(FLATTENING, _flattens_all),
    "batch_norm": _normalises_with_fixed_statistics,
    "mean": _averages_positions,
}


def is_channelwise(operation: Operation, name: str, graph: Graph) -> bool:
    """Whether `operation` reads the result `name` channel by channel and nothing else.

    Holds for tensors whose channels lie on axis 1.
    """
    rule = _RULES.get(operation.kind)
    before = graph.by_name[name].shape
    reads_this_alone = operation.args[:1] == (Ref(name),) and _data_refs(operation, graph) == (
        name,
    )
    return rule is not None and before is not None and reads_this_alone and rule(operation, before)


def _data_refs(operation: Operation, graph: Graph) -> tuple[str, ...]:
    """Return the tensors read, leaving out numbers such as the batch size in ``x.view(n, -1)``."""
    return tuple(
        name
        for name in operation.refs
        if name == graph.input or graph.by_name[name].shape is not None
    )
