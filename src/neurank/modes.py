"""Looking at a model without leaving a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module of `model` into evaluation mode for the length of a `with` block.

    Afterwards the training flag of each module, the contents of every buffer and the state of
    torch's CPU random generator are what they were, whatever happened inside.

    Example:
    -------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    >>> _ = model[1].eval()
    >>> with evaluating(model):
    ...     [module.training for module in model]
    [False, False]
    >>> [module.training for module in model]
    [True, False]
    """
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    generator = torch.get_rng_state()
    try:
        model.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
        torch.set_rng_state(generator)
