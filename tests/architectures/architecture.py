"""What a test needs to know of an architecture, and the numbers it is filled with."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from tests.architectures.weights import calibrate, draw_weights
from tests.cases import Batches, seeded
from torch import Tensor, nn

CLASSES = 10
PICTURE = (3, 32, 32)


def drawing(*words: str) -> seeded:
    """Draw from a seed to which every letter counts; `seeded` reads the last eight of its text."""
    return seeded(hashlib.sha256(" ".join(words).encode()).hexdigest())


@dataclass(frozen=True)
class Architecture:
    """A small network of a well-known family.

    Attributes
    ----------
    name : also the seed of its weights and inputs.
    build : makes the network; its weights are drawn afterwards.
    shape : of one example.
    classes : number of logits; None if the output is a map, a picture or a code.
    vocabulary : inputs are whole numbers below it; None if they are real numbers.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = PICTURE
    classes: int | None = CLASSES
    vocabulary: int | None = None

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Make the network, the same one each time, in training mode."""
        with drawing(self.name):
            model = draw_weights(self.build().double())
        calibrate(model, self.inputs(8), balanced=self.classes is not None)
        return model.to(dtype).train()  # whoever scores it has to turn that off

    def batches(self, dtype: torch.dtype = torch.float64, sizes: Iterable[int] = (4, 3)) -> Batches:
        """Batches of these sizes of the same examples, however they are cut.

        Three quarters of the labels are the network's own answers, so that units are worth
        something; they are zeros where there are no classes.
        """
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        inputs = self.inputs(ends[-1])
        targets = self._targets(inputs)
        inputs = inputs if self.vocabulary else inputs.to(dtype)
        return [(inputs[a:b], targets[a:b]) for a, b in pairwise(ends)]

    def inputs(self, examples: int) -> Tensor:
        """Inputs in float64, or whole numbers; more of them begin with the same ones."""
        with drawing(self.name, "inputs"):
            return torch.stack([self._input() for _ in range(examples)])

    def _input(self) -> Tensor:
        if self.vocabulary is not None:
            return torch.randint(self.vocabulary, self.shape)
        return torch.randn(self.shape, dtype=torch.float64)

    def _targets(self, inputs: Tensor) -> Tensor:
        if self.classes is None:
            return torch.zeros(len(inputs), dtype=torch.long)
        with torch.no_grad():
            own = self.model().eval()(inputs).argmax(dim=1)
        with drawing(self.name, "labels"):
            drawn = [(torch.rand(()) < 0.75, torch.randint(self.classes, ())) for _ in own]
        honest, other = (torch.stack(column) for column in zip(*drawn, strict=True))
        return torch.where(honest, own, other)

    def __str__(self) -> str:
        return self.name
