"""The masked network by plain module calls: the user's module runs as a whole, with hooks.

`reads` says which modules read a layer's units, which is written down by hand for each network and
not found out by tracing.
"""

import copy
from contextlib import ExitStack, contextmanager

import torch


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
