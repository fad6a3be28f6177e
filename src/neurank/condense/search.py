"""The search for the smallest network within an error: rank, remove, condense, retrain, again."""

import copy
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from neurank.condense.condensed import Condensed, condense
from neurank.condense.load import load
from neurank.condense.plan import Across, Plan, plan
from neurank.condense.retrain import TrainingSplits, retrain
from neurank.condense.surgery import named_tensors
from neurank.errors import FileError, MethodError, PlanError
from neurank.files import Json, as_json, read_tensors, write_tensors
from neurank.modes import evaluating
from neurank.observe.examples import Batch
from neurank.observe.observer import model_digest
from neurank.progress import reporting
from neurank.rankers.method import Method
from neurank.rankers.permutation_shapley import PermutationShapley
from neurank.rankers.rank import rank
from neurank.ranking import Ranking
from neurank.text import aligned, percent
from neurank.training import error_rate
from neurank.units.space import UnitSpace, unit_space
from neurank.units.trace import trace

Retraining = Callable[[nn.Module, int], object]
"""Trains a network in place, given a seed."""

_KIND = "search for the smallest network"
_ATTEMPTS = "attempts.safetensors"


@dataclass(frozen=True)
class Attempt:
    """One network that was tried.

    Attributes
    ----------
    number : from 1 on.
    step : the share of the parameters, or multiply-adds, that was to go.
    across : how scores of different layers were compared.
    widths : units left, by layer of the original network.
    parameters, multiply_adds : what the network costs.
    removed_error : its validation error before retraining; None where nothing was built, since no
        smaller network could be planned, or the same one was tried already.
    error : the same after retraining.
    accepted : whether that is within the bound.
    seconds : how long the attempt took.
    """

    number: int
    step: float
    across: Across
    widths: Mapping[str, int]
    parameters: int
    multiply_adds: int
    removed_error: float | None
    error: float | None
    accepted: bool
    seconds: float


@dataclass(frozen=True, eq=False)
class Smallest:
    """The smallest network that was found, and how.

    Attributes
    ----------
    condensed : the network; its plan counts the units of the ORIGINAL network.
    error : its validation error.
    initial_error : that of the original.
    bound : the validation error that was allowed.
    attempts : every network that was tried, in order.
    """

    condensed: Condensed
    error: float
    initial_error: float
    bound: float
    attempts: tuple[Attempt, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per attempt, the width of each layer in a column of its own."""
        rows = []
        for attempt in self.attempts:
            row = asdict(attempt)
            widths = row.pop("widths")
            rows.append({**row, **{f"units of {layer}": it for layer, it in widths.items()}})
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        """Return a line per attempt, and what came of it."""
        head = ("attempt", "widths", "parameters", "multiply-adds", "removed", "retrained", "")
        rows = [
            (
                str(it.number),
                "-".join(map(str, it.widths.values())),
                f"{it.parameters:,}",
                f"{it.multiply_adds:,}",
                _percent(it.removed_error),
                _percent(it.error),
                "accepted" if it.accepted else "",
            )
            for it in self.attempts
        ]
        before, after = self.condensed.report.parameters
        last = (
            f"{before:,} parameters at {_percent(self.initial_error)} validation error, "
            f"{after:,} at {_percent(self.error)} ({_percent(self.bound)} allowed)"
        )
        return "\n".join([*aligned([head, *rows]), last])


def smallest(
    model: nn.Module,
    splits: TrainingSplits,
    *,
    max_error: float | None = None,
    max_drop: float | None = None,
    method: Method | None = None,
    data: Iterable[Batch] | None = None,
    cost: Literal["parameters", "multiply_adds"] = "parameters",
    step: float = 0.25,
    least_step: float = 0.05,
    across: Sequence[Across] = ("share", "share per cost"),
    retraining: Retraining | int = 10,
    max_attempts: int = 40,
    min_width: int | Mapping[str, int] = 1,
    multiple_of: int | Mapping[str, int] = 1,
    ignored: Sequence[str] = (),
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Smallest:
    """Search for the smallest network whose validation error stays within a bound.

    Again and again the units of the smallest network so far are ranked, the least important ones
    go until a share `step` of its cost is saved, and what is left is retrained. If its validation
    error is within the bound it is the smallest so far; if not, the next way of comparing layers
    in `across` is tried, and when all have been, `step` is halved. The search ends where it would
    fall below `least_step`. The test split is never looked at. The validation error of what is
    returned was selected by, many times over: measure the final error on other data.

    Parameters
    ----------
    model
        The trained network. It comes back exactly as it was.
    splits
        Its ``train`` and ``validation`` are used.
    max_error, max_drop
        The largest validation error that is allowed, as a share: itself, or above that of `model`.
        Give one.
    method
        What units are ranked by; `PermutationShapley` by default.
    data
        Batches that units are ranked on; by default the validation split.
    cost
        What is to be made small.
    step, least_step
        Which share of the cost goes at once, at first and at last.
    across
        The ways in which scores of different layers are compared, see `plan`, in turn.
    retraining
        For how many epochs `neurank.retrain` trains at most, 0 for none; or a function that
        trains a network in place, given a seed.
    max_attempts
        The search ends after so many networks.
    min_width, multiple_of, ignored
        As in `plan`, for the layers of `model`.
    seed
        Rankings follow from it, and retraining from it and the number of the attempt.
    folder
        Where to keep every network that was accepted, ``step-01.safetensors`` and so on, which
        `neurank.load` opens, and what was tried. A search that was interrupted goes on from
        there, to the same result; one with other settings is refused.
    progress
        Show a bar on a terminal.

    Returns
    -------
    Smallest
        ``.condensed`` is relative to `model`: its plan, its report, its cuts.

    Raises
    ------
    MethodError
        Settings are out of their range, or not one of `max_error` and `max_drop` is given.
    PlanError
        `model` itself is not within the bound, and nothing that was tried is.
    FileError
        The folder holds another search, or cannot be written.

    Examples
    --------
    >>> import neurank as nr
    >>> digits, model = nr.data.load("digits", batch_size=50), nr.zoo.digits_net(seed=0)
    >>> _ = nr.fit(model, digits.train, digits.validation, epochs=10, lr=0.05)
    >>> found = smallest(
    ...     model, digits, max_drop=0.02, method=nr.WeightNorm(1), retraining=2, max_attempts=3
    ... )
    >>> found.error <= found.bound, found.condensed.report.parameters[1] < 4026
    (True, True)
    """
    settings = _Settings(
        cost, step, least_step, tuple(across), max_attempts, min_width, multiple_of, tuple(ignored)
    )
    initial = error_rate(model, splits.validation)
    bound = _bound(initial, max_error, max_drop)
    train = _retraining(retraining, splits)
    search = _Search(
        model,
        splits.validation if data is None else data,
        splits,
        PermutationShapley() if method is None else method,
        train,
        bound,
        settings,
        seed,
    )
    kept = _Folder(folder, search.fingerprint(initial, retraining))
    state = kept.resumed(model) or _State(_whole(search), initial, (), None)
    with reporting("searching", max_attempts, show=progress) as advance:
        for _ in state.attempts:
            advance("")
        while (turn := settings.turn(state.attempts)) is not None:
            state = search.attempted(state, *turn)
            kept.write(state)
            advance(f"{state.condensed.report.parameters[1]:,} parameters {state.error:.2%}")
    if state.error > bound:
        raise PlanError(
            f"the network's validation error is {initial:.4f} and {bound:.4f} is allowed, which "
            "nothing that was tried reaches: allow more, retrain for longer, or take smaller steps"
        )
    return Smallest(state.condensed, state.error, initial, bound, state.attempts)


@dataclass(frozen=True)
class _Settings:
    """How to go on; see `smallest`."""

    cost: str
    step: float
    least_step: float
    across: tuple[Across, ...]
    max_attempts: int
    min_width: int | Mapping[str, int]
    multiple_of: int | Mapping[str, int]
    ignored: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.cost not in ("parameters", "multiply_adds"):
            raise MethodError(
                f"cost={self.cost!r} is unknown: it is 'parameters' or 'multiply_adds'"
            )
        if not 0 < self.least_step <= self.step < 1:
            raise MethodError(
                f"step={self.step} cannot fall to least_step={self.least_step}: give "
                "0 < least_step <= step < 1"
            )
        if not self.across or self.max_attempts < 1:
            raise MethodError(
                f"across={self.across} and max_attempts={self.max_attempts} leave nothing to try: "
                "give a way and a number of at least one each"
            )

    def turn(self, attempts: Sequence[Attempt]) -> tuple[float, Across] | None:
        """Return how large a step is to be tried next, and how; None when all has been tried.

        It follows from what was tried alone, so that a search that goes on does the same.
        """
        step, failures = self.step, 0
        for attempt in attempts:
            failures = 0 if attempt.accepted else failures + 1
            if failures == len(self.across):
                step, failures = step / 2, 0
        if step < self.least_step or len(attempts) >= self.max_attempts:
            return None
        return step, self.across[failures]


@dataclass(frozen=True, eq=False)
class _State:
    """The smallest network so far, its validation error, all attempts, and what is known of it."""

    condensed: Condensed
    error: float
    attempts: tuple[Attempt, ...]
    known: "_Known | None"


@dataclass(frozen=True, eq=False)
class _Known:
    """The ranking of a network, and its layers."""

    ranking: Ranking
    space: UnitSpace


@dataclass(frozen=True, eq=False)
class _Search:
    """What does not change in the course of a search."""

    model: nn.Module
    data: Iterable[Batch]
    splits: TrainingSplits
    method: Method
    train: Retraining
    bound: float
    settings: _Settings
    seed: int

    def fingerprint(self, initial: float, retraining: Retraining | int) -> dict[str, Json]:
        """Return what a search depends on, as far as it can be told."""
        name = getattr(retraining, "__qualname__", type(retraining).__qualname__)
        return {
            "model": model_digest(self.model),
            "method": repr(self.method),
            "retraining": retraining if isinstance(retraining, int) else name,
            "settings": as_json({**asdict(self.settings), "max_attempts": None}),
            "bound": self.bound,
            "initial_error": initial,
            "seed": self.seed,
        }

    def attempted(self, state: _State, step: float, across: Across) -> _State:
        """Try to do with less."""
        started = time.perf_counter()
        small = state.condensed.model
        known = state.known
        if known is None:
            ranking = rank(small, self.data, self.method, seed=self.seed, progress=False)
            known = _Known(ranking, _space(small, self.data))
        whole = self._planned(state, known, step, across)
        result = None if whole is None else self._retrained(state, whole)
        cost = state.condensed.report if result is None else result[0].report
        widths = (state.condensed.plan if whole is None else whole).widths_after
        error = None if result is None else result[2]
        attempt = Attempt(
            number=len(state.attempts) + 1,
            step=step,
            across=across,
            widths=dict(widths),
            parameters=cost.parameters[1],
            multiply_adds=cost.multiply_adds[1],
            removed_error=None if result is None else result[1],
            error=error,
            accepted=error is not None and error <= self.bound,
            seconds=time.perf_counter() - started,
        )
        attempts = (*state.attempts, attempt)
        if attempt.accepted and result is not None and error is not None:
            return _State(result[0], error, attempts, None)
        return replace(state, attempts=attempts, known=known)

    @cached_property
    def space(self) -> UnitSpace:
        """The layers of the original network."""
        return _space(self.model, self.data)

    def _planned(self, state: _State, known: _Known, step: float, across: Across) -> Plan | None:
        """Plan for the original network; None if no plan is smaller, or it was tried already."""
        small, settings = state.condensed.model, self.settings
        report = state.condensed.report
        cost = report.parameters if settings.cost == "parameters" else report.multiply_adds
        bound = int(cost[1] * (1 - step))
        ranking = known.ranking
        try:
            later = plan(
                ranking,
                max_params=bound if settings.cost == "parameters" else None,
                max_macs=bound if settings.cost == "multiply_adds" else None,
                model=small,
                data=self.data,
                across=across,
                min_width=_for(ranking, settings.min_width),
                multiple_of=_for(ranking, settings.multiple_of),
                ignored=[layer for layer in settings.ignored if layer in ranking],
                progress=False,
            )
        except PlanError:
            return None
        whole = composed(state.condensed, later, known.space, self.space, self.model)
        tried = [dict(it.widths) for it in _since_accepted(state.attempts)]
        return None if dict(whole.widths_after) in tried else whole

    def _retrained(self, state: _State, whole: Plan) -> tuple[Condensed, float, float]:
        """Condense and retrain; return the network, its errors before and after."""
        carrier = widened(self.model, state.condensed)
        made = condense(carrier, whole, _first(self.data), progress=False)
        made = replace(made, origin=replace(made.origin, parent=model_digest(self.model)))
        removed = error_rate(made.model, self.splits.validation)
        self.train(made.model, self.seed + len(state.attempts) + 1)
        return made, removed, error_rate(made.model, self.splits.validation)


def composed(
    earlier: Condensed, later: Plan, now: UnitSpace, before: UnitSpace, model: nn.Module
) -> Plan:
    """Return the plan for the original network that does what two plans do in turn.

    Units are followed by the rows of the weights that compute them: layers that were tied to each
    other may be none once units are gone, and have other names.

    Parameters
    ----------
    earlier : what the first plan left.
    later : a plan for ``earlier.model``.
    now : the layers of ``earlier.model``.
    before : the layers of the original network.
    model : the original network.
    """
    owners = {
        (_first_name(rows.tensor, model), rows.axis, row): (name, unit)
        for name in before.layers
        for rows in before.rows(name)
        for row, unit in enumerate(rows.units)
        if unit >= 0
    }
    cuts = {(_first_name(cut.tensor, model), cut.axis): cut.keep for cut in earlier.cuts}
    gone: dict[str, set[int]] = {}
    for layer in later.keep:
        lost = set(later.removed(layer))
        for rows in now.rows(layer):
            tensor = _first_name(rows.tensor, earlier.model)
            kept = cuts.get((tensor, rows.axis), range(len(rows.units)))
            for row, unit in zip(kept, rows.units, strict=True):
                if unit in lost:
                    name, original = owners[tensor, rows.axis, row]
                    gone.setdefault(name, set()).add(original)
    whole = earlier.plan
    left = {
        layer: tuple(place for place, unit in enumerate(kept) if unit not in gone.get(layer, ()))
        for layer, kept in whole.keep.items()
    }
    return whole.then(Plan(left, whole.widths_after, later.source))


def widened(model: nn.Module, condensed: Condensed) -> nn.Module:
    """Return a copy of the original network with the weights that the condensed one has now.

    Entries that were cut away keep the original's numbers; with the plan's units off the copy is
    the condensed network.
    """
    whole = copy.deepcopy(model)
    tensors = named_tensors(whole)
    kept: dict[int, dict[int, Tensor]] = {}
    for cut in condensed.cuts:
        kept.setdefault(id(tensors[cut.tensor]), {})[cut.axis] = torch.tensor(cut.keep)
    with torch.no_grad():
        for name, small in named_tensors(condensed.model).items():
            if name in tensors:  # others are made by condensing
                _fill(tensors[name], small, kept.get(id(tensors[name]), {}))
    return whole


def _fill(whole: Tensor, small: Tensor, kept: Mapping[int, Tensor]) -> None:
    if not kept:
        whole.copy_(small)
        return
    places = []
    for axis, size in enumerate(whole.shape):
        along = kept.get(axis, torch.arange(size)).to(whole.device)
        places.append(along.reshape([-1 if it == axis else 1 for it in range(whole.ndim)]))
    whole[tuple(places)] = small.to(whole.dtype)


class _Folder:
    """Where a search is kept; without a folder, nowhere."""

    def __init__(
        self, path: str | os.PathLike[str] | None, fingerprint: Mapping[str, Json]
    ) -> None:
        self._path = None if path is None else Path(path)
        self._fingerprint = fingerprint
        if self._path is not None:
            self._path.mkdir(parents=True, exist_ok=True)

    def resumed(self, model: nn.Module) -> _State | None:
        """Return where the search was, None if it has not begun."""
        if self._path is None or not (self._path / _ATTEMPTS).exists():
            return None
        _, metadata = read_tensors(self._path / _ATTEMPTS, kind=_KIND)
        found: Any = metadata
        if found.get("search") != as_json(self._fingerprint):
            raise FileError(
                f"{self._path} holds another search ({_differing(found, self._fingerprint)}): give "
                "the settings, the model and the data it was begun with, or another folder"
            )
        attempts = tuple(Attempt(**it) for it in found["attempts"])
        condensed = load(self._network(found["accepted"]), lambda: copy.deepcopy(model))
        return _State(condensed, found["error"], attempts, None)

    def write(self, state: _State) -> None:
        """Keep the network if it is new, and then what was tried."""
        if self._path is None:
            return
        accepted = sum(it.accepted for it in state.attempts)
        network = self._network(accepted)
        if not accepted or state.attempts[-1].accepted:
            state.condensed.save(network)
        metadata: dict[str, Json] = {
            "search": as_json(self._fingerprint),
            "accepted": accepted,
            "error": state.error,
            "attempts": [as_json(asdict(it)) for it in state.attempts],
        }
        write_tensors(self._path / _ATTEMPTS, {}, metadata, kind=_KIND)

    def _network(self, accepted: int) -> Path:
        assert self._path is not None
        return self._path / f"step-{accepted:02d}.safetensors"


def _differing(found: Mapping[str, Any], fingerprint: Mapping[str, Json]) -> str:
    there = found.get("search") or {}
    return ", ".join(name for name, it in fingerprint.items() if there.get(name) != as_json(it))


def _whole(search: _Search) -> Condensed:
    """Return the original network as one that nothing is cut from."""
    widths = {layer: search.space[layer].width for layer in search.space.hidden}
    nothing = Plan({layer: tuple(range(width)) for layer, width in widths.items()}, widths)
    return condense(search.model, nothing, _first(search.data), progress=False)


def _space(model: nn.Module, data: Iterable[Batch]) -> UnitSpace:
    ((inputs, _),) = _first(data)
    where = next((it.device for it in model.parameters()), inputs.device)
    with evaluating(model):
        return unit_space(trace(model, inputs.to(where)), model)


def _first(data: Iterable[Batch]) -> list[Batch]:
    """Return the first batch: enough to see shapes, and to verify on."""
    return [next(iter(data))]


def _first_name(tensor: str, model: nn.Module) -> str:
    tensors = named_tensors(model)
    return next(name for name, it in tensors.items() if it is tensors[tensor])


def _since_accepted(attempts: Sequence[Attempt]) -> list[Attempt]:
    last = max((place for place, it in enumerate(attempts) if it.accepted), default=-1)
    return list(attempts[last + 1 :])


def _for(ranking: Ranking, numbers: int | Mapping[str, int]) -> int | Mapping[str, int]:
    """Keep the numbers of those layers that are there under the same name."""
    if not isinstance(numbers, Mapping):
        return numbers
    return {layer: number for layer, number in numbers.items() if layer in ranking}


def _bound(initial: float, max_error: float | None, max_drop: float | None) -> float:
    given = [it for it in (max_error, max_drop) if it is not None]
    if len(given) != 1 or not 0 <= given[0] <= 1:
        raise MethodError(
            f"max_error={max_error} and max_drop={max_drop}: give one of them, from 0 to 1"
        )
    # A drop of 0.01 from 0.02 to 0.03 is no larger than allowed, whatever the last bits say.
    return given[0] if max_error is not None else round(initial + given[0], 12)


def _retraining(retraining: Retraining | int, splits: TrainingSplits) -> Retraining:
    if not isinstance(retraining, int):
        return retraining
    if retraining < 0:
        raise MethodError(f"retraining={retraining}: give a number of epochs, or a function")
    epochs = retraining

    def train(model: nn.Module, seed: int) -> None:
        if epochs:
            retrain(model, splits, epochs=epochs, seed=seed, progress=False)

    return train


def _percent(error: float | None) -> str:
    return "" if error is None else percent(error)
