"""What "off" means: the tensor that a unit's consumers receive instead of the unit.

`zero`
    Consumers receive 0. What physical removal gives.
`mean`, `median`, `minimum`, `maximum`
    Consumers receive that statistic of the unit at the point where they read it, before padding,
    over the examples of the data and over positions. What removal with bias propagation gives.
`pre-mean`, `pre-median`, `pre-minimum`, `pre-maximum`
    The unit's own layer gives that statistic of what it gives, before BatchNorm and nonlinearity;
    consumers receive what these make of it. The dead-units thesis replaces units there.
`parameters`
    The unit's own weights and bias are 0, the paper's literal procedure: a BatchNorm shift or an
    activation with f(0) ≠ 0 behind the unit lives on, as a constant.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor

from neurank.errors import MethodError, UnitError
from neurank.observe.examples import Examples
from neurank.observe.execution import Runner
from neurank.units.graph import Ref, Weight
from neurank.units.rules import PRODUCERS
from neurank.units.space import Chain, Layer, UnitRead, unit_axis

Removal = Literal[
    "zero",
    "mean",
    "parameters",
    "median",
    "minimum",
    "maximum",
    "pre-mean",
    "pre-median",
    "pre-minimum",
    "pre-maximum",
]
Statistic = Literal["mean", "median", "minimum", "maximum"]
Position = Literal["pre", "post"]
"""Before BatchNorm and nonlinearity, or behind them, where consumers read."""

BEFORE = "pre-"

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


def replacing_by(statistic: str, at: str) -> Removal:
    """Name the removal that replaces a unit by a statistic of itself.

    Raises
    ------
    MethodError
        If there is no such statistic or position.

    Example
    -------
    >>> replacing_by("median", "post"), replacing_by("mean", "pre")
    ('median', 'pre-mean')
    """
    for name, given, known in (
        ("statistic", statistic, get_args(Statistic)),
        ("at", at, get_args(Position)),
    ):
        if given not in known:
            raise MethodError(
                f"{name}={given!r} is unknown: it is one of {', '.join(map(repr, known))}"
            )
    return check_removal(statistic if at == "post" else f"{BEFORE}{statistic}")


def is_before(removal: Removal) -> bool:
    """Whether units are replaced before BatchNorm and nonlinearity."""
    return removal.startswith(BEFORE)


def statistic_of(removal: Removal) -> Statistic | None:
    """Return the statistic that units are replaced by, None if it is none of theirs.

    Example:
    -------
    >>> statistic_of("pre-median"), statistic_of("zero")
    ('median', None)
    """
    for known in get_args(Statistic):
        if removal.removeprefix(BEFORE) == known:
            return known  # type: ignore[no-any-return]
    return None


def off_values(
    removal: Removal,
    layer: Chain,
    runner: Runner,
    examples: Examples,
    found: Mapping[str, "Gathered"] | None = None,
) -> Tensor:
    """Compute what the consumers of a layer receive for a unit that is off.

    Parameters
    ----------
    removal, layer, runner, examples : what is off, and how.
    found : what `gathered` found for these layers, if it is there already.

    Returns
    -------
    Tensor
        (units, positions): the same for every example; positions as in `unit_view`.
    """
    inputs, _ = next(iter(examples))
    with torch.inference_mode():
        (read,) = runner.forward(inputs[:1], layer.read)
        shape = unit_view(read, layer.width)[0]
        if removal == "zero":
            return torch.zeros_like(shape)
        found = found or gathered(removal, (layer,), runner, examples)
        if statistic_of(removal) is not None and not is_before(removal):
            constants = found[_chain_place(layer).key].pooled(range(layer.width))
            return constants.to(read.dtype)[:, None].expand_as(shape).contiguous()
        known = _produced(layer, runner, inputs[:1], found)
        bridge = runner.graph.needed_for((layer.read,), known=known)
        results = runner.run(bridge, known, 1, (layer.read,))
        return unit_view(results[layer.read], layer.width)[0]


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


def gathered(
    removal: Removal, layers: Sequence[Layer], runner: Runner, examples: Examples
) -> Mapping[str, "Gathered"]:
    """Gather the statistics that units of some layers are replaced by; none where there are none.

    All layers take one pass over the data together, but for medians.
    """
    statistic = statistic_of(removal)
    if statistic is None:
        return {}
    if is_before(removal):
        places = tuple(place for layer in layers for place in producer_places(layer))
    else:
        chains = (_chain_place(layer) for layer in layers if isinstance(layer, Chain))
        places = (*chains, *read_places(layers, runner))
    return statistics(statistic, places, runner, examples)


def _chain_place(layer: Chain) -> "Place":
    return Place(f"units of {layer.read}", layer.read, layer.width)


def off_constants(
    removal: Removal,
    layers: Sequence[Layer],
    runner: Runner,
    examples: Examples,
    found: Mapping[str, "Gathered"] | None = None,
) -> Mapping[str, tuple[Tensor, ...]]:
    """Compute what each read of each layer receives for entries of units that are off.

    Parameters
    ----------
    removal, layers, runner, examples : what is off, and how.
    found : what `gathered` found for these layers, if it is there already.

    Returns
    -------
    Mapping
        By layer, for each of its reads (entries along the axis,), float64: 0; the statistic over
        examples and positions of all entries of one cell (see `UnitRead`); or what is left where
        the rows of all units of the layer are 0, or the statistic of what they give.

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
    found = found or gathered(removal, layers, runner, examples)
    if statistic_of(removal) is None or is_before(removal):
        return {it.name: _left_over(removal, it, runner, examples, found) for it in layers}
    return {layer.name: constants_of(layer, found, runner) for layer in layers}


def read_places(layers: Iterable[Layer], runner: Runner) -> tuple["Place", ...]:
    """List where the layers' units are read; a layer that runs more than once has one input."""
    found = {
        Place(reader(read, runner), read.tensor, axis=read.axis)
        for layer in layers
        for read in layer.reads
    }
    return tuple(sorted(found, key=lambda place: (place.tensor, place.axis, place.key)))


def constants_of(
    layer: Layer, found: Mapping[str, "Gathered"], runner: Runner
) -> tuple[Tensor, ...]:
    """Give each entry of each read of a layer the statistic of its cell, float64."""
    return tuple(found[reader(read, runner)].pooled(read.cells) for read in layer.reads)


@dataclass(frozen=True)
class Place:
    """Where values are gathered.

    Attributes
    ----------
    key : under which name; places of one key are gathered together.
    tensor : name of the result.
    units : as how many units it is viewed, see `unit_view`; None goes by the axis.
    axis : the axis along which entries lie.
    """

    key: str
    tensor: str
    units: int | None = None
    axis: int = 1

    def along(self, result: Tensor) -> Tensor:
        """View a result as (entries, ...)."""
        if self.units is not None:
            return unit_view(result, self.units).movedim(1, 0)
        return result.movedim(self.axis, 0)


class Gathered(ABC):
    """A statistic of each entry, and of the entries of each cell together."""

    @abstractmethod
    def add(self, along: Tensor) -> None:
        """Take further values of the entries, (entries, ...)."""

    @abstractmethod
    def pooled(self, cells: Iterable[int]) -> Tensor:
        """Give each entry the statistic over all entries of its cell, (entries,) in float64."""


@dataclass
class _Mean(Gathered):
    total: Tensor | None = None
    count: int = 0

    def add(self, along: Tensor) -> None:
        sums = along.sum(dim=tuple(range(1, along.ndim)), dtype=torch.float64)
        self.total = sums if self.total is None else self.total + sums
        self.count += along[0].numel()

    def pooled(self, cells: Iterable[int]) -> Tensor:
        assert self.total is not None
        means = self.total / self.count
        cell = torch.tensor(tuple(cells), device=means.device)
        shape = (int(cell.max()) + 1,)
        sums = means.new_zeros(shape).index_add(0, cell, means)
        sizes = means.new_zeros(shape).index_add(0, cell, torch.ones_like(means))
        return (sums / sizes)[cell]


@dataclass
class _Extreme(Gathered):
    reduction: Literal["amin", "amax"]
    found: Tensor | None = None

    def add(self, along: Tensor) -> None:
        values = along.flatten(1)
        new = (values.amin if self.reduction == "amin" else values.amax)(dim=1).to(torch.float64)
        both = new if self.found is None else torch.stack([self.found, new])
        if self.found is not None:
            both = both.amin(dim=0) if self.reduction == "amin" else both.amax(dim=0)
        self.found = both

    def pooled(self, cells: Iterable[int]) -> Tensor:
        assert self.found is not None
        cell = torch.tensor(tuple(cells), device=self.found.device)
        start = self.found.new_zeros(int(cell.max()) + 1)
        return start.scatter_reduce(0, cell, self.found, self.reduction, include_self=False)[cell]


@dataclass
class _Median(Gathered):
    """Keeps every value; of an even number of them, the lower of the two in the middle counts."""

    parts: list[Tensor] = field(default_factory=list)

    def add(self, along: Tensor) -> None:
        self.parts.append(along.flatten(1).clone())

    def pooled(self, cells: Iterable[int]) -> Tensor:
        values = torch.cat(self.parts, dim=1)
        cell = torch.tensor(tuple(cells), device=values.device)
        medians = torch.zeros(int(cell.max()) + 1, dtype=torch.float64, device=values.device)
        for number in sorted(set(cell.tolist())):
            medians[number] = values[cell == number].median().to(torch.float64)
        return medians[cell]


def gathering(statistic: Statistic) -> Gathered:
    """Begin to gather a statistic."""
    if statistic == "mean":
        return _Mean()
    if statistic == "median":
        return _Median()
    return _Extreme("amin" if statistic == "minimum" else "amax")


def statistics(
    statistic: Statistic, places: Sequence[Place], runner: Runner, examples: Examples
) -> Mapping[str, Gathered]:
    """Gather a statistic at some places over the data; by key.

    Medians take one pass per key, since all values of it are kept until they are sorted; what else
    there is takes one pass.
    """
    keys = dict.fromkeys(place.key for place in places)
    found = {key: gathering(statistic) for key in keys}
    for some in [(key,) for key in keys] if statistic == "median" else [tuple(keys)]:
        wanted = [place for place in places if place.key in some]
        if not wanted:
            continue
        names = tuple(dict.fromkeys(place.tensor for place in wanted))
        with torch.inference_mode():
            for inputs, _ in examples:
                results = dict(zip(names, runner.forward(inputs, *names), strict=True))
                for place in wanted:
                    found[place.key].add(place.along(results[place.tensor]))
    return found


def reader(read: UnitRead, runner: Runner) -> str:
    """Name what reads: a layer by its weight, anything else by the operation and what it reads."""
    operation = runner.graph.by_name[read.operation]
    weight = operation.args[1] if operation.kind in PRODUCERS else None
    if isinstance(weight, Weight | Ref):
        return f"weight {weight.name}"
    if operation.kind in {"layer_norm", "group_norm"} and operation.weights:
        return f"weight {operation.weights[0]}"
    return f"{read.operation} of {read.tensor}"


def producer_places(layer: Layer) -> tuple[Place, ...]:
    """List what the layer's own operations give, by their names."""
    return tuple(Place(it.name, it.name, axis=unit_axis(it)) for it in layer.producers)


def _produced(
    layer: Layer, runner: Runner, inputs: Tensor, found: Mapping[str, Gathered]
) -> dict[str, Tensor]:
    """Make what the layer's operations give with all its units off: 0, or the statistic found."""
    places = producer_places(layer)
    known = {}
    with torch.inference_mode():
        results = runner.forward(inputs, *(place.tensor for place in places))
        for place, like in zip(places, results, strict=True):
            nothing = torch.zeros_like(like)
            if found:
                constants = found[place.key].pooled(range(like.shape[place.axis])).to(like.dtype)
                nothing += constants.reshape(
                    [-1 if axis == place.axis else 1 for axis in range(like.ndim)]
                )
            known[place.tensor] = nothing
    return known


def _left_over(
    removal: Removal,
    layer: Layer,
    runner: Runner,
    examples: Examples,
    found: Mapping[str, Gathered],
) -> tuple[Tensor, ...]:
    """Run the network on a few examples with the layer's own operations giving constants."""
    if any(read.kind == "norm" for read in layer.reads):
        raise UnitError(
            f"removal={removal!r} leaves no constant of layer {layer.name!r}: its units are "
            "normalised together with others. Use removal='zero' or 'mean'"
        )
    inputs, _ = next(iter(examples))
    inputs = inputs[:2]
    known = {runner.graph.input: inputs, **_produced(layer, runner, inputs, found)}
    names = tuple(dict.fromkeys(read.tensor for read in layer.reads))
    with torch.inference_mode():
        needed = runner.graph.needed_for(names, known=known)
        left = runner.run(needed, known, len(inputs), names)
    return tuple(_constant(left[read.tensor], read, layer, removal) for read in layer.reads)


def _constant(found: Tensor, read: UnitRead, layer: Layer, removal: Removal) -> Tensor:
    along = found.to(torch.float64).movedim(read.axis, 0).flatten(1)
    own = along[torch.tensor(read.units, device=along.device) >= 0]
    spread = float((own.amax(dim=1) - own.amin(dim=1)).max())
    if spread > ULPS * torch.finfo(found.dtype).eps * float(own.abs().max()):
        raise UnitError(
            f"removal={removal!r} leaves no constant of layer {layer.name!r}: what "
            f"{read.operation!r} reads of it still varies by {spread:.3g}. Use removal='zero' or "
            "'mean'"
        )
    return along.mean(dim=1)
