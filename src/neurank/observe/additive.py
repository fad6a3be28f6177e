"""The additive game: the layer's one consumer sums what each unit contributes.

A coalition's next pre-activation is ``base + sum of contributions``; chains are running sums and
power sets are sums over two tables, so nothing before the consumer is ever run again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from neurank.observe.execution import Runner, weight_and_bias
from neurank.observe.game import Ends, PerUnit, SuffixGame, Walk
from neurank.observe.head import Head
from neurank.observe.kernels.chains import chain_marginals
from neurank.observe.kernels.coalitions import coalition_values
from neurank.observe.kernels.power_set import power_set_shapley
from neurank.units.graph import Operation
from neurank.units.rules import CONVOLUTIONS


@dataclass(frozen=True)
class AdditiveGame(SuffixGame):
    """The game of a layer whose units one linear layer or one convolution reads.

    Attributes
    ----------
    base : (features...), the consumer's result with every unit off.
    contributions : (examples, units, features...), what each unit adds to it.
    head : the suffix for the compiled kernels, None if they cannot run it.
    """

    base: Tensor
    contributions: Tensor
    head: Head | None

    def logits(self, rows: Tensor, masks: Tensor) -> Tensor:
        """Compute the logits of example ``rows[i]`` with the units of ``masks[i]`` on."""
        chosen = masks.to(self.base.dtype)
        added = torch.einsum("cu,cuf->cf", chosen, self.contributions[rows].flatten(2))
        return self.finish(rows, self.base + added.reshape(len(rows), *self.base.shape))

    def _values_without(self, rows: Tensor, units: Tensor) -> Tensor:
        """Compute the value of example ``rows[i]`` with unit ``units[i]`` alone off, float64."""
        starts = self._with_all[rows].sub_(self.contributions[rows, units])
        return self.evaluate(rows, self.finish(rows, starts))

    @cached_property
    def _with_all(self) -> Tensor:
        """The consumer's result with every unit on, (examples, features...)."""
        return self.base + self.contributions.sum(dim=1)

    def values_of(self, row: int, masks: Tensor) -> Tensor:
        """Compute the values of some coalitions of one example, (coalitions,).

        A compiled kernel takes them side by side; where there is none, the sums of a block of
        coalitions are one matrix product.
        """
        if self.head is not None:
            return self._compiled_values(slice(row, row + 1), masks[None])[0]
        chosen = masks.to(self.base.dtype)
        contributions = self.contributions[row].flatten(1)
        found = []
        for some in self.blocks(torch.arange(len(masks), device=masks.device)):
            sums = (chosen[some] @ contributions).reshape(len(some), *self.base.shape)
            rows = torch.full_like(some, row)
            found.append(self.evaluate(rows, self.finish(rows, self.base + sums)))
        return torch.cat(found)

    def values_by_example(self, masks: Tensor) -> Tensor:
        """Compute the values of several coalitions of every example, (examples, coalitions)."""
        if self.head is not None:
            return self._compiled_values(slice(None), masks)
        examples, coalitions, _ = masks.shape
        if not examples * coalitions:
            return torch.zeros(examples, coalitions, dtype=torch.float64, device=masks.device)
        return torch.stack([self.values_of(row, masks[row]) for row in range(examples)])

    def _compiled_values(self, rows: slice, masks: Tensor) -> Tensor:
        base, contributions = self._folded
        targets, head = self.targets[rows].numpy(), self._head.perceptron
        found = coalition_values(base, contributions[rows], masks.numpy(), targets, head)
        return torch.from_numpy(found)

    @property
    def floats_per_coalition(self) -> int:
        """How many numbers one coalition hands to the suffix."""
        return self.base.numel()

    @property
    def compiled(self) -> bool:
        """Whether the kernels can run the suffix."""
        return self.head is not None

    def power_set(self, row: int) -> Iterator[Tensor]:
        """Yield the values of every coalition of one example's active units, in blocks.

        The same coalitions in the same order as `Game.power_set`, from sums instead of masks.
        """
        contributions = self.contributions[row][self.active[row]]
        low = min(len(contributions), self.low_bits)
        table = torch.zeros_like(self.base)[None]
        for added in contributions[:low]:
            table = torch.cat([table, table + added])
        rows = torch.full((len(table),), row, device=table.device)
        for above in range(1 << (len(contributions) - low)):
            start = self.base
            for bit, added in enumerate(contributions[low:]):
                if (above >> bit) & 1:
                    start = start + added
            yield self.evaluate(rows, self.finish(rows, table + start))

    def exact(self) -> tuple[PerUnit, Ends]:
        """Compute the exact Shapley values of each example's game, by the compiled kernel."""
        base, contributions = self._folded
        targets, head = self.targets.numpy(), self._head.perceptron
        return power_set_shapley(base, contributions, self.active.numpy(), targets, head)

    def chain(self, orders: NDArray[np.int64]) -> tuple[PerUnit, Ends]:
        """Compute what each unit adds when the units of each example join in the order given."""
        if self.head is not None:
            base, contributions = self._folded
            targets, head = self.targets.numpy(), self.head.perceptron
            return chain_marginals(base, contributions, orders, targets, head)
        return self._running_sums(torch.from_numpy(orders).to(self.base.device))

    def walk(self, orders: NDArray[np.int64]) -> Walk:
        """Get ready to look at any place of each example's chain: all its running sums."""
        joins = torch.from_numpy(orders).to(self.base.device)
        examples, units = joins.shape
        sums = self.base.new_zeros(examples, units + 1, self.base.numel())
        for row in range(examples):
            players = joins[row][joins[row] >= 0]
            in_turn = self.contributions[row].flatten(1)[players]
            torch.cumsum(in_turn, dim=0, out=sums[row, 1 : len(players) + 1])

        def logits(rows: Tensor, places: Tensor) -> Tensor:
            reached = sums[rows, places].reshape(len(rows), *self.base.shape)
            return self.finish(rows, self.base + reached)

        return logits

    def _running_sums(self, joins: Tensor) -> tuple[PerUnit, Ends]:
        """Walk all chains in step, one suffix pass per place."""
        rows = torch.arange(self.examples, device=joins.device)
        sums = self.base.expand(self.examples, *self.base.shape).clone()
        start = last = self._finished(rows, sums)
        marginals = torch.zeros(self.active.shape, dtype=torch.float64, device=rows.device)
        for place in range(int((joins >= 0).sum(dim=1).max())):
            rows = rows[joins[rows, place] >= 0]
            joining = joins[rows, place]
            sums[rows] += self.contributions[rows, joining]
            now = self._finished(rows, sums)
            marginals[rows, joining] = now - last[rows]
            last = last.index_put((rows,), now)
        return marginals.cpu().numpy(), torch.stack([start, last], dim=1).cpu().numpy()

    def _finished(self, rows: Tensor, sums: Tensor) -> Tensor:
        blocks = self.blocks(rows)
        return torch.cat([self.evaluate(some, self.finish(some, sums[some])) for some in blocks])

    @property
    def _head(self) -> Head:
        assert self.head is not None
        return self.head

    @cached_property
    def _folded(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Base and contributions as the kernels start from them, flat."""
        base, contributions = self._head.fold(self.base, self.contributions)
        return base.numpy(), contributions.numpy()


def contribute(
    consumer: Operation,
    runner: Runner,
    difference: Tensor,
    off: Tensor,
    read_shape: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Compute what each unit adds to the consumer's result, and the result with every unit off.

    Parameters
    ----------
    consumer : a linear layer or a convolution without groups.
    difference : (examples, units, positions), on minus off.
    off : (units, positions).
    read_shape : the shape in which the consumer reads the units, without the examples.

    Returns
    -------
    base : (features...).
    contributions : (examples, units, features...).
    """
    weight, bias = weight_and_bias(consumer, runner)
    examples, units, _ = difference.shape
    all_off = off.reshape(1, *read_shape)
    if consumer.kind not in CONVOLUTIONS:
        per_unit = weight.reshape(len(weight), units, -1)
        contributions = torch.einsum("eup,fup->euf", difference, per_unit)
        return functional.linear(all_off, weight, bias)[0], contributions.contiguous()
    convolve = getattr(functional, consumer.kind)
    stride, padding, dilation = _convolution_arguments(consumer)
    base = convolve(all_off, weight, bias, stride, padding, dilation)[0]
    # One group per input channel: every channel meets its own slice of the kernel alone.
    slices = weight.transpose(0, 1).reshape(-1, 1, *weight.shape[2:])
    maps = difference.reshape(examples, *read_shape)
    added = convolve(maps, slices, None, stride, padding, dilation, units)
    return base, added.reshape(examples, units, *base.shape)


def _convolution_arguments(consumer: Operation) -> tuple[Any, Any, Any]:
    """Stride, padding and dilation, as the traced call gave them."""
    defaults: tuple[Any, ...] = (1, 0, 1)
    given = consumer.args[3:6]
    positional = (*given, *defaults[len(given) :])
    names = ("stride", "padding", "dilation")
    stride, padding, dilation = (
        consumer.kwargs.get(name, value) for name, value in zip(names, positional, strict=True)
    )
    return stride, padding, dilation
