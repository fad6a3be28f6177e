"""How the loss changes when one weight alone is moved: exact, for every weight of a parameter.

One weight of row r adds ``change * what it is multiplied with`` to channel r of its layer's result
and leaves all else alone. So the network below the layer runs once; examples on which the channel
does not move, where it is read, drop out; and what is left is run in blocks of (example, weight)
pairs, from where the next layer sums the channels if there is one. All of it is computed in
float64 whatever the model's precision, since the change that one weight makes drowns in the
rounding of a float32 loss.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from neurank.errors import MethodError, ModelError
from neurank.observe.additive import _convolution_arguments
from neurank.observe.door import check_trace, device_of
from neurank.observe.execution import Runner, runner
from neurank.observe.weight_loss import Tensors, WeightLoss, loss_name
from neurank.observe.weight_places import (
    ADDITIVE,
    FULL,
    NOTHING,
    RERUN,
    Place,
    place_of,
    rerun_place,
)
from neurank.progress import reporting
from neurank.text import legible
from neurank.units.channelwise import FLATTENING
from neurank.units.graph import Graph, Ref, Weight, map_leaves
from neurank.units.rules import CONVOLUTIONS, GROUPS_PLACE
from neurank.units.trace import trace

MEMORY = 2**28
"""About how many bytes the results of one chunk of examples may take."""
BLOCK_BYTES = 2**22
"""Pairs of example and weight are run in blocks of about this size, which stay in the cache."""
DOUBLE = 8


@dataclass(frozen=True)
class LossChanges:
    """What moving each weight alone does to the mean loss.

    Attributes
    ----------
    changes : by parameter, of its shape, float64.
    ways : by parameter, how it was computed.
    """

    changes: Mapping[str, Tensor]
    ways: Mapping[str, str]


def loss_changes(watched: WeightLoss, moves: Tensors) -> LossChanges:
    """Compute the mean loss with each weight alone moved, minus the mean loss.

    Parameters
    ----------
    watched : the model, its data and its loss.
    moves : by parameter, of its shape: what is added to each weight, each time to one alone.

    Raises
    ------
    ModelError
        If a loss is NaN or infinite.
    """
    try:
        inputs, targets = next(iter(watched.examples))
        graph = trace(watched.model, inputs.to(device_of(watched.model)))
        running = _in_double(runner(graph, watched.model, watched.examples.device), watched.model)
        check_trace(watched.model, _Widening(**vars(running)), watched.examples)
    except ModelError:
        return _by_full_forwards(watched, moves)
    _check_loss(watched, running, inputs[:2], targets[:2])
    found, ways = {}, {}
    for name, move in moves.items():
        place = _place(name, running, inputs)
        work = _Work(watched, running, place, move.to(torch.float64))
        found[name] = work.changes().reshape(move.shape).cpu()
        ways[name] = work.place.way
    return LossChanges(found, ways)


def _check_loss(watched: WeightLoss, running: Runner, inputs: Tensor, targets: Tensor) -> None:
    """Refuse a loss that cannot take float64 outputs."""
    with torch.no_grad():
        (outputs,) = running.forward(_double(inputs))
    try:
        watched.losses(outputs, targets, "on batch 1")
    except RuntimeError as error:  # torch's; ours are ValueErrors
        raise MethodError(
            f"the loss {loss_name(watched.loss)} cannot take float64 outputs, in which its changes "
            f"are computed ({error}): convert its constants inside it, such as weight.to(outputs)"
        ) from error


def _place(weight: str, running: Runner, inputs: Tensor) -> Place:
    """Find where a weight is read; what is picked example by example must have one row for each.

    A shape alone does not tell: windows or heads may have joined the examples on the first axis.
    """
    place = place_of(weight, running.graph)
    if place.layer is None:
        return place
    names = {place.before, place.layer.name, place.start, *place.side} - {running.graph.input}
    some = _double(inputs[:2])
    with torch.no_grad():
        results = running.forward(some, *names)
    one_row_each = all(len(result) == len(some) for result in results)
    return place if one_row_each else rerun_place(weight, running.graph)


@dataclass(frozen=True)
class _Chunk:
    """Examples in work, and what their forward pass gave.

    Attributes
    ----------
    targets : (examples,).
    losses : (examples,) with all weights as they are.
    known : results by name that the suffix reads.
    """

    targets: Tensor
    losses: Tensor
    known: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Work:
    """One parameter whose weights are moved one by one.

    Attributes
    ----------
    watched, running : the model, as it is and in float64.
    place : where the weight is read.
    move : what is added to each weight, float64.
    """

    watched: WeightLoss
    running: Runner
    place: Place
    move: Tensor

    def changes(self) -> Tensor:
        """Compute the change of the mean loss for every weight, (weights,)."""
        if self.place.way == NOTHING or not self.move.any():
            return torch.zeros(self.move.numel(), dtype=torch.float64)
        compute = self._rerun if self.place.way == RERUN else self._row_by_row
        with torch.no_grad():
            return compute() / self.watched.examples.count

    def _chunks(self, size: int) -> Iterator[_Chunk]:
        """Run the forward pass of a few examples at a time."""
        graph = self.running.graph
        layer = self.place.layer
        kept = dict.fromkeys(self.place.side)
        if layer is not None:
            kept |= dict.fromkeys((self.place.before, layer.name, self.place.start))
        names = [name for name in kept if name != graph.input]
        for number, (inputs, targets) in enumerate(self.watched.examples, start=1):
            for start in range(0, len(targets), size):
                rows = slice(start, start + size)
                part = _double(inputs[rows])
                outputs, *results = self.running.forward(part, graph.output, *names)
                losses = self.watched.losses(outputs, targets[rows], f"on batch {number}")
                known = {graph.input: part, **dict(zip(names, results, strict=True))}
                yield _Chunk(targets[rows], losses, known)

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        where = f"with a weight of {self.place.weight!r} moved"
        return self.watched.losses(outputs, targets, where)

    def _rerun(self) -> Tensor:
        """Run what is below the weight once per weight."""
        sums = torch.zeros(self.move.numel(), dtype=torch.float64)
        flat = self.move.reshape(-1)
        weight = self.running.tensors[self.place.weight]
        output = self.running.graph.output
        label = f"loss changes of {legible(self.place.weight)}"
        for chunk in self._chunks(self._examples_at_once):
            known = {name: chunk.known[name] for name in self.place.side}
            with reporting(label, len(flat), show=self.watched.progress) as step:
                for index in flat.nonzero()[:, 0].tolist():
                    moved = weight.clone()
                    moved.view(-1)[index] += flat[index]
                    running = replace(
                        self.running, tensors={**self.running.tensors, self.place.weight: moved}
                    )
                    outputs = running.run(self.place.suffix, known, len(chunk.targets), (output,))[
                        output
                    ]
                    losses = self._losses(outputs, chunk.targets)
                    sums[index] += float((losses - chunk.losses).sum())
                    step("")
        return sums

    @property
    def _examples_at_once(self) -> int:
        graph = self.running.graph
        floats = sum(
            prod(size or 1 for size in operation.shape or ()) for operation in graph.operations
        )
        if self.place.layer is not None and self.place.layer.kind in CONVOLUTIONS:
            weights = self.move[0].numel() * int(self._groups)
            floats += 2 * weights * self.place.positions  # the columns
        return max(1, MEMORY // (DOUBLE * max(floats, 1)))

    def _row_by_row(self) -> Tensor:
        """Move the weights of one row of the layer after another."""
        rows = len(self.move)
        moves = self.move.reshape(rows, -1)  # (rows, weights of a row)
        sums = torch.zeros_like(moves)
        label = f"loss changes of {legible(self.place.weight)}"
        for chunk in self._chunks(self._examples_at_once):
            numbers = self._columns(chunk.known[self.place.before])
            columns = _Columns(numbers, _sizes(numbers))
            with reporting(label, rows, show=self.watched.progress) as step:
                for row in range(rows):
                    sums[row] += self._changes_of_row(chunk, columns, row, moves[row])
                    step("")
        return sums.reshape(-1)

    def _columns(self, read: Tensor) -> Tensor:
        """Return what each weight of a row is multiplied with.

        Returns
        -------
        Tensor
            (groups, weights of a row, examples, positions): so that the numbers of one weight lie
            together.
        """
        layer = self.place.layer
        assert layer is not None
        if layer.kind == "linear":
            features = read.reshape(len(read), -1, read.shape[-1])  # (examples, positions, weights)
            return features.permute(2, 0, 1).contiguous()[None]
        kernel = self.move.shape[2:]
        stride, padding, dilation = _convolution_arguments(layer)
        maps = read[:, :, None] if layer.kind == "conv1d" else read
        pair = _pairs(layer.kind, kernel, stride, dilation)
        padded = functional.pad(maps, _pads(layer.kind, padding, kernel, dilation))
        columns = functional.unfold(padded, **pair)  # (examples, groups x weights, positions)
        examples, _, positions = columns.shape
        by_group = columns.reshape(examples, self._groups, -1, positions)
        return by_group.permute(1, 2, 0, 3).contiguous()

    @property
    def _groups(self) -> int:
        arguments = self.place.layer.args if self.place.layer is not None else ()
        return int(arguments[GROUPS_PLACE]) if len(arguments) > GROUPS_PLACE else 1

    def _changes_of_row(self, chunk: _Chunk, columns: "_Columns", row: int, move: Tensor) -> Tensor:
        """Sum the changes of the examples' losses for each weight of a row, (weights,)."""
        layer = self.place.layer
        assert layer is not None
        results = chunk.known[layer.name]
        before = results.select(self.place.axis, row).reshape(len(results), -1)
        channel = _Channel(self.place, self.running, row, results.shape)
        some = columns.of(row * columns.groups // len(self.move))
        sums = torch.zeros_like(move)
        for pairs in self._moving(some, move, before, channel):
            if not len(pairs.weights):
                continue
            outputs = channel.outputs(chunk, pairs)
            losses = self._losses(outputs, chunk.targets[pairs.examples])
            sums.index_add_(0, pairs.weights, losses - chunk.losses[pairs.examples])
        return sums

    def _moving(
        self, columns: "_Columns", move: Tensor, before: Tensor, channel: "_Channel"
    ) -> Iterator["_Pairs"]:
        """Yield pairs of weight and example for which what is read of the channel moves."""
        numbers = columns.numbers[0]  # (weights, examples, positions)
        read = channel.bridged(before) if self.place.way == ADDITIVE else before
        size = max(16, BLOCK_BYTES // (DOUBLE * self.place.floats))
        if numbers.shape[2] == read.shape[1] == 1 and self.place.way == ADDITIVE:
            # one number each: cheaper to look at all of them than to pick first
            after = move[:, None, None] * numbers + before
            difference = channel.bridged(after.reshape(-1, 1)).view_as(after) - read
            weights, examples, _ = difference.nonzero(as_tuple=True)
            for some in zip(torch.split(weights, size), torch.split(examples, size), strict=True):
                yield _Pairs(*some, difference[some])
            return
        reach = move.abs()[:, None] * columns.peaks[0]  # no place of the channel moves further
        floor = 0 * before[:, 0]
        if self.place.silences:
            # a channel that the ReLU silences wherever the weight is gives the same
            floor = (-before.amax(dim=1)).clamp(min=0)
        weights, examples = (reach > floor).nonzero(as_tuple=True)
        for which, rows in zip(
            torch.split(weights, size), torch.split(examples, size), strict=True
        ):
            moved = move[which, None] * numbers[which, rows]
            if self.place.way != ADDITIVE:
                yield _Pairs(which, rows, moved)
                continue
            moved = channel.bridged(before[rows] + moved) - read[rows]
            alive = _sizes(moved) > 0
            yield _Pairs(which[alive], rows[alive], moved[alive])


@dataclass(frozen=True)
class _Columns:
    """What the weights of a row are multiplied with.

    Attributes
    ----------
    numbers : (groups, weights of a row, examples, positions).
    peaks : (groups, weights of a row, examples), the largest size among the positions.
    """

    numbers: Tensor
    peaks: Tensor

    @property
    def groups(self) -> int:
        """How many groups of rows there are that read different channels."""
        return len(self.numbers)

    def of(self, group: int) -> "_Columns":
        """Return those of one group."""
        return _Columns(self.numbers[group : group + 1], self.peaks[group : group + 1])


@dataclass(frozen=True)
class _Pairs:
    """Weights of one row, each moved on one example.

    Attributes
    ----------
    weights, examples : (pairs,), within the block and the chunk.
    moved : (pairs, positions), what is added to the channel where the suffix reads it.
    """

    weights: Tensor
    examples: Tensor
    moved: Tensor


@dataclass(frozen=True)
class _Channel:
    """One channel of a layer's result on its way to the next layer.

    Attributes
    ----------
    place, running : where the weight is read, in which network.
    row : number of the channel.
    shape : of the layer's result.
    """

    place: Place
    running: Runner
    row: int
    shape: torch.Size

    def bridged(self, numbers: Tensor) -> Tensor:
        """Run the bridge on the channel alone, (pairs, positions) before and behind it."""
        if not self.place.bridge:
            return numbers
        axis = self.place.axis
        shape = [len(numbers), *self.shape[1:]]
        shape[axis] = 1
        current = numbers.reshape(shape)
        units = self.shape[axis]

        def resolve(leaf: Any) -> Any:
            if isinstance(leaf, Weight):
                tensor = self.running.tensors[leaf.name]
                each = len(tensor) // units  # behind a flattening a unit has several entries
                return tensor[self.row * each : (self.row + 1) * each]
            return current if isinstance(leaf, Ref) else leaf

        for operation in self.place.bridge:
            if operation.kind in FLATTENING:
                current = current.flatten(1)
                continue
            arguments = map_leaves(resolve, operation.args)
            current = operation.target(*arguments, **map_leaves(resolve, operation.kwargs))
        return current.flatten(1)

    def outputs(self, chunk: _Chunk, pairs: _Pairs) -> Tensor:
        """Run the suffix for pairs of weight and example."""
        known = {name: chunk.known[name][pairs.examples] for name in self.place.side}
        start = chunk.known[self.place.start][pairs.examples]
        if self.place.consumer is None:
            channel = start.select(self.place.axis, self.row)
            channel += pairs.moved.view_as(channel)  # `start` is a copy
        else:
            start = start + self._contribution(pairs.moved, start)
        known[self.place.start] = start
        output = self.running.graph.output
        count = len(pairs.examples)
        found: Tensor = self.running.run(self.place.suffix, known, count, (output,))[output]
        return found

    @cached_property
    def _reading(self) -> Tensor:
        """The consumer's weights that read the channel: (features, positions) if it is linear."""
        consumer = self.place.consumer
        assert consumer is not None
        weight = self.running.tensors[consumer.args[1].name]
        if consumer.kind in CONVOLUTIONS:
            return weight[:, self.row : self.row + 1].contiguous()
        if self.place.axis > 1:
            return weight[:, self.row : self.row + 1].contiguous()
        return weight.reshape(len(weight), self.shape[1], -1)[:, self.row].contiguous()

    def _contribution(self, moved: Tensor, start: Tensor) -> Tensor:
        """Return what a movement of the channel adds to the consumer's result."""
        consumer = self.place.consumer
        assert consumer is not None
        if consumer.kind not in CONVOLUTIONS:
            if self.place.axis > 1:  # (pairs, positions, 1)
                moved = moved.reshape(*start.shape[:-1], 1)
            return functional.linear(moved, self._reading)
        convolve = getattr(functional, consumer.kind)
        arguments = _convolution_arguments(consumer)
        return convolve(self._maps(moved), self._reading, None, *arguments)  # type: ignore[no-any-return]

    def _maps(self, moved: Tensor) -> Tensor:
        """View a channel's numbers as the map that the consumer reads."""
        last = self.place.bridge[-1] if self.place.bridge else self.place.layer
        assert last is not None
        assert last.shape is not None
        return moved.reshape(len(moved), 1, *(int(size or 1) for size in last.shape[2:]))


def _sizes(numbers: Tensor) -> Tensor:
    """Return the largest size along the last axis, NaN where there is one."""
    sizes: Tensor = torch.linalg.vector_norm(numbers, ord=torch.inf, dim=-1)
    return sizes


def _by_full_forwards(watched: WeightLoss, moves: Tensors) -> LossChanges:
    """Run the whole model once per weight: what is left where it cannot be traced."""
    before = watched.value()
    found = {}
    for name, move in moves.items():
        weight = watched.tensors[name]
        sums = torch.zeros(move.numel(), dtype=torch.float64)
        label = f"loss changes of {legible(name)}"
        with reporting(label, move.numel(), show=watched.progress) as step:
            for index in move.reshape(-1).nonzero()[:, 0].tolist():
                moved = weight.clone()
                moved.view(-1)[index] += move.reshape(-1)[index]
                sums[index] = watched.value({name: moved}) - before
                step("")
        found[name] = sums.reshape(move.shape)
    return LossChanges(found, dict.fromkeys(moves, FULL))


@dataclass(frozen=True)
class _Widening(Runner):
    """A runner in float64 that is asked with inputs in the model's precision."""

    def forward(self, inputs: Tensor, *names: str) -> tuple[Tensor, ...]:
        return super().forward(_double(inputs), *names)


def _in_double(running: Runner, model: nn.Module) -> Runner:
    """Return the same network in float64, in which a tied weight has its first name only."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    names = {name: first.setdefault(id(parameter), name) for name, parameter in named}

    def widened(leaf: Any) -> Any:
        if isinstance(leaf, Weight):
            return Weight(names.get(leaf.name, leaf.name))
        return torch.float64 if leaf is torch.float32 else leaf

    operations = tuple(
        replace(
            operation,
            args=map_leaves(widened, operation.args),
            kwargs=map_leaves(widened, operation.kwargs),
        )
        for operation in running.graph.operations
    )
    graph: Graph = replace(running.graph, operations=operations)
    return Runner(graph, {name: _double(it) for name, it in running.tensors.items()})


def _double(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64) if tensor.is_floating_point() else tensor


def _pairs(kind: str, kernel: Any, stride: Any, dilation: Any) -> dict[str, tuple[int, int]]:
    """Kernel, stride and dilation for `unfold`, which knows two axes only."""
    given = {"kernel_size": kernel, "stride": stride, "dilation": dilation}
    return {name: _two(kind, value) for name, value in given.items()}


def _two(kind: str, value: Any) -> tuple[int, int]:
    if kind == "conv1d":
        return 1, _first(value)
    numbers = (value, value) if isinstance(value, int) else tuple(value)
    return int(numbers[0]), int(numbers[-1])


def _first(value: Any) -> int:
    return int(value) if isinstance(value, int) else int(value[0])


def _pads(kind: str, padding: Any, kernel: Any, dilation: Any) -> list[int]:
    """Zeros to the left, right, top and bottom, as `functional.pad` takes them."""
    if padding == "valid":
        padding = 0
    if padding == "same":  # the odd one comes last
        sides = zip(_two(kind, kernel), _two(kind, dilation), strict=True)
        totals = [dilated * (size - 1) for size, dilated in sides]
        pads = [(total // 2, total - total // 2) for total in totals]
    else:
        low = (0, _first(padding)) if kind == "conv1d" else _two(kind, padding)
        pads = [(size, size) for size in low]
    return [*pads[1], *pads[0]]
