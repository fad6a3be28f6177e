"""Which suffixes the compiled loops take; that they compute the same is in test_game.py."""

import pytest
import torch
from tests.cases import chain, conv, look
from torch import nn

CLASSIFIER = (nn.Flatten(), nn.Linear(12, 3))


def is_compiled(*suffix, dtype=torch.float64):
    """Whether loops run what stands behind conv1, ReLU and conv2."""
    model = chain(conv1=conv(1, 2), act=nn.ReLU(), conv2=conv(2, 3), rest=nn.Sequential(*suffix))
    observer = look(model.to(dtype), [(torch.randn(4, 1, 5, 5, dtype=dtype), torch.arange(4) % 3)])
    return observer.ways("conv1")[0] == "additive, compiled"


TAKEN = {
    "pooling": (nn.ReLU(), nn.MaxPool2d(2, stride=1), *CLASSIFIER),
    "a linear map at once": (nn.Flatten(), nn.Linear(27, 3)),
    "dropout": (nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(27, 3)),
    "norms": (nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 3)),
    "softmax at the end": (nn.ReLU(), nn.Flatten(), nn.Linear(27, 3), nn.Softmax(dim=-1)),
    "relu at the end": (nn.Flatten(), nn.Linear(27, 3), nn.ReLU()),
}
LEFT = {
    "another activation": (nn.Tanh(), nn.Flatten(), nn.Linear(27, 3)),
    "average pooling": (nn.AvgPool2d(2, stride=1), nn.ReLU(), *CLASSIFIER),
    "padded pooling": (nn.ReLU(), nn.MaxPool2d(2, padding=1), *CLASSIFIER),
    "dilated pooling": (nn.ReLU(), nn.MaxPool2d(2, stride=1, dilation=2), nn.Flatten(),
                        nn.Linear(3, 3)),
    "softmax before the end": (nn.Flatten(), nn.Linear(27, 4), nn.Softmax(dim=1),
                               nn.Linear(4, 3)),
    "another convolution": (nn.ReLU(), conv(3, 3), nn.Flatten(), nn.Linear(12, 3)),
}  # fmt: skip


@pytest.mark.parametrize("suffix", TAKEN.values(), ids=TAKEN)
def test_taken(suffix):
    assert is_compiled(*suffix)


@pytest.mark.parametrize("suffix", LEFT.values(), ids=LEFT)
def test_left_to_plain_torch(suffix):
    assert not is_compiled(*suffix)


@pytest.mark.parametrize(
    ("dtype", "compiled"),
    [(torch.float32, True), (torch.float64, True), (torch.bfloat16, False)],
)
def test_precisions(dtype, compiled):
    assert is_compiled(nn.Flatten(), nn.Linear(27, 3), dtype=dtype) == compiled
