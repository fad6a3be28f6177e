"""The forward pass of a model as plain values: one list of operations.

Everything else that neurank knows about a network's structure is read off this list: which layers
have units, where a unit is read, where the forward pass can be split.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, fx


@dataclass(frozen=True)
class Ref:
    """The result of the operation called `name`, or the network's input."""

    name: str


@dataclass(frozen=True)
class Weight:
    """The parameter or buffer with the dotted name `name`, or a constant of the traced code."""

    name: str


@dataclass(frozen=True)
class Operation:
    """One call in the forward pass.

    Attributes
    ----------
    name : the result's name, unique in the graph.
    target : the function that is called, an aten overload as a rule.
    args, kwargs : its arguments, tensors replaced by `Ref` and `Weight`.
    module : dotted name of the module that runs it, "" for the model itself.
    shape : shape of the result, None standing for the batch dimension; None if it is no tensor.
    line : the line of the user's code that makes the call.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    module: str
    shape: tuple[int | None, ...] | None
    line: str

    @property
    def kind(self) -> str:
        """The operation's bare name: ``conv2d`` for ``aten.conv2d.default``."""
        name = getattr(self.target, "overloadpacket", self.target)
        return str(getattr(name, "__name__", name)).rsplit(".", maxsplit=1)[-1]

    @cached_property
    def refs(self) -> tuple[str, ...]:
        """Names of the results that this operation reads, in order, each once."""
        found = dict.fromkeys(
            leaf.name for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Ref)
        )
        return tuple(found)

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """Dotted names of the parameters and buffers that this operation reads."""
        found = dict.fromkeys(
            leaf.name for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Weight)
        )
        return tuple(found)


@dataclass(frozen=True)
class Graph:
    """A traced forward pass, in execution order.

    Attributes
    ----------
    input : name of the network's input.
    operations : every operation, in an order in which they can be run.
    output : name of the result that holds the logits, (examples, classes).
    constants : tensors that the traced code holds outside parameters and buffers.
    input_shape : shape of the network's input, None standing for the batch dimension.
    """

    input: str
    operations: tuple[Operation, ...]
    output: str
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    input_shape: tuple[int | None, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, Operation]:
        """Look an operation up by its name."""
        return {operation.name: operation for operation in self.operations}

    def shape_of(self, name: str) -> tuple[int | None, ...] | None:
        """Return the shape of a result, or of the input; None if it has none."""
        return self.input_shape if name == self.input else self.by_name[name].shape

    @cached_property
    def readers(self) -> dict[str, tuple[Operation, ...]]:
        """For every result, the operations that read its numbers (not only its batch size)."""
        found: dict[str, list[Operation]] = {name: [] for name in (self.input, *self.by_name)}
        for operation in self.operations:
            if not reads_only_shape(operation):
                for name in operation.refs:
                    found.setdefault(name, []).append(operation)  # switches are not in the trace
        return {name: tuple(operations) for name, operations in found.items()}

    def below(self, name: str) -> tuple[Operation, ...]:
        """Every operation whose result depends on `name`, in execution order.

        `name` itself is not among them.
        """
        reached = {name}
        found = []
        for operation in self.operations:
            if reads_only_shape(operation):
                continue
            if reached.intersection(operation.refs):
                reached.add(operation.name)
                found.append(operation)
        return tuple(found)

    def needed_for(
        self, names: Iterable[str], known: Collection[str] = ()
    ) -> tuple[Operation, ...]:
        """Every operation that must run before the results `names` are there, given `known`."""
        wanted = set(names)
        found = []
        for operation in reversed(self.operations):
            if operation.name in wanted and operation.name not in known:
                found.append(operation)
                if not reads_only_shape(operation):
                    wanted.update(operation.refs)
        return tuple(reversed(found))


def reads_only_shape(operation: Operation) -> bool:
    """Whether the operation asks a tensor for its size and nothing else."""
    return operation.kind in {"sym_size", "sym_numel"}


def leaves(tree: Any) -> Iterator[Any]:
    """Yield the leaves of nested tuples, lists and mappings."""
    if isinstance(tree, tuple | list):
        for branch in tree:
            yield from leaves(branch)
    elif isinstance(tree, Mapping):
        for branch in tree.values():
            yield from leaves(branch)
    else:
        yield tree


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply `function` to every leaf of nested tuples, lists and mappings.

    Example:
    -------
    >>> map_leaves(lambda leaf: leaf + 1, (1, [2, {"a": 3}]))
    (2, [3, {'a': 4}])
    """
    if isinstance(tree, tuple | list | fx.immutable_collections.immutable_list):
        return type(tree)(map_leaves(function, branch) for branch in tree)
    if isinstance(tree, Mapping):
        return {key: map_leaves(function, branch) for key, branch in tree.items()}
    return function(tree)
