"""Retraining a condensed network by the paper's recipe."""

from typing import Protocol

from torch import nn

from neurank.training import Batches, History, fit


class TrainingSplits(Protocol):
    """What retraining reads of a data set, such as `neurank.data.Splits`."""

    @property
    def train(self) -> Batches:
        """What weights are fitted on."""

    @property
    def validation(self) -> Batches:
        """What the best epoch is chosen by."""


def retrain(
    model: nn.Module,
    splits: TrainingSplits,
    *,
    epochs: int = 30,
    lr: float = 0.1,
    final_lr: float = 0.001,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int | None = None,
    patience: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train `model` in place on the training split and stop it early by the validation split.

    Stochastic gradient descent, its learning rate falling from `lr` to `final_lr`; the network is
    left with the weights of its epoch with the lowest validation error, the beginning included.
    The test split is never looked at. Settings and errors are those of `neurank.training.fit`.

    Parameters
    ----------
    model
        The network, such as ``condensed.model``.
    splits
        Its ``train`` and ``validation`` are used.
    epochs
        How often to go through the training split, at most.
    lr, final_lr, momentum, weight_decay
        Of stochastic gradient descent.
    batch_size
        Examples per step; by default as the split has them.
    patience
        Stop after so many epochs in a row without a lower validation error; by default go on to
        the end.
    seed
        Of the shuffling and of the network's own chance.
    progress
        Show a bar on a terminal.

    Returns
    -------
    History
        Loss and validation error of each epoch, and which was the best.

    Raises
    ------
    MethodError, DataError, ModelError
        A setting, the data or the network cannot be used.

    Notes
    -----
    The settings by default are those of K. Adamczewski, M. Park: Neuron ranking, section 4.

    Examples
    --------
    >>> from neurank.data import load
    >>> from neurank.zoo import digits_net
    >>> model = digits_net(seed=0)
    >>> history = retrain(model, load("digits", batch_size=50), epochs=3)
    >>> history.best_error < history.initial_error
    True
    """
    return fit(
        model,
        splits.train,
        splits.validation,
        epochs=epochs,
        lr=lr,
        final_lr=final_lr,
        momentum=momentum,
        weight_decay=weight_decay,
        batch_size=batch_size,
        patience=patience,
        seed=seed,
        progress=progress,
    )
