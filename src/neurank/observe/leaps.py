"""Walking a chain of coalitions in leaps, where the value is right or wrong.

Along a chain most marginal contributions are 0: the answer changes a few times only. Where both
ends of a stretch are right, or both wrong, the stretch is looked into with a probability p alone,
and what is found there counts 1/p times. A stretch whose ends differ is always halved. So every
marginal contribution keeps its expectation, whatever p is, and they sum to v(all) - v(none) still.

How likely a stretch with like ends hides changes is guessed as if the margin (the target's logit
minus the largest other) were a Brownian bridge between them: it crosses 0 with probability
``q = exp(-2 |m_a m_b| / (s² (b - a)))``, s² being the chain's mean squared change per place. The
guess governs the cost and the variance, not the expectation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurank.observe.game import Ends, Game, PerUnit
from neurank.observe.value import Margin

Coins = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]
"""From rows, starts and ends of stretches to one number from [0, 1) for each."""

STRETCHES = 8
"""Into how many stretches a chain is cut to begin with."""
EAGERNESS = 2.0
LEAST = 0.3
"""A stretch with like ends is looked into with probability EAGERNESS * q^(1/4), from LEAST to 1.

With the guess taken at its word q^(1/2) would spend coalitions best. Real margins stray from it,
and what is found against all expectation weighs most: the fourth root trusts it less. On VGG-16
these settings leave the variance 1.0 to 1.4 times that of whole chains, for a half to an eighth of
the coalitions, and the product of both is near its least.
"""
HEAVIEST = 30.0
"""No change counts more often than this: a sum ruled by rare giants would hide its own error."""


@dataclass(frozen=True)
class Leaps:
    """What was found along the chains of a batch.

    Attributes
    ----------
    marginals : (examples, units), weighted.
    ends : the value with no unit and with all.
    coalitions : how many were evaluated.
    """

    marginals: PerUnit
    ends: Ends
    coalitions: int


@dataclass(frozen=True)
class _Stretches:
    """Stretches of chains, (stretches,) each: the row, both ends, and what they count."""

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    weights: NDArray[np.float64]

    def __getitem__(self, chosen: NDArray[np.bool_]) -> "_Stretches":
        return _Stretches(
            self.rows[chosen], self.starts[chosen], self.ends[chosen], self.weights[chosen]
        )

    def halved(self) -> tuple[NDArray[np.int64], "_Stretches"]:
        """Return the places in the middle, and both halves of every stretch."""
        middles = (self.starts + self.ends) // 2
        return middles, _Stretches(
            np.concatenate([self.rows, self.rows]),
            np.concatenate([self.starts, middles]),
            np.concatenate([middles, self.ends]),
            np.concatenate([self.weights, self.weights]),
        )


def leap(game: Game, orders: NDArray[np.int64], coins: Coins) -> Leaps:
    """Estimate what each unit adds when the units of each example join in the order given.

    Parameters
    ----------
    game : its value is an accuracy: 1 or 0 for each example.
    orders : (examples, units): the units that join, in turn, and then -1.
    coins : where the chances come from.
    """
    walk = _Walk.of(game, orders)
    players = (orders >= 0).sum(axis=1)
    stretches = _first_stretches(players)
    walk.look(stretches.rows, stretches.ends)
    walk.look(np.arange(len(players)), np.zeros_like(players))
    spreads = walk.spreads(stretches)
    marginals = np.zeros(orders.shape)
    while len(stretches.rows):
        single = stretches.ends - stretches.starts == 1
        walk.note(stretches[single], marginals)
        stretches = stretches[~single]
        chances = walk.chances(stretches, spreads)
        wanted = coins(stretches.rows, stretches.starts, stretches.ends) < chances
        weights = stretches.weights / chances
        stretches = _Stretches(stretches.rows, stretches.starts, stretches.ends, weights)[wanted]
        middles, halves = stretches.halved()
        walk.look(stretches.rows, middles)
        stretches = halves
    ends = np.stack([walk.values[:, 0], walk.values[np.arange(len(players)), players]], axis=1)
    return Leaps(marginals, ends, int(np.isfinite(walk.values).sum()))


def _first_stretches(players: NDArray[np.int64]) -> _Stretches:
    cuts = players[:, None] * np.arange(STRETCHES + 1) // STRETCHES  # (examples, cuts)
    rows = np.arange(len(players))[:, None].repeat(STRETCHES, axis=1).ravel()
    starts, ends = cuts[:, :-1].ravel(), cuts[:, 1:].ravel()
    return _Stretches(rows, starts, ends, np.ones(len(rows)))[ends > starts]


@dataclass(frozen=True)
class _Walk:
    """The places of each chain that have been looked at.

    Attributes
    ----------
    values, margins : (examples, places), NaN where nobody has looked.
    """

    game: Game
    orders: NDArray[np.int64]
    logits: Callable[[Tensor, Tensor], Tensor]
    values: NDArray[np.float64]
    margins: NDArray[np.float64]

    @classmethod
    def of(cls, game: Game, orders: NDArray[np.int64]) -> "_Walk":
        unseen = np.full((len(orders), orders.shape[1] + 1), np.nan)
        return cls(game, orders, game.walk(orders), unseen, unseen.copy())

    def look(self, rows: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        if not len(rows):
            return  # a model need not be able to run on nothing
        game = self.game
        device = game.active.device
        for some in game.blocks(torch.arange(len(rows))):
            at = some.numpy()
            which = torch.from_numpy(rows[at]).to(device)
            logits = self.logits(which, torch.from_numpy(places[at]).to(device))
            margins = Margin()(logits, game.targets[which])
            self.values[rows[at], places[at]] = game.evaluate(which, logits).cpu().numpy()
            self.margins[rows[at], places[at]] = margins.cpu().numpy()

    def spreads(self, stretches: _Stretches) -> NDArray[np.float64]:
        """Mean squared change of the margin per place, (examples,)."""
        steps = self._changes(self.margins, stretches) ** 2 / (stretches.ends - stretches.starts)
        examples = len(self.values)
        counts = np.bincount(stretches.rows, minlength=examples)
        return np.bincount(stretches.rows, steps, minlength=examples) / np.maximum(counts, 1)

    def chances(self, stretches: _Stretches, spreads: NDArray[np.float64]) -> NDArray[np.float64]:
        """With what probability each stretch is looked into."""
        rows, lengths = stretches.rows, stretches.ends - stretches.starts
        product = self.margins[rows, stretches.starts] * self.margins[rows, stretches.ends]
        with np.errstate(divide="ignore", invalid="ignore"):
            root = np.exp(-np.abs(product) / (2 * spreads[rows] * lengths))  # the fourth root of q
        least = np.maximum(LEAST, stretches.weights / HEAVIEST)
        guess = np.clip(np.nan_to_num(EAGERNESS * root, nan=1.0), least, 1)
        return np.where(self._changes(self.values, stretches) == 0, guess, 1.0)

    def note(self, stretches: _Stretches, marginals: PerUnit) -> None:
        """Write down the marginal contributions of stretches of one place."""
        units = self.orders[stretches.rows, stretches.starts]
        marginals[stretches.rows, units] = stretches.weights * self._changes(self.values, stretches)

    def _changes(self, numbers: NDArray[np.float64], stretches: _Stretches) -> NDArray[np.float64]:
        rows = stretches.rows
        changes: NDArray[np.float64] = numbers[rows, stretches.ends]
        return changes - numbers[rows, stretches.starts]
