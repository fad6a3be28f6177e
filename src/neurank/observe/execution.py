"""Running a traced forward pass, or a part of it, on the live weights of the model."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from neurank.observe.pooling import in_slices
from neurank.units.graph import Graph, Operation, Ref, Weight, map_leaves, reads_only_shape
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
        results = dict(known)

        def resolve(leaf: Any) -> Any:
            if isinstance(leaf, Ref):
                return results[leaf.name]
            if isinstance(leaf, Weight):
                return self.tensors[leaf.name]
            return leaf

        last_use = {
            name: place
            for place, operation in enumerate(operations)
            if not reads_only_shape(operation)
            for name in operation.refs
        }
        for place, operation in enumerate(operations):
            if reads_only_shape(operation):  # the batch is all that varies in size
                results[operation.name] = batch
                continue
            arguments = map_leaves(resolve, operation.args)
            keywords = map_leaves(resolve, operation.kwargs)
            results[operation.name] = operation.target(*arguments, **keywords)
            del arguments, keywords
            for name in operation.refs:
                if last_use[name] == place and name not in wanted:
                    results.pop(name, None)
        return {name: results[name] for name in wanted}

    def multiply_adds(self, operations: Iterable[Operation]) -> int:
        """Count the multiply-adds of convolutions and linear layers, per example."""
        return sum(_multiply_adds(operation, self) for operation in operations)

    def forward(self, inputs: Tensor, *names: str) -> tuple[Tensor, ...]:
        """Compute the named results (the logits if none is named) for a batch of inputs."""
        names = names or (self.graph.output,)
        needed = self.graph.needed_for(names)
        results = self.run(needed, {self.graph.input: inputs}, len(inputs), names)
        return tuple(results[name] for name in names)


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
