"""Condensing inside a Lightning training: ``from neurank.condense.lightning import CondenseAt``.

`CondenseAt` is a callback, made from Lightning's own `Callback` when it is asked for, so that this
module can be imported where Lightning is not installed.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from neurank.condense.carry import Carried, carry_over, trains
from neurank.condense.condensed import Condensed, condense
from neurank.condense.costs import Report
from neurank.condense.plan import Plan, plan
from neurank.errors import CondenseError
from neurank.observe.examples import Batch
from neurank.rankers.method import Method
from neurank.rankers.rank import rank

_LIGHTNING = ("lightning.pytorch", "pytorch_lightning")
"""The names that Lightning goes by; of two that are installed, the first."""


class MissingLightningError(CondenseError, ImportError):
    """Lightning is not installed."""


@dataclass(frozen=True)
class Done:
    """What a `CondenseAt` did before one epoch.

    Attributes
    ----------
    plan : which units were kept, of the network as it was then.
    report : widths, parameters and multiply-adds before and after.
    carried : what each optimizer that trained the network goes on with.
    """

    plan: Plan
    report: Report
    carried: tuple[Carried, ...]


class _Condensing:
    """A Lightning callback that ranks and condenses a network before given epochs of its training.

    The condensed network takes the place of the large one inside the LightningModule; optimizers
    are carried over (`neurank.condense.carry.carry_over`), so learning rate schedulers and
    gradient scaling go on; copies that other callbacks average (`WeightAveraging`,
    `StochasticWeightAveraging`) are condensed by the same plan.

    A checkpoint holds the plans. To go on from one, build module and callback as before, call
    `repeat` with the checkpoint, and then ``trainer.fit(module, ckpt_path=...)``. A checkpoint
    from before an epoch of condensing does not fit the network after it, so that monitoring for
    the best one should begin after the last.

    Parameters
    ----------
    epochs
        Before which epochs, counted from 0 as ``trainer.current_epoch``.
    method
        How units are ranked, such as ``neurank.PermutationShapley()``.
    ratio
        The share of units that is removed each time, 0 to below 1: of every layer that is ranked,
        or layer name to share.
    data
        Batches ``(inputs, targets)`` that are the same at every pass: what is ranked and verified
        on. A training loader that shuffles is refused.
    module
        Dotted name of the network inside the LightningModule, which takes one tensor and returns
        logits; by default its only child with parameters.
    layers
        Names of the layers to rank, within the network; by default the keys of `ratio`, or all.
    removal
        What a unit that is off leaves behind: ``"zero"``, ``"mean"`` or ``"parameters"``.
    seed
        Of the ranking's random draws.

    Attributes
    ----------
    done : by epoch, what was done in this run.
    plans : by epoch, which units were kept, in the runs before this one, too.

    Raises
    ------
    CondenseError
        An epoch is no whole number from 0; in training: the network is not found, is wrapped (by
        `DistributedDataParallel`, say), or no optimizer holds it.
    """

    def __init__(
        self,
        *,
        epochs: Collection[int],
        method: Method,
        ratio: float | Mapping[str, float],
        data: Iterable[Batch],
        module: str | None = None,
        layers: Sequence[str] | None = None,
        removal: str = "zero",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.epochs = _checked(epochs)
        self.method = method
        self.ratio = ratio
        self.data = data
        self.module = module
        self.layers = list(ratio) if layers is None and isinstance(ratio, Mapping) else layers
        self.removal: Any = removal
        self.seed = seed
        self.done: dict[int, Done] = {}
        self.plans: dict[int, Plan] = {}

    def on_train_epoch_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Rank and condense if it is time."""
        epoch: int = trainer.current_epoch
        if epoch not in self.epochs or epoch in self.plans:
            return
        if trainer.model is not pl_module:
            raise CondenseError(
                f"the network is trained inside a {type(trainer.model).__name__}, which holds "
                "parameters that cannot be exchanged: train with a strategy of one device while "
                "condensing, and distribute the condensed network"
            )
        name = self._name(pl_module)
        old = pl_module.get_submodule(name)
        optimizers = [one for one in trainer.optimizers if trains(one, old)]
        if not optimizers:
            raise CondenseError(
                f"no optimizer holds a parameter of {name!r}, so nothing would go on training it: "
                "name with module= the network that configure_optimizers gives the parameters of"
            )
        chosen = self._plan(old)
        condensed = self._condensed(old, chosen)
        averages = [
            (holder, path, self._average(holder.get_submodule(path), chosen, condensed.model))
            for holder, path in _averages(trainer, name, old)
        ]
        carried = tuple(carry_over(one, old, condensed.model, condensed.cuts) for one in optimizers)
        for holder, path, average in averages:
            holder.set_submodule(path, average)
        _replace(pl_module, old, condensed.model)
        self.plans[epoch] = chosen
        self.done[epoch] = Done(chosen, condensed.report, carried)

    @property
    def state_key(self) -> str:
        """The name of the plans in a checkpoint; callbacks for several networks have several."""
        return f"{type(self).__qualname__}({self.module or ''})"

    def state_dict(self) -> dict[str, Any]:
        """Return the plans, for a checkpoint."""
        return {"plans": [[epoch, made.to_json()] for epoch, made in self.plans.items()]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the plans of a checkpoint, which `repeat` has carried out."""
        self.plans = _plans(state_dict)

    def repeat(self, pl_module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
        """Condense a new LightningModule as that of a checkpoint was, before it is restored.

        Parameters
        ----------
        pl_module
            As the original was before training. Its weights have no meaning until the checkpoint
            is restored, by ``trainer.fit(pl_module, ckpt_path=...)``.
        checkpoint
            What Lightning saved, read by ``torch.load(path, weights_only=True)``.

        Raises
        ------
        CondenseError
            The checkpoint has no plans of a `CondenseAt`, or the module is condensed already.
        """
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None:
            raise CondenseError(
                f"the checkpoint has no plans of {self.state_key}: it was saved without this "
                "callback, or with save_weights_only=True. Restore it without repeat"
            )
        if self.plans:
            raise CondenseError(
                f"this callback has condensed before epoch {', '.join(map(str, self.plans))} "
                "already: build module and callback anew, and repeat on those"
            )
        plans = _plans(state)
        name = self._name(pl_module)
        for made in plans.values():
            old = pl_module.get_submodule(name)
            _replace(pl_module, old, self._condensed(old, made).model)
        self.plans = plans

    def _name(self, pl_module: nn.Module) -> str:
        if self.module is not None:
            return self.module
        children = [name for name, child in pl_module.named_children() if [*child.parameters()]]
        if len(children) != 1:
            raise CondenseError(
                f"the {type(pl_module).__name__} has {len(children)} children with parameters "
                f"({', '.join(children) or 'none'}): name with module= the one to condense"
            )
        return children[0]

    def _plan(self, model: nn.Module) -> Plan:
        ranking = rank(
            model,
            self.data,
            self.method,
            layers=self.layers,
            removal=self.removal,
            seed=self.seed,
            progress=False,
        )
        return plan(ranking, ratio=self.ratio)

    def _condensed(self, model: nn.Module, made: Plan) -> Condensed:
        return condense(model, made, self.data, removal=self.removal, progress=False)

    def _average(self, copy: nn.Module, made: Plan, small: nn.Module) -> nn.Module:
        average = self._condensed(copy, made).model
        if _shapes(average) != _shapes(small):
            raise CondenseError(
                "the averaged copy of the network condenses to other tensors than the network "
                "itself, since its removed units leave other constants: use removal='zero', or "
                "begin to average after condensing"
            )
        return average


def _checked(epochs: Collection[int]) -> frozenset[int]:
    wrong = any(isinstance(it, bool) or not isinstance(it, int) or it < 0 for it in epochs)
    if wrong or not epochs:
        raise CondenseError(
            f"epochs={epochs!r} names no epoch, or something else than one: give whole numbers "
            "from 0, before which to condense"
        )
    return frozenset(epochs)


def _averages(trainer: Any, name: str, model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return where averaged copies of a network are: what holds each, and its name in there.

    Averages are kept by callbacks, of the LightningModule whole, or by the LightningModule, of the
    network.
    """
    whole = trainer.lightning_module
    kept = [it for callback in trainer.callbacks for it in vars(callback).values()]
    holders = [*(it for it in kept if isinstance(it, nn.Module)), *whole.modules()]
    found = []
    for holder in dict.fromkeys(holders):
        if isinstance(holder, AveragedModel):
            path = f"module.{name}" if isinstance(holder.module, type(whole)) else "module"
        elif isinstance(holder, type(whole)) and holder is not whole:
            path = name
        else:
            continue
        if _shapes(holder.get_submodule(path)) == _shapes(model):
            found.append((holder, path))
    return found


def _shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]


def _replace(whole: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a network in the place of another, under each of its names."""
    for name in [name for name, it in whole.named_modules(remove_duplicate=False) if it is old]:
        whole.set_submodule(name, new)


def _plans(state: Mapping[str, Any]) -> dict[int, Plan]:
    return {int(epoch): Plan.from_json(made) for epoch, made in state["plans"]}


@cache
def made_callback(name: str, ours: type) -> type:
    """Make a callback class of what is ours and Lightning's own.

    Raises
    ------
    MissingLightningError
        Lightning is not installed.
    """
    for package in _LIGHTNING:
        try:
            base = import_module(package).Callback
        except ImportError:
            continue
        members = {"__module__": ours.__module__, "__doc__": ours.__doc__}
        return type(name, (ours, base), members)
    raise MissingLightningError(
        f"{name} needs Lightning, which is not installed: pip install 'neurank[lightning]'"
    )


def __getattr__(name: str) -> Any:
    if name == "CondenseAt":
        return made_callback(name, _Condensing)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
