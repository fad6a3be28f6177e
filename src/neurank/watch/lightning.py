"""Watching inside a Lightning training: ``from neurank.watch.lightning import WatchUnits``.

`WatchUnits` is a callback, made from Lightning's own `Callback` when it is asked for, so that this
module can be imported where Lightning is not installed.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from neurank.condense.carry import trains
from neurank.condense.lightning import made_callback
from neurank.errors import MethodError
from neurank.observe.examples import Batch
from neurank.watch.states import Thresholds
from neurank.watch.watching import EVERY, Watching, Writer, watch


class _Watching:
    """A Lightning callback that watches the units of a network while it is trained.

    It does what ``neurank.watch`` does beside a plain loop: looks at the beginning, every so many
    optimizer steps, and at the end. Steps count on where a training goes on from a checkpoint. A
    network that another callback exchanges, such as `CondenseAt`, is followed.

    Parameters
    ----------
    data
        Batches ``(inputs, targets)`` that are the same at every pass, about 1,000 examples.
    every
        Steps between looks.
    module
        Dotted name of the network inside the LightningModule, which takes one tensor and returns
        logits; by default its only child with parameters.
    layers
        Names of the layers to look at, within the network; by default all hidden ones.
    exact_every
        Take exact mean replacement penalties in every so many looks; None is never.
    thresholds
        How little counts as nothing.
    writers
        Called with the vitals of every look, such as ``neurank.ParquetLog``.

    Attributes
    ----------
    watching : what was seen; None before the training begins. Fitting once more begins anew.

    Raises
    ------
    MethodError
        In training: the network is not found, is wrapped (by `DistributedDataParallel`, say), or
        no optimizer trains it. Where several do, the steps of the first count.
    UnitError, DataError, ModelError
        In training: a layer, the data or the network cannot be used.
    """

    def __init__(
        self,
        data: Iterable[Batch],
        *,
        every: int = EVERY,
        module: str | None = None,
        layers: Sequence[str] | None = None,
        exact_every: int | None = None,
        thresholds: Thresholds | None = None,
        writers: Sequence[Writer] = (),
    ) -> None:
        super().__init__()
        self.data = data
        self.module = module
        self.settings: dict[str, Any] = {
            "every": every,
            "layers": layers,
            "exact_every": exact_every,
            "thresholds": thresholds,
            "writers": writers,
        }
        self.watching: Watching | None = None
        self._path = ""
        self._network: nn.Module | None = None

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Take a first look, and count steps from now on."""
        if trainer.model is not pl_module:
            raise MethodError(
                f"the network is trained inside a {type(trainer.model).__name__}, whose parts "
                "cannot be looked at as one network: train with a strategy of one device while "
                "watching"
            )
        name = self._name(pl_module)
        network = pl_module.get_submodule(name)
        optimizers = [one for one in trainer.optimizers if trains(one, network)]
        if not optimizers:
            raise MethodError(
                f"no optimizer holds a parameter of {name!r}, so its training has no steps to "
                "count: name with module= the network that configure_optimizers gives the "
                "parameters of"
            )
        step: int = trainer.global_step
        self.watching = watch(network, optimizers[0], self.data, first_step=step, **self.settings)
        self.watching.__enter__()
        self._path, self._network = name, network

    def on_train_batch_start(
        self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int
    ) -> None:
        """Follow a network that was exchanged."""
        del batch, batch_idx
        if self.watching is None or self._network is None:
            return
        network = pl_module.get_submodule(self._path)
        if network is self._network:
            return
        optimizer = next(one for one in trainer.optimizers if trains(one, network))
        self.watching.follow(network, optimizer)
        self._network = network

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Take a last look and leave no hook behind."""
        del trainer, pl_module
        self._leave(None)

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Leave no hook behind."""
        del trainer, pl_module
        self._leave(exception)

    def _leave(self, error: BaseException | None) -> None:
        if self._network is not None and self.watching is not None:
            self._network = None
            self.watching.__exit__(type(error) if error else None, error, None)

    def _name(self, pl_module: nn.Module) -> str:
        if self.module is not None:
            return self.module
        children = [name for name, child in pl_module.named_children() if [*child.parameters()]]
        if len(children) != 1:
            raise MethodError(
                f"the {type(pl_module).__name__} has {len(children)} children with parameters "
                f"({', '.join(children) or 'none'}): name with module= the one to watch"
            )
        return children[0]


def __getattr__(name: str) -> Any:
    if name == "WatchUnits":
        return made_callback(name, _Watching)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
