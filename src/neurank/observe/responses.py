"""What units answer to each class: sums over maps and examples, in one pass over the data.

Behind every operation that gives units (or every result that is read) stands one that sums each
entry over its places, example by example. The large results are let go as in any forward pass;
what is kept is one number per class and unit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from neurank.errors import ModelError
from neurank.observe.examples import Examples
from neurank.observe.execution import Runner
from neurank.observe.kernels.sums import row_sums
from neurank.observe.removal import Position
from neurank.observe.slopes import by_unit
from neurank.observe.taps import Tap, taps_at
from neurank.progress import reporting
from neurank.units.graph import Graph, Operation, Ref
from neurank.units.space import UnitSpace

PIECE_BYTES = 3 * 2**19
"""The largest result of a forward pass takes about so much, and stays in the cache."""
LEAST_PIECE = 4
"""So many examples at least are run at once."""


@dataclass(frozen=True)
class Responses:
    """Accumulated responses of one layer's units.

    Attributes
    ----------
    examples : (classes,), how many; int64.
    sums : (classes, units), of the examples' responses; float64. A response is the sum of all
        numbers that the unit gives for the example.
    squares : (classes, units), of their squares; float64.
    places : (units,), how many numbers of one example a response sums; int64.
    """

    examples: Tensor
    sums: Tensor
    squares: Tensor
    places: Tensor


@dataclass(frozen=True)
class Summed:
    """Sums what an operation gives over all places of an entry, (examples, entries) in float64.

    Attributes
    ----------
    tap : where entries and examples lie.
    """

    tap: Tap

    __name__: ClassVar[str] = "summed"  # an operation is known by its target's name

    def __call__(self, result: Tensor, inputs: Tensor) -> Tensor:
        """Sum a result of the forward pass of some inputs."""
        tap = self.tap
        is_map = result.ndim > 2 and tap.batch == 0 and tap.axis == 1
        if is_map and _is_plain(result):
            rows = result.reshape(len(result) * result.shape[1], -1)
            exact = torch.from_numpy(row_sums(rows.numpy())).reshape(result.shape[:2])
        else:
            exact = result.to(torch.float64)
        return tap.by_example(exact, len(inputs))


def _is_plain(result: Tensor) -> bool:
    """Whether the compiled loop can read a result where it lies."""
    is_real = result.dtype in {torch.float32, torch.float64}
    return result.device.type == "cpu" and is_real and result.is_contiguous()


def responses(
    names: Iterable[str],
    runner: Runner,
    space: UnitSpace,
    examples: Examples,
    at: Position,
    classes: int,
    *,
    progress: bool = False,
) -> Mapping[str, Responses]:
    """Accumulate the responses of all units of some layers to every class.

    Memory grows with classes times units, not with the examples.

    Parameters
    ----------
    names : the layers.
    runner, space : the network.
    examples : the data, gone through once.
    at : ``"pre"`` reads what each layer itself computes, before BatchNorm and nonlinearity, of
        tied layers the sum over all; ``"post"`` what is read of them, each result once. Of the
        network's outputs, which nobody reads, it is what they are either way.
    classes : how many there are.
    progress : whether to show a bar.

    Raises
    ------
    ModelError
        If a response is NaN or infinite.
    """
    layers = tuple(names)
    outputs = tuple(name for name in layers if space[name].is_output)  # nobody reads these
    hidden = tuple(name for name in layers if name not in outputs)
    taps = _distinct(
        (
            *taps_at(space, hidden, runner, examples, at),
            *taps_at(space, outputs, runner, examples, "pre"),
        )
    )
    graph = _summing(runner.graph, taps)
    wanted = tuple(dict.fromkeys(_sum_name(tap) for tap in taps))
    program = Runner(graph, runner.tensors).program(graph.needed_for(wanted), wanted)
    sums = {name: torch.zeros(classes, space[name].width, dtype=torch.float64) for name in layers}
    squares = {name: torch.zeros_like(it) for name, it in sums.items()}
    counts = torch.zeros(classes, dtype=torch.int64)
    label = "responses of all classes"
    with torch.inference_mode(), reporting(label, len(examples), show=progress) as advance:
        for inputs, targets in examples:
            pieces = torch.split(inputs, _piece_size(runner, inputs.element_size()))
            parts = [program.run({graph.input: piece}, len(piece)) for piece in pieces]
            found = {name: torch.cat([part[name] for part in parts]) for name in wanted}
            labels = targets.cpu()
            counts.index_add_(0, labels, torch.ones_like(labels))
            for name in layers:
                each = _of_layer(name, taps, found, space[name].width)
                sums[name].index_add_(0, labels, each)
                squares[name].index_add_(0, labels, each.square())
            advance("")
    for name in layers:
        _check_finite(sums[name], name)
    return {
        name: Responses(
            counts,
            sums[name].clone(),  # one made in inference mode cannot be used by autograd
            squares[name].clone(),
            _places(name, taps, space),
        )
        for name in layers
    }


def _piece_size(runner: Runner, bytes_each: int) -> int:
    """Return how many examples to run at once.

    Few, so that what one operation gives is still in the cache for the next, and its memory serves
    again; but so many that all results together are no less to read than all weights.
    """
    shapes = [operation.shape for operation in runner.graph.operations if operation.shape]
    results = [bytes_each * prod(size or 1 for size in shape) for shape in shapes]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in runner.tensors.values())
    return max(LEAST_PIECE, PIECE_BYTES // max(results), weights // sum(results))


def _distinct(taps: Iterable[Tap]) -> tuple[Tap, ...]:
    """Keep one of the taps that look at the same units of the same result."""
    found = {(tap.layer, tap.tensor, tap.axis, tap.units): tap for tap in taps}
    return tuple(found.values())


def _sum_name(tap: Tap) -> str:
    return f"{tap.tensor} along {tap.axis} summed"


def _summing(graph: Graph, taps: Iterable[Tap]) -> Graph:
    """Put a sum right behind each result that a tap looks at."""
    wanted: dict[str, list[Operation]] = {}
    for tap in {_sum_name(tap): tap for tap in taps}.values():
        wanted.setdefault(tap.tensor, []).append(_summed(tap, graph))
    operations = list(wanted.pop(graph.input, ()))
    for operation in graph.operations:
        operations += [operation, *wanted.get(operation.name, ())]
    return replace(graph, operations=tuple(operations))


def _summed(tap: Tap, graph: Graph) -> Operation:
    return Operation(
        name=_sum_name(tap),
        target=Summed(tap),
        args=(Ref(tap.tensor), Ref(graph.input)),
        kwargs={},
        module="",
        shape=(None, len(tap.units)),
        line="",
    )


def _of_layer(layer: str, taps: Iterable[Tap], found: Mapping[str, Tensor], width: int) -> Tensor:
    """Add up what the taps of a layer saw, (examples, units) on the CPU."""
    seen = [by_unit(found[_sum_name(tap)], tap.units, width) for tap in taps if tap.layer == layer]
    return torch.stack(seen).sum(dim=0).cpu() if len(seen) > 1 else seen[0].cpu()


def _places(layer: str, taps: Iterable[Tap], space: UnitSpace) -> Tensor:
    """Count the numbers of one example that each unit's response sums, (units,)."""
    width = space[layer].width
    total = torch.zeros(width, dtype=torch.int64)
    for tap in taps:
        if tap.layer != layer:
            continue
        numbers = prod(space.coupling.labels[tap.tensor].shape)
        units = torch.tensor(tap.units)
        own = units[units >= 0]
        each = torch.full((len(own),), numbers // len(tap.units), dtype=torch.int64)
        total.index_add_(0, own, each)
    return total


def _check_finite(sums: Tensor, layer: str) -> None:
    if not bool(torch.isfinite(sums).all()):
        unit = int((~torch.isfinite(sums)).nonzero()[0, 1])
        raise ModelError(
            f"the response of unit {unit} of layer {layer!r} is NaN or infinite: check the weights "
            "and the scale of the inputs"
        )
