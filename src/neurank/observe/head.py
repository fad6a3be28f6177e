"""Recognising a suffix that is a perceptron, for the compiled kernels."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neurank.observe.execution import Runner, weight_and_bias
from neurank.observe.kernels.perceptron import Perceptron, pack
from neurank.units.graph import Operation, Ref
from neurank.units.split import Split

IDENTITIES = frozenset({"dropout", "alias", "clone", "detach", "contiguous"})
MONOTONE = frozenset({"log_softmax", "softmax"})
"""They leave the order of the logits as it is; only the largest counts here."""


def perceptron_head(split: Split, runner: Runner) -> Perceptron | None:
    """Pack the suffix if it is linear layers, ReLUs and nothing else; None otherwise."""
    assert split.consumer is not None
    shape = split.consumer.shape
    consumer_weight = runner.tensors[split.consumer.weights[0]]
    if shape is None or len(shape) != 2 or consumer_weight.device.type != "cpu":
        return None
    if consumer_weight.dtype not in (torch.float32, torch.float64):
        return None
    stages: list[tuple[bool, NDArray[Any], NDArray[Any]]] = []
    rectified = False
    current = split.start
    for operation in split.suffix:
        if operation.args[:1] != (Ref(current),) or operation.refs != (current,):
            return None
        if operation.kind == "relu":
            rectified = True
        elif operation.kind == "linear":
            stages.append((rectified, *_matrix(operation, runner)))
            rectified = False
        elif not _keeps_the_winner(operation, runner):
            return None
        current = operation.name
    dtype = consumer_weight.numpy().dtype
    return pack(int(shape[1] or 0), stages, relu_at_end=rectified, dtype=dtype)


def _keeps_the_winner(operation: Operation, runner: Runner) -> bool:
    """Whether the largest logit is the same before and after."""
    if operation.kind in IDENTITIES:
        return True
    is_last = operation.name == runner.graph.output
    return operation.kind in MONOTONE and is_last and operation.args[1] in {1, -1}


def _matrix(operation: Operation, runner: Runner) -> tuple[NDArray[Any], NDArray[Any]]:
    weight, bias = weight_and_bias(operation, runner)
    matrix = weight.numpy()
    return matrix, np.zeros(len(matrix), matrix.dtype) if bias is None else bias.numpy()
