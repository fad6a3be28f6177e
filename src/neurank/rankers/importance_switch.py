"""The importance switch: a probability vector on a layer's units, learnt by variational inference.

Equations are those of K. Adamczewski and M. Park, Neuron ranking, section 4.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from neurank.errors import MethodError, ModelError
from neurank.files import Json
from neurank.observe.observer import Arrays, Observer
from neurank.observe.switchboard import Switchboard, SwitchedBatch
from neurank.progress import track
from neurank.rankers.method import Scored
from neurank.ranking import LayerRanking
from neurank.text import legible

Estimate = Literal["mean", "sample"]

StandIn = Callable[[Tensor, int, int], Tensor]
"""From phi, the number of the batch and its examples to the switch that stands for s in it."""


@dataclass(frozen=True)
class ImportanceSwitch:
    """Posterior means of switches that multiply the units' pre-activations, eqs. 3 to 9.

    A layer's switch s, (units,), is a probability vector; unit j's pre-activation becomes s_j
    times what it was (behind a BatchNorm that precedes the nonlinearity). With the prior
    ``s ~ Dir(alpha, ..., alpha)`` and the posterior ``q = Dir(phi)``, Adam maximises the bound

    ``L(phi) = sum over examples of E_q[log p(y | x, s)] - KL(q || prior)``

    (eq. 8, in nats) one batch at a time, by descending the batch's mean cross-entropy plus KL / N,
    N examples in all. Weights are frozen, the network is in evaluation mode, and each layer is
    trained by itself, the others having no switch. The score is the posterior mean
    ``phi_j / sum of phi``: positive, and 1 in sum over the layer. It is a share, so scores of
    layers of different width do not compare, and since each is near 1/units, a switched layer's
    activations are that much smaller than the network was trained with; this is the paper's scale.

    No error is promised: ``stderr`` is NaN, for the posterior's standard deviation says how far a
    switch may stray from its mean, not how well the mean is known. That deviation is in the
    provenance, ``provenance["by_layer"][layer]["posterior_std"]``, with ``phi``; the ``bound`` at
    the end and ``bound_by_epoch``, which is summed over the epoch's steps while phi moves; and the
    ``epochs`` and ``batches`` per epoch. ``counts`` are examples × epochs.

    Parameters
    ----------
    epochs : passes over the data.
    alpha : the symmetric prior's parameter α₀; below 1 it favours a few units, above 1 equality.
    lr : Adam's learning rate. The default comes close to the best bound within ten epochs of a
        hundred steps; at the authors' 0.001 that takes thousands of steps, until when phi stays
        near its start, although its order shows early.
    estimate : how the expectation is taken. "mean", the paper's choice, puts the posterior mean in
        for s, a point estimate with which L(phi) is no strict bound; "sample" draws s from the
        posterior, one for each example, with implicit reparameterisation gradients (Figurnov et
        al. 2018).
    start : every φ starts at softplus(start).

    Raises
    ------
    MethodError
        If an argument is out of range.
    ModelError
        If the forward pass cannot be traced, or the loss becomes NaN or infinite.

    Example
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(2, 3, 6, 4, seed=0)
    >>> data = nr.data.load("digits").train.first(100)
    >>> method = nr.ImportanceSwitch(epochs=2)
    >>> ranking = nr.rank(model, data, method, layers=["fc1"], progress=False)
    >>> print(f"{ranking['fc1'].scores.sum():.6f}", ranking["fc1"].status)
    1.000000 learned
    """

    epochs: int = 10
    alpha: float = 2.0
    lr: float = 0.1
    estimate: Estimate = "mean"
    start: float = -1.0

    def __post_init__(self) -> None:
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 1:
            raise MethodError(f"epochs={self.epochs!r}: a positive whole number is needed")
        for name in ("alpha", "lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise MethodError(f"{name}={getattr(self, name)!r}: a positive number is needed")
        if not -20 <= self.start < float("inf"):
            raise MethodError(
                f"start={self.start!r}: a number from -20 on is needed; below, softplus(start) is "
                "so near 0 that nothing is learnt"
            )
        if self.estimate not in get_args(Estimate):
            raise MethodError(f"estimate={self.estimate!r}: it is 'mean' or 'sample'")

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        learnt = observer.once(f"{layer} / switch", lambda: self._train(observer, layer))
        phi = torch.from_numpy(learnt.arrays["phi"])
        scores = posterior_mean(phi)
        counts = torch.full((len(phi),), observer.examples.count * self.epochs)
        unknown = torch.full_like(scores, torch.nan)
        record: dict[str, Json] = {
            "epochs": self.epochs,
            "batches": len(observer.examples),
            "bound": float(learnt.arrays["bound"]),
            "bound_by_epoch": learnt.arrays["bounds"].tolist(),
            "phi": phi.tolist(),
            "posterior_std": posterior_std(phi).tolist(),
        }
        return Scored(LayerRanking(scores, unknown, counts, "learned", stderr_of="none"), record)

    def _train(self, observer: Observer, layer: str) -> Arrays:
        # Whoever calls may be in inference mode, or have gradients off: this turns them on.
        with torch.inference_mode(False):
            training = _Training(self, observer.switchboard(layer), layer, observer.seed)
            label = f"switch on {legible(layer)}"
            epochs = track(range(self.epochs), label=label, show=observer.progress)
            bounds = np.array([training.epoch(epoch) for epoch in epochs])
            bound = np.array(training.bound())
            return {"phi": training.phi().detach().numpy(), "bounds": bounds, "bound": bound}


def posterior_mean(phi: Tensor) -> Tensor:
    """Mean of Dir(phi), ``phi_j / sum of phi``.

    Parameters
    ----------
    phi : (units,), positive.

    Example
    -------
    >>> posterior_mean(torch.tensor([1.0, 3.0]))
    tensor([0.2500, 0.7500])
    """
    return phi / phi.sum()


def posterior_std(phi: Tensor) -> Tensor:
    """Spread of Dir(phi): each switch's standard deviation, ``sqrt(m (1 - m) / (1 + sum of phi))``.

    Example
    -------
    >>> posterior_std(torch.tensor([1.5, 1.5]))
    tensor([0.2500, 0.2500])
    """
    mean = posterior_mean(phi)
    return (mean * (1 - mean) / (1 + phi.sum())).sqrt()


def draw_switches(phi: Tensor, examples: int, key: Sequence[int]) -> Tensor:
    """Draw one switch per example from Dir(phi), differentiable in phi.

    The draws follow from `key` alone, and torch's generator is left as it is.

    Parameters
    ----------
    phi : (units,), positive, on the CPU.
    examples : how many.
    key : whole numbers from 0 on.

    Returns
    -------
    Tensor
        (examples, units).

    Example
    -------
    >>> draw_switches(torch.tensor([2.0, 2.0]), 3, key=[0]).sum(dim=1)
    tensor([1., 1., 1.])
    """
    word = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    posterior = torch.distributions.Dirichlet(phi, validate_args=False)
    with torch.random.fork_rng(devices=[]):  # rsample takes no generator of its own
        torch.default_generator.manual_seed(word)
        draws: Tensor = posterior.rsample((examples,))
    return draws


def dirichlet_kl(phi: Tensor, alpha: float) -> Tensor:
    """Kullback-Leibler divergence of Dir(phi) from the symmetric Dir(alpha), eq. 9, in nats.

    Parameters
    ----------
    phi : (units,), positive.
    alpha : the prior's parameter.

    Example
    -------
    >>> dirichlet_kl(torch.tensor([2.0, 2.0, 2.0]), alpha=2.0)
    tensor(0.)
    """
    units = len(phi)
    prior = torch.tensor(alpha, dtype=phi.dtype, device=phi.device)
    total = phi.sum()
    normalisers = (
        torch.lgamma(total)
        - torch.lgamma(units * prior)
        - torch.lgamma(phi).sum()
        + units * torch.lgamma(prior)
    )
    return normalisers + ((phi - prior) * (_digamma(phi) - _digamma(total))).sum()


def _digamma(x: Tensor) -> Tensor:
    """Return ψ(x) with the derivative ψ'(x) = ζ(2, x): torch's own is off by up to 5e-10 of it."""
    fixed = x.detach()
    slope: Tensor = torch.special.zeta(2, fixed)
    return torch.digamma(fixed) + slope * (x - fixed)


def cross_entropy(batch: SwitchedBatch, switch: Tensor) -> Tensor:
    """Sum over a batch of ``-log p(y | x, s)``, in nats, float64."""
    logits = batch.forward(switch).to(torch.float64)
    return functional.cross_entropy(logits, batch.targets, reduction="sum")


def lower_bound(board: Switchboard, phi: Tensor, alpha: float, stand_in: StandIn) -> Tensor:
    """Bound the data's log probability, eq. 8, in nats; differentiable in phi.

    Parameters
    ----------
    board : the layer that is switched.
    phi : (units,), the posterior's parameters.
    alpha : the prior's parameter.
    stand_in : what stands for s in a batch, `posterior_mean` of phi or draws.
    """
    misfit = torch.zeros((), dtype=torch.float64)
    for number, batch in enumerate(board.batches(), start=1):
        switch = stand_in(phi, number, len(batch.targets))
        misfit = misfit + cross_entropy(batch, switch).to(misfit.device)
    return -misfit - dirichlet_kl(phi, alpha)


@dataclass(frozen=True)
class _Training:
    """Adam on the switch of one layer.

    `parameter`, (units,) float64, is kept on the CPU: it is small, and the draws are then the same
    whatever the network runs on.
    """

    method: ImportanceSwitch
    board: Switchboard
    layer: str
    seed: int
    parameter: Tensor = field(init=False)
    optimizer: torch.optim.Adam = field(init=False)

    def __post_init__(self) -> None:
        start = torch.full((self.board.units,), float(self.method.start), dtype=torch.float64)
        object.__setattr__(self, "parameter", start.requires_grad_())
        object.__setattr__(self, "optimizer", torch.optim.Adam([start], lr=self.method.lr))

    def phi(self) -> Tensor:
        """Return the posterior's parameters."""
        return functional.softplus(self.parameter)

    def epoch(self, epoch: int) -> float:
        """Take one step per batch; return the bound, summed while phi moves."""
        stand_in = self._stand_in(epoch)
        misfit, divergences, steps = 0.0, 0.0, 0
        for steps, batch in enumerate(self.board.batches(), start=1):
            phi = self.phi()
            loss = cross_entropy(batch, stand_in(phi, steps, len(batch.targets)))
            divergence = dirichlet_kl(phi, self.method.alpha)
            objective = loss / len(batch.targets) + divergence / self.board.examples
            self._check(objective, f"in epoch {epoch + 1}, batch {steps}")
            self.optimizer.zero_grad()
            objective.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            misfit += float(loss.detach())
            divergences += float(divergence.detach())
        return -misfit - divergences / steps

    def bound(self) -> float:
        """Return the bound, eq. 8, where phi has come to rest."""
        with torch.no_grad():
            stand_in = self._stand_in(self.method.epochs)
            bound = lower_bound(self.board, self.phi(), self.method.alpha, stand_in)
        self._check(bound, "after the last epoch")
        return float(bound)

    def _stand_in(self, epoch: int) -> StandIn:
        if self.method.estimate == "mean":
            return lambda phi, _batch, _examples: posterior_mean(phi)
        key = (self.seed, zlib.crc32(self.layer.encode()), epoch)
        return lambda phi, batch, examples: draw_switches(phi, examples, (*key, batch))

    def _check(self, number: Tensor, when: str) -> None:
        if not bool(torch.isfinite(number)):
            raise ModelError(
                f"the loss with a switch on layer {self.layer!r} is NaN or infinite {when}: check "
                "the weights and the scale of the inputs, or train with a smaller learning rate "
                f"than lr={self.method.lr:g}"
            )
