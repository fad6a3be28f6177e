"""The game of the network's own outputs, which has a closed form.

Let t be the target's output. With t on, the target wins exactly if every other output that would
beat it when on is off, and every one that would beat it when off is on; with t off likewise. Each
of the two is the game "all of A on, all of B off", whose Shapley values are

``(a-1)! b! / (a+b)!`` for members of A and ``-a! (b-1)! / (a+b)!`` for members of B,

with a and b their sizes; the others are null players. So a layer with any number of outputs is
exact, where the power set would be out of reach.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import beta

from neurank.observe.game import Ends, PerUnit, SuffixGame


@dataclass(frozen=True)
class OutputGame(SuffixGame):
    """The game of the units that are the logits themselves, for values that are accuracies."""

    @property
    def compiled(self) -> bool:
        """Whether exact values are there without walking the power set."""
        return True

    @property
    def exact_coalitions(self) -> int:
        """Two conditions per example stand for its whole power set."""
        return 2 * self.examples

    def exact(self) -> tuple[PerUnit, Ends]:
        """Compute the exact Shapley values of each example's game, in closed form."""
        on = self.on[:, :, 0].cpu().numpy()
        off = np.broadcast_to(self.off[:, 0].cpu().numpy(), on.shape)
        targets = self.targets.cpu().numpy()
        rows = np.arange(len(targets))
        own = np.zeros(on.shape, bool)
        own[rows, targets] = True
        shapley = np.zeros(on.shape)
        ends = np.zeros((len(on), 2))
        for target_on in (True, False):
            score = (on if target_on else off)[rows, targets][:, None]
            lost_on, lost_off = (_beats(other, score, targets) & ~own for other in (on, off))
            possible = np.logical_not((lost_on & lost_off).any(axis=1, keepdims=True))
            needed = (lost_off & ~lost_on) | (own & target_on)
            banned = (lost_on & ~lost_off) | (own & (not target_on))
            shapley += possible * _conjunction(needed, banned)
            wins = banned.sum(axis=1) if target_on else needed.sum(axis=1)
            ends[:, int(target_on)] = possible[:, 0] & (wins == 0)
        return shapley, ends


def _beats(
    others: NDArray[np.floating], score: NDArray[np.floating], targets: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether each output, (examples, outputs), wins against the target's score; low ones ties."""
    earlier = np.arange(others.shape[1])[None, :] < targets[:, None]
    wins: NDArray[np.bool_] = (others > score) | ((others == score) & earlier)
    return wins


def _conjunction(needed: NDArray[np.bool_], banned: NDArray[np.bool_]) -> PerUnit:
    """Shapley values of the game that is 1 when all needed are on and all banned off, else 0."""
    a = needed.sum(axis=1, keepdims=True)
    b = banned.sum(axis=1, keepdims=True)
    member = np.where(needed, beta(np.maximum(a, 1), b + 1), 0.0)
    outside = np.where(banned, beta(a + 1, np.maximum(b, 1)), 0.0)
    return member - outside
