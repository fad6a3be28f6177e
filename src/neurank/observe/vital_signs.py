"""The vital signs of units: what tells dead and frozen ones from the others.

One forward and one backward pass over the data for all layers together; the penalties, which are
exact, take a forward pass of what is above each layer besides.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from neurank.errors import UnitError
from neurank.observe.examples import Batch, Examples
from neurank.observe.execution import Runner
from neurank.observe.observer import TracedObserver
from neurank.observe.removal import Gathered, gathered, read_places
from neurank.observe.slopes import Sums, by_unit
from neurank.observe.taps import Seen, Tapped, seen, tapped
from neurank.observe.unit_weights import outgoing_weights
from neurank.observe.value import NegativeLoss
from neurank.units.space import Layer, UnitRead

BINS = 20


@dataclass(frozen=True)
class Spread:
    """What units give over the data.

    Attributes
    ----------
    low, high : (units,), the smallest and the largest value, over examples and places.
    counts : (units, bins), how many values of the first batch lie in each of as many equal parts
        from its smallest to its largest; (units, 0) if they were not asked for.
    ends : (units, 2), these two.
    """

    low: Tensor
    high: Tensor
    counts: Tensor
    ends: Tensor


@dataclass(frozen=True)
class Signs:
    """The vital signs of one layer's units, (units,) each, float64.

    Attributes
    ----------
    saliency : mean replacement saliency, before the nonlinearity.
    gradient_norm : mean over examples of the L1 norm of d loss / d (what the unit's own layer
        gives), over places.
    gradient_peak : the largest such derivative in size, of any example and place.
    weight_norm : L1 norm of incoming weights.
    fan_out_norm : L1 norm of outgoing weights; NaN where something else than a convolution or a
        linear layer reads the unit.
    given : what the unit's own layer gives, before BatchNorm and nonlinearity.
    read : what consumers read.
    """

    saliency: Tensor
    gradient_norm: Tensor
    gradient_peak: Tensor
    weight_norm: Tensor
    fan_out_norm: Tensor
    given: Spread
    read: Spread


@dataclass(frozen=True)
class Sighting:
    """What one look at a network showed.

    Attributes
    ----------
    layers : by name.
    loss : mean cross-entropy.
    signal : mean over examples of the L1 norm of d loss / d logits, which says how much gradient
        there is to be had.
    """

    layers: Mapping[str, Signs]
    loss: float
    signal: float


class Held(Examples):
    """Batches that nobody else can change, which need not be compared at every pass."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield every batch."""
        return iter(self.source)

    @classmethod
    def of(cls, examples: Examples) -> "Held":
        """Copy all batches to the device."""
        batches: list[Batch] = [(inputs.clone(), targets.clone()) for inputs, targets in examples]
        return cls(
            batches, examples.digests, examples.sizes, examples.largest_label, examples.device
        )


def sighting(watching: TracedObserver, names: Sequence[str], *, bins: int = BINS) -> Sighting:
    """Look at the units of some layers.

    Raises
    ------
    ModelError
        If a loss or a gradient is NaN or infinite.
    """
    space, examples = watching.space, watching.examples
    tapping = tapped(space, names, watching.runner, examples, "pre")
    sums = Sums.of(tapping, "pre-mean", watching.runner, examples)
    logits = space.graph.output
    layers = [space[name] for name in names]
    reads = tuple(dict.fromkeys(place.tensor for place in read_places(layers, watching.runner)))
    looks = {name: _Look(space[name], bins) for name in names}
    loss = signal = 0.0
    behind = {tap.tensor: tap.name for tap in tapping.taps}
    for piece in seen(tapping, examples, watching.memory, also=(*reads, logits)):
        sums.add(piece)
        loss += float(piece.losses.sum())
        signal += _signal(piece.others[logits], piece.targets)
        for look in looks.values():
            look.add(piece, tapping, behind)
    count = examples.count
    found = {}
    for name, look in looks.items():
        slopes = sums.slopes(name, space[name].width)
        found[name] = look.signs(slopes, count, watching)
    return Sighting(found, loss / count, signal / count)


def _signal(logits: Tensor, targets: Tensor) -> float:
    """Sum up d loss / d logits as far as it can come down in the logits' own precision."""
    wrong = logits.detach().softmax(dim=1)
    wrong[torch.arange(len(targets)), targets] -= 1
    sizes = wrong.abs()
    sizes[sizes < torch.finfo(sizes.dtype).tiny] = 0
    return float(sizes.sum(dtype=torch.float64))


@dataclass
class _Range:
    """The extremes of each unit, and a histogram of the first batch."""

    width: int
    bins: int
    low: Tensor | None = None
    high: Tensor | None = None
    counts: Tensor = field(default_factory=lambda: torch.zeros(0))
    ends: Tensor = field(default_factory=lambda: torch.zeros(0))

    def add(self, parts: Sequence["_Part"]) -> None:
        """Take what a batch showed of the units, wherever they are."""
        low = torch.stack([part.reduced("amin", self.width) for part in parts]).amin(dim=0)
        high = torch.stack([part.reduced("amax", self.width) for part in parts]).amax(dim=0)
        if self.low is None or self.high is None:
            self.low, self.high = low, high
            if self.bins:
                self._count(parts, low, high)
            return
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)

    def _count(self, parts: Sequence["_Part"], low: Tensor, high: Tensor) -> None:
        counts = torch.zeros(self.width * self.bins, dtype=torch.int64, device=low.device)
        scale = torch.where(high > low, self.bins / (high - low), torch.zeros_like(low))
        for part in parts:
            unit = torch.tensor(part.units, device=low.device)
            own = unit >= 0
            unit, along = unit[own, None], part.values.movedim(part.axis, 0).flatten(1)[own]
            places = ((along - low[unit]) * scale[unit]).long().clamp_(0, self.bins - 1)
            counts += torch.bincount((places + unit * self.bins).flatten(), minlength=len(counts))
        self.counts = counts.reshape(self.width, self.bins)
        self.ends = torch.stack([low, high], dim=1)

    def spread(self) -> Spread:
        """Return what was found."""
        assert self.low is not None
        assert self.high is not None
        low, high = (_known(it.to("cpu", torch.float64)) for it in (self.low, self.high))
        if not self.bins:
            return Spread(low, high, torch.zeros(self.width, 0), torch.stack([low, high], dim=1))
        return Spread(low, high, self.counts.cpu(), _known(self.ends.to("cpu", torch.float64)))


def _known(extremes: Tensor) -> Tensor:
    """Put 0 for units that are nowhere, such as those that a slice drops."""
    return torch.where(extremes.isfinite(), extremes, 0.0)


@dataclass(frozen=True)
class _Part:
    """Values of units along one axis of a result."""

    values: Tensor
    axis: int
    units: tuple[int, ...]

    def reduced(self, how: Literal["amin", "amax"], width: int) -> Tensor:
        """Reduce what each unit has there to its smallest or largest value, (units,)."""
        rest = [it for it in range(self.values.ndim) if it != self.axis]
        reduce = self.values.amin if how == "amin" else self.values.amax
        by_entry = reduce(dim=rest)
        if self.units == tuple(range(width)):
            return by_entry
        index = torch.tensor(self.units, device=by_entry.device)
        own = index >= 0
        # A unit that is not here must not count as 0: other parts say what it gives.
        start = by_entry.new_full((width,), torch.inf if how == "amin" else -torch.inf)
        return start.scatter_reduce(0, index[own], by_entry[own], how)


class _Look:
    """Gathers the signs of one layer."""

    def __init__(self, layer: Layer, bins: int) -> None:
        self.layer = layer
        self.given, self.read = _Range(layer.width, bins), _Range(layer.width, bins)
        self.norms = torch.zeros(layer.width, dtype=torch.float64)
        self.peaks = torch.zeros(layer.width, dtype=torch.float64)

    def add(self, piece: Seen, tapping: Tapped, behind: Mapping[str, str]) -> None:
        """Take what a piece of the data showed."""
        width, examples = self.layer.width, len(piece.targets)
        own = [tap for tap in tapping.taps if tap.layer == self.layer.name]
        for tap in own:
            sizes = piece.gradients[tap.name].abs()
            norms = by_unit(tap.by_example(sizes, examples), tap.units, width)
            self.norms += norms.sum(dim=0).to("cpu", torch.float64)
            peaks = _Part(sizes, tap.axis, tap.units).reduced("amax", width)
            self.peaks = torch.maximum(self.peaks, peaks.to("cpu", torch.float64))
        self.given.add([_Part(piece.values[tap.name], tap.axis, tap.units) for tap in own])
        reads = {(read.tensor, read.axis): read for read in self.layer.reads}
        self.read.add(
            [_Part(_result(read, piece, behind), read.axis, read.units) for read in reads.values()]
        )

    def signs(self, slopes: Tensor, count: int, watching: TracedObserver) -> Signs:
        """Put the signs together."""
        width = self.layer.width
        weights = torch.zeros(width, dtype=torch.float64)
        for rows in watching.weights(self.layer.name):
            norms = rows.weight.flatten(1).abs().sum(dim=1, dtype=torch.float64).cpu()
            weights += by_unit(norms[None], rows.units, width)[0]
        return Signs(
            saliency=slopes.abs().mean(dim=0),
            gradient_norm=self.norms / count,
            gradient_peak=self.peaks,
            weight_norm=weights,
            fan_out_norm=fan_out_norms(self.layer, watching.runner),
            given=self.given.spread(),
            read=self.read.spread(),
        )


def _result(read: UnitRead, piece: Seen, behind: Mapping[str, str]) -> Tensor:
    name = behind.get(read.tensor)
    return (piece.others[read.tensor] if name is None else piece.values[name]).detach()


def fan_out_norms(layer: Layer, runner: Runner) -> Tensor:
    """Sum the sizes of each unit's outgoing weights, (units,) float64.

    NaN where something else than a convolution or a linear layer with weights of its own reads it.
    """
    total = torch.zeros(layer.width, dtype=torch.float64)
    for read in layer.reads:
        outgoing = outgoing_weights(read, runner)
        if outgoing is None:
            return torch.full_like(total, torch.nan)
        sizes = outgoing.weight.to("cpu", torch.float64).abs().flatten(1).sum(dim=1)
        total += by_unit(sizes[None], outgoing.units, layer.width)[0]
    return total


@dataclass(frozen=True)
class Penalties:
    """Exact mean replacement penalties of one layer, before the nonlinearity.

    Attributes
    ----------
    mean : (units,), the mean over examples of how much the loss changes.
    largest : (units,), the largest change of any example.
    """

    mean: Tensor
    largest: Tensor


def penalties(watching: TracedObserver, layer: str) -> Penalties:
    """Replace each unit alone by its mean, before the nonlinearity, and see how losses change.

    Where what is left of a unit is no constant at its readers, as behind a LayerNorm, the whole
    network is run for each unit.
    """
    width = watching.width(layer)
    total = torch.zeros(width, dtype=torch.float64)
    largest = torch.zeros(width, dtype=torch.float64)
    try:
        for changes in _in_games(watching, layer):
            total += changes.sum(dim=0)
            largest = torch.maximum(largest, changes.amax(dim=0))
    except UnitError:
        total, largest = _in_full(watching, layer)
    return Penalties(total / watching.examples.count, largest)


def _in_games(watching: TracedObserver, layer: str) -> Iterator[Tensor]:
    """Yield how much the losses of some examples change, (examples, units)."""
    exact = replace(watching, value=NegativeLoss(), removal="pre-mean")
    for game in exact.games(layer):
        values, whole = game.left_out()
        yield torch.from_numpy(values - whole[:, None]).abs()


@dataclass(frozen=True)
class _Replacing:
    """Puts constants in the place of some entries along an axis."""

    __name__: ClassVar[str] = "replaced"
    constants: Tensor
    entries: Tensor
    axis: int

    def __call__(self, value: Tensor) -> Tensor:
        shape = [-1 if axis == self.axis else 1 for axis in range(value.ndim)]
        constants = self.constants.to(value.dtype).reshape(shape).expand_as(value)
        chosen = constants.index_select(self.axis, self.entries)
        return value.index_copy(self.axis, self.entries, chosen)


def _in_full(watching: TracedObserver, layer: str) -> tuple[Tensor, Tensor]:
    """Sum and largest change of the examples' losses, (units,) each; one pass per unit."""
    whole, examples = watching.runner, watching.examples
    tapping = tapped(watching.space, (layer,), whole, examples, "pre")
    means = gathered("pre-mean", (watching.space[layer],), whole, examples)
    total, largest = [], []
    with torch.inference_mode():
        before = _losses(whole, examples)
        for unit in range(watching.width(layer)):
            changes = (_losses(_without(unit, tapping, means), examples) - before).abs()
            total.append(changes.sum())
            largest.append(changes.max())
    return torch.stack(total), torch.stack(largest)


def _without(unit: int, tapping: Tapped, means: Mapping[str, Gathered]) -> Runner:
    """Let the taps replace a unit by its mean."""
    targets = {}
    for tap in tapping.taps:
        constants = means[tap.key].pooled(tap.cells)
        entries = (torch.tensor(tap.units) == unit).nonzero()[:, 0].to(constants.device)
        targets[tap.name] = _Replacing(constants, entries, tap.axis)
    graph = tapping.runner.graph
    operations = tuple(
        replace(it, target=targets[it.name]) if it.name in targets else it
        for it in graph.operations
    )
    return Runner(replace(graph, operations=operations), tapping.runner.tensors)


def _losses(runner: Runner, examples: Examples) -> Tensor:
    """Compute each example's cross-entropy, (examples,) float64."""
    found = []
    for inputs, targets in examples:
        (logits,) = runner.forward(inputs)
        losses = functional.cross_entropy(logits.to(torch.float64), targets, reduction="none")
        found.append(losses.cpu())
    return torch.cat(found)
