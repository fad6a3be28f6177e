"""What a network costs: parameters, and multiply-adds per example.

1 multiply-add (MAC) = 2 FLOPs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from neurank.condense.surgery import named_tensors
from neurank.errors import FileError
from neurank.files import Json
from neurank.text import aligned, legible
from neurank.units.graph import Graph, Operation, Ref
from neurank.units.rules import CONVOLUTIONS, PRODUCERS, TRANSPOSED
from neurank.units.trace import trace


@dataclass(frozen=True)
class Report:
    """What a network costs before and after condensing.

    Attributes
    ----------
    parameters : before and after.
    multiply_adds : before and after, per example; 1 multiply-add = 2 FLOPs.
    widths : of every layer with units, in execution order: units before and after.
    """

    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    widths: Mapping[str, tuple[int, int]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", MappingProxyType(dict(self.widths)))

    def to_json(self) -> dict[str, Json]:
        """Return the report in dicts, lists and numbers."""
        return {
            "parameters": list(self.parameters),
            "multiply_adds": list(self.multiply_adds),
            # a list, since a mapping's order is not kept in a file
            "widths": [[layer, *widths] for layer, widths in self.widths.items()],
        }

    @classmethod
    def from_json(cls, value: Json) -> "Report":
        """Make a report of what `to_json` returned.

        Raises
        ------
        FileError
            `value` is no report.

        Example
        -------
        >>> report = Report((9, 4), (8, 3), {"fc1": (2, 1)})
        >>> Report.from_json(report.to_json()) == report
        True
        """
        try:
            parts: Any = value
            return cls(
                _pair(parts["parameters"]),
                _pair(parts["multiply_adds"]),
                {str(layer): _pair(widths) for layer, *widths in parts["widths"]},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"this is no report of costs ({error!r}): save it anew") from error

    def __str__(self) -> str:
        """Return a table: one line per layer, then parameters and multiply-adds.

        Example
        -------
        >>> print(Report((40225, 7227), (1000, 250), {"conv1": (10, 5)}))
                        before  after
        units of conv1  10      5
        parameters      40,225  7,227  18.0 %
        multiply-adds   1,000   250    25.0 %
        """
        rows = [("", "before", "after", "")]
        rows += [
            (f"units of {legible(layer)}", str(before), str(after), "")
            for layer, (before, after) in self.widths.items()
        ]
        for what, (before, after) in (
            ("parameters", self.parameters),
            ("multiply-adds", self.multiply_adds),
        ):
            share = f"{after / before:.1%}".replace("%", " %") if before else ""
            rows.append((what, f"{before:,}", f"{after:,}", share))
        return "\n".join(aligned(rows))


def parameters(model: nn.Module) -> int:
    """Count the parameters of a network, trainable or frozen, each once; buffers do not count.

    Example
    -------
    >>> parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, inputs: Tensor) -> int:
    """Count the multiply-adds of one example's forward pass; 1 multiply-add = 2 FLOPs.

    Counted are convolutions and linear layers, one multiply-add per weight and output position, of
    transposed convolutions per weight and input position; bias additions, activations, pooling and
    BatchNorm are not.

    Parameters
    ----------
    model : the network; it is traced and comes back as it was.
    inputs : a batch, of which only shape and type matter.

    Raises
    ------
    ModelError
        If the forward pass cannot be traced.

    Example
    -------
    >>> import torch
    >>> multiply_adds(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.zeros(1, 1, 6, 6))
    288
    """
    return multiply_adds_of(trace(model, inputs), named_tensors(model))


def multiply_adds_of(graph: Graph, tensors: Mapping[str, Tensor]) -> int:
    """Count the multiply-adds of a traced forward pass with the weights `tensors`, by name.

    The weights may be fewer than those that were traced: positions do not depend on units.
    """
    return sum(
        _multiply_adds(operation, graph, tensors)
        for operation in graph.operations
        if operation.kind in PRODUCERS
    )


def _multiply_adds(operation: Operation, graph: Graph, tensors: Mapping[str, Tensor]) -> int:
    weight = operation.args[1]
    if isinstance(weight, Ref):  # computed in the forward pass, as a parametrization does
        sizes: Iterable[int | None] = graph.by_name[weight.name].shape or ()
    else:
        sizes = {**graph.constants, **tensors}[weight.name].shape
    return prod(size for size in sizes if size is not None) * positions(operation, graph)


def positions(operation: Operation, graph: Graph) -> int:
    """Count the positions of one example at which an operation meets every weight of its once.

    Those of its result; of a transposed convolution, those of what it reads.
    """
    if operation.kind in TRANSPOSED:
        places = (graph.shape_of(operation.refs[0]) or ())[2:]
    else:
        shape = operation.shape or ()
        places = shape[2:] if operation.kind in CONVOLUTIONS else shape[1:-1]
    return prod(size for size in places if size is not None)


def _pair(values: Any) -> tuple[int, int]:
    before, after = values
    return int(before), int(after)
