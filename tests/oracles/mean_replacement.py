"""One unit at a time replaced by a statistic of itself, with hooks; a forward pass for each."""

from contextlib import ExitStack

import torch
from tests.oracles.game import logits_of
from torch.nn import functional

STATISTICS = {
    "mean": lambda values: values.mean(),
    "median": lambda values: values.sort().values[(len(values) - 1) // 2],
    "minimum": lambda values: values.min(),
    "maximum": lambda values: values.max(),
}


class Replacing:
    """A network in which units of one layer can be moved towards what they are replaced by.

    Parameters
    ----------
    model : in evaluation mode, in float64.
    layer : dotted name.
    readers : the modules whose input its units are.
    width : number of units.
    statistic, at : as `neurank.MeanReplacementPenalty` takes them.
    """

    def __init__(self, model, layer, readers, width, statistic, at, inputs):
        self.model, self.width, self.inputs = model, width, inputs
        self.places = [layer] if at == "pre" else readers
        self.before = at == "post"
        self.moved = None  # (unit, how far)
        self.seen = {}
        self._losses_hooked(self._remember, torch.zeros(len(inputs), dtype=torch.int64))
        self.constants = {
            name: [STATISTICS[statistic](values[:, unit].flatten()) for unit in range(self.width)]
            for name, values in self.seen.items()
        }

    def losses(self, targets, unit=None, share=1.0):
        """Return each example's cross-entropy with one unit moved that share of the way."""
        self.moved = None if unit is None else (unit, share)
        return self._losses_hooked(self._move, targets)

    def _losses_hooked(self, act, targets):
        with ExitStack() as stack, torch.no_grad():
            for name in self.places:
                module = self.model.get_submodule(name)
                if self.before:
                    hook = module.register_forward_pre_hook(
                        lambda _, given, name=name: (act(name, given[0]), *given[1:])
                    )
                else:
                    hook = module.register_forward_hook(
                        lambda _, __, given, name=name: act(name, given)
                    )
                stack.callback(hook.remove)
            logits = logits_of(self.model(self.inputs.clone()))
        return functional.cross_entropy(logits, targets, reduction="none")

    def _view(self, values):
        return values.reshape(len(values), self.width, -1)

    def _remember(self, name, values):
        self.seen[name] = self._view(values).clone()
        return values

    def _move(self, name, values):
        if self.moved is None:
            return values
        unit, share = self.moved
        moved = self._view(values).clone()
        moved[:, unit] += share * (self.constants[name][unit] - moved[:, unit])
        return moved.reshape(values.shape)


def penalties(replacing, targets):
    """Definition 3.1.1: the mean over the examples of how much the loss changes, unit by unit."""
    whole = replacing.losses(targets)
    changes = [replacing.losses(targets, unit) - whole for unit in range(replacing.width)]
    return torch.stack(changes).abs().mean(dim=1)


def saliencies(replacing, targets, step=2e-6):
    """Definition 3.1.2, the gradients by finite differences of fourth order."""

    def at(unit, share):
        return replacing.losses(targets, unit, share)

    slopes = [
        (8 * (at(unit, step) - at(unit, -step)) - (at(unit, 2 * step) - at(unit, -2 * step)))
        / (12 * step)
        for unit in range(replacing.width)
    ]
    return torch.stack(slopes).abs().mean(dim=1)
