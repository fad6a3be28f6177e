"""Where the units of some networks of `tests.architectures` are read, written down by hand.

What is written here was found by reading the networks' code, never by tracing it.
"""

from itertools import pairwise

import torch
from tests.oracles.condense import At
from torch import nn


def whole(width, *modules, axis=1):
    """Modules whose input is the units, in order."""
    return tuple(At(module, tuple(range(width)), axis) for module in modules)


def last(width, *modules):
    """Modules whose input has the units on its last axis."""
    return whole(width, *modules, axis=-1)


def part(of, first, width, *modules, axis=1):
    """Modules whose input is laid side by side, `width` units of it beginning at `first`."""
    units = [-1] * of
    units[first : first + width] = range(width)
    return tuple(At(module, tuple(units), axis) for module in modules)


def blocks(width, size, *modules, axis=1):
    """Modules whose input has `size` channels of one unit next to each other."""
    units = tuple(unit for unit in range(width) for _ in range(size))
    return tuple(At(module, units, axis) for module in modules)


def flat(width, size, module):
    """A module whose input is a map laid flat: the places of a unit are one channel."""
    (at,) = blocks(width, size, module)
    return (At(module, at.units, 1, at.units),)


def over_and_over(width, times, *modules, axis=1, alike=False):
    """Modules whose input has all units, and then all of them again.

    They are other channels (unless `alike`) of the same units.
    """
    units = tuple(range(width)) * times
    return tuple(At(module, units, axis, units if alike else None) for module in modules)


def joined(*reads):
    """Reads of one layer."""
    return tuple(at for each in reads for at in each)


def _chain(*names_and_widths):
    """Each layer is read by the next."""
    pairs = pairwise(names_and_widths)
    return {name: whole(width, after) for (name, width), (after, _) in pairs}


def _attention(block, width, heads, hidden):
    """A block of a transformer: heads and an MLP."""
    return {
        f"{block}.attn.qkv": blocks(heads, width // heads, f"{block}.attn.proj", axis=-1),
        f"{block}.mlp.0": last(hidden, f"{block}.mlp.3"),
    }


def _in_blocks(*names):
    return [f"{name}.{part}" for name in names for part in ("norm1", "attn.qkv", "norm2", "mlp.0")]


VIT = {
    "patches": last(12, *_in_blocks("blocks.0", "blocks.1"), "norm", "head"),
    **_attention("blocks.0", 12, 3, 24),
    **_attention("blocks.1", 12, 3, 24),
}

_MERGED = over_and_over(8, 4, "merge.norm", "merge.reduction", axis=-1, alike=True)
SWIN = {
    "patches": joined(last(8, "norm", *_in_blocks("stage1.0", "stage1.1")), _MERGED),
    **_attention("stage1.0", 8, 2, 16),
    **_attention("stage1.1", 8, 2, 16),
    "merge.reduction": last(16, *_in_blocks("stage2"), "end", "head"),
    **_attention("stage2", 16, 2, 32),
}


def _dense_block(name, before, width, after):
    """Growth 4, hidden 8, three layers; `before` is read by all that comes."""
    ends = [f"{name}.{layer}.conv1" for layer in range(3)] + [after]
    readers = [(end, width + 4 * at) for at, end in enumerate(ends)]
    found = {before: joined(*(part(size, 0, width, end) for end, size in readers))}
    for layer in range(3):
        first = width + 4 * layer
        found[f"{name}.{layer}.conv1"] = whole(8, f"{name}.{layer}.conv2")
        found[f"{name}.{layer}.conv2"] = joined(
            *(part(size, first, 4, end) for end, size in readers[layer + 1 :])
        )
    return found


DENSENET = {
    **_dense_block("block1", "stem", 8, "transition.2"),
    **_dense_block("block2", "transition.2", 10, "classifier"),
}


def shuffled(units):
    """Interleave two halves."""
    half = len(units) // 2
    return [unit for pair in zip(units[:half], units[half:], strict=True) for unit in pair]


def _shufflenet_v2():
    # Stage one: units 0 to 5 on the left, 6 to 11 on the right, 12 to 17 of the second block's
    # right; a depthwise convolution reads them all, which makes them one layer.
    first = shuffled(list(range(12)))
    second = shuffled([*first[:6], *range(12, 18)])
    one = [
        At("2.right.0.0", tuple(first[6:])),
        At("3.left.1.0", tuple(second)),
        At("3.right.0.0", tuple(second)),
    ]
    left, right, later = (
        [(name, unit) for unit in range(8)] for name in ("3.left.1.0", "3.right.2.0", "4.right.2.0")
    )
    third = shuffled([*left, *right])
    fourth = shuffled([*third[:8], *later])

    def of(layer, channels, module):
        return At(module, tuple(unit if name == layer else -1 for name, unit in channels))

    two = {
        layer: tuple(
            at
            for at in (of(layer, third[8:], "4.right.0.0"), of(layer, fourth, "5.0"))
            if max(at.units) >= 0
        )
        for layer in ("3.left.1.0", "3.right.2.0", "4.right.2.0")
    }
    return {
        "0.0": whole(6, "1.left.1.0", "1.right.0.0"),
        "1.left.1.0": tuple(one),
        "1.right.0.0": whole(6, "1.right.2.0"),
        "2.right.0.0": whole(6, "2.right.2.0"),
        "3.right.0.0": whole(8, "3.right.2.0"),
        "4.right.0.0": whole(8, "4.right.2.0"),
        **two,
        "5.0": whole(20, "6.fc"),
    }


READS = {
    "lenet": {**_chain(("conv1", 6), ("conv2", 12)), "conv2": flat(12, 25, "fc1"),
              **_chain(("fc1", 20), ("fc2", 16), ("fc3", 10))},
    "alexnet-groups": {
        "features.0": over_and_over(4, 2, "features.4"),
        "features.4": over_and_over(6, 2, "features.8"),
        "features.8": over_and_over(8, 2, "features.10"),
        "features.10": over_and_over(8, 2, "features.12"),
        "features.12": (
            At("classifier.1", tuple(c % 6 for c in range(12) for _ in range(9)), 1,
               tuple(c for c in range(12) for _ in range(9))),
        ),
        **_chain(("classifier.1", 24), ("classifier.4", 16), ("classifier.6", 10)),
    },
    "resnet-basic": {
        "stem.0": whole(8, "blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1",
                        "blocks.2.downsample.0"),
        "blocks.2.conv2": whole(12, "blocks.3.conv1", "blocks.4.conv1", "blocks.4.downsample.0"),
        "blocks.4.conv2": whole(16, "blocks.5.conv1", "head.fc"),
        **{f"blocks.{at}.conv1": whole(width, f"blocks.{at}.conv2")
           for at, width in enumerate((8, 8, 12, 12, 16, 16))},
    },
    "resnet-preactivation": {
        "stem.0": whole(8, "blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1",
                        "blocks.2.project"),
        "blocks.2.project": whole(12, "blocks.3.conv1", "blocks.4.conv1", "blocks.4.project"),
        "blocks.4.project": whole(16, "blocks.5.conv1", "head.fc"),
        **{f"blocks.{at}.conv1": whole(width, f"blocks.{at}.conv2")
           for at, width in enumerate((8, 8, 12, 12, 16, 16))},
    },
    "resnet-zero-padded": {
        # Each stage lays its channels in the middle of the next stage's: three and two of padding.
        "stem.0": (
            *(At(module, tuple(range(6))) for module in
              ("blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1")),
            *(At(module, (6, 7, 8, 0, 1, 2, 3, 4, 5, 9, 10, 11)) for module in
              ("blocks.3.conv1", "blocks.4.conv1")),
            *(At(module, (12, 13, 6, 7, 8, 0, 1, 2, 3, 4, 5, 9, 10, 11, 14, 15)) for module in
              ("blocks.5.conv1", "head.fc")),
        ),
        **{f"blocks.{at}.conv1": whole(width, f"blocks.{at}.conv2")
           for at, width in enumerate((6, 6, 12, 12, 16, 16))},
    },
    "se-resnet": {
        "stem.0": whole(8, "blocks.0.conv1", "blocks.0.attention.reduce", "blocks.1.conv1",
                        "blocks.1.attention.reduce", "blocks.2.conv1", "blocks.2.downsample.0"),
        "blocks.2.conv2": whole(12, "blocks.2.attention.reduce", "blocks.3.conv1",
                                "blocks.3.attention.reduce", "head.fc"),
        **{f"blocks.{at}.conv1": whole(width, f"blocks.{at}.conv2")
           for at, width in enumerate((8, 8, 12, 12))},
        **{f"blocks.{at}.attention.reduce": whole(4, f"blocks.{at}.attention.expand")
           for at in range(4)},
    },
    "densenet": DENSENET,
    "inception-v1": {
        "0.0": joined(whole(8, "2.branches.0.0", "2.branches.1.0.0", "2.branches.2.0.0",
                            "2.branches.3.1.0")),
        "2.branches.1.0.0": whole(4, "2.branches.1.1.0"),
        "2.branches.2.0.0": whole(3, "2.branches.2.1.0"),
        "3.branches.1.0.0": whole(4, "3.branches.1.1.0"),
        "3.branches.2.0.0": whole(3, "3.branches.2.1.0"),
        **{f"2.branches.{name}": part(17, first, width, "3.branches.0.0", "3.branches.1.0.0",
                                      "3.branches.2.0.0", "3.branches.3.1.0")
           for name, first, width in (("0.0", 0, 4), ("1.1.0", 4, 6), ("2.1.0", 10, 4),
                                      ("3.1.0", 14, 3))},
        **{f"3.branches.{name}": part(19, first, width, "4.fc")
           for name, first, width in (("0.0", 0, 5), ("1.1.0", 5, 6), ("2.1.0", 11, 4),
                                      ("3.1.0", 15, 4))},
    },
    "mobilenet-v2": {
        "features.0.0": whole(8, "features.1.conv.1.0"),
        "features.1.conv.1.0": whole(6, "features.2.conv.0.0"),
        "features.2.conv.0.0": whole(18, "features.2.conv.2.0"),
        "features.2.conv.2.0": whole(8, "features.3.conv.0.0", "features.4.conv.0.0"),
        "features.3.conv.0.0": whole(24, "features.3.conv.2.0"),
        "features.4.conv.0.0": whole(24, "features.4.conv.2.0"),
        "features.4.conv.2.0": whole(12, "features.5.conv.0.0", "features.6.0"),
        "features.5.conv.0.0": whole(36, "features.5.conv.2.0"),
        "features.6.0": whole(24, "classifier.1"),
    },
    "shufflenet-v2": _shufflenet_v2(),
    "convnext": {
        "stem.0": joined(
            whole(8, "stem.1.mean", "stem.1.variance", "down.0.mean", "down.0.variance", "down.1"),
            last(8, "stage1.0.norm", "stage1.0.pwconv1", "stage1.1.norm", "stage1.1.pwconv1"),
        ),
        "down.1": last(12, "stage2.0.norm", "stage2.0.pwconv1", "stage2.1.norm",
                       "stage2.1.pwconv1", "norm", "head"),
        **{f"stage{at}.{block}.pwconv1": last(width, f"stage{at}.{block}.pwconv2")
           for at, width in ((1, 24), (2, 36)) for block in (0, 1)},
    },
    "poolformer": {
        "0": whole(8, *(f"{at}.{name}" for at in (1, 2) for name in ("norm1", "norm2", "mlp.0")),
                   "3"),
        "3": whole(12, *(f"{at}.{name}" for at in (4, 5) for name in ("norm1", "norm2", "mlp.0")),
                   "6", "7.fc"),
        **{f"{at}.mlp.0": whole(width, f"{at}.mlp.3")
           for at, width in ((1, 24), (2, 24), (4, 36), (5, 36))},
    },
    "u-net": {
        "enc1.0.0": whole(6, "enc1.1.0"),
        "enc1.1.0": joined(whole(6, "enc2.0.0"), part(12, 6, 6, "dec1.0.0")),
        "enc2.0.0": whole(10, "enc2.1.0"),
        "enc2.1.0": joined(whole(10, "bottom.0.0"), part(20, 0, 10, "dec2.0.0")),
        "bottom.0.0": whole(16, "bottom.1.0"),
        "bottom.1.0": whole(16, "up2"),
        "up2": part(20, 10, 10, "dec2.0.0"),
        "dec2.0.0": whole(10, "dec2.1.0"),
        "dec2.1.0": whole(10, "up1"),
        "up1": part(12, 0, 6, "dec1.0.0"),
        "dec1.0.0": whole(6, "dec1.1.0"),
        "dec1.1.0": whole(6, "marks"),
    },
    "gan-discriminator": {
        "0": whole(8, "2"),
        "2": blocks(4, 3, "5"),
        "5": over_and_over(8, 2, "6", "8"),
    },
    "autoencoder": {
        "encoder.0": whole(8, "encoder.2"),
        "encoder.2": flat(12, 16, "code"),
        "code": whole(10, "back"),
        "back": whole(12, "decoder.0"),
        "decoder.0": whole(8, "decoder.2"),
    },
    "super-resolution": {
        "conv1": whole(12, "conv2"), "conv2": whole(8, "up.0"), "up.0": whole(6, "out"),
    },
    "vit-fused-attention": VIT,
    "swin": SWIN,
    "mlp-mixer": {
        "patches": last(12, *(f"blocks.{at}.{name}" for at in (0, 1)
                              for name in ("norm1", "norm2", "channels.0")), "norm", "head"),
        **{f"blocks.{at}.channels.0": last(24, f"blocks.{at}.channels.3") for at in (0, 1)},
    },
    "gmlp": {
        "patches": last(12, *(f"blocks.{at}.{name}" for at in (0, 1)
                              for name in ("norm", "expand")), "norm", "head"),
        **{f"blocks.{at}.expand": last(10, f"blocks.{at}.gating.norm", f"blocks.{at}.shrink")
           for at in (0, 1)},
    },
    "gated-mlp": {
        "0": last(12, "1.norm", "1.gate", "1.up", "2.norm", "2.gate", "2.up", "3", "4"),
        "1.gate": last(18, "1.down"),
        "2.gate": last(18, "2.down"),
    },
    "bottleneck-mlp": {
        "0": whole(20, "3.down", "4"),
        "3.down": whole(6, "3.up"),
        "4": whole(4, "7"),
        "7": whole(20, "10.down", "11"),
        "10.down": whole(6, "10.up"),
    },
    "highway": {"0": whole(14, "2.h", "2.gate", "3.h", "3.gate", "4")},
    "wavenet": {
        "stem": whole(8, *(f"layers.{at}.{name}" for at in range(3)
                           for name in ("filter", "gate"))),
        **{f"layers.{at}.filter": whole(8, f"layers.{at}.stay", f"layers.{at}.leave")
           for at in range(3)},
        "layers.0.leave": whole(10, "end"),
        "end": whole(12, "head"),
    },
    "text-cnn": {f"convs.{at}": part(18, 6 * at, 6, "fc") for at in range(3)},
    "unrolled-cell": {"input": whole(10, "state", "out")},
    "group-norm": {
        "0": blocks(4, 2, "3.conv1", "4"),
        "3.conv1": blocks(4, 2, "3.conv2"),
        "4": blocks(4, 3, "7.conv1", "8.fc"),
        "7.conv1": blocks(4, 3, "7.conv2"),
    },
    "maxout": {"0.conv": whole(8, "1.conv"), "1.conv": whole(12, "2.fc")},
    "two-sided-relu": {
        "conv1": over_and_over(6, 2, "conv2", alike=True),
        "conv2": over_and_over(8, 2, "head.fc", alike=True),
    },
    "siamese": {
        "trunk.0.0": whole(8, "trunk.1.0"),
        "trunk.1.0": whole(12, "hidden"),
        "hidden": whole(16, "out"),
    },
    "recursive": {"stem": whole(10, "again", "head.fc")},
}  # fmt: skip
"""By architecture and layer."""


class OpenedNorm(nn.Module):
    """A written-out LayerNorm whose two means over channels are modules, so that hooks reach them.

    A mean of units reads them: what it receives for a unit that is off is a constant of its own.
    """

    def __init__(self, norm):
        super().__init__()
        self.norm, self.mean, self.variance = norm, _Mean(), _Mean()

    def forward(self, x):
        mean = self.mean(x)
        x = (x - mean) / torch.sqrt(self.variance((x - mean).pow(2)) + self.norm.eps)
        return self.norm.weight[:, None, None] * x + self.norm.bias[:, None, None]


class _Mean(nn.Module):
    def forward(self, x):
        return x.mean(1, keepdim=True)


def opened(name, model):
    """The same network, with what reads units as modules."""
    if name == "convnext":
        model.stem[1] = OpenedNorm(model.stem[1])
        model.down[0] = OpenedNorm(model.down[0])
    return model
