"""Single weights that are pruned while a network is trained: scored, masked, held at zero.

Nothing gets smaller: pruned weights are zeros that the optimizer cannot move. Units of which no
weight is left can be cut away afterwards (`neurank.condense`).
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import pandas as pd
from torch import nn
from torch.optim import Optimizer

from neurank.errors import MethodError
from neurank.observe.examples import Batch
from neurank.watch.losses import mean_loss
from neurank.watch.schedule import Schedule, check_later
from neurank.weights.holding import Held, hold
from neurank.weights.masks import Masks, Within, mask
from neurank.weights.methods import Method
from neurank.weights.scoring import score


@dataclass(frozen=True)
class WeightEpoch:
    """What is known of one epoch.

    Attributes
    ----------
    epoch : its number, by the caller's count.
    seconds : processor time of this process since the epoch before was done with, or since the
        schedule was set up; scoring after an epoch does not count.
    sparsity : the share of the weights that is zero after it.
    losses : mean cross-entropy on the data, in evaluation mode, before and after weights were
        pruned; None if nothing was due.
    """

    epoch: int
    seconds: float
    sparsity: float
    losses: tuple[float, float] | None


class WeightPruning:
    """Prune weights on a schedule, beside any training loop.

    Call `after_epoch` when an epoch is done. What is pruned stays zero, whatever the optimizer
    (`neurank.weights.hold`), until `release`, or the end of a ``with`` block.

    Parameters
    ----------
    schedule
        Epoch to the share of all weights that is pruned after it, those before included.
    method
        How weights are scored, such as ``neurank.weights.Magnitude()``.
    data
        Batches ``(inputs, targets)`` that are the same at every pass: what is scored and measured
        on.
    within
        ``"network"``: the lowest scores of all weights together; ``"layer"``: of each parameter.
    parameters
        Dotted names; by default all weights with two axes or more, and no biases.
    signed
        Prune the lowest scores as they are, those first that promise a lower loss. By default those
        nearest to 0, which works better (section 2.1.5 of the dead-units thesis).
    seed
        Of the scores' random draws.

    Attributes
    ----------
    masks : what is kept at the moment; None before anything was pruned.
    epochs : what is known of each epoch so far.

    Raises
    ------
    MethodError
        The schedule is none.

    Examples
    --------
    >>> import neurank as nr
    >>> import torch
    >>> from neurank.weights import Magnitude
    >>> digits = nr.data.load("digits", batch_size=50)
    >>> model = nr.zoo.digits_net(seed=0)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> with WeightPruning({1: 0.2, 2: 0.5}, method=Magnitude(), data=digits.validation) as pruning:
    ...     for epoch in (1, 2, 3):
    ...         for inputs, targets in digits.train:
    ...             optimizer.zero_grad()
    ...             torch.nn.functional.cross_entropy(model(inputs), targets).backward()
    ...             optimizer.step()
    ...         pruning.after_epoch(epoch, model, optimizer)
    >>> weights = [it for it in model.parameters() if it.ndim > 1]
    >>> zeros = sum(int((it == 0).sum()) for it in weights)
    >>> zeros == sum(it.numel() for it in weights) // 2
    True
    """

    def __init__(
        self,
        schedule: Mapping[int, float],
        *,
        method: Method,
        data: Iterable[Batch],
        within: Within = "network",
        parameters: Sequence[str] | None = None,
        signed: bool = False,
        seed: int = 0,
    ) -> None:
        self.schedule = Schedule(schedule)
        if self.schedule.layers() is not None:
            raise MethodError(
                "the schedule gives shares by layer, which weights are not pruned by: give epoch "
                "to one number, and choose layers with parameters="
            )
        self.method = method
        self.data = data
        self.within: Within = within
        self.parameters = None if parameters is None else tuple(parameters)
        self.signed = signed
        self.seed = seed
        self.masks: Masks | None = None
        self.epochs: tuple[WeightEpoch, ...] = ()
        self._held: Held | None = None
        self._begun = time.process_time()

    def after_epoch(self, epoch: int, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Prune what is due after an epoch, IN PLACE.

        Parameters
        ----------
        epoch
            Its number; later than that of the call before.
        model
            The network, the same in every call.
        optimizer
            What trains it; None follows every optimizer of this process.

        Raises
        ------
        MethodError
            The epoch is not later than the one before, or the method or optimizer is none.
        DataError, ModelError, PlanError
            Data or network cannot be used.
        """
        seconds = time.process_time() - self._begun
        check_later(epoch, self.epochs[-1].epoch if self.epochs else None)
        losses = None
        if epoch in self.schedule.shares:
            before = mean_loss(model, self.data)
            self._hold(self._masks(model, self.schedule.share(epoch, "")), model, optimizer)
            losses = before, mean_loss(model, self.data)
        sparsity = 0.0 if self.masks is None else self.masks.sparsity
        self.epochs += (WeightEpoch(epoch, seconds, sparsity, losses),)
        self._begun = time.process_time()

    def resume(self, model: nn.Module, masks: Masks, optimizer: Optimizer | None = None) -> None:
        """Go on from masks that another run left, such as `Masks.load` gives, IN PLACE.

        Raises
        ------
        PlanError, MethodError
            The masks do not fit the network, or the optimizer does not hold its weights.
        """
        self._hold(masks, model, optimizer)

    def release(self) -> None:
        """Let pruned weights move again; masks and record stay. A second call does nothing."""
        if self._held is not None:
            self._held.release()

    def to_frame(self) -> pd.DataFrame:
        """Return one row per epoch: seconds, sparsity and losses."""
        return pd.DataFrame(
            [
                {
                    "epoch": it.epoch,
                    "seconds": it.seconds,
                    "sparsity": it.sparsity,
                    "loss before": it.losses[0] if it.losses else None,
                    "loss after": it.losses[1] if it.losses else None,
                }
                for it in self.epochs
            ]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _masks(self, model: nn.Module, share: float) -> Masks:
        scores = score(
            model,
            self.data,
            self.method,
            parameters=self.parameters,
            seed=self.seed,
            progress=False,
        )
        wanted = scores if self.signed else scores.absolute()
        return mask(wanted, share, self.within, after=self.masks)

    def _hold(self, masks: Masks, model: nn.Module, optimizer: Optimizer | None) -> None:
        held = hold(model, masks, optimizer)
        self.release()
        self.masks, self._held = masks, held
