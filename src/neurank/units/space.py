"""The unit space: which layers of a network have units, and where each unit is read.

A unit is one output channel of a convolution or one output feature of a linear layer, together
with what follows it channel by channel: its BatchNorm channel, its activation, its pooled map. It
is switched off where its consumers read it, at the end of that channel-wise stretch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from neurank.errors import UnitError
from neurank.units.channelwise import NONLINEAR, is_channelwise
from neurank.units.graph import Graph, Operation, Ref, Weight

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
OUTPUT = "output"


@dataclass(frozen=True)
class Layer:
    """A layer whose units can be switched off.

    Attributes
    ----------
    name : dotted name of the module.
    width : number of units.
    producer : the operation that computes the pre-activations, one channel per unit.
    switch : name of the result on which an importance switch acts, the pre-activation of the
        nonlinearity: the producer's, or that of a BatchNorm that stands before the nonlinearity.
    bridge : the channel-wise operations between the producer and the consumers, in order.
    consumers : the operations that read the units, empty for the network's own output.
    """

    name: str
    width: int
    producer: Operation
    switch: str
    bridge: tuple[Operation, ...]
    consumers: tuple[Operation, ...]

    @property
    def read(self) -> str:
        """Name of the result that the consumers read; here a unit is switched off."""
        return self.bridge[-1].name if self.bridge else self.producer.name

    @property
    def weight(self) -> str:
        """Dotted name of the layer's weight tensor."""
        return self.producer.weights[0]

    @property
    def bias(self) -> str | None:
        """Dotted name of the layer's bias, None if it has none."""
        return self.producer.weights[1] if len(self.producer.weights) > 1 else None

    @property
    def is_output(self) -> bool:
        """Whether the units are the network's outputs themselves."""
        return not self.consumers


@dataclass(frozen=True)
class UnitSpace:
    """Every layer of a network that has units, and why the others have none.

    Attributes
    ----------
    graph : the traced forward pass.
    layers : by dotted name, in execution order; the network's output layer is among them.
    refused : for every other convolution or linear layer, the reason.
    """

    graph: Graph
    layers: Mapping[str, Layer]
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def hidden(self) -> tuple[str, ...]:
        """The layers that are ranked when nobody says which: all but the network's outputs."""
        return tuple(name for name, layer in self.layers.items() if not layer.is_output)

    def __getitem__(self, name: str) -> Layer:
        """Return a layer by its name, or say why it cannot be had."""
        if name in self.layers:
            return self.layers[name]
        if name in self.refused:
            raise UnitError(
                f"the units of layer {name!r} cannot be switched off: {self.refused[name]}. "
                f"Leave it out with layers=[...]; layers with units are {', '.join(self.layers)}"
            )
        raise UnitError(
            f"the model has no layer {name!r}: layers with units are {', '.join(self.layers)}"
        )

    def choose(self, names: Sequence[str] | None) -> tuple[Layer, ...]:
        """Return the named layers, or every hidden one, in execution order.

        Raises
        ------
        UnitError
            If a name is unknown, refused or given twice, or there is no hidden layer at all.
        """
        if names is not None and len(set(names)) != len(names):
            raise UnitError(f"a layer is named twice in {list(names)}: name each once")
        wanted = set(self.hidden if names is None else (self[name].name for name in names))
        if not wanted:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.refused.items())
            raise UnitError(
                "the model has no hidden layer whose units can be switched off"
                + (f" ({reasons})" if reasons else ": it needs a convolution or a linear layer")
            )
        return tuple(layer for name, layer in self.layers.items() if name in wanted)


def unit_space(graph: Graph, model: nn.Module) -> UnitSpace:
    """Find the layers of a traced network and where their units are read.

    A layer is found if its weight belongs to it alone and everything between it and the
    convolutions or linear layers that read it is channel-wise. Anything else, such as a sum of two
    branches, is refused by name.

    Example
    -------
    >>> import torch
    >>> from neurank.units.trace import trace
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> space = unit_space(trace(model, torch.zeros(4, 2)), model)
    >>> space.hidden, space["0"].width, space["2"].is_output
    (('0',), 3, True)
    """
    layers: dict[str, Layer] = {}
    refused: dict[str, str] = {}
    for operation in graph.operations:
        if operation.kind not in {*CONVOLUTIONS, "linear"}:
            continue
        name = _layer_name(operation, model)
        reason = _refusal(operation, graph, model)
        if reason is None:
            layer = _follow(name, operation, graph)
            if isinstance(layer, Layer):
                layers[name] = layer
                continue
            reason = layer
        refused[name or operation.name] = reason
    return UnitSpace(graph, layers, refused)


def _layer_name(operation: Operation, model: nn.Module) -> str:
    """Name of the module that holds the weight, the one that runs where several share it."""
    weight = operation.args[1]
    if not isinstance(weight, Weight):
        return operation.module
    shared = _names_of_same_tensor(weight.name, model)
    runs = f"{operation.module}.weight" in shared
    return operation.module if runs else weight.name.rpartition(".")[0]


def _refusal(operation: Operation, graph: Graph, model: nn.Module) -> str | None:
    """Why the operation's weight makes no units, None if it does."""
    weight = operation.args[1]
    if not isinstance(weight, Weight) or not weight.name.endswith(".weight"):
        return f"its weight is not the parameter of a module ({operation.line})"
    names = _names_of_same_tensor(weight.name, model)
    uses = [other for other in graph.operations if names.intersection(other.weights)]
    if len(names) > 1 or len(uses) > 1:
        shared = ", ".join(sorted(names | {other.module for other in uses}))
        return f"its weight is shared or used more than once ({shared})"
    axes = {"linear": 2, "conv1d": 3, "conv2d": 4, "conv3d": 5}[operation.kind]
    if operation.shape is None or len(operation.shape) != axes:
        return (
            f"its output has shape {operation.shape}, where {axes} axes with the units on axis 1 "
            "are needed"
        )
    return None


def _names_of_same_tensor(name: str, model: nn.Module) -> set[str]:
    named = dict(model.named_parameters(remove_duplicate=False))
    return {other for other, tensor in named.items() if tensor is named.get(name)} or {name}


def _follow(name: str, producer: Operation, graph: Graph) -> Layer | str:
    """Walk the channel-wise stretch below `producer`; a string says why it leads nowhere."""
    bridge: list[Operation] = []
    current = producer.name
    while current != graph.output:
        readers = graph.readers[current]
        if len(readers) != 1 or not is_channelwise(readers[0], current, graph):
            break
        bridge.append(readers[0])
        current = readers[0].name
    readers = graph.readers[current]
    if current == graph.output and readers:
        return "it is both the network's output and read by other operations"
    for reader in readers:
        if not _reads_as_consumer(reader, current, graph):
            return (
                f"{current!r} is read by {reader.kind}, for which there is no rule ({reader.line})"
            )
    if not readers and current != graph.output:
        return "nothing reads it"
    width = producer.shape[1] if producer.shape else None
    if width is None:
        return "its number of units is not fixed"
    return Layer(name, width, producer, _switch_point(producer, bridge), tuple(bridge), readers)


def _reads_as_consumer(operation: Operation, name: str, graph: Graph) -> bool:
    """Whether the operation is a convolution or a linear layer that reads units on axis 1."""
    if operation.args[:1] != (Ref(name),) or operation.refs != (name,):
        return False
    if operation.kind in CONVOLUTIONS:
        return True
    shape = graph.by_name[name].shape
    return operation.kind == "linear" and shape is not None and len(shape) == 2


def _switch_point(producer: Operation, bridge: Sequence[Operation]) -> str:
    """Where eq. 3 multiplies: the pre-activation, behind a BatchNorm that precedes it."""
    point = producer.name
    for operation in bridge:
        if operation.kind in NONLINEAR:
            return point
        if operation.kind == "batch_norm":
            point = operation.name
    return producer.name
