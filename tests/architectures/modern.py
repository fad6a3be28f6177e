"""Convolutional networks after the transformer, and those whose branches melt into one."""

import torch
from tests.architectures.architecture import CLASSES, Architecture
from tests.architectures.parts import Pooled, SqueezeExcite, conv_norm
from tests.architectures.residual import shortcut
from torch import nn
from torch.nn import functional


class RegNetBlock(nn.Module):
    """1x1, 3x3 in groups of a fixed width, gate, 1x1, sum."""

    def __init__(self, before, after, stride, group_width=4):
        super().__init__()
        self.a = conv_norm(before, after, 1)
        self.b = conv_norm(after, after, 3, stride=stride, groups=after // group_width)
        self.gate = SqueezeExcite(after, before // 4)
        self.c = conv_norm(after, after, 1, act=None)
        self.project = shortcut(before, after, stride)

    def forward(self, x):
        return functional.relu(self.project(x) + self.c(self.gate(self.b(self.a(x)))))


def regnet():
    return nn.Sequential(
        conv_norm(3, 8, stride=2),
        RegNetBlock(8, 12, 2),
        RegNetBlock(12, 12, 1),
        RegNetBlock(12, 20, 2),
        RegNetBlock(20, 20, 1),
        Pooled(20),
    )


class ChannelsFirstNorm(nn.Module):
    """Layer norm over the channels at each place, written out."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, then channels last: LayerNorm, MLP, a scale per channel; sum."""

    def __init__(self, width, expand=3):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, expand * width)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(expand * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x):
        out = self.dwconv(x).permute(0, 2, 3, 1)
        out = self.gamma * self.pwconv2(self.act(self.pwconv1(self.norm(out))))
        return x + out.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Patches, two stages of two blocks, a norm behind the global average."""

    def __init__(self, widths=(8, 12)):
        super().__init__()
        first, second = widths
        self.stem = nn.Sequential(nn.Conv2d(3, first, 4, stride=4), ChannelsFirstNorm(first))
        self.stage1 = nn.Sequential(ConvNeXtBlock(first), ConvNeXtBlock(first))
        self.down = nn.Sequential(ChannelsFirstNorm(first), nn.Conv2d(first, second, 2, stride=2))
        self.stage2 = nn.Sequential(ConvNeXtBlock(second), ConvNeXtBlock(second))
        self.norm = nn.LayerNorm(second, eps=1e-6)
        self.head = nn.Linear(second, CLASSES)

    def forward(self, x):
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.head(self.norm(x.mean([-2, -1])))


class RepVGGBlock(nn.Module):
    """A 3x3, a 1x1 and, where shapes agree, a mere BatchNorm; summed, then a ReLU."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.dense = conv_norm(before, after, 3, stride=stride, act=None)
        self.point = conv_norm(before, after, 1, stride=stride, act=None)
        same = before == after and stride == 1
        self.identity = nn.BatchNorm2d(before) if same else None

    def forward(self, x):
        kept = 0 if self.identity is None else self.identity(x)
        return functional.relu(self.dense(x) + self.point(x) + kept)


def repvgg():
    return nn.Sequential(
        RepVGGBlock(3, 8, 2),
        RepVGGBlock(8, 8, 1),
        RepVGGBlock(8, 12, 2),
        RepVGGBlock(12, 12, 1),
        RepVGGBlock(12, 16, 2),
        Pooled(16),
    )


class Pooling(nn.Module):
    """PoolFormer's token mixer: how the neighbourhood's mean differs from the place itself."""

    def __init__(self, size=3):
        super().__init__()
        self.pool = nn.AvgPool2d(size, stride=1, padding=size // 2, count_include_pad=False)

    def forward(self, x):
        return self.pool(x) - x


class PoolFormerBlock(nn.Module):
    """Pooling, then an MLP of 1x1 convolutions, each behind a norm and with a layer scale."""

    def __init__(self, width, expand=3):
        super().__init__()
        self.norm1 = nn.GroupNorm(1, width)
        self.mixer = Pooling()
        self.norm2 = nn.GroupNorm(1, width)
        self.mlp = nn.Sequential(
            nn.Conv2d(width, expand * width, 1),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Conv2d(expand * width, width, 1),
        )
        self.scale1 = nn.Parameter(1e-5 * torch.ones(width))
        self.scale2 = nn.Parameter(1e-5 * torch.ones(width))

    def forward(self, x):
        x = x + self.scale1.unsqueeze(-1).unsqueeze(-1) * self.mixer(self.norm1(x))
        return x + self.scale2.unsqueeze(-1).unsqueeze(-1) * self.mlp(self.norm2(x))


def poolformer():
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=4, padding=2),
        PoolFormerBlock(8),
        PoolFormerBlock(8),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        PoolFormerBlock(12),
        PoolFormerBlock(12),
        nn.GroupNorm(1, 12),
        Pooled(12),
    )


MODERN = (
    Architecture("regnet", regnet),
    Architecture("convnext", ConvNeXt),
    Architecture("repvgg", repvgg),
    Architecture("poolformer", poolformer),
)
