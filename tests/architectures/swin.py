"""Swin: attention within windows that shift, a bias for each offset, patches that merge."""

import torch
from tests.architectures.architecture import CLASSES, Architecture
from tests.architectures.attention import mlp
from torch import Tensor, nn


def cut(x, window):
    """Cut maps, channels last, into windows: (examples * windows, window**2, width)."""
    examples, height, width, channels = x.shape
    x = x.view(examples, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def join(windows, window, side):
    """Undo `cut`."""
    channels = windows.shape[-1]
    number = side // window
    x = windows.view(-1, number, number, window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, side, side, channels)


def offsets(window) -> Tensor:
    """Which row of the bias table is for which pair of places in a window."""
    axis = torch.arange(window)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    apart = (places[:, :, None] - places[:, None, :]) + window - 1
    return apart[0] * (2 * window - 1) + apart[1]


def barriers(side, window, shift) -> Tensor:
    """Minus a hundred between places that met only because the map was rolled."""
    labels = torch.zeros(1, side, side, 1)
    parts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for row, rows in enumerate(parts):
        for column, columns in enumerate(parts):
            labels[:, rows, columns] = 3 * row + column
    labels = cut(labels, window).squeeze(-1)
    return (labels[:, None, :] != labels[:, :, None]) * -100.0  # (windows, places, places)


class WindowAttention(nn.Module):
    """Attention among the places of a window, with a learned bias for each offset."""

    def __init__(self, width, heads, window):
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("index", offsets(window))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x, mask):
        windows, places, width = x.shape
        qkv = self.qkv(x).reshape(windows, places, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(places, places, self.heads)
        scores = scores + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            each = len(mask)
            scores = scores.view(-1, each, self.heads, places, places) + mask[:, None]
            scores = scores.view(-1, self.heads, places, places)
        out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(windows, places, width)
        return self.proj(out)


class SwinBlock(nn.Module):
    """Roll, cut, attend, join, roll back; then an MLP."""

    def __init__(self, width, side, window, shift, heads=2):
        super().__init__()
        self.side, self.window, self.shift = side, window, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = mlp(width)
        self.register_buffer("mask", barriers(side, window, shift) if shift else None)

    def attended(self, x):
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        x = join(self.attn(cut(x, self.window), self.mask), self.window, self.side)
        if self.shift:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        return x

    def forward(self, x):
        x = x + self.attended(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    """Four neighbours become one place of twice the width."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x):
        corners = [x[:, row::2, column::2, :] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    """Two stages; the first has a plain block and a shifted one."""

    def __init__(self, width=8):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.LayerNorm(width)
        self.stage1 = nn.Sequential(SwinBlock(width, 8, 4, 0), SwinBlock(width, 8, 4, 2))
        self.merge = Merging(width)
        self.stage2 = SwinBlock(2 * width, 4, 4, 0)
        self.end = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x):
        x = self.norm(self.patches(x).permute(0, 2, 3, 1))
        x = self.end(self.stage2(self.merge(self.stage1(x))))
        return self.head(x.mean(dim=(1, 2)))


SWIN = (Architecture("swin", Swin),)
