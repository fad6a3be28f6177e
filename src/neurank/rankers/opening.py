"""What every entry point does first: check its arguments, look at model and data, get ready."""

import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import get_args

import torch
from torch import nn

from neurank.errors import MethodError
from neurank.files import Json
from neurank.modes import evaluating, threads_as_torch
from neurank.observe.door import device_of
from neurank.observe.examples import Batch
from neurank.observe.observer import MEMORY, Observer, Precision, observe
from neurank.observe.removal import Removal, check_removal
from neurank.observe.value import Accuracy, Value


@contextmanager
def watching(
    model: nn.Module,
    data: Iterable[Batch],
    *,
    value: Value | None,
    removal: Removal,
    seed: int,
    device: str | torch.device | None,
    progress: bool,
    memory: int = MEMORY,
    precision: Precision = "own",
) -> Iterator[Observer]:
    """Watch a model in evaluation mode for the length of a `with` block.

    The arguments are those of `neurank.rank`; `memory` is its `max_memory`.

    Raises
    ------
    MethodError
        If `seed`, `value`, `memory` or `precision` is none.
    DataError, ModelError
        If data or model cannot be used.
    """
    check_seed(seed)
    if isinstance(value, type) or not (value is None or callable(value)):
        raise MethodError(
            f"value={value!r} is not a value: pass an instance, such as Recall(3), or a function "
            "(outputs, targets) -> (examples,)"
        )
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
        raise MethodError(f"max_memory={memory!r}: a positive whole number of bytes is needed")
    if precision not in get_args(Precision):
        raise MethodError(
            f"precision={precision!r}: give one of {', '.join(map(repr, get_args(Precision)))}"
        )
    with evaluating(model), threads_as_torch():
        yield observe(
            model,
            data,
            value=Accuracy() if value is None else value,
            removal=check_removal(removal),
            seed=seed,
            device=torch.device(device) if device is not None else device_of(model),
            progress=progress,
            memory=memory,
            precision=precision,
        )


def check_seed(seed: int) -> None:
    """Refuse what is not a whole number from 0 on."""
    if not isinstance(seed, int) or seed < 0:
        raise MethodError(f"seed={seed!r}: a whole number from 0 on is needed")


def versions() -> dict[str, Json]:
    """Return the versions that results may depend on."""
    return {
        "neurank": version("neurank"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
