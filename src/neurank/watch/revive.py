"""Units that are dead, brought back or taken away on the spot, while a network is trained.

`revive` edits the network in place, as a training step does, so that whatever holds it goes on.
What belongs to a unit is what condensing would cut: its rows, its entries in normalisations, its
columns in the layers that read it. `remove` condenses, which gives a network of its own.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neurank.condense.carry import Carried, carry_over
from neurank.condense.compensate import compensation
from neurank.condense.condensed import Condensed, condense
from neurank.condense.plan import Plan
from neurank.condense.surgery import cut_layers, cuts_for, gone_classes, named_tensors
from neurank.condense.trials import watched
from neurank.errors import CondenseError, MethodError, UnitError
from neurank.modes import evaluating
from neurank.observe.door import device_of
from neurank.observe.examples import Batch
from neurank.observe.observer import TracedObserver
from neurank.observe.removal import check_removal, off_constants
from neurank.watch.entries import Entries, Written, state_anew
from neurank.watch.losses import mean_loss

Incoming = Literal["layer", "units"]
"""Where new incoming weights come from: the layer's initialisation, or the other units' weights."""


@dataclass(frozen=True)
class Revived:
    """What reviving units did.

    Attributes
    ----------
    layer, units : which.
    losses : mean cross-entropy on the data, in evaluation mode, before and after.
    changed : by name of a parameter or buffer, along which axis the entries of these units were
        changed.
    shifted : names of the biases that what the units gave on average was added to.
    """

    layer: str
    units: tuple[int, ...]
    losses: tuple[float, float]
    changed: Mapping[str, tuple[int, ...]]
    shifted: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Removed:
    """What removing units did.

    Attributes
    ----------
    condensed : the smaller network, ``condensed.model``, and what is known of it.
    losses : mean cross-entropy on the data, in evaluation mode, before and after.
    carried : what each optimizer goes on with.
    """

    condensed: Condensed
    losses: tuple[float, float]
    carried: tuple[Carried, ...]


def revive(
    model: nn.Module,
    data: Iterable[Batch],
    layer: str,
    units: int | Sequence[int],
    *,
    optimizer: Optimizer | Sequence[Optimizer] = (),
    removal: str = "mean",
    incoming: Incoming = "layer",
    outgoing: float = 0.0,
    seed: int = 0,
) -> Revived:
    """Initialise dead units anew, IN PLACE, so that they can learn something else.

    Their incoming weights and biases are drawn anew; their entries of normalisations, running
    statistics too, are as at the beginning; what the optimizer keeps for all these entries, and
    gradients that are there, start afresh. Their outgoing weights are `outgoing` times as large as
    those of other units, 0 by default: then a new unit says nothing at first, and what its readers
    receive does not jump. What the dead unit gave them on average goes into their biases before.

    Behind zero padding the border sees that average fewer times than the bias says, and a LayerNorm
    counts a new unit as it counted the old one: there the loss does change, and the record says so.

    Parameters
    ----------
    model
        The network. If anything is refused, it and the optimizers are as they were.
    data
        Batches ``(inputs, targets)`` that are the same at every pass: what averages and losses are
        taken over.
    layer
        Dotted name of the units' layer; of layers that are tied, of the one that runs first.
    units
        Their indices.
    optimizer
        What trains the network; several in a sequence.
    removal
        What is left of the dead units: ``"mean"``, their averages, in the biases of their readers;
        ``"zero"``, nothing.
    incoming
        ``"layer"``: what the layers' ``reset_parameters`` draws; ``"units"``: each weight is one of
        those that the other units have in its place, picked at random.
    outgoing
        The scale of the outgoing weights, each of which is then picked from those of the other
        units in its place; at 0 they are 0.
    seed
        Of what is drawn; torch's generator is left as it is.

    Raises
    ------
    UnitError, PlanError
        There is no such layer or unit, its units cannot be removed, or all of them are named.
    CondenseError
        Averages cannot go into biases; a layer has no ``reset_parameters``; what an optimizer keeps
        cannot be told apart by units.
    MethodError, DataError, ModelError
        A setting, the data or the network cannot be used.

    Examples
    --------
    >>> import neurank as nr
    >>> model, digits = nr.zoo.digits_net(seed=0), nr.data.load("digits").validation
    >>> with torch.no_grad():
    ...     _ = model.fc1.bias[3].fill_(-100.0)
    >>> revived = revive(model, digits, "fc1", 3)
    >>> bool(model.fc1.bias[3] > -1), float(model.fc2.weight[:, 3].detach().abs().max())
    (True, 0.0)
    >>> before, after = revived.losses
    >>> abs(after - before) < 1e-6
    True
    """
    chosen = _indices(units)
    _check_settings(incoming, outgoing)
    optimizers = _listed(optimizer)
    before = mean_loss(model, data)
    with evaluating(model), torch.no_grad():
        own = _belongings(model, data, layer, chosen, removal)
        fresh = _fresh(own, model, incoming, outgoing, seed)
        kept = [
            state
            for one in optimizers
            for written in fresh
            for state in state_anew(one, written.entries)
        ]
    # Nothing can fail from here on.
    with torch.no_grad():
        for name, shift in own.shifts.items():
            bias = own.tensors[name]
            bias.copy_(bias.to(torch.float64) + shift.to(bias.device))
        for written in fresh:
            written.carry_out()
            gradient = written.entries.tensor.grad
            if gradient is not None:
                written.entries.write(gradient, torch.zeros_like(written.values))
        for state in kept:
            state.carry_out()
    changed: dict[str, tuple[int, ...]] = {}
    for written in fresh:
        name, axis = written.entries.name, written.entries.axis
        changed[name] = (*changed.get(name, ()), axis)
    return Revived(layer, chosen, (before, mean_loss(model, data)), changed, tuple(own.shifts))


def remove(
    model: nn.Module,
    data: Iterable[Batch],
    layer: str,
    units: int | Sequence[int],
    *,
    optimizer: Optimizer | Sequence[Optimizer] = (),
    removal: str = "mean",
) -> Removed:
    """Cut units away on the spot, and let the optimizers go on with the smaller network.

    Parameters
    ----------
    model
        The network; it is not changed.
    data
        Batches ``(inputs, targets)`` that are the same at every pass: what averages and losses are
        taken over, and the result is verified on.
    layer, units
        Which; see `revive`.
    optimizer
        What trains the network; several in a sequence. They hold the parameters of
        ``condensed.model`` afterwards.
    removal
        What is left of the units, as for `neurank.condense.condense`.

    Raises
    ------
    UnitError, PlanError, CondenseError, DataError, ModelError, MethodError
        As `condense` and `carry_over` do.

    Examples
    --------
    >>> import neurank as nr
    >>> model, digits = nr.zoo.digits_net(seed=0), nr.data.load("digits").validation
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> removed = remove(model, digits, "fc1", (3, 5), optimizer=optimizer)
    >>> removed.condensed.model.fc1.out_features
    30
    """
    chosen = _indices(units)
    width = _width(model, data, layer)
    kept = tuple(unit for unit in range(width) if unit not in chosen)
    _check_units(layer, chosen, width)
    made = condense(
        model, Plan({layer: kept}, {layer: width}), data, removal=removal, progress=False
    )
    losses = mean_loss(model, data), mean_loss(made.model, data)
    carried = tuple(carry_over(one, model, made.model, made.cuts) for one in _listed(optimizer))
    return Removed(made, losses, carried)


@dataclass(frozen=True, eq=False)
class _Belongings:
    """What belongs to some units of a layer.

    Attributes
    ----------
    tensors : every parameter and buffer of the network by name.
    cuts : by name and axis, the entries that are these units'.
    incoming : those names and axes that compute the units, biases among them.
    shifts : by name of a bias, what is added to it.
    """

    tensors: Mapping[str, Tensor]
    cuts: Mapping[tuple[str, int], tuple[int, ...]]
    incoming: frozenset[tuple[str, int]]
    shifts: Mapping[str, Tensor]


def _belongings(
    model: nn.Module, data: Iterable[Batch], layer: str, units: tuple[int, ...], removal: str
) -> _Belongings:
    watching = _watching(model, data)
    space, tensors = watching.space, named_tensors(model)
    width = space[layer].width
    _check_units(layer, units, width)
    kept = tuple(unit for unit in range(width) if unit not in units)
    plan = Plan({layer: kept}, {layer: width})
    cuts = {
        (cut.tensor, cut.axis): _others(cut.keep, tensors[cut.tensor].shape[cut.axis])
        for cut in cuts_for(plan, space, model)
    }
    off = off_constants(
        check_removal(removal), cut_layers(plan, space), watching.runner, watching.examples
    )
    added = compensation(
        plan, space, off, watching.runner, model, gone_classes(plan, space), "folded"
    )
    # What is made for normalisations counts units that are gone, and these are not.
    lacking = [name for name in added.shifts if name not in tensors]
    if lacking:
        raise CondenseError(
            f"what the dead units give on average belongs into {lacking[0]!r}, which the network "
            "does not have: build the layer with a bias, or use removal='zero'"
        )
    rows = frozenset((it.tensor, it.axis) for it in space.rows(layer))
    biases = frozenset(
        (name, 0)
        for tensor, _ in rows
        if (name := f"{tensor.rpartition('.')[0]}.bias".removeprefix(".")) in tensors
    )
    return _Belongings(tensors, cuts, (rows | biases) & cuts.keys(), added.shifts)


def _fresh(
    own: _Belongings, model: nn.Module, incoming: Incoming, outgoing: float, seed: int
) -> list[Written]:
    """Work out the new values of all entries; those of readers come last, and so prevail."""
    generator = torch.Generator().manual_seed(seed)
    twins: dict[str, Mapping[str, Tensor]] = {}
    rows: list[Written] = []
    columns: list[Written] = []
    for (name, axis), indices in own.cuts.items():
        tensor, (owner, _, attribute) = own.tensors[name], name.rpartition(".")
        entries = Entries(name, tensor, axis, indices)
        computes = (name, axis) in own.incoming
        if tensor.ndim > 1 and not computes:
            values = outgoing * _picked(entries, generator) if outgoing else _zeros(entries)
            columns.append(Written(entries, tensor, values))
            continue
        if computes and incoming == "units":
            values = _picked(entries, generator)
        else:
            if owner not in twins:
                twins[owner] = _initial(model.get_submodule(owner), owner, seed)
            values = entries.read(twins[owner][attribute])
        rows.append(Written(entries, tensor, values))
    return [*rows, *columns]


def _zeros(entries: Entries) -> Tensor:
    return torch.zeros_like(entries.read(entries.tensor))


def _picked(entries: Entries, generator: torch.Generator) -> Tensor:
    """Pick for each place of an entry the number that a random other unit has there."""
    whole = entries.tensor.movedim(entries.axis, 0)
    others = whole[list(_others(entries.indices, len(whole)))]
    flat = others.reshape(len(others), -1)
    shape = (len(entries.indices), flat.shape[1])
    rows = torch.randint(len(flat), shape, generator=generator).to(flat.device)
    values = flat.gather(0, rows).reshape(len(entries.indices), *others.shape[1:])
    return values.movedim(0, entries.axis)


def _initial(module: nn.Module, name: str, seed: int) -> dict[str, Tensor]:
    """Return the tensors of a module as it initialises itself."""
    twin: Any = copy.deepcopy(module)
    if not callable(getattr(twin, "reset_parameters", None)):
        raise CondenseError(
            f"{name!r} is a {type(module).__name__} without reset_parameters, so how it "
            "initialises its weights is not known: give it that method, or use incoming='units' "
            "for the layer of the units itself"
        )
    where = device_of(twin)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if where.type == "cuda":
            torch.cuda.manual_seed(seed)
        twin.reset_parameters()
    return named_tensors(twin)


def _watching(model: nn.Module, data: Iterable[Batch]) -> TracedObserver:
    return watched(model, data, progress=False, any_output=True)


def _width(model: nn.Module, data: Iterable[Batch], layer: str) -> int:
    with evaluating(model):
        return _watching(model, data).space[layer].width


def _others(indices: Sequence[int], size: int) -> tuple[int, ...]:
    known = set(indices)
    return tuple(it for it in range(size) if it not in known)


def _indices(units: int | Sequence[int]) -> tuple[int, ...]:
    found = (units,) if isinstance(units, int) else tuple(units)
    if not found or len(set(found)) != len(found) or any(isinstance(it, bool) for it in found):
        raise UnitError(f"units={units!r}: give the index of a unit, or several different ones")
    return tuple(sorted(found))


def _check_units(layer: str, units: tuple[int, ...], width: int) -> None:
    wrong = [unit for unit in units if not isinstance(unit, int) or not 0 <= unit < width]
    if wrong:
        raise UnitError(
            f"layer {layer!r} has no unit {wrong[0]!r}: its {width} units are 0 to {width - 1}"
        )


def _check_settings(incoming: str, outgoing: float) -> None:
    if incoming not in get_args(Incoming):
        raise MethodError(f"incoming={incoming!r} is unknown: it is 'layer' or 'units'")
    is_number = isinstance(outgoing, int | float) and not isinstance(outgoing, bool)
    if not is_number or not math.isfinite(outgoing) or outgoing < 0:
        raise MethodError(f"outgoing={outgoing!r}: give a number of 0 or more, such as 0.01")


def _listed(optimizer: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    return [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
