"""What several families share."""

import torch
from tests.architectures.architecture import CLASSES
from torch import Tensor, nn


def conv_norm(before, after, size=3, *, stride=1, groups=1, act=nn.ReLU, **options):
    """A convolution that keeps the map's size but for the stride, BatchNorm, activation."""
    conv = nn.Conv2d(
        before, after, size, stride, padding=size // 2, groups=groups, bias=False, **options
    )
    return nn.Sequential(conv, nn.BatchNorm2d(after), *([act()] if act else []))


class Pooled(nn.Module):
    """Global average, dropout, linear layer."""

    def __init__(self, width, classes=CLASSES, dropout=0.0):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(torch.flatten(self.pool(x), 1)))


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate that two 1x1 convolutions read off the channels' means."""

    def __init__(self, width, hidden, act=nn.ReLU, gate=nn.Sigmoid):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(width, hidden, 1)
        self.act = act()
        self.expand = nn.Conv2d(hidden, width, 1)
        self.gate = gate()

    def forward(self, x):
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))
