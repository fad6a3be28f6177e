"""Training by the papers' recipe, and the error rate that it is judged by."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from neurank.errors import DataError, MethodError, ModelError
from neurank.modes import evaluating
from neurank.progress import track

Batches = Iterable[tuple[Tensor, Tensor]]


@runtime_checkable
class InMemory(Protocol):
    """Data whose examples are all in memory, such as `neurank.data.Split`."""

    @property
    def inputs(self) -> Tensor:
        """The inputs, (examples, ...)."""

    @property
    def targets(self) -> Tensor:
        """The labels, (examples,)."""

    @property
    def batch_size(self) -> int:
        """Examples per batch."""


@dataclass(frozen=True)
class History:
    """What happened while a network was trained.

    Attributes
    ----------
    losses : mean training loss of each epoch, in nats.
    validation_errors : fraction of validation examples misclassified after each epoch.
    initial_error : the same before the first epoch.
    best_epoch : the epoch whose weights the network was left with, from 1; 0 where no epoch was
        as good as the beginning.
    seconds : how long it took, wall clock.
    """

    losses: tuple[float, ...]
    validation_errors: tuple[float, ...]
    initial_error: float
    best_epoch: int
    seconds: float

    @property
    def best_error(self) -> float:
        """The validation error of the weights that the network was left with."""
        return (self.initial_error, *self.validation_errors)[self.best_epoch]


def fit(
    model: nn.Module,
    train: Batches,
    validation: Batches,
    *,
    epochs: int,
    lr: float = 0.1,
    final_lr: float = 0.001,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int | None = None,
    patience: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train `model` in place and leave it with the weights of its best epoch on `validation`.

    Stochastic gradient descent on the cross-entropy. The learning rate falls from `lr` in the
    first epoch to `final_lr` in the last along half a cosine. The best epoch has the lowest
    validation error, of equal ones the latest; the beginning counts too, as epoch 0, so that
    fitting never makes the validation error worse.

    Data in memory (anything with `inputs`, `targets` and `batch_size`, such as a
    `neurank.data.Split`) are shuffled anew in every epoch; other batches are taken as they come.
    The shuffling and the network's own chance (dropout) follow from `seed` alone, and the order
    of the examples is the same for every network. Torch's generators and the training flags of
    all modules are left as they were. Whatever ends the training early, an error or Ctrl-C, the
    network has the weights of its best epoch so far.

    Parameters
    ----------
    model
        Maps inputs to logits, (examples, classes). Parameters that require no gradient stay as
        they are.
    train
        What is fitted: batches ``(inputs, targets)`` that can be gone through once per epoch.
    validation
        What the best epoch is chosen by.
    epochs
        How often to go through `train`, at most.
    lr, final_lr
        The learning rate of the first and of the last epoch.
    momentum, weight_decay
        Of stochastic gradient descent.
    batch_size
        Examples per step for data in memory; by default their own `batch_size`.
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
        Loss and error of each epoch, and which was the best.

    Raises
    ------
    MethodError
        A setting is out of its range.
    DataError
        There are no batches, or a label has no class.
    ModelError
        The network has nothing to train, its output is no (examples, classes) tensor, or the
        loss is NaN or infinite.

    Notes
    -----
    The settings by default are those of K. Adamczewski, M. Park: Neuron ranking, section 4.

    Examples
    --------
    >>> from neurank.data import load
    >>> from neurank.zoo import digits_net
    >>> digits, model = load("digits", batch_size=50), digits_net(seed=0)
    >>> history = fit(model, digits.train, digits.validation, epochs=3)
    >>> history.best_error < history.initial_error
    True
    """
    _check_settings(
        epochs=epochs,
        lr=lr,
        final_lr=final_lr,
        momentum=momentum,
        weight_decay=weight_decay,
        patience=patience,
    )
    shuffling = torch.Generator().manual_seed(seed)
    batches = _training_batches(train, batch_size, shuffling)
    optimizer = torch.optim.SGD(
        _trainable(model), lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    started = time.perf_counter()
    losses: list[float] = []
    best = _Best(model, error_rate(model, validation))
    with _training(model, seed), best:
        for epoch in track(range(1, epochs + 1), label="training", show=progress):
            _set_rate(optimizer, _cosine(lr, final_lr, (epoch - 1) / max(epochs - 1, 1)))
            losses.append(_train_epoch(model, batches, optimizer, epoch))
            best.judge(error_rate(model, validation))
            if patience is not None and best.epochs_without_gain >= patience:
                break
    return History(
        losses=tuple(losses),
        validation_errors=tuple(best.errors[1:]),
        initial_error=best.errors[0],
        best_epoch=best.epoch,
        seconds=time.perf_counter() - started,
    )


def error_rate(model: nn.Module, data: Batches) -> float:
    """Measure the fraction of examples whose highest logit is not their label's.

    The network is in evaluation mode meanwhile and comes back as it was. Of equal logits the
    lowest class counts as the highest.

    Parameters
    ----------
    model
        Maps inputs to logits, (examples, classes).
    data
        Batches ``(inputs, targets)``.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    DataError
        There are no examples, or a label has no class.
    ModelError
        The output is no (examples, classes) tensor, or has a NaN.

    Examples
    --------
    >>> data = [(torch.eye(3), torch.tensor([0, 1, 1]))]
    >>> round(error_rate(nn.Identity(), data), 4)
    0.3333
    """
    device = _device(model)
    wrong = examples = 0
    with evaluating(model), torch.no_grad():
        for number, (inputs, targets) in enumerate(data, start=1):
            logits = _logits(model, inputs.to(device))
            labels = _labels(targets.to(device), logits)
            if bool(logits.isnan().any()):
                raise ModelError(f"the output has a NaN in batch {number}: check the weights")
            wrong += int((logits.argmax(dim=1) != labels).sum())
            examples += len(labels)
    if not examples:
        raise DataError("there are no examples to measure the error on: the data gave no batches")
    return wrong / examples


class _Best:
    """The best epoch's weights, which the network has again when the `with` block ends."""

    def __init__(self, model: nn.Module, initial_error: float) -> None:
        self._model = model
        self.errors = [initial_error]
        self.epoch = 0
        self.epochs_without_gain = 0
        self._tensors = _copies(model)

    def __enter__(self) -> "_Best":
        return self

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for tensor, best in zip(_tensors(self._model), self._tensors, strict=True):
                tensor.copy_(best)

    def judge(self, error: float) -> None:
        """Note the error after one more epoch, and the weights where it is as low as any."""
        lowest = min(self.errors)
        self.errors.append(error)
        self.epochs_without_gain = 0 if error < lowest else self.epochs_without_gain + 1
        if error <= lowest:
            self.epoch = len(self.errors) - 1
            self._tensors = _copies(self._model)


class _Shuffled:
    """Batches of data in memory, in a new order on every pass."""

    def __init__(self, data: InMemory, batch_size: int, generator: torch.Generator) -> None:
        self._data = data
        self._batch_size = batch_size
        self._generator = generator

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._data.targets), generator=self._generator)
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            yield self._data.inputs[rows], self._data.targets[rows]


def _training_batches(
    train: Batches, batch_size: int | None, generator: torch.Generator
) -> Batches:
    if isinstance(train, InMemory):
        size = train.batch_size if batch_size is None else batch_size
        if size < 1:
            raise MethodError(f"batch_size={size} is not positive: give 1 or more")
        return _Shuffled(train, size, generator)
    if batch_size is not None:
        raise MethodError(
            f"batch_size={batch_size} has no effect on data that come in batches already: "
            "leave it out, or make the batches of that size"
        )
    return train


def _train_epoch(
    model: nn.Module, batches: Batches, optimizer: torch.optim.Optimizer, epoch: int
) -> float:
    """Go through the batches once; give the mean loss per example."""
    device = _device(model)
    total, examples = 0.0, 0
    model.train()
    for number, (inputs, targets) in enumerate(batches, start=1):
        logits = _logits(model, inputs.to(device))
        labels = _labels(targets.to(device), logits)
        loss = functional.cross_entropy(logits, labels)
        total += _finite(loss, epoch, number) * len(labels)
        examples += len(labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()
    if not examples:
        raise DataError(
            f"the training data gave no batches in epoch {epoch}: give something that can be gone "
            "through once per epoch (a list, a loader without drop_last), not an iterator"
        )
    return total / examples


def _finite(loss: Tensor, epoch: int, batch: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise ModelError(
            f"the training loss is {value} in epoch {epoch}, batch {batch}: use a lower learning "
            "rate, and check that the inputs are finite and of moderate size"
        )
    return value


def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    output = model(inputs)
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(inputs):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"the output of the network is {got} for {len(inputs)} examples: wrap the network so "
            "that it returns one tensor of logits, (examples, classes)"
        )
    return output


def _labels(targets: Tensor, logits: Tensor) -> Tensor:
    """Check labels against the logits, as cross_entropy does not: it skips those of -100."""
    classes = logits.shape[1]
    if targets.shape != logits.shape[:1] or targets.is_floating_point():
        raise DataError(
            f"the targets are {targets.dtype} of shape {tuple(targets.shape)} for {len(logits)} "
            "examples: give one whole label per example"
        )
    outside = targets[(targets < 0) | (targets >= classes)]
    if len(outside):
        raise DataError(
            f"the label {int(outside[0])} has no output among the network's {classes}: "
            f"labels must be 0 to {classes - 1}"
        )
    return targets.long()


@contextmanager
def _training(model: nn.Module, seed: int) -> Iterator[None]:
    """Let the network's own chance follow from `seed`; afterwards flags and generators are back."""
    flags = [(module, module.training) for module in model.modules()]
    device = _device(model)
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed_all(seed)
            yield
    finally:
        for module, flag in flags:
            module.training = flag


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError(
            "no parameter of the network requires a gradient: there is nothing to train"
        )
    return parameters


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _copies(model: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in _tensors(model)]


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _cosine(start: float, end: float, progress: float) -> float:
    """Go from `start` to `end` along half a cosine as `progress` goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _check_settings(
    *,
    epochs: int,
    lr: float,
    final_lr: float,
    momentum: float,
    weight_decay: float,
    patience: int | None,
) -> None:
    if epochs < 1:
        raise MethodError(f"epochs={epochs} trains nothing: give 1 or more")
    if not 0 < final_lr <= lr < math.inf:
        raise MethodError(
            f"the learning rate cannot fall from lr={lr} to final_lr={final_lr}: "
            "give 0 < final_lr <= lr"
        )
    if not 0 <= momentum < 1:
        raise MethodError(f"momentum={momentum} is outside 0 <= momentum < 1")
    if not 0 <= weight_decay < math.inf:
        raise MethodError(f"weight_decay={weight_decay} is negative or not finite")
    if patience is not None and patience < 1:
        raise MethodError(f"patience={patience} stops before the first epoch: give 1 or more")
