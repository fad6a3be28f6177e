"""Small games by the hundred: one traced network whose weights and data are drawn anew."""

import math
from dataclasses import replace
from functools import cache

import torch
from tests.cases import CLASSES, look, perceptron

import neurank as nr
from neurank.observe.examples import check_examples

LAYERS = ("fc0", "fc1")


@cache
def _frame():
    inputs = torch.zeros(2, 4, dtype=torch.float64)
    return look(perceptron(4, 8, 6, CLASSES).double(), [(inputs, torch.tensor([0, 1]))])


def drawn_game(seed, examples=300, **changes):
    """Watch a 4-8-6-3 perceptron with weights and examples drawn by `seed`.

    Three labels of four are its own answers, and no class wins everywhere.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    frame = _frame()
    tensors = {
        name: normal(*tensor.shape) * 1.6 / math.sqrt(max(1, tensor[0].numel()))
        for name, tensor in frame.runner.tensors.items()
    }
    runner = replace(frame.runner, tensors=tensors)
    inputs = normal(examples, 4)
    (logits,) = runner.forward(inputs, runner.graph.output)
    tensors["fc2.bias"] -= logits.mean(dim=0)
    answers = (logits - logits.mean(dim=0)).argmax(dim=1)
    others = torch.randint(CLASSES, (examples,), generator=draw)
    own = torch.rand(examples, generator=draw) < 0.75
    game = replace(frame, runner=runner, seed=seed, **changes)
    return on(game, inputs, torch.where(own, answers, others))


def on(game, inputs, targets):
    """The same network on other examples."""
    return replace(game, examples=check_examples([(inputs, targets)], torch.device("cpu")))


def exact(game, layer):
    return nr.ExactShapley().score(game, layer).ranking.scores
