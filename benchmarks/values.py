"""What a coalition of units is worth, (coalitions, units) bool -> (coalitions,): two ways.

Both compute the accuracy over all pictures with some units of a layer off, which is what every
estimator of other libraries asks for. `full_forward` is what there is without neurank: the whole
network runs once per coalition. `additive_split` hands the estimators what neurank knows of the
network: nothing before the layer runs again, and what lies above it runs in neurank's own loops.
"""

import time
from dataclasses import dataclass, field, replace

import numba
import numpy as np
import torch
from torch.nn import functional

from neurank.condense.trials import watched
from neurank.modes import evaluating
from neurank.observe.execution import weight_and_bias
from neurank.observe.hooks import units_off
from neurank.observe.kernels.perceptron import lanes_correct

LANES = 64
"""So many coalitions run side by side through the compiled head."""
FEWEST_LANES = 4
SHARES = 16
"""The pictures are cut into so many parts for the threads, whatever their number."""


@dataclass
class Counted:
    """A value function that counts the coalitions it is asked for and the seconds it takes.

    Attributes
    ----------
    function : masks (coalitions, units) bool -> values (coalitions,), both NumPy.
    coalitions, seconds : so far.
    """

    function: object
    coalitions: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)

    def __call__(self, masks):
        """Compute the values of one coalition, (units,), or of several, (coalitions, units)."""
        masks = np.atleast_2d(np.asarray(masks, dtype=bool))
        started = time.perf_counter()
        values = self.function(masks)
        self.seconds += time.perf_counter() - started
        self.coalitions += len(masks)
        return values


def full_forward(model, part, layer, batch_size):
    """Run the whole network once per coalition on all pictures, `batch_size` at a time."""
    batches = list(zip(part.inputs.split(batch_size), part.targets.split(batch_size), strict=True))

    def one(mask):
        off = torch.from_numpy(~mask)[None]
        correct = 0
        for inputs, targets in batches:
            with units_off(model, layer, off.expand(len(inputs), -1)):
                correct += int((model(inputs).argmax(dim=1) == targets).sum())
        return correct / part.examples

    def values(masks):
        with torch.inference_mode():
            return np.array([one(mask) for mask in masks])

    return values


def fastest_full_forward(model, part, layer, units, sizes=(125, 250, 500, 1000, 2500)):
    """Give `full_forward` with the batch size at which it is fastest on this machine, and that."""
    masks = np.random.default_rng(0).random((2, units)) < 0.5
    seconds = {}
    for size in sizes:
        values = full_forward(model, part, layer, size)
        values(masks[:1])
        started = time.perf_counter()
        values(masks)
        seconds[size] = time.perf_counter() - started
    best = min(seconds, key=seconds.get)
    return full_forward(model, part, layer, best), best


def split_game(model, part, layer):
    """Set the layer's game up on all pictures: traced, checked, prefix run, as `neurank.rank` does.

    The games of the batches are put together to one.
    """
    with evaluating(model), torch.inference_mode():
        observer = watched(model, part, progress=False)
        games = list(observer.games(layer))
        per_picture = ("numbers", "targets", "active", "on", "contributions")
        joined = {name: torch.cat([getattr(game, name) for game in games]) for name in per_picture}
    return replace(games[0], **joined)


def additive_split(game):
    """Compute values as neurank's own loops do, given the game of one layer that a head closes.

    Several coalitions run side by side through the compiled head, null players left out. One or
    few leave its vector registers empty, so there the pictures stand side by side instead, in one
    matrix product.
    """
    base, contributions = game._folded
    active = game.active.numpy()
    players = np.argsort(~active, axis=1, kind="stable")  # of each picture, the active units first
    counts, targets = active.sum(axis=1), game.targets.numpy()
    head = game.head.perceptron
    few = _by_matrix_product(game)

    def values(masks):
        if len(masks) < FEWEST_LANES:
            return few(masks)
        blocks = np.split(masks, range(LANES, len(masks), LANES))
        lanes = (np.ascontiguousarray(block.T.astype(base.dtype)) for block in blocks)
        share = [
            _share_correct(base, contributions, players, counts, targets, some, head)
            for some in lanes
        ]
        return np.concatenate(share)

    return values


def _by_matrix_product(game):
    """Compute values with the mask on the consumer's weights, all pictures at once."""
    weight, bias = weight_and_bias(game.split.consumer, game.runner)
    units = game.on.flatten(1)  # (pictures, units)
    rows = torch.arange(game.examples)

    def one(mask):
        start = functional.linear(units, weight * mask, bias)
        return float(game.evaluate(rows, game.finish(rows, start)).mean())

    def values(masks):
        with torch.inference_mode():
            return np.array([one(mask) for mask in torch.from_numpy(masks)])

    return values


@numba.njit(cache=True, parallel=True, fastmath={"contract", "nnan", "nsz"})
def _share_correct(base, contributions, players, counts, targets, lanes, head):
    """Share of the pictures on which the target wins, per coalition; `lanes` is (units, lanes)."""
    pictures, width = len(counts), lanes.shape[1]
    correct = np.zeros((SHARES, width))
    for share in numba.prange(SHARES):
        features, widest = len(base), head.widths.max()
        sums = np.empty((features, width), base.dtype)
        peaks = np.empty(features, base.dtype)
        unbounded = np.full(widest, np.inf, base.dtype)
        kept = np.empty((widest + 3, width), base.dtype)
        room = np.empty((widest + 3, width), base.dtype)
        live = np.empty(widest + 3, np.int64)
        won = np.empty(width)
        for picture in range(share * pictures // SHARES, (share + 1) * pictures // SHARES):
            _add_up(contributions[picture], players[picture], counts[picture], lanes, sums)
            for feature in range(features):
                peaks[feature] = sums[feature].max()
            target = targets[picture]
            lanes_correct(
                sums, peaks, base, kept, room, unbounded, live, width, head, target, won
            )  # fmt: skip
            correct[share] += won
    return correct.sum(axis=0) / pictures


@numba.njit(cache=True, fastmath={"contract", "nnan", "nsz"})
def _add_up(contributions, players, count, lanes, sums):
    """Sum the contributions of the members among the players, four players at a time.

    Beyond `count` players come null players, whose contributions are zero.
    """
    sums[:] = 0
    last = len(players) - 1
    for place in range(0, count, 4):
        p0, p1 = players[place], players[min(place + 1, last)]
        p2, p3 = players[min(place + 2, last)], players[min(place + 3, last)]
        for feature in range(len(sums)):
            c0 = contributions[p0, feature]
            c1 = contributions[p1, feature] if place + 1 < count else 0
            c2 = contributions[p2, feature] if place + 2 < count else 0
            c3 = contributions[p3, feature] if place + 3 < count else 0
            for lane in range(lanes.shape[1]):
                sums[feature, lane] += (
                    c0 * lanes[p0, lane] + c1 * lanes[p1, lane]
                    + c2 * lanes[p2, lane] + c3 * lanes[p3, lane]
                )  # fmt: skip
