"""Scores of single weights, masks made of them, and masks in training."""

from neurank.weights.curvature import hessian, hessian_diagonal
from neurank.weights.holding import Held, hold
from neurank.weights.masks import Masks, loss_change, mask
from neurank.weights.methods import (
    Hessian,
    LossChange,
    Magnitude,
    Method,
    Random,
    Taylor1,
    Taylor2,
)
from neurank.weights.scores import WeightScores
from neurank.weights.scoring import score

__all__ = [
    "Held",
    "Hessian",
    "LossChange",
    "Magnitude",
    "Masks",
    "Method",
    "Random",
    "Taylor1",
    "Taylor2",
    "WeightScores",
    "hessian",
    "hessian_diagonal",
    "hold",
    "loss_change",
    "mask",
    "score",
]
