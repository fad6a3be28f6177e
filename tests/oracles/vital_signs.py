"""Vital signs by plain module calls: hooks and autograd on the user's module, example by example.

`given` says which modules compute a layer's units, and `read` which modules read them; both are
written down by hand and not found out by tracing.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from tests.oracles.condense import At
from tests.oracles.game import logits_of
from torch import nn
from torch.nn import functional

TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class Places:
    """Where the units of a layer are computed and read.

    Attributes
    ----------
    width : number of units.
    given : modules whose output they are.
    read : modules whose input they are.
    """

    width: int
    given: tuple[At, ...]
    read: tuple[At, ...]


@dataclass(frozen=True)
class Example:
    """What one example showed: by place, what was there, (entries, ...)."""

    loss: float
    signal: float
    given: list[torch.Tensor]
    gradients: list[torch.Tensor]
    read: list[torch.Tensor]


def places_of(case, model):
    """Where the units of a case's hidden layers are, from what is written down of it."""
    return {
        layer: Places(
            len(_units_of(model, layer)),
            (At(layer, _units_of(model, layer)),),
            tuple(_read_by(model, name, layer) for name in readers),
        )
        for layer, readers in case.reads.items()
        if readers
    }


def _units_of(model, layer):
    module = model.get_submodule(layer)
    return tuple(range(getattr(module, "out_channels", None) or module.out_features))


def _read_by(model, reader, layer):
    """A module reads the units in order, each as a block where a map was laid flat."""
    module, units = model.get_submodule(reader), _units_of(model, layer)
    entries = getattr(module, "in_channels", None) or module.in_features
    size = entries // len(units)
    return At(reader, tuple(unit for unit in units for _ in range(size)))


def shown(model, places, batches):
    """Run forward and back, one example at a time; the examples of each batch."""
    return [
        [_one(model, places, x[None], y[None]) for x, y in zip(inputs, targets, strict=True)]
        for inputs, targets in batches
    ]


def _one(model, places, inputs, target):
    given, read = [None] * len(places.given), [None] * len(places.read)

    def keep(number):
        def hook(_module, _arguments, result):
            given[number] = result * 1
            given[number].retain_grad()
            return given[number].clone()  # what follows may overwrite it

        return hook

    def look(number):
        def hook(_module, arguments):
            read[number] = arguments[0].detach().clone()

        return hook

    with ExitStack() as hooks:
        for number, at in enumerate(places.given):
            module = model.get_submodule(at.module)
            hooks.callback(module.register_forward_hook(keep(number)).remove)
        for number, at in enumerate(places.read):
            module = model.get_submodule(at.module)
            hooks.callback(module.register_forward_pre_hook(look(number)).remove)
        logits = logits_of(model(inputs.clone()))
    logits.retain_grad()
    loss = functional.cross_entropy(logits, target)
    loss.backward()
    own = [torch.zeros_like(it) if it.grad is None else it.grad for it in given]
    return Example(
        loss.item(),
        float(logits.grad.abs().sum()),
        [_along(it.detach(), at) for it, at in zip(given, places.given, strict=True)],
        [_along(it, at) for it, at in zip(own, places.given, strict=True)],
        [_along(it, at) for it, at in zip(read, places.read, strict=True)],
    )


def _along(values, at):
    along = values.movedim(at.axis, 0)
    assert len(along) == len(at.units)
    return along.flatten(1)


def of_unit(examples, places, unit, which):
    """What a unit shows at the places where it is, one list of numbers per place."""
    ats = places.read if which == "read" else places.given
    found = []
    for number, at in enumerate(ats):
        entries = [entry for entry, owner in enumerate(at.units) if owner == unit]
        if entries:
            parts = [getattr(it, which)[number][entries].flatten() for it in examples]
            found.append(torch.cat(parts))
    return found


def saliency(batches, places, unit):
    """Definition 3.1.2, the mean over examples: the slope along the way to the mean."""
    examples = [it for batch in batches for it in batch]
    sizes = []
    for one in examples:
        slope = 0.0
        for number, at in enumerate(places.given):
            for entry, owner in enumerate(at.units):
                if owner != unit:
                    continue
                mean = torch.cat([it.given[number][entry] for it in examples]).mean()
                way = mean - one.given[number][entry]
                slope += float((way * one.gradients[number][entry]).sum())
        sizes.append(abs(slope))
    return sum(sizes) / len(sizes)


def gradient_norm(batches, places, unit):
    """The mean over examples of the L1 norm of the derivatives by what the layer gives."""
    examples = [it for batch in batches for it in batch]
    norms = [
        sum(float(part.abs().sum()) for part in of_unit([it], places, unit, "gradients"))
        for it in examples
    ]
    return sum(norms) / len(norms)


def gradient_peak(batches, places, unit):
    """The largest derivative in size."""
    examples = [it for batch in batches for it in batch]
    return max(float(it.abs().max()) for it in of_unit(examples, places, unit, "gradients"))


def extremes(batches, places, unit, which):
    """The smallest and the largest value over all examples and places."""
    values = torch.cat(of_unit([it for batch in batches for it in batch], places, unit, which))
    return float(values.min()), float(values.max())


def histogram(batches, places, unit, which, bins):
    """Count values of the first batch in equal parts; a result that several read counts once."""
    parts = []
    for part in of_unit(batches[0], places, unit, which):
        if not any(torch.equal(part, other) for other in parts):
            parts.append(part)
    values = torch.cat(parts)
    if values.min() == values.max():
        return [len(values)] + [0] * (bins - 1)
    return torch.histogram(values, bins).hist.int().tolist()


def weight_norm(model, places, unit):
    """The sizes of all incoming weights."""
    return sum(
        float(_row(model.get_submodule(at.module), entry).abs().sum())
        for at in places.given
        for entry, owner in enumerate(at.units)
        if owner == unit
    )


def _row(module, entry):
    """All weights that an entry of the output is made with."""
    weight = module.weight.detach()
    if not isinstance(module, TRANSPOSED):
        return weight[entry]
    inputs = module.in_channels // module.groups
    size = module.out_channels // module.groups
    group = entry // size
    return weight[group * inputs : (group + 1) * inputs, entry % size]


def fan_out_norm(model, places, unit):
    """The sizes of all outgoing weights; NaN where a reader has none."""
    total = 0.0
    for at in places.read:
        module = model.get_submodule(at.module)
        if not isinstance(module, nn.Linear | CONVOLUTIONS | TRANSPOSED):
            return float("nan")
        for entry, owner in enumerate(at.units):
            if owner == unit:
                total += float(_column(module, entry).abs().sum())
    return total


def _column(module, entry):
    """All weights that an entry of the input meets."""
    weight = module.weight.detach()
    if isinstance(module, TRANSPOSED):
        return weight[entry]
    if isinstance(module, nn.Linear):
        return weight[:, entry]
    size = module.in_channels // module.groups
    outputs = module.out_channels // module.groups
    group = entry // size
    return weight[group * outputs : (group + 1) * outputs, entry % size]


def changes(model, places, batches, unit):
    """How much each example's loss changes when the unit is replaced by its mean, given alone."""
    seen = [it for batch in shown(model, places, batches) for it in batch]
    means = [
        torch.cat([it.given[number] for it in seen], dim=1).mean(dim=1)
        for number in range(len(places.given))
    ]

    def replacing(number, at):
        def hook(_module, _arguments, result):
            result = result.clone()
            for entry, owner in enumerate(at.units):
                if owner == unit:
                    result.select(at.axis, entry).fill_(means[number][entry])
            return result

        return hook

    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad(), ExitStack() as hooks:
        whole = logits_of(model(inputs.clone()))
        for number, at in enumerate(places.given):
            module = model.get_submodule(at.module)
            hooks.callback(module.register_forward_hook(replacing(number, at)).remove)
        without = logits_of(model(inputs.clone()))
    losses = [functional.cross_entropy(it, targets, reduction="none") for it in (without, whole)]
    return (losses[0] - losses[1]).abs()
