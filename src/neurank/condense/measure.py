"""What a network takes to run: its size, its memory and its time, measured.

Counts are exact and the same everywhere; memory and time are those of this machine.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from neurank.condense.costs import multiply_adds, parameters
from neurank.errors import DataError
from neurank.files import Json
from neurank.modes import evaluating
from neurank.text import aligned
from neurank.training import error_rate

BATCH_SIZES = (1, 64)
REPEATS = 15
WARM_UP = 3
"""Passes that are run before any is timed."""


@dataclass(frozen=True)
class Times:
    """How long a forward pass takes, in seconds.

    Attributes
    ----------
    batch_size : examples in the pass.
    median, lower, upper : the median and the quartiles over the repeats.
    repeats : how many passes were timed.
    """

    batch_size: int
    median: float
    lower: float
    upper: float
    repeats: int

    @classmethod
    def of(cls, batch_size: int, seconds: Sequence[float]) -> "Times":
        """Sum up timed passes.

        Example
        -------
        >>> Times.of(1, [3.0, 1.0, 2.0, 5.0, 4.0])
        Times(batch_size=1, median=3.0, lower=2.0, upper=4.0, repeats=5)
        """
        if len(seconds) == 1:
            return cls(batch_size, seconds[0], seconds[0], seconds[0], 1)
        lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(batch_size, median, lower, upper, len(seconds))

    def __str__(self) -> str:
        """Say it in milliseconds, with the quartiles."""
        return f"{1e3 * self.median:.3g} ms ({1e3 * self.lower:.3g} to {1e3 * self.upper:.3g})"


@dataclass(frozen=True)
class Measured:
    """What a network takes to run.

    Attributes
    ----------
    parameters : each counted once.
    multiply_adds : of one example, in convolutions and linear layers; 1 multiply-add = 2 FLOPs.
    file_size : bytes of its state as a safetensors file.
    peak_memory : by batch size, the most bytes that a forward pass holds beyond weights and
        inputs at any time.
    times : by batch size, how long a forward pass takes.
    device : where memory and time were measured.
    threads : that torch used on the processor.
    """

    parameters: int
    multiply_adds: int
    file_size: int
    peak_memory: Mapping[int, int]
    times: Mapping[int, Times]
    device: str
    threads: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "peak_memory", MappingProxyType(dict(self.peak_memory)))
        object.__setattr__(self, "times", MappingProxyType(dict(self.times)))

    def to_json(self) -> dict[str, Json]:
        """Return it in dicts, lists and numbers."""
        return {
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "file_size": self.file_size,
            "peak_memory": {str(size): number for size, number in self.peak_memory.items()},
            "times": {
                str(size): {
                    "median": it.median,
                    "lower": it.lower,
                    "upper": it.upper,
                    "repeats": it.repeats,
                }
                for size, it in self.times.items()
            },
            "device": self.device,
            "threads": self.threads,
        }

    def __str__(self) -> str:
        """Return one line for each measure."""
        rows = [
            ("parameters", f"{self.parameters:,}"),
            ("multiply-adds", f"{self.multiply_adds:,}"),
            ("file", f"{self.file_size:,} bytes"),
        ]
        for size, number in self.peak_memory.items():
            rows.append((f"memory, {_examples(size)}", f"{number:,} bytes"))
        for size, it in self.times.items():
            rows.append((f"time, {_examples(size)}", str(it)))
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        rows.append(("on", f"{self.device}, {threads}"))
        return "\n".join(aligned(rows))


def measured(
    model: nn.Module,
    inputs: Tensor,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    repeats: int = REPEATS,
) -> Measured:
    """Measure what a network takes to run, in evaluation mode and without gradients.

    Parameters
    ----------
    model
        Any module that takes one tensor; it comes back as it was, and is measured where it is.
    inputs
        Examples, which are repeated or cut to the batch sizes.
    batch_sizes
        For which memory and time are measured.
    repeats
        How many passes are timed for each batch size, after a few that are not.

    Returns
    -------
    Measured
        On a processor, memory is the highest sum of what torch's profiler sees allocated and
        freed during a pass; on a CUDA device it is what torch's allocator says. Both include the
        network's outputs and neither includes what libraries allocate by themselves.

    Raises
    ------
    DataError
        There is no example, or a batch size or the repeats are below 1.
    ModelError
        The forward pass cannot be traced, which counting multiply-adds needs.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = measured(model, torch.rand(3, 4), batch_sizes=(2,), repeats=3)
    >>> found.parameters, found.multiply_adds, found.peak_memory[2]
    (58, 48, 128)
    """
    _check(inputs, batch_sizes, repeats)
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    with evaluating(model), torch.inference_mode():
        batches = {size: _batch(inputs, size).to(device) for size in batch_sizes}
        memory = {size: peak_memory(model, batch) for size, batch in batches.items()}
    times = {size: interleaved({"": model}, batches[size], repeats)[""] for size in batch_sizes}
    return Measured(
        parameters=parameters(model),
        multiply_adds=multiply_adds(model, inputs),
        file_size=file_size(model),
        peak_memory=memory,
        times=times,
        device=str(device),
        threads=torch.get_num_threads(),
    )


@dataclass(frozen=True)
class Stage:
    """A network on the way: before condensing, after it, after retraining.

    Attributes
    ----------
    name : what to call it.
    accuracy : the share of right answers.
    measured : what it takes to run.
    """

    name: str
    accuracy: float
    measured: Measured


def stages(
    models: Mapping[str, nn.Module],
    data: Iterable[tuple[Tensor, Tensor]],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    repeats: int = REPEATS,
) -> tuple[Stage, ...]:
    """Measure several networks beside each other, such as one before and after condensing.

    Parameters
    ----------
    models
        By name, the one that the others are compared with first.
    data
        Batches ``(inputs, targets)`` for the accuracy; the first is also what is timed.
    batch_sizes, repeats
        As for `measured`; repeats are interleaved.

    Raises
    ------
    DataError, ModelError
        As for `measured` and `neurank.error_rate`.

    Examples
    --------
    >>> import neurank as nr
    >>> digits = nr.data.load("digits").test
    >>> models = {"large": nr.zoo.digits_net(seed=0), "small": nr.zoo.digits_net(2, 3, 4, 5)}
    >>> large, small = stages(models, digits, batch_sizes=(1,), repeats=2)
    >>> large.measured.parameters, small.measured.parameters
    (4026, 214)
    """
    batches = list(data)
    if not batches:
        raise DataError("there is no example to measure with: give at least one")
    inputs = batches[0][0]
    _check(inputs, batch_sizes, repeats)
    times = {size: interleaved(models, _batch(inputs, size), repeats) for size in batch_sizes}
    found = []
    for name, model in models.items():
        costs = measured(model, inputs, batch_sizes=batch_sizes, repeats=1)
        own = {size: times[size][name] for size in batch_sizes}
        right = 1 - error_rate(model, batches)
        found.append(Stage(name, right, replace(costs, times=own)))
    return tuple(found)


def interleaved(
    models: Mapping[str, nn.Module],
    inputs: Tensor,
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Time one batch through several networks, one after the other, again and again.

    What else the machine does meets all of them alike.

    Parameters
    ----------
    models : by label; each comes back as it was.
    inputs : the batch.
    repeats : rounds that are timed.
    clock : what tells the time, in seconds; `time.process_time` leaves out what other processes
        take, but adds the threads of this one up.

    Example
    -------
    >>> found = interleaved({"one": nn.Linear(2, 2), "other": nn.ReLU()}, torch.rand(3, 2), 4)
    >>> {label: (it.batch_size, it.repeats) for label, it in found.items()}
    {'one': (3, 4), 'other': (3, 4)}
    """
    seconds: dict[str, list[float]] = {label: [] for label in models}
    for turn in range(WARM_UP + repeats):
        for label, model in models.items():
            with evaluating(model), torch.inference_mode():
                spent = _seconds(model, inputs, clock)
            if turn >= WARM_UP:
                seconds[label].append(spent)
    return {label: Times.of(len(inputs), spent) for label, spent in seconds.items()}


def file_size(model: nn.Module) -> int:
    """Count the bytes of a network's state as a safetensors file; tied tensors count once.

    Example
    -------
    >>> file_size(nn.Linear(3, 2)) - 4 * 8 < 200  # the numbers and a header
    True
    """
    once: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        once.setdefault(id(tensor), name)
    kept = {name: state[name].detach().cpu().contiguous().clone() for name in once.values()}
    return len(save(kept))


def peak_memory(model: nn.Module, inputs: Tensor) -> int:
    """Measure the most bytes that a forward pass holds beyond weights and inputs.

    Parameters
    ----------
    model : in evaluation mode; on the device of the inputs.
    inputs : a batch.

    Example
    -------
    >>> model = nn.Sequential(nn.Linear(2, 100), nn.Linear(100, 1)).eval()
    >>> with torch.inference_mode():
    ...     peak_memory(model, torch.rand(1, 2))  # 100 numbers of 4 bytes, and one
    404
    """
    if inputs.device.type == "cuda":
        torch.cuda.synchronize(inputs.device)
        before = torch.cuda.memory_allocated(inputs.device)
        torch.cuda.reset_peak_memory_stats(inputs.device)
        model(inputs)
        torch.cuda.synchronize(inputs.device)
        return torch.cuda.max_memory_allocated(inputs.device) - before
    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        model(inputs)
    return _highest(seen)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keep the profiler's library from writing to the process's standard error."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    with Path(os.devnull).open("wb") as nowhere:
        sys.stderr.flush()
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def _highest(seen: profile) -> int:
    """Add up what was allocated and freed, in the order of time; the highest sum."""
    held = highest = 0
    found: Any = seen.profiler  # of a library that says nothing of its types
    events = [
        event
        for event in found.kineto_results.events()
        if event.name() == "[memory]" and event.device_type().name == "CPU"
    ]
    for event in sorted(events, key=lambda it: it.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def _seconds(model: nn.Module, inputs: Tensor, clock: Callable[[], float]) -> float:
    def settle() -> None:
        if inputs.device.type == "cuda":
            torch.cuda.synchronize(inputs.device)

    settle()
    started = clock()
    model(inputs)
    settle()
    return clock() - started


def _batch(inputs: Tensor, size: int) -> Tensor:
    return inputs[torch.arange(size, device=inputs.device) % len(inputs)]


def _check(inputs: Tensor, batch_sizes: Sequence[int], repeats: int) -> None:
    if not len(inputs):
        raise DataError("there is no example to measure with: give at least one")
    for what, number in (*(("a batch size", it) for it in batch_sizes), ("repeats", repeats)):
        if number < 1:
            raise DataError(f"{what} of {number} cannot be measured: give 1 or more")


def _examples(count: int) -> str:
    return f"{count} example{'s' if count > 1 else ''}"
