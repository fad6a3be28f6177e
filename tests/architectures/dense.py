"""Branches and layers whose results are laid side by side: DenseNet, Inception, SqueezeNet."""

import torch
from tests.architectures.architecture import CLASSES, Architecture
from tests.architectures.parts import Pooled, conv_norm
from torch import nn
from torch.nn import functional


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1x1, BatchNorm, ReLU, 3x3, on everything so far."""

    def __init__(self, before, growth, hidden):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, hidden, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, growth, 3, padding=1, bias=False)

    def forward(self, features):
        x = torch.cat(features, 1)
        x = self.conv1(functional.relu(self.norm1(x)))
        return self.conv2(functional.relu(self.norm2(x)))


class DenseBlock(nn.ModuleList):
    """Each layer reads the results of all before it."""

    def __init__(self, before, growth=4, layers=3):
        super().__init__(DenseLayer(before + at * growth, growth, 8) for at in range(layers))
        self.width = before + layers * growth

    def forward(self, x):
        features = [x]
        for layer in self:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Two dense blocks with a transition that halves channels and map."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.block1 = DenseBlock(8)
        half = self.block1.width // 2
        self.transition = nn.Sequential(
            nn.BatchNorm2d(self.block1.width),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.block1.width, half, 1, bias=False),
            nn.AvgPool2d(2, 2),
        )
        self.block2 = DenseBlock(half)
        self.norm = nn.BatchNorm2d(self.block2.width)
        self.classifier = nn.Linear(self.block2.width, CLASSES)

    def forward(self, x):
        x = self.block2(self.transition(self.block1(self.stem(x))))
        x = functional.relu(self.norm(x), inplace=True)
        x = functional.adaptive_avg_pool2d(x, (1, 1))
        return self.classifier(torch.flatten(x, 1))


class Branches(nn.Module):
    """Run on the same input, laid side by side."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def four_branches(before, one, three, five, pooled):
    """1x1; 1x1 and 3x3; 1x1 and 5x5; max pooling and 1x1."""
    return Branches(
        conv_norm(before, one, 1),
        nn.Sequential(conv_norm(before, three[0], 1), conv_norm(*three, 3)),
        nn.Sequential(conv_norm(before, five[0], 1), conv_norm(*five, 5)),
        nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv_norm(before, pooled, 1)),
    )


def inception_v1():
    return nn.Sequential(
        conv_norm(3, 8, 5, stride=2),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        four_branches(8, 4, (4, 6), (3, 4), 3),
        four_branches(17, 5, (4, 6), (3, 4), 4),
        Pooled(19, dropout=0.4),
    )


def _one_way(before, after, size):
    """A convolution along one side of the map, with BatchNorm and ReLU."""
    padding = tuple(side // 2 for side in size)
    conv = nn.Conv2d(before, after, size, padding=padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after, eps=0.001), nn.ReLU(inplace=True))


def factorised(before, width=6, inner=4):
    """1x1; 1x7 and 7x1; the same twice; average pooling and 1x1."""
    across, along = (1, 7), (7, 1)
    return Branches(
        _one_way(before, width, (1, 1)),
        nn.Sequential(
            _one_way(before, inner, (1, 1)),
            _one_way(inner, inner, across),
            _one_way(inner, width, along),
        ),
        nn.Sequential(
            _one_way(before, inner, (1, 1)),
            _one_way(inner, inner, along),
            _one_way(inner, inner, across),
            _one_way(inner, inner, along),
            _one_way(inner, width, across),
        ),
        nn.Sequential(
            nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=True),
            _one_way(before, width, (1, 1)),
        ),
    )


def reduction(before, width=6):
    """A strided 3x3 and max pooling, side by side: the pooled channels stay what they were."""
    return Branches(
        nn.Sequential(conv_norm(before, width, 1), conv_norm(width, width, stride=2)),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def inception_v3():
    return nn.Sequential(
        conv_norm(3, 8, stride=2), factorised(8), reduction(24), factorised(30), Pooled(24)
    )


class Fire(nn.Module):
    """Squeeze with 1x1, expand with 1x1 and 3x3, side by side."""

    def __init__(self, before, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(before, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.act(self.squeeze(x))
        return torch.cat([self.act(self.expand1x1(x)), self.act(self.expand3x3(x))], 1)


class Bypassed(nn.Module):
    """The variant of SqueezeNet with a shortcut around a module."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def squeezenet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(8, 4, 6),
        Bypassed(Fire(12, 4, 6)),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(12, 6, 8),
        nn.Dropout(),
        nn.Conv2d(16, CLASSES, 1),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )


DENSE = (
    Architecture("densenet", DenseNet),
    Architecture("inception-v1", inception_v1),
    Architecture("inception-v3", inception_v3),
    Architecture("squeezenet", squeezenet),
)
