"""Depthwise convolutions, inverted residuals, shuffled groups: networks made for phones."""

import torch
from tests.architectures.architecture import CLASSES, Architecture
from tests.architectures.parts import Pooled, SqueezeExcite, conv_norm
from torch import nn
from torch.nn import functional


def depthwise(width, size=3, *, stride=1, act=nn.ReLU):
    return conv_norm(width, width, size, stride=stride, groups=width, act=act)


def separable(before, after, stride):
    """MobileNet v1: a depthwise 3x3, then a 1x1."""
    return nn.Sequential(depthwise(before, stride=stride), conv_norm(before, after, 1))


def mobilenet_v1():
    return nn.Sequential(
        conv_norm(3, 8, stride=2),
        separable(8, 12, 1),
        separable(12, 16, 2),
        separable(16, 16, 1),
        separable(16, 24, 2),
        Pooled(24),
    )


class Inverted(nn.Module):
    """Expand with 1x1, depthwise, gate if there is one, 1x1 without activation, sum."""

    def __init__(
        self, before, after, stride, *, expand=3, size=3, act=nn.ReLU6, gate=None, drop=0.0
    ):
        super().__init__()
        inner = before * expand
        layers = [] if expand == 1 else [conv_norm(before, inner, 1, act=act)]
        layers.append(depthwise(inner, size, stride=stride, act=act))
        if gate is not None:
            layers.append(gate(inner))
        layers.append(conv_norm(inner, after, 1, act=None))
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and before == after
        self.drop = drop

    def forward(self, x):
        if not self.use_res_connect:
            return self.conv(x)
        return x + self.leave_out(self.conv(x))

    def leave_out(self, x):
        """In training, drop the whole branch of some examples (stochastic depth)."""
        if not self.training or self.drop == 0:
            return x
        kept = torch.rand(len(x), 1, 1, 1, dtype=x.dtype) >= self.drop
        return x * kept / (1 - self.drop)


class MobileNetV2(nn.Module):
    """Inverted residuals; global average by `mean`."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            conv_norm(3, 8, stride=2, act=nn.ReLU6),
            Inverted(8, 6, 1, expand=1),
            Inverted(6, 8, 2),
            Inverted(8, 8, 1),
            Inverted(8, 12, 2),
            Inverted(12, 12, 1),
            conv_norm(12, 24, 1, act=nn.ReLU6),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(24, CLASSES))

    def forward(self, x):
        return self.classifier(self.features(x).mean([2, 3]))


def _hard_gate(width):
    return SqueezeExcite(width, max(width // 4, 4), gate=nn.Hardsigmoid)


def mobilenet_v3():
    """Gates and hard swishes in some of the blocks, a hidden linear layer at the end."""
    hard = nn.Hardswish
    return nn.Sequential(
        conv_norm(3, 8, stride=2, act=hard),
        Inverted(8, 8, 1, expand=1, act=nn.ReLU, gate=_hard_gate),
        Inverted(8, 12, 2, act=nn.ReLU),
        Inverted(12, 12, 1, size=5, act=hard, gate=_hard_gate),
        Inverted(12, 12, 1, size=5, act=hard),
        conv_norm(12, 24, 1, act=hard),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 20),
        hard(),
        nn.Dropout(0.2),
        nn.Linear(20, CLASSES),
    )


def shuffle(x, groups):
    """Interleave the channels of the groups."""
    examples, channels, height, width = x.size()
    x = x.view(examples, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(examples, channels, height, width)


class GroupedShuffle(nn.Module):
    """ShuffleNet v1: grouped 1x1, shuffle, depthwise, grouped 1x1; summed or appended."""

    def __init__(self, before, after, stride, groups=2, inner=8):
        super().__init__()
        made = after - before if stride == 2 else after  # the pooled input makes up the rest
        self.stride, self.groups = stride, groups
        self.reduce = conv_norm(before, inner, 1, groups=groups)
        self.depthwise = depthwise(inner, stride=stride, act=None)
        self.expand = conv_norm(inner, made, 1, groups=groups, act=None)

    def forward(self, x):
        out = self.expand(self.depthwise(shuffle(self.reduce(x), self.groups)))
        if self.stride == 1:
            return functional.relu(x + out)
        pooled = functional.avg_pool2d(x, 3, stride=2, padding=1)
        return functional.relu(torch.cat((pooled, out), 1))


def shufflenet_v1():
    return nn.Sequential(
        conv_norm(3, 8, stride=2),
        GroupedShuffle(8, 16, 2),
        GroupedShuffle(16, 16, 1),
        GroupedShuffle(16, 24, 2),
        GroupedShuffle(24, 24, 1),
        Pooled(24),
    )


class SplitShuffle(nn.Module):
    """ShuffleNet v2: half of the channels pass, the other half is worked on; then a shuffle."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.stride = stride
        half = after // 2
        if stride == 2:
            self.left = nn.Sequential(
                depthwise(before, stride=2, act=None), conv_norm(before, half, 1)
            )
        self.right = nn.Sequential(
            conv_norm(before if stride == 2 else half, half, 1),
            depthwise(half, stride=stride, act=None),
            conv_norm(half, half, 1),
        )

    def forward(self, x):
        if self.stride == 1:
            kept, worked = x.chunk(2, dim=1)
            out = torch.cat((kept, self.right(worked)), dim=1)
        else:
            out = torch.cat((self.left(x), self.right(x)), dim=1)
        examples, channels, height, width = out.shape
        out = out.reshape(examples, 2, channels // 2, height, width)
        return out.transpose(1, 2).reshape(examples, channels, height, width)


def shufflenet_v2():
    return nn.Sequential(
        conv_norm(3, 6, stride=2),
        SplitShuffle(6, 12, 2),
        SplitShuffle(12, 12, 1),
        SplitShuffle(12, 16, 2),
        SplitShuffle(16, 16, 1),
        conv_norm(16, 20, 1),
        Pooled(20),
    )


def efficientnet():
    def gate(width):
        return SqueezeExcite(width, 3, act=nn.SiLU)

    def block(before, after, stride, **options):
        return Inverted(before, after, stride, act=nn.SiLU, gate=gate, drop=0.2, **options)

    return nn.Sequential(
        conv_norm(3, 8, stride=2, act=nn.SiLU),
        block(8, 6, 1, expand=1),
        block(6, 8, 2),
        block(8, 8, 1),
        block(8, 12, 2, size=5),
        block(12, 12, 1, size=5),
        conv_norm(12, 20, 1, act=nn.SiLU),
        Pooled(20, dropout=0.2),
    )


class Ghost(nn.Module):
    """Half of the channels by a convolution, the others cheaply from them, cut to `after`."""

    def __init__(self, before, after, act=nn.ReLU):
        super().__init__()
        self.after = after
        made = (after + 1) // 2
        self.primary = conv_norm(before, made, 1, act=act)
        self.cheap = conv_norm(made, made, 3, groups=made, act=act)

    def forward(self, x):
        primary = self.primary(x)
        both = torch.cat([primary, self.cheap(primary)], dim=1)
        return both[:, : self.after, :, :]


class GhostBottleneck(nn.Module):
    """Two ghost modules, a depthwise convolution between them if the map shrinks, sum."""

    def __init__(self, before, inner, after, stride):
        super().__init__()
        self.ghost1 = Ghost(before, inner)
        self.down = depthwise(inner, stride=2, act=None) if stride == 2 else nn.Identity()
        self.gate = SqueezeExcite(inner, 4, gate=nn.Hardsigmoid)
        self.ghost2 = Ghost(inner, after, act=None)
        self.shortcut = nn.Identity()
        if stride == 2 or before != after:
            self.shortcut = nn.Sequential(
                depthwise(before, stride=stride, act=None), conv_norm(before, after, 1, act=None)
            )

    def forward(self, x):
        out = self.ghost2(self.gate(self.down(self.ghost1(x))))
        return out + self.shortcut(x)


def ghostnet():
    return nn.Sequential(
        conv_norm(3, 8, stride=2),
        GhostBottleneck(8, 12, 8, 1),
        GhostBottleneck(8, 16, 11, 2),  # an odd width, so that something is cut off
        GhostBottleneck(11, 16, 11, 1),
        conv_norm(11, 20, 1),
        Pooled(20),
    )


MOBILE = (
    Architecture("mobilenet-v1", mobilenet_v1),
    Architecture("mobilenet-v2", MobileNetV2),
    Architecture("mobilenet-v3", mobilenet_v3),
    Architecture("shufflenet-v1", shufflenet_v1),
    Architecture("shufflenet-v2", shufflenet_v2),
    Architecture("efficientnet", efficientnet),
    Architecture("ghostnet", ghostnet),
)
