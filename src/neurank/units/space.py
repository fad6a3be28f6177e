"""The unit space: which layers of a network have units, and where each unit is read.

A unit is one output channel of a convolution or one output feature of a linear layer, together
with everything that is tied to it: its BatchNorm channel, its activation, the channels that are
added to it or multiplied with it. It is switched off where operations that mix units read it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from neurank.errors import UnitError
from neurank.units.channelwise import NONLINEAR, is_channelwise
from neurank.units.coupling import OUTPUT, Coupling, couple
from neurank.units.graph import Graph, Operation, Ref, Weight
from neurank.units.labels import Read
from neurank.units.rules import CONVOLUTIONS, PRODUCERS, TRANSPOSED, are_whole_groups


@dataclass(frozen=True)
class UnitRead:
    """Where an operation that mixes units reads units of one layer.

    Attributes
    ----------
    operation : name of the operation.
    tensor : name of the result that it reads.
    axis : the axis of that result along which the units lie.
    units : for each entry along the axis, the layer's unit that it belongs to, -1 for none.
    cells : for each entry, a number that entries share whose mean is taken together.
    kind : how units are mixed, see `neurank.units.labels.Read`.
    """

    operation: str
    tensor: str
    axis: int
    units: tuple[int, ...]
    cells: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class Layer:
    """A layer whose units can be switched off, or several layers whose units are tied.

    Attributes
    ----------
    name : dotted name of the module; of several, of the one that runs first.
    width : number of units.
    producers : the operations that compute the units, in execution order.
    members : dotted names of the modules that do.
    classes : for each unit, the number under which `Coupling` knows what belongs to it.
    reads : where the units are read.
    """

    name: str
    width: int
    producers: tuple[Operation, ...]
    members: tuple[str, ...]
    classes: tuple[int, ...]
    reads: tuple[UnitRead, ...]

    @property
    def is_output(self) -> bool:
        """Whether the units are the network's outputs themselves."""
        return False


@dataclass(frozen=True)
class Chain(Layer):
    """A layer by itself, all of whose units run along one channel-wise stretch to where it ends.

    Attributes
    ----------
    switch : name of the result on which an importance switch acts, the pre-activation of the
        nonlinearity: the producer's, or that of a BatchNorm that stands before the nonlinearity.
    bridge : the channel-wise operations between the producer and the consumers, in order.
    consumers : the operations that read the units, empty for the network's own output.
    """

    switch: str
    bridge: tuple[Operation, ...]
    consumers: tuple[Operation, ...]

    @property
    def producer(self) -> Operation:
        """The operation that computes the pre-activations, one channel per unit."""
        return self.producers[0]

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
class UnitRows:
    """The rows of one weight that compute units of a layer.

    Attributes
    ----------
    tensor : dotted name of the weight.
    axis : the axis of its rows.
    units : for each row, the unit that it belongs to, -1 for none.
    """

    tensor: str
    axis: int
    units: tuple[int, ...]


@dataclass(frozen=True)
class UnitsGiven:
    """Where an operation gives units of one layer.

    Attributes
    ----------
    tensor : name of the operation and its result.
    axis : the axis of that result along which the units lie.
    units : for each entry along the axis, the layer's unit that it belongs to, -1 for none.
    """

    tensor: str
    axis: int
    units: tuple[int, ...]


@dataclass(frozen=True)
class UnitSpace:
    """Every layer of a network that has units, and why the others have none.

    Attributes
    ----------
    graph : the traced forward pass.
    layers : by dotted name, in execution order; the network's output layer is among them.
    refused : for every other convolution or linear layer, the reason.
    coupling : what stays or goes together.
    """

    graph: Graph
    layers: Mapping[str, Layer]
    refused: Mapping[str, str]
    coupling: Coupling = field(repr=False)

    @property
    def hidden(self) -> tuple[str, ...]:
        """The layers that are ranked when nobody says which: all but the network's outputs."""
        return tuple(name for name, layer in self.layers.items() if not layer.is_output)

    def __getitem__(self, name: str) -> Layer:
        """Return a layer by its name or that of a member, or say why it cannot be had."""
        if name in self.layers:
            return self.layers[name]
        for layer in self.layers.values():
            if name in layer.members:
                return layer
        if name in self.refused:
            raise UnitError(
                f"the units of layer {name!r} cannot be switched off: {self.refused[name]}. "
                f"Leave it out with layers=[...]; layers with units are {', '.join(self.layers)}"
            )
        raise UnitError(
            f"the model has no layer {name!r}: layers with units are {', '.join(self.layers)}"
        )

    def rows(self, name: str) -> tuple["UnitRows", ...]:
        """Say which rows of which weights compute the units of a layer."""
        layer = self[name]
        unit_of = {number: unit for unit, number in enumerate(layer.classes)}
        found = {}
        for producer in layer.producers:
            atoms = _rows(producer, self.coupling)
            for slots in self.coupling.slots:
                if atoms is slots.atoms:
                    classes = self.coupling.classes[atoms].tolist()
                    units = tuple(unit_of.get(it, -1) for it in classes)
                    found[slots.tensor] = UnitRows(slots.tensor, slots.axis, units)
        return tuple(found.values())

    def given(self, name: str) -> tuple["UnitsGiven", ...]:
        """Say where the units of a layer are computed, before any activation."""
        layer = self[name]
        unit_of = {number: unit for unit, number in enumerate(layer.classes)}
        found = []
        for producer in layer.producers:
            labels = self.coupling.labels[producer.name]
            axis = unit_axis(producer)
            atoms = labels.movedim(axis, 0).flatten(1)[:, 0]
            classes = self.coupling.classes[atoms].tolist()
            units = tuple(unit_of.get(it, -1) for it in classes)
            found.append(UnitsGiven(producer.name, axis, units))
        return tuple(found)

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

    Layers whose units are tied, by a residual sum for example, count as one, under the name of
    the one that runs first. What ties units is said by one rule per operation
    (``neurank.units.rules``); an operation without a rule is refused by name.

    Example
    -------
    >>> import torch
    >>> from neurank.units.trace import trace
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> space = unit_space(trace(model, torch.zeros(4, 2)), model)
    >>> space.hidden, space["0"].width, space["2"].is_output
    (('0',), 3, True)
    """
    tensors = {
        **graph.constants,
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    coupling = couple(graph, tensors)
    rows = {}
    refused: dict[str, str] = {}
    for operation in graph.needed_for((graph.output,)):
        if operation.kind in PRODUCERS:
            name = _layer_name(operation, model)
            found = _rows(operation, coupling)
            if found is None:
                reason = f"its weight is not the parameter of a module ({operation.line})"
                refused[name or operation.name] = reason
            else:
                rows[operation.name] = _Rows(name, operation, coupling.classes[found])
    layers = {}
    for group in _groups(list(rows.values()), coupling):
        layer = _layer(group, coupling)
        if isinstance(layer, Layer):
            layers[layer.name] = layer
        else:
            refused.update({it.name: layer for it in group})
    in_order = sorted(layers.values(), key=lambda it: list(rows).index(it.producers[0].name))
    return UnitSpace(graph, {it.name: it for it in in_order}, refused, coupling)


@dataclass(frozen=True)
class _Rows:
    """An operation that computes units: its layer's name and the class of each row."""

    name: str
    operation: Operation
    classes: Tensor


def _layer_name(operation: Operation, model: nn.Module) -> str:
    """Name of the module that holds the weight, the one that runs where several share it."""
    weight = operation.args[1]
    if not isinstance(weight, Weight):
        return operation.module or operation.name
    shared = _names_of_same_tensor(weight.name, model)
    if f"{operation.module}.weight" in shared:
        return operation.module
    owner, _, attribute = weight.name.rpartition(".")
    return owner if attribute == "weight" else weight.name.removesuffix("_weight")


def _names_of_same_tensor(name: str, model: nn.Module) -> set[str]:
    named = dict(model.named_parameters(remove_duplicate=False))
    return {other for other, tensor in named.items() if tensor is named.get(name)} or {name}


def unit_axis(producer: Operation) -> int:
    """Return the axis of a producer's result along which its units lie."""
    if producer.kind in CONVOLUTIONS | TRANSPOSED:
        return 1
    assert producer.shape is not None
    return len(producer.shape) - 1


def _rows(operation: Operation, coupling: Coupling) -> Tensor | None:
    """Return the atoms of the units that an operation computes, None if it has no parameter."""
    weight, axis = operation.args[1], 1 if operation.kind in TRANSPOSED else 0
    while isinstance(weight, Ref):  # a transposed matrix
        made = coupling.graph.by_name[weight.name]
        if made.kind not in {"t", "numpy_T", "transpose", "permute"}:
            return None
        weight, axis = made.args[0], 1 - axis
    atoms = {slots.axis: slots.atoms for slots in coupling.slots_of.get(weight.name, ())}
    if operation.kind in TRANSPOSED and {0, 1} <= set(atoms):
        # Where whole groups go, it is what they read that says which.
        axis = 0 if are_whole_groups(operation, len(atoms[0]), len(atoms[1])) else 1
    return atoms.get(axis)


def _groups(rows: Sequence[_Rows], coupling: Coupling) -> Iterator[tuple[_Rows, ...]]:
    """Bring together the operations that share units."""
    groups: list[list[_Rows]] = []
    for own in rows:
        free = _free(own.classes, coupling)
        touched = [it for it in groups if any(free & _free(o.classes, coupling) for o in it)]
        # A layer without units of its own may still run twice under one name.
        touched += [it for it in groups if it not in touched and it[0].name == own.name]
        merged = [*(member for group in touched for member in group), own]
        groups = [it for it in groups if it not in touched] + [merged]
    yield from (tuple(group) for group in groups)


def _free(classes: Tensor, coupling: Coupling) -> set[int]:
    return set(classes.tolist()) - set(coupling.reasons)


def _layer(group: tuple[_Rows, ...], coupling: Coupling) -> Layer | str:
    """Make a layer of operations that share units; a string says why there is none."""
    first = group[0]
    chain = _chain(first, coupling.graph) if len(group) == 1 else None
    in_order = torch.cat([it.classes for it in group]).tolist()
    units = tuple(it for it in dict.fromkeys(in_order) if it not in coupling.reasons)
    if not units:
        reasons = [coupling.reasons[it] for it in in_order]
        if isinstance(chain, tuple) and not chain[2] and set(reasons) == {OUTPUT}:
            units = tuple(in_order)
        else:
            return reasons[0]
    reads = tuple(_reads(units, coupling))
    if not reads and units[0] not in coupling.reasons:
        return "nothing reads it"
    common = (
        first.name,
        len(units),
        tuple(it.operation for it in group),
        tuple(dict.fromkeys(it.name for it in group)),
        units,
        reads,
    )
    if isinstance(chain, tuple) and len(units) == len(first.classes):
        return Chain(*common, *chain)
    return Layer(*common)


def _reads(units: Sequence[int], coupling: Coupling) -> Iterator[UnitRead]:
    unit_of = {number: unit for unit, number in enumerate(units)}
    for read in coupling.reads:
        owners = [unit_of.get(it, -1) for it in coupling.classes[read.atoms].tolist()]
        if any(owner >= 0 for owner in owners):
            yield UnitRead(
                read.operation,
                read.tensor,
                read.axis,
                tuple(owners),
                _cells(read),
                read.kind,
            )


def _cells(read: Read) -> tuple[int, ...]:
    """Entries that come from one and the same channel, such as those of a flattened map."""
    return tuple(torch.unique(read.atoms, return_inverse=True)[1].tolist())


def _chain(
    own: _Rows, graph: Graph
) -> tuple[str, tuple[Operation, ...], tuple[Operation, ...]] | str:
    """Describe the stretch from an operation to its consumers, or say why it is none."""
    operation = own.operation
    uses = [it for it in graph.operations if set(operation.weights[:1]) & set(it.weights)]
    axes = {"linear": 2, "conv1d": 3, "conv2d": 4, "conv3d": 5}.get(operation.kind)
    if len(uses) > 1 or operation.shape is None or len(operation.shape) != axes:
        return "its weight is used more than once, or its units do not lie on axis 1"
    return _follow(operation, graph)


def _follow(
    producer: Operation, graph: Graph
) -> tuple[str, tuple[Operation, ...], tuple[Operation, ...]] | str:
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
    return _switch_point(producer, bridge), tuple(bridge), readers


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
