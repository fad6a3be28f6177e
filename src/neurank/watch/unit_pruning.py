"""Units that are removed while a network is trained: ranked, cut away for good, trained on.

Nothing is masked. After an epoch of the schedule the network is condensed, what the removed units
gave on average goes into the biases of what read them, the optimizers go on with the small network,
and the epochs after that cost what the small network costs.
"""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import nn
from torch.optim import Optimizer

from neurank.condense.carry import Carried, carry_over
from neurank.condense.condensed import Condensed, condense
from neurank.condense.costs import parameters
from neurank.condense.plan import Plan, plan
from neurank.errors import CondenseError, FileError, MethodError, PlanError
from neurank.files import Json, read_tensors, write_tensors
from neurank.observe.examples import Batch
from neurank.observe.removal import check_removal
from neurank.rankers.method import Method
from neurank.rankers.rank import rank
from neurank.ranking import Ranking
from neurank.watch.losses import mean_loss
from neurank.watch.schedule import CountedFrom, Schedule, Share, check_later, widths_between

_KIND = "unit pruning"


@dataclass(frozen=True)
class Pruned:
    """What was removed after one epoch.

    Attributes
    ----------
    plans : which units were kept in each round, of the network as it was then.
    whole : the same and all before, in the original network's units.
    widths : layer name to its units before and after.
    parameters : of the network, before and after.
    losses : mean cross-entropy on the data, in evaluation mode, before and after.
    carried : what each optimizer goes on with, after the last round.
    """

    plans: tuple[Plan, ...]
    whole: Plan
    widths: Mapping[str, tuple[int, int]]
    parameters: tuple[int, int]
    losses: tuple[float, float]
    carried: tuple[Carried, ...]


@dataclass(frozen=True)
class Epoch:
    """What is known of one epoch.

    Attributes
    ----------
    epoch : its number, by the caller's count.
    seconds : processor time of this process since the epoch before was done with, or since the
        schedule was set up; what was removed after an epoch does not count.
    parameters : of the network at its end, after removal.
    pruned : what was removed, None if nothing was due.
    """

    epoch: int
    seconds: float
    parameters: int
    pruned: Pruned | None


class UnitPruning:
    """Remove units on a schedule, beside any training loop.

    Call `after_epoch` when an epoch is done, and go on with the network that it returns.

    Parameters
    ----------
    schedule
        Epoch to the share of units that is gone after it, 0 to below 1; of every layer, or layer
        name to share. Epochs are those that `after_epoch` is given.
    method
        How units are ranked, such as ``neurank.MeanReplacementSaliency()``.
    data
        Batches ``(inputs, targets)`` that are the same at every pass: what is ranked, measured and
        verified on, such as some hundred training examples.
    removal
        What a removed unit leaves behind: ``"mean"`` (bias propagation), ``"zero"`` or
        ``"parameters"``.
    counted_from
        ``"original"``: shares are of the units at the beginning, and the number that is gone is
        rounded down in each layer; ``"current"``: of those that are left.
    layers
        Names of the layers that lose units; by default those that the schedule names, or all
        hidden ones.
    rounds
        In how many rounds the units due after an epoch go; before each, those left are ranked
        anew.
    seed
        Of the ranking's random draws.

    Attributes
    ----------
    epochs : what is known of each epoch so far.

    Raises
    ------
    MethodError
        The schedule, the removal or the number of rounds is none.

    Examples
    --------
    >>> import neurank as nr
    >>> import torch
    >>> digits = nr.data.load("digits", batch_size=50)
    >>> model = nr.zoo.digits_net(seed=0)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> pruning = UnitPruning(
    ...     {1: 0.25, 2: 0.5}, method=nr.MeanReplacementSaliency(), data=digits.validation
    ... )
    >>> for epoch in (1, 2):
    ...     for inputs, targets in digits.train:
    ...         optimizer.zero_grad()
    ...         torch.nn.functional.cross_entropy(model(inputs), targets).backward()
    ...         optimizer.step()
    ...     model = pruning.after_epoch(epoch, model, optimizer)
    >>> pruning.epochs[1].pruned.widths
    {'conv1': (6, 4), 'conv2': (12, 8), 'fc1': (24, 16), 'fc2': (12, 8)}
    >>> pruning.plan.widths_after["fc1"]
    16
    """

    def __init__(
        self,
        schedule: Mapping[int, Share],
        *,
        method: Method,
        data: Iterable[Batch],
        removal: str = "mean",
        counted_from: CountedFrom = "original",
        layers: Sequence[str] | None = None,
        rounds: int = 1,
        seed: int = 0,
    ) -> None:
        self.schedule = Schedule(schedule, counted_from)
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise MethodError(f"rounds={rounds!r}: give a whole number of 1 or more")
        self.method = method
        self.data = data
        self.removal: Any = check_removal(removal)
        self.layers = self.schedule.layers() if layers is None else tuple(layers)
        self.rounds = rounds
        self.seed = seed
        self.epochs: tuple[Epoch, ...] = ()
        self._begun = time.process_time()

    @property
    def plan(self) -> Plan | None:
        """Which of the original network's units are left; None before anything was removed."""
        done = [it.pruned for it in self.epochs if it.pruned is not None]
        return done[-1].whole if done else None

    def after_epoch(
        self, epoch: int, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer]
    ) -> nn.Module:
        """Remove what is due after an epoch and return the network to go on with.

        Parameters
        ----------
        epoch
            Its number; later than that of the call before.
        model
            The network as it is now. It is not changed, but for one thing: see `optimizer`.
        optimizer
            What trains it; several in a sequence. They hold the parameters of the network that is
            returned afterwards (`neurank.condense.carry.carry_over`).

        Raises
        ------
        MethodError
            The epoch is not later than the one before.
        CondenseError, PlanError, UnitError
            The network cannot be cut, or is not what the call before returned; or an optimizer
            cannot go on. If there is one round and one optimizer, nothing has changed then.
        DataError, ModelError
            Data or network cannot be used.
        """
        seconds = time.process_time() - self._begun
        check_later(epoch, self.epochs[-1].epoch if self.epochs else None)
        pruned = None
        if epoch in self.schedule.shares:
            optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
            model, pruned = self._pruned(epoch, model, optimizers)
        self.epochs += (Epoch(epoch, seconds, parameters(model), pruned),)
        self._begun = time.process_time()
        return model

    def to_frame(self) -> pd.DataFrame:
        """Return one row per epoch: seconds, parameters, losses, and a column of each width."""
        rows = []
        for it in self.epochs:
            row: dict[str, object] = {
                "epoch": it.epoch,
                "seconds": it.seconds,
                "parameters": it.parameters,
            }
            if it.pruned is not None:
                row["loss before"], row["loss after"] = it.pruned.losses
                row.update({name: after for name, (_, after) in it.pruned.widths.items()})
            rows.append(row)
        return pd.DataFrame(rows)

    def state_dict(self) -> dict[str, Json]:
        """Return all that `repeat` needs, in lists and numbers, to be kept in a checkpoint."""
        return {
            "schedule": self.schedule.to_json(),
            "counted_from": self.schedule.counted_from,
            "removal": self.removal,
            "epochs": [_as_json(it) for it in self.epochs],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what `state_dict` returns as one sealed file.

        Raises
        ------
        FileError
            The file cannot be written; one that was there is untouched.
        """
        write_tensors(path, {}, self.state_dict(), kind=_KIND)

    def repeat(
        self, model: nn.Module, saved: str | os.PathLike[str] | Mapping[str, Any]
    ) -> nn.Module:
        """Cut a new network as that of an interrupted training was, so that the two fit.

        Afterwards build the optimizer on what is returned, load the states of both, and go on
        with the next epoch.

        Parameters
        ----------
        model
            As the original was before training. It is not changed; the weights of what is
            returned have no meaning until a state is loaded.
        saved
            What `save` wrote or `state_dict` returned.

        Raises
        ------
        MethodError
            This schedule has been used, or differs from the saved one in what was done already.
        FileError
            The file is missing, altered, foreign, or of something else.
        CondenseError, PlanError
            The network is not the original.
        """
        if self.epochs:
            raise MethodError(
                f"{len(self.epochs)} epochs are done with this schedule already: make a new "
                "UnitPruning, and repeat with that"
            )
        epochs = self._read(saved)
        for it in epochs:
            for made in it.pruned.plans if it.pruned is not None else ():
                model = self._condensed(model, made).model
        self.epochs = epochs
        self._begun = time.process_time()
        return model

    def _pruned(
        self, epoch: int, model: nn.Module, optimizers: Sequence[Optimizer]
    ) -> tuple[nn.Module, Pruned]:
        first, losses = model, [mean_loss(model, self.data)]
        ranking = self._ranking(model)
        before = {layer: ranking[layer].units for layer in ranking}
        goal = self._goal(epoch, before)
        plans: list[Plan] = []
        carried: tuple[Carried, ...] = ()
        for done in range(self.rounds):
            if done:
                ranking = self._ranking(model)
            target = {
                layer: widths_between(before[layer], goal[layer], self.rounds)[done]
                for layer in goal
            }
            if all(ranking[layer].units == width for layer, width in target.items()):
                continue
            chosen = plan(ranking, keep=target)
            condensed = self._condensed(model, chosen)
            carried = tuple(
                carry_over(it, model, condensed.model, condensed.cuts) for it in optimizers
            )
            model = condensed.model
            plans.append(chosen)
        losses.append(mean_loss(model, self.data) if plans else losses[0])
        whole = self.plan or _everything(before)
        for made in plans:
            whole = whole.then(made)
        return model, Pruned(
            tuple(plans),
            whole,
            {layer: (before[layer], goal[layer]) for layer in before},
            (parameters(first), parameters(model)),
            (losses[0], losses[1]),
            carried,
        )

    def _goal(self, epoch: int, now: Mapping[str, int]) -> dict[str, int]:
        """Return the width of each layer after an epoch; check that it is the network of before."""
        known = self.plan
        if known is not None and dict(known.widths_after) != dict(now):
            raise CondenseError(
                f"the network has units {dict(now)} and was left with {dict(known.widths_after)} "
                "after the last removal: give the network that after_epoch returned. (Layers that "
                "are tied to others can change names when units go: name others with layers=)"
            )
        original = now if known is None else known.widths
        return {
            layer: self.schedule.width(layer, epoch, original=original[layer], current=now[layer])
            for layer in now
        }

    def _ranking(self, model: nn.Module) -> Ranking:
        return rank(
            model,
            self.data,
            self.method,
            layers=self.layers,
            removal=self.removal,
            seed=self.seed,
            progress=False,
        )

    def _condensed(self, model: nn.Module, made: Plan) -> Condensed:
        return condense(model, made, self.data, removal=self.removal, progress=False)

    def _read(self, saved: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[Epoch, ...]:
        state: Mapping[str, Any] = (
            saved if isinstance(saved, Mapping) else read_tensors(saved, kind=_KIND)[1]
        )
        try:
            epochs = tuple(_from_json(it) for it in state["epochs"])
            found = {
                "counted_from": state["counted_from"],
                "removal": state["removal"],
                "shares": _until(state["schedule"], epochs),
            }
        except (KeyError, TypeError, ValueError, PlanError) as error:
            raise FileError(
                f"what is given holds no record of a UnitPruning ({error!r}): give what its save "
                "wrote or its state_dict returned"
            ) from error
        wanted = {
            "counted_from": self.schedule.counted_from,
            "removal": self.removal,
            "shares": _until(self.schedule.to_json(), epochs),
        }
        for name, value in wanted.items():
            if found[name] != value:
                raise MethodError(
                    f"{name} is {value!r} here and was {found[name]!r} in what is to be repeated: "
                    "set up the same schedule"
                )
        return epochs


def _everything(widths: Mapping[str, int]) -> Plan:
    return Plan({layer: tuple(range(width)) for layer, width in widths.items()}, widths)


def _until(shares: Sequence[Any], epochs: Sequence[Epoch]) -> list[Any]:
    """Return those entries of a schedule that are due up to the last of some epochs."""
    last = epochs[-1].epoch if epochs else -1
    return [[epoch, share] for epoch, share in shares if epoch <= last]


def _as_json(it: Epoch) -> dict[str, Json]:
    pruned = it.pruned
    return {
        "epoch": it.epoch,
        "seconds": it.seconds,
        "parameters": it.parameters,
        "pruned": None
        if pruned is None
        else {
            "plans": [made.to_json() for made in pruned.plans],
            "whole": pruned.whole.to_json(),
            "widths": [[layer, *widths] for layer, widths in pruned.widths.items()],
            "parameters": pruned.parameters,
            "losses": pruned.losses,
            "carried": [[one.parameters, one.made, one.left_out] for one in pruned.carried],
        },
    }


def _from_json(value: Mapping[str, Any]) -> Epoch:
    found = value["pruned"]
    pruned = None
    if found is not None:
        before, after = found["parameters"]
        first, last = found["losses"]
        pruned = Pruned(
            tuple(Plan.from_json(made) for made in found["plans"]),
            Plan.from_json(found["whole"]),
            {layer: (wide, narrow) for layer, wide, narrow in found["widths"]},
            (before, after),
            (first, last),
            tuple(Carried(*map(tuple, one)) for one in found["carried"]),
        )
    return Epoch(value["epoch"], value["seconds"], value["parameters"], pruned)
