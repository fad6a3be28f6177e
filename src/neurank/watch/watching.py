"""Watching the units of a network while it is trained, or looking at them once."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from neurank.condense.carry import trains
from neurank.errors import MethodError, ModelError, UnitError
from neurank.modes import evaluating, threads_as_torch
from neurank.observe.door import device_of
from neurank.observe.examples import Batch
from neurank.observe.execution import runner
from neurank.observe.observer import MEMORY, TracedObserver, choose_layers, observe
from neurank.observe.value import Accuracy
from neurank.observe.vital_signs import Held, penalties, sighting
from neurank.progress import reporting
from neurank.units.space import UnitSpace
from neurank.watch.attack import was_skipped
from neurank.watch.states import Thresholds, Vitals, vitals_of

EVERY = 2000
"""Steps between looks. A look at 1,000 examples takes about as long as training on 1,100; between
two looks a training in batches of 32 goes through 64,000."""

Writer = Callable[[Vitals], None]


def vitals(
    model: nn.Module,
    data: Iterable[Batch],
    *,
    layers: Sequence[str] | None = None,
    exact: bool = True,
    thresholds: Thresholds | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Vitals:
    """Look at the units of a network: which are dead, which are frozen, and why.

    A **frozen** unit has no gradient on any example (definition 3.2.1 of the dead-units thesis,
    Evci, 2018); a **dead** one can be replaced by its mean without changing any example's loss
    (definition 3.2.2). Reasons: it gives one value; all its values become one behind its
    activation; its outgoing weights are zero; or, with `exact`, its effect is small.

    Parameters
    ----------
    model : the network; it comes back as it was.
    data : batches ``(inputs, targets)`` that are the same at every pass.
    layers : dotted names; None looks at every hidden layer that has units.
    exact : whether to take the exact mean replacement penalty of every unit.
    thresholds : how little counts as nothing.
    device : where to compute; None is where the model is.
    progress : show a progress bar over the layers, whose exact penalties take most of the time.

    Raises
    ------
    UnitError
        If a layer is unknown or has no units.
    DataError, ModelError
        If data or model cannot be used; if a loss is NaN or infinite.

    Example
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(seed=0)
    >>> vitals = nr.vitals(model, nr.data.load("digits").validation.first(50))
    >>> list(vitals.layers)
    ['conv1', 'conv2', 'fc1', 'fc2']
    """
    view = _View.of(model, data, layers, device)
    return view.look(0, thresholds or Thresholds(), exact=exact, progress=progress)


@dataclass(frozen=True)
class _View:
    """A traced network and the data that it is looked at with.

    Attributes
    ----------
    model : the network itself.
    observer : its trace; the weights in it are read anew at every look.
    names : the layers that are looked at.
    """

    model: nn.Module
    observer: TracedObserver
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        data: Iterable[Batch],
        layers: Sequence[str] | None,
        device: str | torch.device | None,
    ) -> "_View":
        own = uncompiled(model)
        with evaluating(own), threads_as_torch():
            observer = observe(
                own,
                data,
                value=Accuracy(),
                removal="zero",
                seed=0,
                device=device_of(own) if device is None else torch.device(device),
                progress=False,
                memory=MEMORY,
            )
            assert isinstance(observer, TracedObserver)  # or it would have been refused
            held = Held.of(observer.examples)  # a loader draws a random seed at every pass
        return cls(own, replace(observer, examples=held), _hidden(observer, layers))

    def look(
        self, step: int, thresholds: Thresholds, *, exact: bool, progress: bool = False
    ) -> Vitals:
        """Look at the weights as they are now."""
        device = self.observer.examples.device
        now = runner(self.observer.space.graph, self.model, device)
        observer = replace(self.observer, runner=now, memo={})
        with threads_as_torch(), torch.autocast(device.type, enabled=False):
            seen = sighting(observer, self.names)
            found = {}
            chosen = self.names if exact else ()
            with reporting("replacing units", len(chosen), show=progress) as advance:
                for name in chosen:
                    found[name] = penalties(observer, name)
                    advance(name)
        return vitals_of(
            seen,
            found,
            step=step,
            thresholds=thresholds,
            refused={**observer.space.refused, **_idle(observer.space, self.model)},
        )


def _idle(space: UnitSpace, model: nn.Module) -> dict[str, str]:
    """Name the layers that the outputs do not depend on, with the reason."""
    named = dict(model.named_parameters(remove_duplicate=False))
    used = {
        id(named[name])
        for operation in space.graph.needed_for((space.graph.output,))
        for name in operation.weights
        if name in named
    }
    return {
        name: "it never runs, or nothing comes of what it gives"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | _ConvNd)
        and not any(id(it) in used for it in module.parameters())
    }


def _hidden(observer: TracedObserver, layers: Sequence[str] | None) -> tuple[str, ...]:
    names = choose_layers(observer, layers)
    outputs = [name for name in names if observer.space[name].is_output]
    if outputs:
        raise UnitError(
            f"the units of layer {outputs[0]!r} are the network's outputs, which nothing reads, so "
            "that none of them can be dead: leave it out"
        )
    return names


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` was given; the parameters are the same.

    Example:
    -------
    >>> model = nn.Linear(2, 2)
    >>> uncompiled(torch.compile(model, backend="eager")) is model, uncompiled(model) is model
    (True, True)
    """
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


@dataclass(frozen=True)
class Event:
    """Something that happened while a network was watched.

    Attributes
    ----------
    step : after how many optimizer steps.
    what : in a few words.
    """

    step: int
    what: str


class Watching:
    """What `watch` returns: a context manager beside a training loop.

    Attributes
    ----------
    history : what each look showed, in order.
    events : what else happened.
    step : optimizer steps so far.
    seconds : how long all looks took together.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        data: Iterable[Batch],
        *,
        every: int,
        layers: Sequence[str] | None,
        exact_every: int | None,
        thresholds: Thresholds,
        writers: Sequence[Writer],
        first_step: int,
        device: str | torch.device | None,
    ) -> None:
        _check_interval("every", every)
        if exact_every is not None:
            _check_interval("exact_every", exact_every)
        if not isinstance(optimizer, Optimizer):
            raise MethodError(
                f"optimizer is a {type(optimizer).__name__}, where a torch.optim.Optimizer is "
                "needed: its steps are what is counted"
            )
        _check_trains(optimizer, model)
        self.every, self.exact_every = every, exact_every
        self.thresholds = thresholds
        self.step, self.seconds = first_step, 0.0
        self.history: list[Vitals] = []
        self.events: list[Event] = []
        self._data, self._layers, self._device = data, layers, device
        self._view = _View.of(model, data, layers, device)
        self._optimizer = optimizer
        self._writers = tuple(writers)
        self._hook: Any = None
        self._looked_at: int | None = None

    def __enter__(self) -> "Watching":
        """Take a first look, and count the optimizer's steps from now on."""
        self.look()  # before there is a hook, which nobody would take away if this failed
        self._hook = self._optimizer.register_step_post_hook(self._after_step)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave no hook behind; take a last look unless the training failed."""
        self._hook.remove()
        self._hook = None
        if kind is None and self._looked_at != self.step:
            self.look()

    def _after_step(self, optimizer: Optimizer, arguments: Any, keywords: Any) -> None:
        del arguments, keywords
        if was_skipped(optimizer):
            return
        self.step += 1
        if self.step % self.every == 0:
            self.look()

    def look(self) -> Vitals | None:
        """Look at the units now; None, and an event, where losses or weights are not finite."""
        started = time.perf_counter()
        number = len(self.history)
        exact = self.exact_every is not None and number % self.exact_every == 0
        self._looked_at = self.step
        try:
            found = self._view.look(self.step, self.thresholds, exact=exact)
        except ModelError as reason:
            self.events.append(Event(self.step, f"not looked at: {reason}"))
            return None
        finally:
            self.seconds += time.perf_counter() - started
        self.history.append(found)
        for write in self._writers:
            write(found)
        return found

    def follow(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Go on with another network, such as the one that condensing made of it.

        Parameters
        ----------
        model : the network that is trained from now on.
        optimizer : its optimizer, if that is another one, too.

        Raises
        ------
        MethodError
            If the optimizer does not train it.
        UnitError, DataError, ModelError
            If the network cannot be watched; then the one before still is.
        """
        _check_trains(optimizer or self._optimizer, model)
        self._view = _View.of(model, self._data, self._layers, self._device)
        if optimizer is not None and optimizer is not self._optimizer:
            if self._hook is not None:
                self._hook.remove()
                self._hook = optimizer.register_step_post_hook(self._after_step)
            self._optimizer = optimizer
        self.events.append(Event(self.step, f"another network: {_widths(self._view)}"))

    def note(self, what: str) -> None:
        """Add an event, such as a unit that was revived."""
        self.events.append(Event(self.step, what))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per look and unit."""
        frames = [it.to_frame() for it in self.history]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _widths(view: _View) -> str:
    return ", ".join(f"{name} {view.observer.width(name)}" for name in view.names)


def _check_interval(name: str, given: object) -> None:
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise MethodError(f"{name}={given!r}: a whole number of 1 or more is needed")


def _check_trains(optimizer: Optimizer, model: nn.Module) -> None:
    if not trains(optimizer, model):
        raise MethodError(
            "the optimizer holds no parameter of the model: its steps say nothing about it. Pass "
            "the optimizer that trains it"
        )


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    data: Iterable[Batch],
    *,
    every: int = EVERY,
    layers: Sequence[str] | None = None,
    exact_every: int | None = None,
    thresholds: Thresholds | None = None,
    writers: Sequence[Writer] = (),
    first_step: int = 0,
    device: str | torch.device | None = None,
) -> Watching:
    """Watch the units of a network while it is trained.

    At the beginning, after every `every` steps of the optimizer and at the end, all units are
    looked at, in evaluation mode on the data given: mean replacement saliency, output gradient,
    norms of incoming and outgoing weights, ranges and histograms before and behind the
    nonlinearity; see `vitals` for what makes a unit frozen or dead. The forward pass is traced
    once and run beside the model, so that no hook is put on it, and its mode, buffers and random
    state are not touched. The optimizer gets one hook, which counts its steps.

    Works with closures, gradient accumulation and gradient scalers, since steps are what the
    optimizer makes; with automatic mixed precision, where looks are taken in the weights' own
    precision; and with ``torch.compile``, where the module inside is looked at.

    Parameters
    ----------
    model : the network that is trained.
    optimizer : what trains it.
    data : batches ``(inputs, targets)``, the same at every pass, about 1,000 examples; they are
        kept in memory.
    every : steps between looks. With 1,000 examples, batches of 32 and the default, looks take
        about 2 % of the time of training, and setting up as long as two or three of them; twice the
        batch, half the share.
    layers : dotted names; None watches every hidden layer that has units.
    exact_every : take exact mean replacement penalties in every so many looks; None is never.
    thresholds : how little counts as nothing.
    writers : called with the `Vitals` of every look, such as `ParquetLog` and `TensorBoardLog`.
    first_step : how many steps were made before, when a training goes on.
    device : where to compute; None is where the model is.

    Raises
    ------
    MethodError
        If an interval is no positive whole number, or the optimizer does not train the model.
    UnitError, DataError, ModelError
        If a layer, the data or the model cannot be used.

    Example
    -------
    >>> import neurank as nr
    >>> splits = nr.data.load("digits", batch_size=50)
    >>> model = nr.zoo.digits_net(seed=0)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with nr.watch(model, optimizer, splits.validation, every=10) as watching:
    ...     for inputs, targets in splits.train:
    ...         optimizer.zero_grad()
    ...         torch.nn.functional.cross_entropy(model(inputs), targets).backward()
    ...         _ = optimizer.step()
    >>> [vitals.step for vitals in watching.history]
    [0, 10, 20, 24]
    """
    return Watching(
        model,
        optimizer,
        data,
        every=every,
        layers=layers,
        exact_every=exact_every,
        thresholds=thresholds or Thresholds(),
        writers=writers,
        first_step=first_step,
        device=device,
    )
