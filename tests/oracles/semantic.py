"""Semantic pruning by loops: which units a class keeps, what its network still says, what it reads.

Lists and hooks on the user's modules only; a person says which modules compute and read units.
"""

import copy
import math
from decimal import Decimal

import torch
from tests.oracles.condense import masked_outputs


def kept(scores, scope, theta):
    """Layer -> for each unit whether it stays; `scores` are lists by layer, in network order."""
    stays = {}
    for name, own in scores.items():
        rivals = [name] if scope == "layer" else list(scores)
        gone = _gone({rival: scores[rival] for rival in rivals}, theta)
        stays[name] = [(name, unit) not in gone for unit in range(len(own))]
    return stays


def _gone(scores, theta):
    """The units, as pairs of layer and index, that go from among some layers."""
    units = [(name, unit) for name, own in scores.items() for unit in range(len(own))]
    values = sorted(scores[name][unit] for name, unit in units)
    if theta == "zero":
        return {(name, unit) for name, unit in units if scores[name][unit] <= 0}
    if theta == "median":
        half = len(values) // 2
        median = values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2
        return {(name, unit) for name, unit in units if scores[name][unit] < median}
    # The worst first; of equal ones that of the later layer, and then that of the higher index.
    places = {name: place for place, name in enumerate(scores)}
    worst = sorted(units, key=lambda it: (scores[it[0]][it[1]], -places[it[0]], -it[1]))
    return set(worst[: math.floor(Decimal(str(theta)) * len(units))])


def counted(model, reads, removed, inputs, targets, label):
    """What the network without some units says of a class: counts, and by all pairs between what
    numbers the area lies.
    """
    with torch.no_grad():
        whole = _called(masked_outputs(model, reads, {}, "zero", None, inputs))
        logits = masked_outputs(model, reads, removed, "zero", None, inputs)
    called = _called(logits)
    found = {"hits": 0, "gained": 0, "lost": 0, "false_alarms": 0}
    for before, now, target in zip(whole, called, targets.tolist(), strict=True):
        if target != label:
            found["false_alarms"] += now == label
            continue
        found["hits"] += now == label
        found["gained"] += now == label and before != label
        found["lost"] += now != label and before == label
    return {**found, "auroc": _area(logits, targets.tolist(), label)}


def _called(logits):
    return [max(range(len(row)), key=lambda it: (row[it], -it)) for row in logits.tolist()]


def _area(logits, targets, label):
    scores = [_log_odds(row, label) for row in logits.tolist()]
    own = [score for score, target in zip(scores, targets, strict=True) if target == label]
    others = [score for score, target in zip(scores, targets, strict=True) if target != label]
    if not own or not others:
        return math.nan, math.nan
    gaps = [one - other for one in own for other in others]
    # Scores of pictures that are alike differ by how sums were rounded: either may be higher.
    return (
        sum(gap > 1e-9 for gap in gaps) / len(gaps),
        sum(gap > -1e-9 for gap in gaps) / len(gaps),
    )


def _log_odds(row, label):
    return row[label] - math.log(sum(math.exp(z) for at, z in enumerate(row) if at != label))


def residual(model, reads, gone, inputs, threshold):
    """Layer -> units that have too little left to read, layer by layer in network order.

    Each layer is one module that computes its units; `gone` is what goes directly.
    """
    whole = _read_by(model, reads, {}, inputs)
    off = {layer: set(units) for layer, units in gone.items()}
    found = {layer: set() for layer in gone}
    for layer in gone:  # what it reads hangs on the layers before, which are settled
        now = _read_by(model, reads, off, inputs)[layer]
        for unit, (left, before) in enumerate(zip(now, whole[layer], strict=True)):
            if unit not in off[layer] and before > 0 and left <= threshold * before:
                found[layer].add(unit)
        off[layer] |= found[layer]
    return found


def _read_by(model, reads, off, inputs):
    """Layer -> for each unit the sum over inputs of mean |x| times the sum of |w|."""
    model = copy.deepcopy(model).eval()
    seen = {}

    def clear(units, width):
        def hook(_module, arguments):
            x = arguments[0].clone()
            size = x.shape[1] // width  # of a unit's block, where a map is laid flat
            for unit in units:
                x[:, unit * size : (unit + 1) * size] = 0
            return (x,)

        return hook

    def look(module, arguments):
        seen[module] = arguments[0].clone()

    for layer, units in off.items():
        width = len(model.get_submodule(layer).weight)
        for reader in reads[layer]:
            model.get_submodule(reader).register_forward_pre_hook(clear(units, width))
    members = {layer: model.get_submodule(layer) for layer in reads}
    for module in members.values():
        module.register_forward_pre_hook(look)
    with torch.no_grad():
        model(inputs)
    return {layer: _weighed(module, seen[module]) for layer, module in members.items()}


def _weighed(module, x):
    outputs, inside = module.weight.shape[:2]
    per_group = outputs // getattr(module, "groups", 1)
    totals = []
    for unit in range(outputs):
        first = unit // per_group * inside
        total = 0.0
        for at in range(inside):
            size = float(module.weight[unit, at].detach().abs().sum())
            total += size * float(x[:, first + at].abs().mean())
        totals.append(total)
    return totals
