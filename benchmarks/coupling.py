"""What torch-pruning ties together, beside what neurank does, on the small architectures of tests/.

One unit at a time: the elements of all parameters and running statistics that go with it here, and
those in the group that torch-pruning's `DependencyGraph` gives for the same rows of the same layer.
Where these differ, torch-pruning's group is carried out: the network that is left runs or does not,
and computes what the original does with the same elements set to zero, or something else.
"""

import copy
import time
import warnings
from collections import Counter

import torch
import torch_pruning
from tests.architectures import ARCHITECTURES, architecture
from torch import nn

from neurank.condense.surgery import named_tensors
from neurank.units.space import unit_space
from neurank.units.trace import logits_of, trace

SAME, FAILS, ELSE, SOUND = "same", "does not run", "computes something else", "another unit"
NO_GROUP = "no group"
GROUPED = "grouped convolution: the graph by itself takes channels that are no place of every group"
SHUFFLE = "channels are reordered by view and transpose, which is taken for elementwise"
MERGED = "tokens and channels are swapped by transpose, which is taken for elementwise"
ATTENTION = "units of nn.MultiheadAttention are not its rows there, and the graph's group is wider"
EXPLAINED = {
    "resnet-zero-padded": "zeros padded before the channels are taken for elementwise: no shift",
    "resnext-many-groups": GROUPED,
    "regnet": GROUPED,
    "cbam-resnet": "a mean and maximum over channels does not end the group",
    "res2net": "chunks of fixed sizes, added one to the next and concatenated",
    "dual-path": "the first channels of a sum are sliced off and added, the others concatenated",
    "shufflenet-v1": f"{GROUPED}; {SHUFFLE}",
    "shufflenet-v2": SHUFFLE,
    "ghostnet": "a slice of a concatenation drops channels at its end",
    "tied-autoencoder": "the decoder reads the encoder's parameter transposed, in no module",
    "super-resolution": "pixel shuffle makes one channel of four",
    "vit-torch-attention": ATTENTION,
    "vit-torch-encoder": ATTENTION,
    "non-local": "a product of two matrices of maps, reshaped with a width held as a number",
    "swin": "windows and patch merging: four neighbours concatenated, reshaped",
    "mlp-mixer": MERGED,
    "gmlp": MERGED,
    "maxout": "view to pieces and a maximum over them",
}
"""By architecture, what torch-pruning's graph makes something else of."""
CLOSE = 1e-8
"""Relative difference of outputs, in float64, up to which networks compute the same."""


class Ours:
    """The units of a network, and the elements that go with each."""

    def __init__(self, model, inputs):
        self.space = unit_space(trace(model, inputs), model)
        self.tensors = named_tensors(model)
        self.own_name = first_names(self.tensors)

    def units(self):
        """Yield layer, unit, the module and its rows that the unit has."""
        for name in self.space.hidden:
            layer = self.space[name]
            rows = {it.tensor: it for it in self.space.rows(name)}
            for unit in range(layer.width):
                for tensor, own in rows.items():
                    found = [row for row, it in enumerate(own.units) if it == unit]
                    if found:
                        yield name, unit, tensor, found
                        break

    def elements(self, layer, unit):
        """Return by tensor the flat indices of the elements that go."""
        wanted = self.space[layer].classes[unit]
        found = {}
        for slots in self.space.coupling.slots:
            gone = torch.nonzero(self.space.coupling.classes[slots.atoms] == wanted)[:, 0]
            if len(gone) and slots.tensor in self.tensors:
                add_slices(found, self.tensors, self.own_name[slots.tensor], slots.axis, gone)
        return found


class Theirs:
    """torch-pruning's graph of a network, and the elements that go with some rows."""

    def __init__(self, model, inputs):
        self.model = model
        self.tensors = named_tensors(model)
        self.own_name = first_names(self.tensors)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.graph = torch_pruning.DependencyGraph().build_dependency(
                model, example_inputs=(inputs,), verbose=False
            )
        self.names = {id(module): name for name, module in model.named_modules()}
        self.parameters = {id(tensor): name for name, tensor in self.tensors.items()}

    def group(self, weight, rows):
        """Return the group of some rows of a weight."""
        module = self.model.get_submodule(weight.rpartition(".")[0])
        pruner = self.graph.get_pruner_of_module(module)
        if pruner is None or weight.rpartition(".")[2] != "weight":
            raise NotImplementedError(f"no pruner for {type(module).__name__}")
        return self.graph.get_pruning_group(module, pruner.prune_out_channels, list(rows))

    def elements(self, group):
        """Return by tensor the flat indices of the elements that go.

        Each function of the group is tried on a copy of its module that is filled with indices.
        """
        found = {}
        for dependency, indices in group:
            module = dependency.target.module
            if isinstance(module, nn.Parameter):
                name = self.own_name[self.parameters[id(module)]]
                axis = dependency.target.pruning_dim % module.ndim
                add_slices(found, self.tensors, name, axis, torch.tensor(indices))
            elif id(module) in self.names:
                before = self.names[id(module)]
                for name, gone in lost(module, dependency.handler, indices).items():
                    whole = self.own_name[f"{before}.{name}" if before else name]
                    found[whole] = found.get(whole, frozenset()) | gone
        return found


def lost(module, function, indices):
    """Return which elements a pruning function takes from a module, by tensor."""
    numbered = copy.deepcopy(module)
    wholes = {}
    for name, tensor in named_tensors(numbered).items():
        if tensor.ndim:
            tensor.data = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
            wholes[name] = tensor.numel()
    function(numbered, list(indices))
    left = named_tensors(numbered)
    gone = {
        name: frozenset(range(number)) - frozenset(left[name].flatten().long().tolist())
        for name, number in wholes.items()
    }
    return {name: elements for name, elements in gone.items() if elements}


def add_slices(found, tensors, name, axis, indices):
    """Add the elements of slices of a tensor."""
    shape = tensors[name].shape
    numbers = torch.arange(tensors[name].numel()).reshape(shape)
    elements = frozenset(numbers.index_select(axis, indices).flatten().tolist())
    found[name] = found.get(name, frozenset()) | elements


def first_names(tensors):
    """Return each tensor's first name, which tied ones share."""
    first = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}


def carried_out(model, inputs, weight, rows):
    """Prune with torch-pruning and say what is left of the network."""
    theirs = Theirs(copy.deepcopy(model), inputs)
    group = theirs.group(weight, rows)
    zeroed = copy.deepcopy(model)
    tensors = named_tensors(zeroed)
    for name, elements in theirs.elements(group).items():
        tensors[name].data.view(-1)[sorted(elements)] = 0
    with torch.no_grad():
        wanted = logits_of(zeroed.eval()(inputs))
        try:
            group.prune()
            found = logits_of(theirs.model.eval()(inputs))
        except Exception:  # whatever a network with wrong shapes raises
            return FAILS
    if found.shape != wanted.shape:
        return FAILS
    apart = float((found - wanted).abs().max() / wanted.abs().max())
    return SOUND if apart <= CLOSE else ELSE


def outcome(name):
    """Compare all units of one architecture.

    Returns
    -------
    dict
        ``units``, how many there are; ``verdicts``, how many came out how; ``apart``, an example
        of each difference; ``refused``, why torch-pruning takes no graph of the network at all.
    """
    one = architecture(name)
    model = one.model().eval()
    (inputs, _), *_ = one.batches()
    ours = Ours(model, inputs)
    listed = list(ours.units())
    found = {"units": len(listed), "verdicts": {}, "apart": [], "refused": ""}
    try:
        theirs = Theirs(copy.deepcopy(model), inputs)
    except Exception as error:  # whatever the graph stumbles over
        found["refused"] = f"{type(error).__name__}: {first_line(error)}"
        return found
    verdicts, tried = Counter(), {}
    for layer, unit, weight, rows in listed:
        verdict, kind = compared_one(ours, theirs, layer, unit, weight, rows)
        if verdict is None:
            if kind not in tried:
                tried[kind] = carried_out(model, inputs, weight, rows)
                found["apart"].append(
                    {"layer": layer, "unit": unit, "more": kind[1], "verdict": tried[kind]}
                )
            verdict = tried[kind]
        verdicts[verdict] += 1
    found["verdicts"] = dict(verdicts)
    return found


def compared_one(ours, theirs, layer, unit, weight, rows):
    """Compare one unit: a verdict, or None, the layer, and on which side there is more.

    One unit of each layer and kind of difference is carried out and stands for the others.
    """
    try:
        there = theirs.elements(theirs.group(weight, rows))
    except Exception as error:  # whatever its pruners stumble over
        return f"{NO_GROUP}: {type(error).__name__}: {first_line(error)}", None
    here = ours.elements(layer, unit)
    if here == there:
        return SAME, None
    more_here = any(here[it] - there.get(it, frozenset()) for it in here)
    more_there = any(there[it] - here.get(it, frozenset()) for it in there)
    more = "both" if more_here and more_there else "neurank" if more_here else "torch-pruning"
    return None, (layer, more)


def first_line(error):
    """Return what an error says, in short."""
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else ""


def compared():
    """Compare all architectures."""
    found = {}
    for one in ARCHITECTURES:
        started = time.perf_counter()
        found[one.name] = outcome(one.name)
        seconds = time.perf_counter() - started
        print(f"{seconds:.0f} s", one.name, found[one.name], flush=True)
    return found


if __name__ == "__main__":
    compared()
