"""Tokens mixed without attention, and layers that gate each other."""

import torch
from tests.architectures.architecture import CLASSES, Architecture
from tests.architectures.attention import mlp
from torch import nn
from torch.nn import functional

WIDTH, TOKENS = 12, 16


class MixerBlock(nn.Module):
    """An MLP across the tokens, then one across the channels."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.tokens = mlp(TOKENS, expand=1)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.channels = mlp(WIDTH)

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class SpatialGating(nn.Module):
    """gMLP: one half of the channels, mixed across tokens, multiplies the other."""

    def __init__(self, half):
        super().__init__()
        self.norm = nn.LayerNorm(half)
        self.mix = nn.Conv1d(TOKENS, TOKENS, 1)

    def forward(self, x):
        u, v = x.chunk(2, dim=-1)
        return u * self.mix(self.norm(v))


class GatedBlock(nn.Module):
    """Expand, gate, shrink, sum."""

    def __init__(self, hidden=10):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.expand = nn.Linear(WIDTH, 2 * hidden)
        self.gating = SpatialGating(hidden)
        self.shrink = nn.Linear(hidden, WIDTH)

    def forward(self, x):
        return x + self.shrink(self.gating(functional.gelu(self.expand(self.norm(x)))))


class Mixer(nn.Module):
    """Patches, two blocks, the mean over the tokens."""

    def __init__(self, block):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.blocks = nn.Sequential(block(), block())
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


class SwiGLU(nn.Module):
    """As in LLaMA: RMSNorm, silu of one linear layer times another, a third, sum."""

    def __init__(self, width, hidden):
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        h = self.norm(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


def gated_mlp():
    return nn.Sequential(
        nn.Linear(16, 12), SwiGLU(12, 18), SwiGLU(12, 18), nn.RMSNorm(12), nn.Linear(12, CLASSES)
    )


class Skip(nn.Module):
    """A narrow linear layer between wide ones, with BatchNorm, and a way around it."""

    def __init__(self, width, narrow):
        super().__init__()
        self.down = nn.Linear(width, narrow, bias=False)
        self.bn1 = nn.BatchNorm1d(narrow)
        self.up = nn.Linear(narrow, width, bias=False)
        self.bn2 = nn.BatchNorm1d(width)

    def forward(self, x):
        out = functional.relu(self.bn1(self.down(x)))
        return functional.relu(self.bn2(self.up(out)) + x)


def bottleneck_mlp():
    return nn.Sequential(
        nn.Linear(16, 20),
        nn.BatchNorm1d(20),
        nn.ReLU(),
        Skip(20, 6),
        nn.Linear(20, 4),  # everything passes these four
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Linear(4, 20),
        nn.BatchNorm1d(20),
        nn.ReLU(),
        Skip(20, 6),
        nn.Linear(20, CLASSES),
    )


class Highway(nn.Module):
    """gate * h + (1 - gate) * x"""

    def __init__(self, width):
        super().__init__()
        self.h = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)

    def forward(self, x):
        gate = torch.sigmoid(self.gate(x))
        return gate * torch.relu(self.h(x)) + (1 - gate) * x


def highway():
    return nn.Sequential(
        nn.Linear(16, 14), nn.ReLU(), Highway(14), Highway(14), nn.Linear(14, CLASSES)
    )


MIXERS = (
    Architecture("mlp-mixer", lambda: Mixer(MixerBlock)),
    Architecture("gmlp", lambda: Mixer(GatedBlock)),
    Architecture("gated-mlp", gated_mlp, (16,)),
    Architecture("bottleneck-mlp", bottleneck_mlp, (16,)),
    Architecture("highway", highway, (16,)),
)
