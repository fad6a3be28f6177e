"""Running a traced forward pass, or a part of it, on the live weights of the model."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from neurank.observe.pooling import in_slices
from neurank.units.graph import Graph, Operation, Ref, Weight, leaves, map_leaves, reads_only_shape
from neurank.units.rules import CONVOLUTIONS


@dataclass(frozen=True)
class Runner:
    """The graph of a model and the tensors it computes with.

    Attributes
    ----------
    graph : the traced forward pass.
    tensors : parameters, buffers and constants by dotted name, detached from the model's gradients.
    """

    graph: Graph
    tensors: Mapping[str, Tensor]

    def run(
        self,
        operations: Sequence[Operation],
        known: Mapping[str, Any],
        batch: int,
        wanted: Collection[str],
    ) -> dict[str, Any]:
        """Run the operations in order and return the wanted results.

        Every other result is let go after its last use, so that the memory of one operation
        serves the next while it is still in the cache.

        Parameters
        ----------
        operations : what to run.
        known : results that are there already.
        batch : the number of rows that the operations see, wherever they ask for it: a suffix
            runs on more rows (coalitions) than its prefix did (examples).
        wanted : names of known or computed results.
        """
        return self.program(operations, wanted).run(known, batch)

    def program(self, operations: Sequence[Operation], wanted: Collection[str]) -> "Program":
        """Get ready to run the same operations again and again; see `run`."""
        last_use = {
            name: place
            for place, operation in enumerate(operations)
            if not reads_only_shape(operation)
            for name in operation.refs
        }
        steps = []
        for place, operation in enumerate(operations):
            over = tuple(
                name
                for name in operation.refs
                if last_use.get(name) == place and name not in wanted
            )
            steps.append(_step(operation, over, self.tensors))
        return Program(tuple(steps), tuple(wanted))

    def multiply_adds(self, operations: Iterable[Operation]) -> int:
        """Count the multiply-adds of convolutions and linear layers, per example."""
        return sum(_multiply_adds(operation, self) for operation in operations)

    def forward(self, inputs: Tensor, *names: str) -> tuple[Tensor, ...]:
        """Compute the named results (the logits if none is named) for a batch of inputs."""
        names = names or (self.graph.output,)
        needed = self.graph.needed_for(names)
        results = self.run(needed, {self.graph.input: inputs}, len(inputs), names)
        return tuple(results[name] for name in names)


@dataclass(frozen=True)
class Program:
    """Operations whose weights are in their places already.

    Attributes
    ----------
    steps : in order.
    wanted : names of the results that are handed back.
    """

    steps: tuple["_Step", ...]
    wanted: tuple[str, ...]

    def run(self, known: Mapping[str, Any], batch: int) -> dict[str, Any]:
        """Run the operations; see `Runner.run`."""
        results = dict(known)
        for step in self.steps:
            results[step.name] = batch if step.target is None else step(results)
            for name in step.over:
                results.pop(name, None)
        return {name: results[name] for name in self.wanted}


@dataclass(frozen=True)
class _Step:
    """An operation that waits for results only.

    Attributes
    ----------
    name : of its own result.
    target : what is called; None hands the number of examples on.
    args, keywords : its arguments, with a `Ref` wherever a result belongs.
    places : of those arguments that are results themselves, place and name.
    nested : whether results stand within lists or keywords besides.
    over : the results that nobody reads afterwards.
    """

    name: str
    target: Callable[..., Any] | None
    args: tuple[Any, ...]
    keywords: Mapping[str, Any]
    places: tuple[tuple[int, str], ...]
    nested: bool
    over: tuple[str, ...]

    def __call__(self, results: Mapping[str, Any]) -> Any:
        assert self.target is not None
        if self.nested:
            args, keywords = _resolved((self.args, self.keywords), results)
            return self.target(*args, **keywords)
        arguments = list(self.args)
        for place, name in self.places:
            arguments[place] = results[name]
        return self.target(*arguments, **self.keywords)


def _step(operation: Operation, over: tuple[str, ...], tensors: Mapping[str, Tensor]) -> _Step:
    if reads_only_shape(operation):  # the batch is all that varies in size
        return _Step(operation.name, None, (), {}, (), nested=False, over=())

    def filled(leaf: Any) -> Any:
        return tensors[leaf.name] if isinstance(leaf, Weight) else leaf

    args = tuple(map_leaves(filled, operation.args))
    keywords = map_leaves(filled, dict(operation.kwargs))
    places = tuple((at, it.name) for at, it in enumerate(args) if isinstance(it, Ref))
    others = [it for it in args if not isinstance(it, Ref)]
    nested = any(isinstance(leaf, Ref) for leaf in leaves((others, keywords)))
    return _Step(operation.name, operation.target, args, keywords, places, nested, over)


def _resolved(tree: Any, results: Mapping[str, Any]) -> Any:
    return map_leaves(lambda leaf: results[leaf.name] if isinstance(leaf, Ref) else leaf, tree)


def runner(graph: Graph, model: nn.Module, device: torch.device) -> Runner:
    """Pair a graph with the model's tensors, on `device`; the model itself is not moved."""
    graph = replace(graph, operations=tuple(map(in_slices, graph.operations)))
    named: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    tensors = {name: tensor.detach().to(device) for name, tensor in named.items()}
    constants = {name: tensor.detach().to(device) for name, tensor in graph.constants.items()}
    return Runner(graph, {**constants, **tensors})


def weight_and_bias(operation: Operation, runner: Runner) -> tuple[Tensor, Tensor | None]:
    """Return the weight and the bias (None if there is none) of a convolution or linear layer."""
    found = [
        runner.tensors[argument.name] if isinstance(argument, Weight) else None
        for argument in (*operation.args[1:3], None)
    ]
    assert found[0] is not None
    return found[0], found[1]


def _multiply_adds(operation: Operation, runner: Runner) -> int:
    """Each output position of each unit takes one multiply-add per weight of the unit."""
    if operation.kind not in {*CONVOLUTIONS, "linear"} or operation.shape is None:
        return 0
    weight = operation.args[1]
    stored = isinstance(weight, Weight)  # else the forward pass computes it, as weight norm does
    shape = runner.tensors[weight.name].shape if stored else runner.graph.by_name[weight.name].shape
    assert shape is not None
    outputs = prod(size for size in operation.shape if size is not None)
    return outputs * prod(size or 1 for size in shape[1:])
