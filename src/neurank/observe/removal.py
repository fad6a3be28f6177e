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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor

from neurank.errors import MethodError, UnitError
from neurank.observe.examples import Examples
from neurank.observe.execution import Runner
from neurank.units.graph import Ref, Weight
from neurank.units.rules import PRODUCERS
from neurank.units.space import Chain, Layer, UnitRead

Removal = Literal["zero", "mean", "parameters"]

ULPS = 16
"""By how many units in the last place a constant may vary over positions: vectorised and plain
code round a tanh differently."""


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


def off_values(removal: Removal, layer: Chain, runner: Runner, examples: Examples) -> Tensor:
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


def _means(layer: Chain, runner: Runner, examples: Examples) -> Tensor:
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


def off_constants(
    removal: Removal, layers: Sequence[Layer], runner: Runner, examples: Examples
) -> Mapping[str, tuple[Tensor, ...]]:
    """Compute what each read of each layer receives for entries of units that are off.

    Returns
    -------
    Mapping
        By layer, for each of its reads (entries along the axis,), float64: 0; the mean over
        examples and positions of all entries of one cell (see `UnitRead`); or what is left where
        the rows of all units of the layer are 0.

    Raises
    ------
    UnitError
        If what is left is no constant, as behind a normalisation over units.
    """
    if removal == "zero":
        return {
            layer.name: tuple(
                torch.zeros(len(read.units), dtype=torch.float64, device=examples.device)
                for read in layer.reads
            )
            for layer in layers
        }
    if removal == "mean":
        return _read_means(layers, runner, examples)
    return {layer.name: _left_over(layer, runner, examples) for layer in layers}


def _read_means(
    layers: Sequence[Layer], runner: Runner, examples: Examples
) -> Mapping[str, tuple[Tensor, ...]]:
    """Take the means where units are read; a layer that runs more than once has one input."""
    reads = {
        (read.tensor, read.axis, _reader(read, runner)) for layer in layers for read in layer.reads
    }
    names = tuple(dict.fromkeys(name for name, _, _ in sorted(reads)))
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    with torch.inference_mode():
        for inputs, _ in examples:
            found = dict(zip(names, runner.forward(inputs, *names), strict=True)) if names else {}
            for name, axis, reader in reads:
                along = found[name].to(torch.float64).movedim(axis, 0).flatten(1)
                sums = along.sum(dim=1)
                totals[reader] = totals.get(reader, torch.zeros_like(sums)) + sums
                counts[reader] = counts.get(reader, 0) + along.shape[1]
    means = {reader: total / counts[reader] for reader, total in totals.items()}
    return {
        layer.name: tuple(_pooled(means[_reader(read, runner)], read.cells) for read in layer.reads)
        for layer in layers
    }


def _reader(read: UnitRead, runner: Runner) -> str:
    """Name what reads: a layer by its weight, anything else by the operation and what it reads."""
    operation = runner.graph.by_name[read.operation]
    weight = operation.args[1] if operation.kind in PRODUCERS else None
    if isinstance(weight, Weight | Ref):
        return f"weight {weight.name}"
    if operation.kind in {"layer_norm", "group_norm"} and operation.weights:
        return f"weight {operation.weights[0]}"
    return f"{read.operation} of {read.tensor}"


def _pooled(means: Tensor, cells: Iterable[int]) -> Tensor:
    """Give each entry the mean over all entries of its cell."""
    cell = torch.tensor(tuple(cells), device=means.device)
    shape = (int(cell.max()) + 1,)
    sums = means.new_zeros(shape).index_add(0, cell, means)
    sizes = means.new_zeros(shape).index_add(0, cell, torch.ones_like(means))
    return (sums / sizes)[cell]


def _left_over(layer: Layer, runner: Runner, examples: Examples) -> tuple[Tensor, ...]:
    """Run the network on a few examples with the layer's own weights and biases 0."""
    if any(read.kind == "norm" for read in layer.reads):
        raise UnitError(
            f"removal='parameters' leaves no constant of layer {layer.name!r}: its units are "
            "normalised together with others. Use removal='zero' or 'mean'"
        )
    silent = {
        name: torch.zeros_like(runner.tensors[name])
        for producer in layer.producers
        for name in producer.weights
    }
    quiet = replace(runner, tensors={**runner.tensors, **silent})
    inputs, _ = next(iter(examples))
    names = tuple(dict.fromkeys(read.tensor for read in layer.reads))
    with torch.inference_mode():
        found = dict(zip(names, quiet.forward(inputs[:2], *names), strict=True))
    return tuple(_constant(found[read.tensor], read, layer) for read in layer.reads)


def _constant(found: Tensor, read: UnitRead, layer: Layer) -> Tensor:
    along = found.to(torch.float64).movedim(read.axis, 0).flatten(1)
    own = along[torch.tensor(read.units, device=along.device) >= 0]
    spread = float((own.amax(dim=1) - own.amin(dim=1)).max())
    if spread > ULPS * torch.finfo(found.dtype).eps * float(own.abs().max()):
        raise UnitError(
            f"removal='parameters' leaves no constant of layer {layer.name!r}: what "
            f"{read.operation!r} reads of it still varies by {spread:.3g}. Use removal='zero' or "
            "'mean'"
        )
    return along.mean(dim=1)
