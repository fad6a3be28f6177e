"""Transformers over patches of a picture, and attention among the places of a map."""

import torch
from tests.architectures.architecture import CLASSES, Architecture
from tests.architectures.parts import Pooled, conv_norm
from torch import nn
from torch.nn import functional

WIDTH, HEADS = 12, 3


def mlp(width, expand=2, act=nn.GELU):
    return nn.Sequential(
        nn.Linear(width, expand * width),
        act(),
        nn.Dropout(0.1),
        nn.Linear(expand * width, width),
    )


class FusedAttention(nn.Module):
    """Queries, keys and values from one linear layer; torch's attention in one call."""

    def __init__(self, width=WIDTH, heads=HEADS):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        examples, tokens, width = x.shape
        qkv = self.qkv(x).reshape(examples, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (examples, heads, tokens, width of a head)
        out = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(examples, tokens, width))


class WrittenAttention(nn.Module):
    """Three linear layers, a product, a softmax, a product."""

    def __init__(self, width=WIDTH, heads=HEADS):
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(0.1)

    def parted(self, x):
        return x.view(x.size(0), -1, self.heads, self.head_width).transpose(1, 2)

    def forward(self, x):
        q, k, v = self.parted(self.q(x)), self.parted(self.k(x)), self.parted(self.v(x))
        scores = torch.matmul(q, k.transpose(-2, -1)) * self.head_width**-0.5
        weights = self.drop(scores.softmax(dim=-1))
        out = torch.matmul(weights, v).transpose(1, 2).contiguous()
        return self.proj(out.view(x.size(0), -1, self.heads * self.head_width))


class TorchAttention(nn.Module):
    """nn.MultiheadAttention, asked for the result only."""

    def __init__(self, width=WIDTH, heads=HEADS):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Block(nn.Module):
    """Attention and an MLP, each behind a norm, each added to what came in."""

    def __init__(self, attention, width=WIDTH):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = attention()
        self.norm2 = nn.LayerNorm(width)
        self.mlp = mlp(width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches by a strided convolution, positions, blocks; a class token or the mean is read."""

    def __init__(self, block, *, token=True, width=WIDTH, patch=8):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if token else None
        tokens = (32 // patch) ** 2 + int(token)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.Sequential(block(), block())
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)  # (examples, tokens, width)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.pos_embed))
        return self.head(x.mean(dim=1) if self.cls_token is None else x[:, 0])


def _encoder_layer():
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 24, dropout=0.0, batch_first=True)


class NonLocal(nn.Module):
    """Every place of a map attends to every other; the result is added."""

    def __init__(self, width, inner):
        super().__init__()
        self.theta = nn.Conv2d(width, inner, 1)
        self.phi = nn.Conv2d(width, inner, 1)
        self.g = nn.Conv2d(width, inner, 1)
        self.out = conv_norm(inner, width, 1, act=None)
        self.inner = inner

    def forward(self, x):
        examples, _, height, width = x.shape
        theta = self.theta(x).view(examples, self.inner, -1).permute(0, 2, 1)
        phi = self.phi(x).view(examples, self.inner, -1)
        g = self.g(x).view(examples, self.inner, -1).permute(0, 2, 1)
        weights = functional.softmax(torch.matmul(theta, phi), dim=-1)
        y = torch.matmul(weights, g).permute(0, 2, 1).contiguous()
        return x + self.out(y.view(examples, self.inner, height, width))


def non_local():
    return nn.Sequential(
        conv_norm(3, 8, stride=2),
        conv_norm(8, 12, stride=2),
        NonLocal(12, 6),
        conv_norm(12, 16),
        Pooled(16),
    )


ATTENTION = (
    Architecture("vit-fused-attention", lambda: ViT(lambda: Block(FusedAttention))),
    Architecture("vit-written-attention", lambda: ViT(lambda: Block(WrittenAttention))),
    Architecture("vit-torch-attention", lambda: ViT(lambda: Block(TorchAttention))),
    Architecture("vit-torch-encoder", lambda: ViT(_encoder_layer)),
    Architecture("deit-mean", lambda: ViT(lambda: Block(FusedAttention), token=False)),
    Architecture("non-local", non_local),
)
