"""Recognising a suffix that the compiled kernels can run.

What they run is a perceptron behind max pooling. What stands before the first nonlinearity is
linear and is folded into the contributions; a BatchNorm behind a ReLU is folded into the matrix
that follows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurank.observe.execution import Runner, weight_and_bias
from neurank.observe.kernels.perceptron import Perceptron, pack
from neurank.observe.lowering import scale_and_shift
from neurank.units.channelwise import FLATTENING
from neurank.units.graph import Operation, Ref
from neurank.units.split import Split

IDENTITIES = frozenset({"dropout", "alias", "clone", "detach", "contiguous"})
MONOTONE = frozenset({"log_softmax", "softmax"})
"""They leave the order of the logits as it is; only the largest counts here."""

Affine = tuple[Tensor, Tensor]
"""A matrix, (outputs, inputs), and a bias; or a scale and a shift per feature, both 1-D."""


@dataclass(frozen=True)
class Head:
    """From the consumer's result to the winner.

    Attributes
    ----------
    leading : linear maps before anything else; they are applied to base and contributions once.
    perceptron : the rest.
    """

    leading: tuple[Affine, ...]
    perceptron: Perceptron

    def fold(self, base: Tensor, contributions: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the leading maps to ``(features...)`` and ``(examples, units, features...)``."""
        base, contributions = base.flatten(), contributions.flatten(2)
        for matrix, bias in self.leading:
            if matrix.ndim == 1:
                base, contributions = matrix * base + bias, matrix * contributions
            else:
                base, contributions = matrix @ base + bias, contributions @ matrix.T
        return base.contiguous(), contributions.contiguous()


@dataclass
class _Reader:
    """The state while the suffix is read from top to bottom.

    Attributes
    ----------
    shape : of the current result, without the examples.
    windows : (current features, window), indices of the consumer's (folded) features.
    rectified : whether a ReLU stands before the next matrix.
    affine : a scale and a shift per feature that the next matrix takes in.
    """

    shape: tuple[int, ...]
    windows: NDArray[np.int64]
    rectified: bool = False
    affine: Affine | None = None
    leading: list[Affine] = field(default_factory=list)
    stages: list[tuple[bool, NDArray[Any], NDArray[Any]]] = field(default_factory=list)

    @property
    def is_linear_so_far(self) -> bool:
        return not self.rectified and not self.stages and self.windows.shape[1] == 1

    def read(self, operation: Operation, runner: Runner) -> bool:
        """Take the operation in; False if the kernels have no place for it."""
        kind = operation.kind
        fits = kind in IDENTITIES
        if kind in FLATTENING:
            fits = self._flatten(operation)
        elif kind == "linear":
            fits = self._multiply(*weight_and_bias(operation, runner))
        elif kind == "batch_norm":
            fits = self._normalise(operation, runner)
        elif kind == "max_pool2d":
            fits = self._pool(operation)
        elif kind == "relu":
            fits = self.affine is None
            self.rectified = True
        elif kind in MONOTONE:
            fits = operation.name == runner.graph.output and operation.args[1] in {1, -1}
        return fits

    def _flatten(self, operation: Operation) -> bool:
        self.shape = (int(np.prod(self.shape)),)
        return operation.shape == (None, *self.shape)

    def _multiply(self, matrix: Tensor, bias: Tensor | None) -> bool:
        if len(self.shape) != 1:
            return False
        bias = torch.zeros_like(matrix[:, 0]) if bias is None else bias
        if self.affine is not None:
            scale, shift = self.affine
            matrix, bias = matrix * scale, bias + matrix @ shift
            self.affine = None
        self.shape = (len(bias),)
        if self.is_linear_so_far:
            self.leading.append((matrix, bias))
            self.windows = _each_alone(len(bias))
        else:
            self.stages.append((self.rectified, matrix.numpy(), bias.numpy()))
            self.rectified = False
        return True

    def _normalise(self, operation: Operation, runner: Runner) -> bool:
        if self.affine is not None or (self.stages and not self.rectified):
            return False
        scale, shift = scale_and_shift(operation, runner.tensors)
        positions = int(np.prod(self.shape)) // len(scale)
        affine = scale.repeat_interleave(positions), shift.repeat_interleave(positions)
        if self.is_linear_so_far:
            self.leading.append(affine)
        else:
            self.affine = affine
        return True

    def _pool(self, operation: Operation) -> bool:
        if self.stages or self.affine is not None or len(self.shape) != 3:
            return False
        if any(argument not in ([0, 0], [1, 1], False) for argument in operation.args[3:]):
            return False  # padding, dilation or ceil_mode
        kernel = operation.args[1]
        stride = operation.args[2] if len(operation.args) > 2 and operation.args[2] else kernel
        numbers = torch.arange(len(self.windows)).reshape(self.shape)
        tiles = numbers.unfold(1, kernel[0], stride[0]).unfold(2, kernel[-1], stride[-1])
        self.shape = tuple(tiles.shape[:3])
        members = tiles.reshape(-1, kernel[0] * kernel[-1]).numpy()
        self.windows = self.windows[members].reshape(len(members), -1)
        return operation.shape == (None, *self.shape)


def read_head(split: Split, runner: Runner) -> Head | None:
    """Read the suffix as max pooling, linear layers and ReLUs; None if it is anything else."""
    consumer = split.consumer
    if consumer is None or consumer.shape is None or None in consumer.shape[1:]:
        return None
    weight, _ = weight_and_bias(consumer, runner)
    if weight.device.type != "cpu" or weight.dtype not in {torch.float32, torch.float64}:
        return None
    shape = tuple(int(size or 0) for size in consumer.shape[1:])
    reader = _Reader(shape, _each_alone(int(np.prod(shape))))
    if not _read_all(split.suffix, split.start, reader, runner):
        return None
    is_plain = reader.windows.shape[1] == 1 or bool(reader.stages)
    if len(reader.shape) != 1 or reader.affine is not None or not is_plain:
        return None
    dtype = weight.numpy().dtype
    perceptron = pack(reader.windows, reader.stages, relu_at_end=reader.rectified, dtype=dtype)
    return Head(tuple(reader.leading), perceptron)


def _read_all(suffix: Sequence[Operation], start: str, reader: _Reader, runner: Runner) -> bool:
    """Read operations that form one chain; False at the first that does not fit."""
    current = start
    for operation in suffix:
        if operation.shape is None:  # a batch size for a reshape
            continue
        tensors = [name for name in operation.refs if runner.graph.by_name[name].shape is not None]
        if operation.args[:1] != (Ref(current),) or tensors != [current]:
            return False
        if not reader.read(operation, runner):
            return False
        current = operation.name
    return True


def _each_alone(features: int) -> NDArray[np.int64]:
    return np.arange(features, dtype=np.int64)[:, None]
