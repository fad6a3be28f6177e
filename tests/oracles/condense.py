"""The masked network by plain module calls: the user's module runs as a whole, with hooks.

`reads` says which modules read a layer's units, which is written down by hand for each network and
not found out by tracing.
"""

import copy
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn


def masked_outputs(model, reads, removed, removal, batches, inputs):
    """What the network gives with every unit of `removed` (layer -> units) off at once.

    What is off is a constant of the ORIGINAL network: 0, the mean over all `batches`, or what is
    left where the layer's own weights and bias are 0.
    """
    model = copy.deepcopy(model).eval()
    with torch.no_grad(), ExitStack() as hooks:
        constants = {
            layer: _constants(model, layer, reads[layer], removal, batches) for layer in removed
        }
        for layer, units in removed.items():
            width = len(model.get_submodule(layer).weight)
            for reader in reads[layer]:
                hooks.enter_context(
                    _before(model, reader, _switching_off(units, constants[layer], width))
                )
        return model(inputs)


def _constants(model, layer, readers, removal, batches):
    """One constant per unit, or one per unit and place where units are blocks of a flat row."""
    width = len(model.get_submodule(layer).weight)
    if removal == "zero":
        return [0.0] * width
    if removal == "mean":
        seen = torch.cat([_seen(model, readers[0], inputs) for inputs, _ in batches])
        return [block.mean() for block in _blocks(seen, width)]
    silent = copy.deepcopy(model)
    own = silent.get_submodule(layer)
    own.weight.zero_()
    if own.bias is not None:
        own.bias.zero_()
    seen = _seen(silent, readers[0], batches[0][0])
    return [block[:1] for block in _blocks(seen, width)]


def _seen(model, reader, inputs):
    found = []
    with _before(model, reader, lambda x: found.append(x.clone()) or x):
        model(inputs)
    return found[0]


def _blocks(x, width):
    """Views of what belongs to each unit: a map, or a block of a flat row."""
    size = x.shape[1] // width
    return [x[:, unit * size : (unit + 1) * size] for unit in range(width)]


def _switching_off(units, constants, width):
    def change(x):
        x = x.clone()
        blocks = _blocks(x, width)
        for unit in units:
            blocks[unit][:] = constants[unit]
        return x

    return change


@contextmanager
def _before(model, name, change):
    def hook(_module, arguments):
        return (change(arguments[0]),)

    handle = model.get_submodule(name).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class At:
    """A module that reads units of a layer, as a person who knows the network writes it down.

    Attributes
    ----------
    module : its dotted name.
    units : for each entry of its input along the axis, the unit; -1 where there is none.
    axis : along which the units lie.
    channels : for each entry, a number that entries share which are one channel, and so have one
        mean; by default each entry is a channel of its own.
    """

    module: str
    units: tuple[int, ...]
    axis: int = 1
    channels: tuple[int, ...] | None = None

    def means(self, sums, count):
        """Means of the channels, from sums over everything but the axis."""
        channels = torch.tensor(self.channels or range(len(self.units)))
        by_channel = torch.zeros(int(channels.max()) + 1, dtype=sums.dtype)
        sizes = by_channel.index_add(0, channels, torch.full_like(sums, float(count)))
        return (by_channel.index_add(0, channels, sums) / sizes.clamp(min=1))[channels]


def masked_by_hand(model, reads, removed, removal, batches, inputs, members=None):
    """What the network gives with units off at once, wherever a module reads them.

    Parameters
    ----------
    model : the network, run by plain module calls.
    reads : layer -> `At`s.
    removed : layer -> units.
    removal : ``zero``; ``mean``: of all that a module reads in the ORIGINAL network, over
        examples, positions and calls; or ``parameters``: what it reads where all weights and
        biases of the layer are 0.
    batches : what means are taken over.
    inputs : what the network is run on.
    members : for ``parameters``, layer -> the modules that compute its units.
    """
    model = copy.deepcopy(model).eval()
    places = [(layer, at) for layer in removed for at in reads[layer]]
    with torch.no_grad():
        constants = [
            _constants_at(model, at, removal, batches, (members or {}).get(layer, ()))
            for layer, at in places
        ]
        with ExitStack() as hooks:
            for (layer, at), constant in zip(places, constants, strict=True):
                change = _constant_at(at, set(removed[layer]), constant)
                hooks.enter_context(_before(model, at.module, change))
            return model(inputs)


def _constants_at(model, at, removal, batches, members):
    if removal == "zero":
        return torch.zeros(len(at.units))
    if removal == "mean":
        return _means_at(model, at, batches)
    silent = copy.deepcopy(model)
    for parameter in (each for name in members for each in silent.get_submodule(name).parameters()):
        parameter.zero_()
    return _seen(silent, at.module, batches[0][0]).movedim(at.axis, 0).flatten(1)[:, 0]


def _means_at(model, at, batches):
    seen = []
    with _before(model, at.module, lambda x: seen.append(x.clone()) or x):
        for inputs, _ in batches:
            model(inputs)
    along = torch.cat([x.movedim(at.axis, 0).flatten(1) for x in seen], dim=1)
    return at.means(along.sum(dim=1), along.shape[1])


def _constant_at(at, units, constant):
    entries = [entry for entry, unit in enumerate(at.units) if unit in units]

    def change(x):
        x = x.clone()
        assert x.shape[at.axis] == len(at.units)
        for entry in entries:
            x.select(at.axis, entry).fill_(constant[entry])
        return x

    return change


def cleared(model, cuts):
    """The original network, by its own Python, with zeros for the columns that were cut away."""
    model = copy.deepcopy(model)
    transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
    for cut in cuts:
        owner = model.get_submodule(cut.tensor.rpartition(".")[0])
        columns = 0 if isinstance(owner, transposed) else 1
        weight = model.get_parameter(cut.tensor) if cut.tensor.endswith("weight") else None
        if weight is not None and weight.ndim > 1 and cut.axis == columns:
            gone = sorted(set(range(weight.shape[columns])) - set(cut.keep))
            weight.data.index_fill_(columns, torch.tensor(gone), 0)
    return model
