"""Looking at a model without leaving a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import numba
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
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    generator = torch.get_rng_state()
    try:
        model.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
                module._buffers[name] = buffer  # forward() may have put another in its place
        torch.set_rng_state(generator)


@contextmanager
def threads_as_torch() -> Iterator[None]:
    """Let compiled loops use as many threads as torch for the length of a `with` block.

    Both run on the same OpenMP pool, and numba sets its size for both when it starts: torch would
    be left with a thread per core, whatever the user chose.

    Example:
    -------
    >>> before = torch.get_num_threads()
    >>> with threads_as_torch():
    ...     numba.get_num_threads() <= before
    True
    """
    chosen = torch.get_num_threads()
    own = numba.get_num_threads()  # starts numba's threads, which is what changes torch's number
    torch.set_num_threads(chosen)
    numba.set_num_threads(min(chosen, own))
    try:
        yield
    finally:
        numba.set_num_threads(own)
