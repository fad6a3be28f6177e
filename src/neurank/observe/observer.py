"""The observer: a model, data and a notion of "off", ready to be watched layer by layer."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neurank.errors import ModelError, UnitError
from neurank.files import Json, tensors_digest
from neurank.journal import Journal, no_journal
from neurank.observe.additive import AdditiveGame, contribute
from neurank.observe.bounds import stays_finite
from neurank.observe.door import (
    check_labels,
    check_rows_apart,
    check_trace,
    check_weights,
    device_of,
    repeatable_outputs,
)
from neurank.observe.examples import Batch, Examples, check_examples
from neurank.observe.execution import Runner, runner
from neurank.observe.game import CoupledGame, FullGame, Game, SuffixGame
from neurank.observe.head import Head, read_head
from neurank.observe.hooks import calls_recorded
from neurank.observe.lowering import in_bfloat16, lowered
from neurank.observe.masking import MaskedSuffix, masked_suffix, off_tensors
from neurank.observe.outputs import OutputGame
from neurank.observe.removal import (
    Gathered,
    Position,
    Removal,
    gathered,
    off_constants,
    off_values,
    statistic_of,
    unit_view,
)
from neurank.observe.responses import Responses, responses
from neurank.observe.slopes import Slopes, slopes
from neurank.observe.switchboard import Switchboard, coupled_switchboard, switchboard
from neurank.observe.unit_weights import UnitWeights, outgoing_weights
from neurank.observe.value import Value, counted, is_accuracy
from neurank.progress import reporting
from neurank.text import legible
from neurank.units.space import Chain, UnitSpace, unit_space
from neurank.units.split import Split, split_at, suffix_split
from neurank.units.trace import logits_of, trace

MEMORY = 2**30
"""How many bytes the games of one chunk of examples may take, unless said otherwise."""

TRIAL_EXAMPLES, TRIAL_COALITIONS = 4, 16
"""So many examples, and coalitions of each, are tried at a time where ways are compared."""
LEAST_COMPARED = 1000
"""Coalitions on which two precisions are compared, if there are as many."""

Precision = Literal["own", "bfloat16"]
"""The model's own, or bfloat16 in convolutions."""

WORTH_A_TRIAL = 1_000_000
"""Multiply-adds of a suffix from which on it is tried which way takes less time."""

CLOSED_FORM = "outputs, closed form for exact values"
COMPILED = "additive, compiled"
ADDITIVE = "additive"
SUFFIX = "suffix"
FULL = "full forward"
"""How coalitions become logits, in the words of the records."""

Arrays = Mapping[str, NDArray[np.float64]]

_LARGEST_FLOAT = 8
_SECONDS = "seconds"


@dataclass(frozen=True)
class Chunk:
    """What has been computed for a part of the examples.

    Attributes
    ----------
    arrays : the results by name.
    seconds : how long that took, when it was computed.
    """

    arrays: Arrays
    seconds: float


@dataclass(frozen=True)
class Observer(ABC):
    """What a ranker may ask.

    Attributes
    ----------
    model : the user's module; it is in evaluation mode while it is observed.
    examples : the checked data.
    value : what a coalition is worth on an example.
    removal : what "off" means.
    seed : where all randomness starts.
    progress : whether to show progress bars.
    classes : number of the network's outputs.
    memory : how many bytes the games of one chunk may take.
    precision : what convolutions below a layer are computed in.
    journal : where finished chunks are kept.
    """

    model: nn.Module
    examples: Examples
    value: Value
    removal: Removal
    seed: int
    progress: bool
    classes: int
    memory: int
    precision: Precision
    journal: Journal

    @abstractmethod
    def width(self, layer: str) -> int:
        """Return the number of units of a layer."""

    @abstractmethod
    def weights(self, layer: str) -> tuple[UnitWeights, ...]:
        """Return the weights of a layer and of all that it is tied to."""

    @abstractmethod
    def outgoing(self, layer: str) -> tuple[UnitWeights | None, ...]:
        """Return the weights by which each reader weighs a layer's units.

        None stands for a reader that is no convolution or linear layer with a weight of its own.
        """

    @abstractmethod
    def ways(self, layer: str) -> tuple[str, ...]:
        """Say how coalitions of the layer can become logits, the usual way first."""

    @abstractmethod
    def decisions_changed(self, layer: str, way: str) -> float:
        """Measure how often `precision` changes the winner, as a share of random coalitions."""

    @abstractmethod
    def chunks(self, layer: str) -> int:
        """Into how many chunks the examples of a layer's game are cut, at most."""

    @abstractmethod
    def _plays(self, layer: str, way: str, most: int | None = None) -> Iterator[Callable[[], Game]]:
        """Set up the layer's game chunk by chunk, of `most` examples each if that is less."""

    @abstractmethod
    def switchboard(self, layer: str) -> Switchboard:
        """Set up training of an importance switch on a layer."""

    @abstractmethod
    def slopes(self, removal: Removal) -> Mapping[str, Slopes]:
        """Compute d loss / d m of the units of all hidden layers, see `observe.slopes`, once."""

    @abstractmethod
    def responses(self, layer: str, at: Position) -> Responses:
        """Accumulate what a layer's units answer to each class, see `observe.responses`."""

    def games(self, layer: str, way: str | None = None) -> Iterator[Game]:
        """Yield the layer's game, chunk after chunk of the examples."""
        with torch.inference_mode():
            for play in self._plays(layer, way or self.ways(layer)[0]):
                yield play()

    def gather(
        self,
        layer: str,
        step: str,
        compute: Callable[[Game], Arrays],
        *,
        way: str | None = None,
        describe: Callable[[], str] = lambda: "",
    ) -> Iterator[Chunk]:
        """Compute something for every chunk of the layer's game, or recall it from the journal.

        Parameters
        ----------
        layer : the layer.
        step : what is computed, in a few words; with the layer it must be unique in a run.
        compute : from a chunk's game to named arrays of float64.
        way : how coalitions become logits, one of `ways`.
        describe : what to show beside the progress bar after each chunk.
        """
        plays = self._plays(layer, way or self.ways(layer)[0])
        label = f"ranking {legible(layer)}"
        with reporting(label, self.chunks(layer), show=self.progress) as advance:
            for number, play in enumerate(plays):
                key = f"{layer} / {step} / {number}"
                yield self.once(key, partial(_composed, compute, play))
                advance(describe())

    def trial(self, layer: str, way: str, attempt: Callable[[Game], object]) -> float:
        """Measure in seconds what an attempt at the game of a few examples takes.

        The game is set up anew and the first attempt does not count: it warms up.
        """
        seconds = 0.0
        for _ in range(2):
            with torch.inference_mode():
                for play in self._plays(layer, way, TRIAL_EXAMPLES):
                    started = time.perf_counter()
                    game = play()
                    if game.examples:
                        attempt(game)
                        seconds = time.perf_counter() - started
                        break
        return seconds

    def once(self, key: str, compute: Callable[[], Arrays]) -> Chunk:
        """Compute something and write it to the journal, or recall it from there."""
        found = self.journal.get(key)
        if found is None:
            started = time.perf_counter()
            found = dict(compute())
            found[_SECONDS] = np.array(time.perf_counter() - started)
            self.journal.append(key, found)
        seconds = float(found.pop(_SECONDS))
        return Chunk(found, seconds)


@dataclass(frozen=True)
class TracedObserver(Observer):
    """Watches through the traced forward pass: prefix once, then only what is below the layer.

    Attributes
    ----------
    space : the layers that have units.
    runner : the graph and its weights.
    memo : what takes a pass over the data for all layers at once, and is kept for the next one.
    """

    space: UnitSpace
    runner: Runner
    memo: dict[tuple[str, Any], Any] = field(default_factory=dict, repr=False)

    def width(self, layer: str) -> int:
        """Return the number of units of a layer."""
        return self.space[layer].width

    def weights(self, layer: str) -> tuple[UnitWeights, ...]:
        """Return the weights of a layer and of all that it is tied to."""
        return tuple(
            UnitWeights(self.runner.tensors[rows.tensor].movedim(rows.axis, 0), rows.units)
            for rows in self.space.rows(layer)
        )

    def outgoing(self, layer: str) -> tuple[UnitWeights | None, ...]:
        """Return the weights by which each reader weighs a layer's units."""
        return tuple(outgoing_weights(read, self.runner) for read in self.space[layer].reads)

    def ways(self, layer: str) -> tuple[str, ...]:
        """Say how coalitions of the layer can become logits, the usual way first."""
        if not isinstance(self.space[layer], Chain):
            return (SUFFIX,)
        split = self._split(layer)
        if self._has_closed_form(split):
            return (CLOSED_FORM,)
        if split.consumer is None:
            return (SUFFIX,)
        if is_accuracy(self.value) and read_head(split, self.runner) is not None:
            return (COMPILED,)
        is_heavy = self.runner.multiply_adds(split.suffix) >= WORTH_A_TRIAL
        return (ADDITIVE, SUFFIX) if is_heavy else (ADDITIVE,)

    def decisions_changed(self, layer: str, way: str) -> float:
        """Measure how often `precision` changes the winner, as a share of random coalitions.

        Some coalitions of each of some examples, whose sizes are uniform, are run both ways.
        """
        changed = coalitions = 0
        others = replace(self, precision="own")._plays(layer, way, TRIAL_EXAMPLES)
        plays = zip(self._plays(layer, way, TRIAL_EXAMPLES), others, strict=True)
        with torch.inference_mode():
            for play, other in plays:
                winners = [_winners(game, coalitions) for game in (play(), other())]
                changed += int((winners[0] != winners[1]).sum())
                coalitions += len(winners[0])
                if coalitions >= LEAST_COMPARED:
                    break
        return changed / max(coalitions, 1)

    def chunks(self, layer: str) -> int:
        """Into how many chunks the examples of a layer's game are cut, at most."""
        size = self._examples_at_once(layer)
        return sum(-(-count // size) for count in self.examples.sizes)

    def switchboard(self, layer: str) -> Switchboard:
        """Set up training of an importance switch on a layer."""
        found = self.space[layer]
        if isinstance(found, Chain):
            return switchboard(found, self.runner, self.examples)
        return coupled_switchboard(self._masked(layer), self.runner, self.examples)

    def _plays(self, layer: str, way: str, most: int | None = None) -> Iterator[Callable[[], Game]]:
        if not isinstance(self.space[layer], Chain):
            yield from self._coupled_plays(layer, most)
            return
        split = self._split(layer)
        size = min(self._chunk_size(split), most or self.examples.count)
        if way == SUFFIX and split.consumer is not None:
            split = suffix_split(self.space.graph, self._chain(layer))
        off = off_values(
            self.removal, split.layer, self.runner, self.examples, self._gathered(layer)
        )
        head = read_head(split, self.runner) if way == COMPILED else None
        suffix, runner = lowered(split.suffix, self.runner)
        if self.precision == "bfloat16":
            suffix, runner = in_bfloat16(suffix, runner)
        split = replace(split, suffix=suffix)
        first = 0
        for inputs, targets in self.examples:
            for start in range(0, len(targets), size):
                rows = slice(start, start + size)
                yield partial(
                    self._play,
                    split,
                    runner,
                    off,
                    head,
                    inputs[rows],
                    targets[rows],
                    first + start,
                )
            first += len(targets)

    def slopes(self, removal: Removal) -> Mapping[str, Slopes]:
        """Compute d loss / d m of the units of all hidden layers, see `observe.slopes`, once."""
        key = ("slopes", removal)
        if key not in self.memo:
            self.memo[key] = slopes(
                self.space.hidden,
                self.runner,
                self.space,
                self.examples,
                removal,
                self.classes,
                self.memory,
            )
        found: Mapping[str, Slopes] = self.memo[key]
        return found

    def responses(self, layer: str, at: Position) -> Responses:
        """Accumulate what a layer's units answer to each class, all hidden layers' at once."""
        hidden = self.space.hidden
        names = hidden if layer in hidden else (layer,)
        key = ("responses", (at, names))
        if key not in self.memo:
            self.memo[key] = responses(
                names,
                self.runner,
                self.space,
                self.examples,
                at,
                self.classes,
                progress=self.progress,
            )
        found: Mapping[str, Responses] = self.memo[key]
        return found[layer]

    def _gathered(self, layer: str) -> Mapping[str, Gathered]:
        """Gather what units are replaced by, for all hidden layers at once.

        Medians keep every value, so they are gathered for one layer at a time.
        """
        hidden = self.space.hidden
        if layer not in hidden or statistic_of(self.removal) == "median":
            return gathered(self.removal, (self.space[layer],), self.runner, self.examples)
        key = ("gathered", self.removal)
        if key not in self.memo:
            layers = tuple(self.space[name] for name in hidden)
            self.memo[key] = gathered(self.removal, layers, self.runner, self.examples)
        found: Mapping[str, Gathered] = self.memo[key]
        return found

    def _coupled_plays(self, layer: str, most: int | None) -> Iterator[Callable[[], Game]]:
        """Set up the game of units that are read in several places, chunk by chunk."""
        split = self._masked(layer)
        off = off_constants(
            self.removal, (split.layer,), self.runner, self.examples, self._gathered(layer)
        )
        constants = off_tensors(split.layer, off[layer])
        running = Runner(split.graph, {**self.runner.tensors, **constants})
        suffix, running = lowered(split.suffix, running)
        if self.precision == "bfloat16":
            suffix, running = in_bfloat16(suffix, running)
        split = replace(split, suffix=suffix)
        size = min(self._examples_at_once(layer), most or self.examples.count)
        first = 0
        for inputs, targets in self.examples:
            for start in range(0, len(targets), size):
                rows = slice(start, start + size)
                yield partial(
                    self._coupled_play, split, running, inputs[rows], targets[rows], first + start
                )
            first += len(targets)

    def _coupled_play(
        self, split: MaskedSuffix, running: Runner, inputs: Tensor, targets: Tensor, first: int
    ) -> Game:
        wanted = counted(self.value, targets)
        found = self.runner.forward(inputs, *split.side) if split.side else ()
        side = {name: it[wanted] for name, it in zip(split.side, found, strict=True)}
        for name, result in side.items():
            if result.is_floating_point() and not bool(torch.isfinite(result).all()):
                raise ModelError(
                    f"{name!r}, which the network below layer {split.layer.name!r} reads, is NaN "
                    f"or infinite on the examples from {first} on: check the weights and the scale "
                    "of the inputs"
                )
        count = int(wanted.sum())
        return CoupledGame(
            layer=split.layer.name,
            numbers=first + torch.nonzero(wanted)[:, 0].cpu(),
            value=self.value,
            targets=targets[wanted],
            active=torch.ones(
                count, split.layer.width, dtype=torch.bool, device=self.examples.device
            ),
            split=split,
            runner=running,
            side=side,
        )

    def _masked(self, layer: str) -> MaskedSuffix:
        inputs, _ = next(iter(self.examples))
        return masked_suffix(self.space[layer], self.runner, self.space.coupling, inputs)

    def _examples_at_once(self, layer: str) -> int:
        if isinstance(self.space[layer], Chain):
            return self._chunk_size(self._split(layer))
        shapes = (self._shape(name) for name in self._masked(layer).side)
        floats = sum(prod(size or 1 for size in shape) for shape in shapes)
        return max(1, self.memory // (_LARGEST_FLOAT * 2 * max(floats, 1)))

    def _chunk_size(self, split: Split) -> int:
        """How many examples fit into memory: what is read of each, contributions and their sums."""
        read = prod(size or 1 for size in self._shape(split.layer.read))
        floats = 3 * read  # as computed, those that count, and on minus off
        if split.consumer is not None:
            features = prod(size or 1 for size in self._shape(split.consumer.name))
            floats += (2 * split.layer.width + 1) * features
        return max(1, self.memory // (_LARGEST_FLOAT * floats))

    def _shape(self, name: str) -> tuple[int | None, ...]:
        shape = self.space.graph.shape_of(name)
        assert shape is not None
        return shape

    def _play(
        self,
        split: Split,
        runner: Runner,
        off: Tensor,
        head: Head | None,
        inputs: Tensor,
        targets: Tensor,
        first: int,
    ) -> Game:
        """Run the prefix of a batch once and set the game up on the examples that count."""
        wanted = counted(self.value, targets)
        layer = split.layer
        found = self.runner.forward(inputs, layer.read, *split.side)
        read, *side = (result[wanted] for result in found)
        if not bool(torch.isfinite(read).all()):
            raise ModelError(
                f"the units of layer {layer.name!r} are NaN or infinite on the examples from "
                f"{first} on: check the weights and the scale of the inputs"
            )
        on = unit_view(read, layer.width)
        shape = tuple(read.shape[1:])
        numbers = first + torch.nonzero(wanted)[:, 0].cpu()
        common: dict[str, Any] = {
            "layer": layer.name,
            "numbers": numbers,
            "value": self.value,
            "targets": targets[wanted],
            "split": split,
            "runner": runner,
            "on": on,
            "off": off,
            "read_shape": shape,
            "side": dict(zip(split.side, side, strict=True)),
        }
        if split.consumer is None:
            game = OutputGame if self._has_closed_form(split) else SuffixGame
            return game(active=(on != off).any(dim=2), **common)
        base, added = contribute(split.consumer, self.runner, on - off, off, shape)
        active = ~(added.flatten(2).abs().amax(dim=2) == 0)  # NaN is not 0
        if head is not None and not self._stays_finite(split, runner, base, added):
            head = None  # the path that looks at every number says which coalition overflows
        return AdditiveGame(active=active, base=base, contributions=added, head=head, **common)

    def _stays_finite(self, split: Split, runner: Runner, base: Tensor, added: Tensor) -> bool:
        """Whether the compiled kernels, which look for no NaN, will meet none."""
        largest = base.abs().double() + added.abs().sum(dim=1, dtype=torch.float64)
        peak = float(largest.max()) if len(largest) else 0.0
        return stays_finite(split.suffix, runner, peak)

    def _has_closed_form(self, split: Split) -> bool:
        return split.layer.is_output and is_accuracy(self.value)

    def _split(self, layer: str) -> Split:
        return split_at(self.space.graph, self._chain(layer))

    def _chain(self, layer: str) -> Chain:
        found = self.space[layer]
        assert isinstance(found, Chain)  # others are switched where they are read
        return found


@dataclass(frozen=True)
class HookedObserver(Observer):
    """Watches a model that cannot be traced: every coalition is one run of the whole module.

    Attributes
    ----------
    widths : number of units per layer that can be switched off, in order of execution.
    reason : why the model cannot be traced.
    """

    widths: Mapping[str, int]
    reason: str

    def width(self, layer: str) -> int:
        """Return the number of units of a layer."""
        return self.widths[layer]

    def weights(self, layer: str) -> tuple[UnitWeights, ...]:
        """Return the weights of a layer."""
        weight = self.model.get_submodule(layer).weight
        assert isinstance(weight, Tensor)
        return (UnitWeights(weight.detach(), tuple(range(len(weight)))),)

    def outgoing(self, layer: str) -> tuple[UnitWeights | None, ...]:
        """Who reads a layer is not known of a model that cannot be traced."""
        del layer
        return (None,)

    def ways(self, layer: str) -> tuple[str, ...]:
        """Say how coalitions of the layer can become logits."""
        del layer
        return (FULL,)

    def decisions_changed(self, layer: str, way: str) -> float:
        """Return 0: the module runs as it is."""
        del layer, way
        return 0.0

    def chunks(self, layer: str) -> int:
        """Into how many chunks the examples of a layer's game are cut: the user's batches."""
        del layer
        return len(self.examples)

    def switchboard(self, layer: str) -> Switchboard:
        """Refuse: a switch needs the traced forward pass."""
        raise ModelError(
            f"an importance switch on {layer!r} needs the forward pass traced, and {self.reason}"
        )

    def slopes(self, removal: Removal) -> Mapping[str, Slopes]:
        """Refuse: derivatives need the traced forward pass."""
        del removal
        raise ModelError(
            f"derivatives with respect to units need the forward pass traced, and {self.reason}"
        )

    def responses(self, layer: str, at: Position) -> Responses:
        """Refuse: responses are read in the traced forward pass."""
        del at
        raise ModelError(
            f"the responses of layer {layer!r} need the forward pass traced, and {self.reason}"
        )

    def _plays(self, layer: str, way: str, most: int | None = None) -> Iterator[Callable[[], Game]]:
        del way
        first = 0
        for inputs, targets in self.examples:
            size = most or len(targets)
            yield partial(self._play, layer, inputs[:size], targets[:size], first)
            first += len(targets)

    def _play(self, layer: str, inputs: Tensor, targets: Tensor, first: int) -> Game:
        wanted = counted(self.value, targets)
        numbers = first + torch.nonzero(wanted)[:, 0].cpu()
        return FullGame(
            layer=layer,
            numbers=numbers,
            value=self.value,
            targets=targets[wanted],
            active=torch.ones(len(numbers), self.widths[layer], dtype=torch.bool),
            model=self.model,
            inputs=inputs[wanted],
        )


def observe(
    model: nn.Module,
    data: Iterable[Batch],
    *,
    value: Value,
    removal: Removal,
    seed: int,
    device: torch.device,
    progress: bool,
    memory: int = MEMORY,
    precision: Precision = "own",
    journal: Journal | None = None,
    any_output: bool = False,
) -> Observer:
    """Check model and data at the door and get ready to watch; the model must be in eval mode.

    Raises
    ------
    DataError
        If the data is empty, unlabelled, not repeatable, or has labels beyond the outputs.
    ModelError
        If the model is wrapped; if its weights or outputs are NaN, or its outputs no logits; if it
        gives different outputs for the same inputs, or other inputs beside them; if it cannot be
        traced and `removal` is not ``"parameters"``; if the trace is not the model.
    """
    check_weights(model)
    examples = check_examples(data, device)
    own_device = device_of(model)
    inputs, _ = next(iter(examples))
    outputs = repeatable_outputs(model, inputs.to(own_device), any_shape=any_output)
    if not any_output:
        check_labels(examples, outputs)
    check_rows_apart(model, inputs.to(own_device), outputs)
    common: dict[str, Any] = {
        "model": model,
        "examples": examples,
        "value": value,
        "removal": removal,
        "seed": seed,
        "progress": progress,
        "classes": outputs.shape[1],
        "memory": memory,
        "precision": precision,
        "journal": journal or no_journal(),
    }
    try:
        graph = trace(model, inputs.to(own_device))
    except ModelError as error:
        if removal != "parameters":
            raise
        widths = _hooked_widths(model, inputs.to(own_device))
        if not widths:
            raise
        return HookedObserver(widths=widths, reason=str(error), **common)
    watching = TracedObserver(
        space=unit_space(graph, model), runner=runner(graph, model, device), **common
    )
    check_trace(model, watching.runner, examples)
    return watching


def choose_layers(observer: Observer, layers: Sequence[str] | None) -> tuple[str, ...]:
    """Return the layers to rank: those named, or all that have units, in execution order."""
    if layers is not None and not len(layers):
        raise UnitError("layers=[] names no layer: name some, or pass None for all that have units")
    if isinstance(layers, str):
        raise UnitError(f"layers={layers!r} is one name: write layers=[{layers!r}]")
    if isinstance(observer, TracedObserver):
        return tuple(layer.name for layer in observer.space.choose(layers))
    assert isinstance(observer, HookedObserver)
    for name in layers or ():
        if name not in observer.widths:
            raise UnitError(
                f"the model has no layer {name!r} whose units can be switched off: there are "
                f"{', '.join(observer.widths)}"
            )
    return tuple(name for name in observer.widths if layers is None or name in layers)


def refused_layers(observer: Observer) -> Mapping[str, str]:
    """Say for every layer without rankable units why."""
    return observer.space.refused if isinstance(observer, TracedObserver) else {}


def model_digest(model: nn.Module) -> str:
    """Return one digest of all parameters and buffers with their names."""
    return tensors_digest({name: tensor.detach() for name, tensor in model.state_dict().items()})


def _winners(game: Game, seed: int) -> Tensor:
    """Return the winning class of some random coalitions of each example, sizes uniform."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.arange(game.examples).repeat(TRIAL_COALITIONS)
    sizes = torch.rand(len(rows), 1, generator=draw)
    masks = torch.rand(len(rows), game.units, generator=draw) < sizes
    where = game.active.device
    return game.logits(rows.to(where), masks.to(where)).argmax(dim=1)


def described(observer: Observer) -> dict[str, Json]:
    """Describe what was watched, for the records."""
    return {
        "model": model_digest(observer.model),
        "model_class": type(observer.model).__qualname__,
        "computation": _computation(observer),
        "data": {"digest": observer.examples.digest, "examples": observer.examples.count},
        "removal": observer.removal,
        "seed": observer.seed,
        "device": str(observer.examples.device),
        "precision": observer.precision,
        "refused_layers": dict(refused_layers(observer)),
    }


def _computation(observer: Observer) -> str:
    """Return one digest of what a model does beside its weights: activations, strides, constants.

    Of a model that cannot be traced, of how it prints.
    """
    if not isinstance(observer, TracedObserver):
        return sha256(str(observer.model).encode()).hexdigest()
    graph, saved = observer.runner.graph, observer.model.state_dict()
    steps = "\n".join(f"{it.name} = {it.kind} {it.args} {it.kwargs}" for it in graph.operations)
    unsaved = {name: it for name, it in observer.runner.tensors.items() if name not in saved}
    return sha256(f"{steps}\n{graph.output}\n{tensors_digest(unsaved)}".encode()).hexdigest()


@torch.inference_mode()
def _composed(compute: Callable[[Game], Arrays], play: Callable[[], Game]) -> Arrays:
    return compute(play())


def _hooked_widths(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    """Find the layers that run exactly once, on weights of their own, before the outputs."""
    with torch.inference_mode(), calls_recorded(model) as calls:
        outputs = logits_of(model(inputs.clone()))
    return {
        name: int(results[0].shape[1])
        for name, results in calls.items()
        if len(results) == 1
        and _has_units_on_axis_1(model.get_submodule(name), results[0])
        and not _is_shared(name, model)
        and not torch.equal(results[0], outputs)
    }


def _has_units_on_axis_1(module: nn.Module, result: Tensor) -> bool:
    """Whether the layer keeps the examples apart on axis 0 and its units on axis 1."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return result.ndim == weight.ndim and result.shape[1] == len(weight)


def _is_shared(layer: str, model: nn.Module) -> bool:
    weight = model.get_submodule(layer).weight
    named = model.named_parameters(remove_duplicate=False)
    return sum(parameter is weight for _, parameter in named) > 1
