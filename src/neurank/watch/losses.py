"""The loss that is measured beside a training."""

from collections.abc import Iterable

import torch
from torch import nn

from neurank.errors import DataError, ModelError
from neurank.modes import evaluating
from neurank.observe.door import device_of
from neurank.observe.examples import Batch
from neurank.observe.value import NegativeLoss, evaluate
from neurank.units.trace import logits_of


def mean_loss(model: nn.Module, data: Iterable[Batch]) -> float:
    """Measure the mean cross-entropy in nats, in evaluation mode; the network comes back as it was.

    Raises
    ------
    DataError
        There are no examples.
    ModelError
        An output is NaN or infinite.

    Examples
    --------
    >>> data = [(torch.zeros(3, 2), torch.tensor([0, 1, 1]))]
    >>> round(mean_loss(nn.Identity(), data), 4)  # two classes, as likely as each other
    0.6931
    """
    device, total, count = device_of(model), 0.0, 0
    with evaluating(model), torch.inference_mode():
        for number, (inputs, targets) in enumerate(data, start=1):
            outputs = logits_of(model(inputs.to(device)))
            if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
                raise ModelError(
                    f"the output of the network in batch {number} is no tensor of logits, "
                    "(examples, classes): wrap the network so that it returns one"
                )
            values = evaluate(NegativeLoss(), outputs, targets.to(device), f"in batch {number}")
            total -= float(values.sum())
            count += len(targets)
    if not count:
        raise DataError("there are no examples to measure the loss on: the data gave no batches")
    return total / count
