"""Blocks whose result is added to what came in: ResNet and those after it."""

import torch
from tests.architectures.architecture import Architecture
from tests.architectures.parts import Pooled, SqueezeExcite, conv_norm
from torch import nn
from torch.nn import functional


def shortcut(before, after, stride):
    """Nothing where shapes agree, else a 1x1 convolution with BatchNorm."""
    if before == after and stride == 1:
        return nn.Identity()
    return conv_norm(before, after, 1, stride=stride, act=None)


class Basic(nn.Module):
    """Two 3x3 convolutions; the sum passes a ReLU."""

    def __init__(self, before, after, stride, attention=nn.Identity):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.attention = attention()
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(before, after, stride)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.attention(self.bn2(self.conv2(out)))
        out += self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 (in groups, maybe), 1x1."""

    def __init__(self, before, after, stride, inner=6, groups=1):
        super().__init__()
        self.reduce = conv_norm(before, inner, 1)
        self.conv = conv_norm(inner, inner, 3, stride=stride, groups=groups)
        self.expand = conv_norm(inner, after, 1, act=None)
        self.downsample = shortcut(before, after, stride)

    def forward(self, x):
        out = self.expand(self.conv(self.reduce(x)))
        return functional.relu(out + self.downsample(x))


class ParameterFree(nn.Module):
    """A basic block whose shortcut drops every other pixel and pads channels with zeros."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.changes = stride != 1 or before != after
        self.padding = (after - before) // 2

    def shortcut(self, x):
        if not self.changes:
            return x
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))

    def forward(self, x):
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return functional.relu(out)


class PreActivation(nn.Module):
    """BatchNorm and ReLU come before each convolution; sums stay as they are."""

    def __init__(self, before, after, stride, dropout=0.0):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.dropout = dropout
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.project = None
        if before != after or stride != 1:
            self.project = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x):
        active = functional.relu(self.bn1(x))
        kept = x if self.project is None else self.project(active)
        out = functional.relu(self.bn2(self.conv1(active)))
        out = functional.dropout(out, self.dropout, self.training)
        return self.conv2(out) + kept


class ChannelAndSpace(nn.Module):
    """CBAM: a gate per channel from means and maxima, then a gate per place."""

    def __init__(self, width, hidden=4):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, width, 1)
        )
        self.space = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        mean = self.mlp(functional.adaptive_avg_pool2d(x, 1))
        highest = self.mlp(functional.adaptive_max_pool2d(x, 1))
        x = x * torch.sigmoid(mean + highest)
        summary = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.space(summary))


class NeighbourGate(nn.Module):
    """ECA: the gate of a channel is read off the means of the channels beside it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        means = x.mean(dim=(2, 3)).unsqueeze(1)  # (examples, 1, channels)
        gate = torch.sigmoid(self.conv(means)).transpose(1, 2).unsqueeze(-1)
        return x * gate


class Scales(nn.Module):
    """Res2Net: the channels in `scales` parts; each part also receives the part before it."""

    def __init__(self, before, after, stride, part=3, scales=4):
        super().__init__()
        self.reduce = conv_norm(before, part * scales, 1, stride=stride)
        self.convs = nn.ModuleList(conv_norm(part, part) for _ in range(scales - 1))
        self.expand = conv_norm(part * scales, after, 1, act=None)
        self.scales = scales
        self.downsample = shortcut(before, after, stride)

    def forward(self, x):
        first, *others = torch.chunk(self.reduce(x), self.scales, dim=1)
        done = [first]
        for at, (conv, part) in enumerate(zip(self.convs, others, strict=True)):
            done.append(conv(part if at == 0 else part + done[-1]))
        return functional.relu(self.expand(torch.cat(done, dim=1)) + self.downsample(x))


class ResNet(nn.Module):
    """A stem, stages of two blocks each, global average, linear layer."""

    def __init__(self, block, widths=(8, 12, 16), end=nn.Identity, **options):
        super().__init__()
        self.stem = conv_norm(3, widths[0], 3, stride=2)
        blocks, before = [], widths[0]
        for stage, width in enumerate(widths):
            blocks.append(block(before, width, 1 if stage == 0 else 2, **options))
            blocks.append(block(width, width, 1, **options))
            before = width
        self.blocks = nn.Sequential(*blocks)
        self.end = end()
        self.head = Pooled(before)

    def forward(self, x):
        return self.head(self.end(self.blocks(self.stem(x))))


def preactivated(widths=(8, 12, 16), **options):
    def end():
        return nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU())

    return ResNet(PreActivation, widths, end, **options)


def with_attention(make):
    """Basic blocks with attention behind the second BatchNorm; `make` takes the width."""

    def block(before, after, stride):
        return Basic(before, after, stride, attention=lambda: make(after))

    return ResNet(block, widths=(8, 12))


class DualPath(nn.Module):
    """DPN: the first channels of a result are added, the others are appended."""

    def __init__(self, before, shared, inner, growth, *, first=False):
        super().__init__()
        self.shared = shared
        self.project = conv_norm(before, shared + growth, 1) if first else None
        self.inner = nn.Sequential(conv_norm(before, inner, 1), conv_norm(inner, inner, groups=2))
        self.expand = conv_norm(inner, shared + growth, 1, act=None)

    def forward(self, x):
        kept = x if self.project is None else self.project(x)
        out = self.expand(self.inner(x))
        summed = kept[:, : self.shared] + out[:, : self.shared]
        return torch.cat([summed, kept[:, self.shared :], out[:, self.shared :]], dim=1)


def dual_path(shared=8, growth=3):
    # The first block leaves shared + 2 growth channels, each of the others adds growth.
    return nn.Sequential(
        conv_norm(3, 6, stride=2),
        DualPath(6, shared, 8, growth, first=True),
        DualPath(shared + 2 * growth, shared, 8, growth),
        nn.MaxPool2d(2),
        DualPath(shared + 3 * growth, shared, 8, growth),
        nn.BatchNorm2d(shared + 4 * growth),
        nn.ReLU(),
        Pooled(shared + 4 * growth),
    )


RESIDUAL = (
    Architecture("resnet-basic", lambda: ResNet(Basic)),
    Architecture("resnet-bottleneck", lambda: ResNet(Bottleneck, widths=(12, 16, 20))),
    Architecture("resnet-zero-padded", lambda: ResNet(ParameterFree, widths=(6, 12, 16))),
    Architecture("resnet-preactivation", preactivated),
    Architecture("wide-resnet", lambda: preactivated(widths=(12, 24), dropout=0.3)),
    Architecture("resnext-many-groups", lambda: ResNet(Bottleneck, inner=12, groups=6)),
    Architecture("resnext-two-groups", lambda: ResNet(Bottleneck, inner=12, groups=2)),
    Architecture("se-resnet", lambda: with_attention(lambda width: SqueezeExcite(width, 4))),
    Architecture("cbam-resnet", lambda: with_attention(ChannelAndSpace)),
    Architecture("eca-resnet", lambda: with_attention(lambda _: NeighbourGate())),
    Architecture("res2net", lambda: ResNet(Scales, widths=(12, 16))),
    Architecture("dual-path", dual_path),
)
