"""What a coalition is worth, by changing the model: a copy, one full forward pass per coalition.

Nothing of the package is used. Where units are read is not derived but stated by the case: the
modules whose input they are.
"""

import copy
import math
from collections.abc import Mapping

import torch
from torch.func import functional_call


class Oracle:
    """The game of one layer.

    Parameters
    ----------
    model, batches : what is looked at.
    layer : dotted name of the layer.
    readers : names of the modules whose input the units are, () for the network's outputs.
    removal : "zero", "mean" or "parameters".
    value : see `worth`; may be changed at any time.
    """

    def __init__(self, model, batches, layer, readers, removal="zero", value="accuracy"):
        self.model = copy.deepcopy(model).eval()
        self.inputs = torch.cat([inputs for inputs, _ in batches])
        self.targets = torch.cat([targets for _, targets in batches])
        self.layer, self.readers, self.removal = layer, readers, removal
        self.width = len(self.model.get_submodule(layer).weight)
        self.value = value
        self.ran = {}
        self.means = self._means() if removal == "mean" else None

    def __call__(self, coalition):
        """Value of a coalition, a set of unit indices: a mean over the examples that count."""
        return worth(self.value, self.ran_logits(coalition), self.targets)

    def example(self, number):
        """The game of one example alone."""
        rows = slice(number, number + 1)
        return lambda coalition: worth(
            self.value, self.ran_logits(coalition)[rows], self.targets[rows]
        )

    def ran_logits(self, coalition):
        coalition = frozenset(coalition)
        if coalition not in self.ran:
            self.ran[coalition] = self.logits(coalition)
        return self.ran[coalition]

    @torch.no_grad()
    def logits(self, coalition):
        """Logits of every example with the units of a coalition on, in one full forward pass."""
        off = [unit for unit in range(self.width) if unit not in coalition]
        if self.removal == "parameters":
            return self._run(self._zeroed(off))
        if not self.readers:
            return self._fill(self._run(), off)
        handles = [
            self.model.get_submodule(name).register_forward_pre_hook(
                lambda _, arguments: (self._fill(arguments[0], off),)
            )
            for name in self.readers
        ]
        logits = self._run()
        for handle in handles:
            handle.remove()
        return logits

    def _run(self, changed=()):
        return logits_of(functional_call(self.model, dict(changed), (self.inputs.clone(),)))

    def _zeroed(self, off):
        """The layer's parameters, those of the units that are off being 0."""
        for name, parameter in self.model.get_submodule(self.layer).named_parameters():
            changed = parameter.clone()
            changed[off] = 0
            yield f"{self.layer}.{name}", changed

    def _fill(self, read, off):
        """What the consumers read, with every position of the units that are off filled."""
        maps = read.clone().reshape(len(read), self.width, -1)
        for unit in off:
            maps[:, unit] = 0 if self.means is None else self.means[unit]
        return maps.reshape(read.shape)

    @torch.no_grad()
    def _means(self):
        """Mean of each unit where it is read, over examples and positions."""
        seen = []
        for name in self.readers[:1]:
            handle = self.model.get_submodule(name).register_forward_pre_hook(
                lambda _, arguments: seen.append(arguments[0].clone())
            )
            self._run()
            handle.remove()
        read = seen[0] if seen else self._run()
        return read.reshape(len(read), self.width, -1).mean(dim=(0, 2))


def logits_of(output):
    return output["logits"] if isinstance(output, Mapping) else output


def worth(value, logits, targets):
    """Mean over the examples that count; `value` is a name, ("recall", label) or a function."""
    if callable(value):
        return value(logits, targets).mean().item()
    if isinstance(value, tuple):
        counted = [i for i, target in enumerate(targets.tolist()) if target == value[1]]
        return worth("accuracy", logits[counted], targets[counted])
    numbers = [
        _PER_EXAMPLE[value](row, target)
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    return sum(numbers) / len(numbers)


def _right(row, target):
    """Of equal outputs the first wins."""
    return float(row.index(max(row)) == target)


def _negative_loss(row, target):
    top = max(row)
    return row[target] - top - math.log(sum(math.exp(output - top) for output in row))


def _margin(row, target):
    return row[target] - max(output for label, output in enumerate(row) if label != target)


_PER_EXAMPLE = {"accuracy": _right, "negative loss": _negative_loss, "margin": _margin}
