"""The coalition game of one layer on one batch of examples.

The value is a mean over examples, so the game is a mean of one small game per example. A unit
whose consumers receive the same on and off is a null player of that example's game and drops out.

`Game` plays by masks alone; `SuffixGame` and `FullGame` say how masks become logits, and
`neurank.observe.additive.AdditiveGame` knows a much faster way where the consumer is a sum.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neurank.observe.execution import Program, Runner
from neurank.observe.hooks import units_off
from neurank.observe.masking import MaskedSuffix, on_name
from neurank.observe.value import Value, evaluate
from neurank.units.split import Split
from neurank.units.trace import logits_of

BLOCK_BYTES = 8 * 2**20
"""Coalitions are handed to the suffix in blocks of about this size, which stay in the cache."""

PerUnit = NDArray[np.float64]
"""(examples, units)."""
Ends = NDArray[np.float64]
"""(examples, 2): the value with no unit on, and with all on."""
Walk = Callable[[Tensor, Tensor], Tensor]
"""From rows and places of their chains to logits."""


@dataclass(frozen=True)
class Game(ABC):
    """One layer's game on a batch: which units are null players, and what coalitions are worth.

    Attributes
    ----------
    layer : dotted name of the layer.
    numbers : (examples,) the place of each example in the data, whatever the batches.
    value : the per-example value.
    targets : (examples,) class indices.
    active : (examples, units) bool, False for null players.
    """

    layer: str
    numbers: Tensor
    value: Value
    targets: Tensor
    active: Tensor

    @abstractmethod
    def logits(self, rows: Tensor, masks: Tensor) -> Tensor:
        """Compute the logits of example ``rows[i]`` with the units of ``masks[i]`` on.

        Parameters
        ----------
        rows : (coalitions,) indices into the batch.
        masks : (coalitions, units) bool, True = on.

        Returns
        -------
        Tensor
            (coalitions, classes).
        """

    @property
    @abstractmethod
    def operations_per_coalition(self) -> int:
        """Roughly how many additions and multiply-adds one coalition costs."""

    @property
    @abstractmethod
    def floats_per_coalition(self) -> int:
        """How many numbers one coalition hands to the suffix."""

    @property
    def compiled(self) -> bool:
        """Whether `exact` is there: a kernel that walks power sets by itself."""
        return False

    @property
    def exact_coalitions(self) -> int:
        """Number of coalitions that exact values take: 2^k per example, however large."""
        players, examples = torch.unique(self.active.sum(dim=1), return_counts=True)
        pairs = zip(players.tolist(), examples.tolist(), strict=True)
        return sum(int(count) << int(k) for k, count in pairs)

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.targets)

    @property
    def units(self) -> int:
        """Number of units."""
        return self.active.shape[1]

    def values(self, rows: Tensor, masks: Tensor) -> Tensor:
        """Compute the value of example ``rows[i]`` with the units of ``masks[i]`` on, float64."""
        return self.evaluate(rows, self.logits(rows, masks))

    def values_of(self, row: int, masks: Tensor) -> Tensor:
        """Compute the values of some coalitions of one example, float64.

        Parameters
        ----------
        row : index of the example within the batch.
        masks : (coalitions, units) bool, True = on.

        Returns
        -------
        Tensor
            (coalitions,).
        """
        rows = torch.full((len(masks),), row, device=masks.device)
        numbers = torch.arange(len(masks), device=masks.device)
        return torch.cat([self.values(rows[some], masks[some]) for some in self.blocks(numbers)])

    def values_by_example(self, masks: Tensor) -> Tensor:
        """Compute the values of several coalitions of every example, float64.

        Parameters
        ----------
        masks : (examples, coalitions, units) bool, True = on.

        Returns
        -------
        Tensor
            (examples, coalitions).
        """
        examples, coalitions, units = masks.shape
        if not examples * coalitions:
            return torch.zeros(examples, coalitions, dtype=torch.float64, device=masks.device)
        rows = torch.arange(examples, device=masks.device).repeat_interleave(coalitions)
        flat = masks.reshape(-1, units)
        numbers = torch.arange(len(rows), device=masks.device)
        found = [self.values(rows[some], flat[some]) for some in self.blocks(numbers)]
        return torch.cat(found).reshape(examples, coalitions)

    def left_out(self) -> tuple[PerUnit, NDArray[np.float64]]:
        """Compute what is left of the value when one unit alone is off.

        Null players change nothing, so they cost nothing.

        Returns
        -------
        (examples, units), the value without each unit; (examples,), the value with all on.
        """
        examples = torch.arange(self.examples, device=self.active.device)
        everything = torch.ones_like(self.active)
        whole = torch.cat([self.values(some, everything[some]) for some in self.blocks(examples)])
        values = whole[:, None].repeat(1, self.units)
        rows, units = self.active.nonzero(as_tuple=True)
        for some in self.blocks(torch.arange(len(rows), device=rows.device)):
            values[rows[some], units[some]] = self._values_without(rows[some], units[some])
        return values.cpu().numpy(), whole.cpu().numpy()

    def _values_without(self, rows: Tensor, units: Tensor) -> Tensor:
        """Compute the value of example ``rows[i]`` with unit ``units[i]`` alone off, float64."""
        masks = torch.ones(len(rows), self.units, dtype=torch.bool, device=rows.device)
        masks[torch.arange(len(rows), device=rows.device), units] = False
        return self.values(rows, masks)

    def power_set(self, row: int) -> Iterator[Tensor]:
        """Yield the values of every coalition of one example's active units, in blocks.

        Coalition c contains the j-th active unit where bit j of c is set; null players are off.
        A block holds 2^low consecutive coalitions.
        """
        active = torch.nonzero(self.active[row])[:, 0]
        low = min(len(active), self.low_bits)
        bits = torch.arange(len(active), device=active.device)
        for above in range(1 << (len(active) - low)):
            numbers = (above << low) + torch.arange(1 << low, device=active.device)
            masks = torch.zeros(len(numbers), self.units, dtype=torch.bool, device=active.device)
            masks[:, active] = ((numbers[:, None] >> bits) & 1).to(torch.bool)
            yield self.values(torch.full_like(numbers, row), masks)

    def walk(self, orders: NDArray[np.int64]) -> "Walk":
        """Get ready to look at any place of each example's chain, as `chain` describes it.

        Returns
        -------
        Walk
            From ``(rows, places)``, (coalitions,) each, to the logits of example ``rows[i]`` with
            the first ``places[i]`` units of its order on, (coalitions, classes).
        """
        joins = torch.from_numpy(orders).to(self.active.device)
        late = torch.full_like(joins, self.units)
        turns = torch.arange(self.units, device=joins.device).expand_as(joins)
        joined = joins >= 0
        late[joined.nonzero()[:, 0], joins[joined]] = turns[joined]
        return lambda rows, places: self.logits(rows, late[rows] < places[:, None])

    def blocks(self, rows: Tensor) -> Iterator[Tensor]:
        """Cut (coalitions,) into blocks that the suffix takes at once."""
        size = max(1, BLOCK_BYTES // (4 * max(1, self.floats_per_coalition)))
        yield from torch.split(rows, size)

    def exact(self) -> tuple[PerUnit, Ends]:
        """Compute the exact Shapley values of each example's game, where `compiled` says so."""
        raise NotImplementedError

    def chain(self, orders: NDArray[np.int64]) -> tuple[PerUnit, Ends]:
        """Compute what each unit adds when the units of each example join in the order given.

        Parameters
        ----------
        orders : (examples, units): the units that join, in turn, and then -1.
        """
        rows = torch.arange(self.examples, device=self.active.device)
        joins = torch.from_numpy(orders).to(rows.device)
        masks = torch.zeros_like(self.active)
        start = last = self.values(rows, masks)
        marginals = torch.zeros(self.active.shape, dtype=torch.float64, device=rows.device)
        for place in range(int((joins >= 0).sum(dim=1).max())):
            rows = rows[joins[rows, place] >= 0]
            joining = joins[rows, place]
            masks[rows, joining] = True
            now = self.values(rows, masks[rows])
            marginals[rows, joining] = now - last[rows]
            last = last.index_put((rows,), now)
        return marginals.cpu().numpy(), torch.stack([start, last], dim=1).cpu().numpy()

    def evaluate(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Turn logits into values, refusing NaN by name."""
        first = int(self.numbers[0])
        where = f"with units of layer {self.layer!r} off, on the batch from example {first} on"
        return evaluate(self.value, logits, self.targets[rows], where)

    @property
    def low_bits(self) -> int:
        """How many units vary within a block, so that the block fits into `BLOCK_BYTES`."""
        coalitions = BLOCK_BYTES // (4 * max(1, self.floats_per_coalition))
        return max(2, min(14, int(np.log2(max(4, coalitions)))))


@dataclass(frozen=True)
class SuffixGame(Game):
    """The masked units are handed to the suffix; the prefix has been run once per example.

    Attributes
    ----------
    split : where the forward pass is cut.
    runner : the graph and its weights.
    on : (examples, units, positions), what consumers receive for a unit that is on.
    off : (units, positions), what they receive for one that is off.
    read_shape : the shape in which they receive it, without the examples.
    side : other results that the suffix reads, (examples, ...) each.
    """

    split: Split
    runner: Runner
    on: Tensor
    off: Tensor
    read_shape: tuple[int, ...]
    side: Mapping[str, Tensor]

    def logits(self, rows: Tensor, masks: Tensor) -> Tensor:
        """Compute the logits of example ``rows[i]`` with the units of ``masks[i]`` on."""
        read = torch.where(masks[:, :, None], self.on[rows], self.off)
        return self.finish(rows, read.reshape(len(rows), *self.read_shape))

    @property
    def operations_per_coalition(self) -> int:
        """Roughly how many multiply-adds one coalition costs."""
        return self.floats_per_coalition + self.runner.multiply_adds(self.split.suffix)

    @property
    def floats_per_coalition(self) -> int:
        """How many numbers one coalition hands to the suffix."""
        return int(np.prod(self.read_shape))

    def finish(self, rows: Tensor, start: Tensor) -> Tensor:
        """Run the suffix, from what stands at its start to the logits."""
        known = {name: tensor[rows] for name, tensor in self.side.items()}
        known[self.split.start] = start
        logits: Tensor = self._program.run(known, len(start))[self.runner.graph.output]
        return logits

    @cached_property
    def _program(self) -> Program:
        """The suffix, which runs for every block of coalitions."""
        return self.runner.program(self.split.suffix, (self.runner.graph.output,))


@dataclass(frozen=True)
class CoupledGame(Game):
    """The units are switched wherever they are read; all below the first read is run again.

    Attributes
    ----------
    split : what is run again.
    runner : its graph and weights, with what is received for units that are off.
    side : results that it reads besides, (examples, ...) each.
    """

    split: MaskedSuffix
    runner: Runner
    side: Mapping[str, Tensor]

    def logits(self, rows: Tensor, masks: Tensor) -> Tensor:
        """Compute the logits of example ``rows[i]`` with the units of ``masks[i]`` on."""
        known = {name: tensor[rows] for name, tensor in self.side.items()}
        known[on_name(self.split.layer)] = masks
        logits: Tensor = self._program.run(known, len(rows))[self.runner.graph.output]
        return logits

    @cached_property
    def _program(self) -> Program:
        """What is run again for every block of coalitions."""
        return self.runner.program(self.split.suffix, (self.runner.graph.output,))

    @property
    def operations_per_coalition(self) -> int:
        """Roughly how many multiply-adds one coalition costs."""
        return self.floats_per_coalition + self.runner.multiply_adds(self.split.suffix)

    @property
    def floats_per_coalition(self) -> int:
        """How many numbers one coalition starts from."""
        return sum(tensor[0].numel() for tensor in self.side.values())


@dataclass(frozen=True)
class FullGame(Game):
    """Every coalition runs the whole module, with hooks that zero what the layer computes.

    The last resort, for models that cannot be traced, and the yardstick for the other two. A unit
    that is off contributes its pre-activation as 0: removal ``"parameters"``.

    Attributes
    ----------
    model : the module, in evaluation mode.
    inputs : (examples, ...).
    """

    model: nn.Module
    inputs: Tensor

    def logits(self, rows: Tensor, masks: Tensor) -> Tensor:
        """Run the module on example ``rows[i]`` with the units of ``masks[i]`` on."""
        with units_off(self.model, self.layer, ~masks):
            logits: Tensor = logits_of(self.model(self.inputs[rows]))
        return logits

    @property
    def operations_per_coalition(self) -> int:
        """At least one multiply-add per parameter."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def floats_per_coalition(self) -> int:
        """How many numbers one coalition hands to the module."""
        return self.inputs[0].numel()
