"""The estimators of other libraries, each as a function of (value function, units, budget, seed).

A budget is a number of coalitions. Settings are the best that each offers here:

- all estimators that take several coalitions at once are given many at once;
- KernelSHAP and SVARM draw each coalition together with its complement (``pairing_trick``), and
  KernelSHAP draws all sizes alike: of the settings tried, those with the smallest error;
- Owen sampling takes 20 anchor points, the best of 10, 20 and 40; it is biased by their number;
- Captum evaluates a whole permutation per call (``perturbations_per_eval``).

shapiq's stratified and Owen sampling have no setting for how many coalitions they ask for at once:
it is one.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import ShapleyValueSampling
from shapiq import approximator

PERMUTATIONS_AT_ONCE = 8


@dataclass(frozen=True)
class Peer:
    """One estimator.

    Attributes
    ----------
    name : for tables and legends.
    library : where it comes from.
    estimate : (value function, units, budget, seed) -> scores, (units,) float64.
    """

    name: str
    library: str
    estimate: Callable


def shared_permutations(value, units, budget, seed):
    """Average the marginal contributions along permutations that all pictures share.

    Empty and full coalition are valued once, so that a permutation costs units - 1 coalitions.
    """
    generator = np.random.default_rng(seed)
    ends = value(np.stack([np.zeros(units, bool), np.ones(units, bool)]))
    total = np.zeros(units)
    permutations = max(1, (budget - 2) // (units - 1))
    for _ in range(permutations):
        order = generator.permutation(units)
        place = np.argsort(order)
        chain = place[None, :] < np.arange(1, units)[:, None]  # (coalitions, units)
        values = np.concatenate([ends[:1], value(chain), ends[1:]])
        total[order] += np.diff(values)
    return total / permutations


def shapiq_estimator(kind, **settings):
    """Wrap one of shapiq's approximators of Shapley values."""
    batch = settings.pop("batch_size", None)

    def estimate(value, units, budget, seed):
        found = kind(n=units, random_state=seed, **settings)
        options = {} if batch is None else {"batch_size": batch}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            result = found.approximate(budget, value, **options)
        return np.array([result[(unit,)] for unit in range(units)], dtype=np.float64)

    return estimate


def captum_sampling(value, units, budget, seed):
    """Let Captum take the mask as its input and the accuracy as its output."""
    torch.manual_seed(seed)  # its permutations come from torch's generator

    def forward(masks):
        return torch.from_numpy(value(masks.bool().numpy()))

    found = ShapleyValueSampling(forward).attribute(
        torch.ones(1, units), n_samples=max(1, (budget - 1) // units), perturbations_per_eval=units
    )
    return found[0].double().numpy()


def peers(units):
    """List the estimators for a layer of so many units."""
    sizes_alike = np.ones(units + 1)
    return (
        Peer("shared permutations", "own", shared_permutations),
        Peer(
            "permutation",
            "shapiq",
            shapiq_estimator(approximator.PermutationSamplingSV, batch_size=PERMUTATIONS_AT_ONCE),
        ),
        Peer(
            "KernelSHAP",
            "shapiq",
            shapiq_estimator(
                approximator.KernelSHAP, pairing_trick=True, sampling_weights=sizes_alike
            ),
        ),
        Peer("SVARM", "shapiq", shapiq_estimator(approximator.SVARM, pairing_trick=True)),
        Peer("stratified", "shapiq", shapiq_estimator(approximator.StratifiedSamplingSV)),
        Peer("Owen", "shapiq", shapiq_estimator(approximator.OwenSamplingSV, n_anchor_points=20)),
        Peer("ShapleyValueSampling", "captum", captum_sampling),
    )
