"""Semantic pruning by loops: which units a class keeps, what its network still says, what it reads.

Lists and hooks on the user's modules only; a person says which modules compute and read units.
"""

import math
from decimal import Decimal


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
