"""Small networks, each with one thing that an operation does to units, and what comes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch
from tests.cases import look, seeded
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Small:
    """A network and the units it has.

    Attributes
    ----------
    forward : from the network and its input.
    parts : makes its modules and parameters.
    shape : of one example.
    widths : how many units each hidden layer has.
    refused : for other layers, a piece of the reason; those of the output are left out.
    members : the modules of layers that have several.
    uneven : whether only some choices of units can be cut; others are refused.
    """

    forward: Callable
    parts: Callable
    shape: tuple
    widths: Mapping
    refused: Mapping = field(default_factory=dict)
    members: Mapping = field(default_factory=dict)
    uneven: bool = False

    def model(self):
        """Make it, in float64 and evaluation mode, with weights that never change."""
        with seeded(str(sorted(self.widths.items())) + str(self.shape)), torch.no_grad():
            model = _Net(self.forward, self.parts()).double().eval()
            for parameter in model.parameters():
                parameter.normal_()
            for module in model.modules():
                if getattr(module, "running_var", None) is not None:
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
        return model

    def batches(self, *sizes):
        with seeded("small"):
            return [
                (torch.randn(size, *self.shape, dtype=torch.float64), torch.zeros(size).long())
                for size in sizes
            ]


class _Net(nn.Module):
    def __init__(self, forward, parts):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_parameter(name, nn.Parameter(part))
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


VECTOR, LINE, MAP, TOKENS = (4,), (1, 5), (1, 5, 5), (7, 4)


def vector(forward, width=6, out=None, one=6, more=dict, **expected):
    """A linear layer of six units, something, an output layer that reads `out` numbers."""

    def parts():
        return {"one": nn.Linear(4, one), "out": nn.Linear(out or width, 3), **more()}

    return Small(forward, parts, VECTOR, expected.pop("widths", {"one": width}), **expected)


def line(forward, out, width=4, more=dict, **expected):
    """The same with a convolution in one dimension: four channels of four places."""

    def parts():
        return {"one": nn.Conv1d(1, 4, 2), "out": nn.Linear(out, 3), **more()}

    return Small(forward, parts, LINE, expected.pop("widths", {"one": width}), **expected)


def image(forward, out, width=4, channels=4, more=dict, **expected):
    """The same with a convolution in two: four channels of four by four places."""

    def parts():
        return {"one": nn.Conv2d(1, channels, 2), "out": nn.Linear(out, 3), **more()}

    return Small(forward, parts, MAP, expected.pop("widths", {"one": width}), **expected)


def two(second, channels, size, width, one=4):
    """A convolution of `one` channels that `second` reads: `size` places of `channels` are left."""
    return image(
        lambda n, x: n.out(n.two(n.one(x)).flatten(1)),
        channels * size,
        channels=one,
        more=lambda: {"two": second()},
        widths=width,
    )


def normed(norm, width=6):
    """A norm behind six channels of three by three places."""

    def parts():
        return {"one": nn.Conv2d(1, 6, 3), "norm": norm(), "out": nn.Linear(54, 3)}

    return Small(lambda n, x: n.out(n.norm(n.one(x)).flatten(1)), parts, MAP, {"one": width})


def _linear(*widths):
    return lambda: nn.Linear(*widths)


def _named(**parts):
    return lambda: {name: make() for name, make in parts.items()}


def _gated(n, x):
    """Selective kernels: two branches weighed by gates that read their sum."""
    a, b = n.one(x), n.two(x)
    gates = n.gate(a + b).view(-1, 2, 6).softmax(1)
    return n.out(a * gates[:, 0] + b * gates[:, 1])


def _split(n, x):
    a, b = torch.cat([n.one(x), n.two(x)], 1).split([4, 5], 1)
    return n.out(a) + n.out2(b)


def _rotated(n, x):
    q = n.one(x)
    return n.out(torch.cat([-q[..., 3:], q[..., :3]], -1) * n.sines + q * n.cosines)


SECOND = _named(two=_linear(4, 6))
BOTH = {"widths": {"one": 6}, "members": {"one": ("one", "two")}}

MOVED = {
    "places of a slice": vector(lambda n, x: n.out(n.one(x)[:, -3:]), out=3),
    "single units": vector(
        lambda n, x: n.out(torch.cat([n.one(x)[:, 2:3], n.one(x)[:, 1:]], 1)), out=6
    ),
    "stacked single units": vector(
        lambda n, x: n.out(torch.stack([n.one(x)[:, at] for at in (0, 3, 5, 1, 2, 4)], 1)),
    ),
    "rolled": vector(lambda n, x: n.out(torch.roll(n.one(x), 2, 1)), uneven=True),
    "turned round and added": vector(
        lambda n, x: n.out(torch.relu(n.one(x) + n.one(x).flip(1))), 3, 6
    ),
    "repeated": vector(lambda n, x: n.out(n.one(x).repeat(1, 2)), out=12),
    "each repeated": vector(lambda n, x: n.out(n.one(x).repeat_interleave(2, 1)), out=12),
    "picked": vector(lambda n, x: n.out(n.one(x)[:, [3, 0, 0, 5, 1, 2, 4]]), out=7),
    "laid beside itself": vector(lambda n, x: n.out(torch.cat([n.one(x), n.one(x)], 1)), out=12),
    "laid beside others and split": vector(
        _split, out=4, more=_named(two=_linear(4, 3), out2=_linear(5, 3)),
        widths={"one": 6, "two": 3},
    ),
    "turned within a view": vector(
        lambda n, x: n.out(n.one(x).view(-1, 3, 2).permute(0, 2, 1).reshape(-1, 6))
    ),
    "rotated halves": vector(
        _rotated, 3, 6, more=lambda: {"sines": torch.zeros(6), "cosines": torch.zeros(6)}
    ),
    "pixels to channels": image(
        lambda n, x: n.out(functional.pixel_unshuffle(n.one(x), 2).flatten(1)), 64
    ),
    "shuffled channels": image(
        lambda n, x: n.out(functional.channel_shuffle(n.one(x), 2).flatten(1)), 64, uneven=True
    ),
    "enlarged": image(
        lambda n, x: n.out(functional.interpolate(n.one(x), scale_factor=2, mode="bilinear")
                           .flatten(1)), 256,
    ),
    "cropped": image(
        lambda n, x: n.out(functional.pad(n.one(x), (-1, 0, 0, -1)).flatten(1)), 36
    ),
    "laid beside the input": image(
        lambda n, x: n.out(torch.cat([functional.interpolate(n.one(x), size=(5, 5)), x], 1)
                           .flatten(1)), 125,
    ),
    "examples unfolded": Small(
        lambda n, x: n.out(n.one(x.reshape(-1, 4)).view(-1, 7, 6).mean(1)),
        _named(one=_linear(4, 6), out=_linear(6, 3)), TOKENS, {"one": 6},
    ),
    "examples unfolded, innermost": Small(
        lambda n, x: n.out(n.one(x.transpose(0, 1).reshape(-1, 4)).view(7, -1, 6).mean(0)),
        _named(one=_linear(4, 6), out=_linear(6, 3)), TOKENS, {"one": 6},
    ),
    "times unfolded": Small(
        lambda n, x: n.out(n.one(x.flatten(0, 1)).unflatten(0, (-1, 7)).amax(1)),
        _named(one=_linear(4, 6), out=_linear(6, 3)), TOKENS, {"one": 6},
    ),
}  # fmt: skip

TIED = {
    "chosen place by place": vector(
        lambda n, x: n.out(torch.where(n.one(x) > 0, n.one(x), n.two(x))), more=SECOND, **BOTH
    ),
    "stacked and summed": vector(
        lambda n, x: n.out(torch.stack([n.one(x), n.two(x)]).sum(0)), more=SECOND, **BOTH
    ),
    "stacked and weighed": vector(
        lambda n, x: n.out(
            (torch.stack([n.one(x), n.two(x)], 1) * n.s.softmax(0)[None, :, None]).sum(1)
        ),
        more=lambda: {"two": nn.Linear(4, 6), "s": torch.zeros(2)}, **BOTH,
    ),
    "gated by what reads the sum": vector(
        _gated, more=_named(two=_linear(4, 6), gate=_linear(6, 12)),
        widths={"one": 6}, members={"one": ("one", "two", "gate")},
    ),
    "scaled and shifted by one number": vector(
        lambda n, x: n.out(n.one(x) * n.s + n.b),
        more=lambda: {"s": torch.tensor(2.0), "b": torch.zeros(6)},
    ),
    "scaled by channel": image(
        lambda n, x: n.out((n.one(x) * n.g.view(1, -1, 1, 1) + n.h).mean((2, 3))), 4,
        more=lambda: {"g": torch.zeros(4), "h": torch.zeros(4, 1, 1)},
    ),
    "shifted by channel and place": image(
        lambda n, x: n.out((n.one(x) + n.h).flatten(1)), 64,
        more=lambda: {"h": torch.zeros(4, 4, 4)},
    ),
    "a mask of the input": vector(
        lambda n, x: n.out(n.one(x).masked_fill(x.sum(1, keepdim=True) > 0, 0.5))
    ),
    "divided by its own width": vector(lambda n, x: n.out(n.one(x) / n.one(x).shape[1])),
    "slopes": vector(lambda n, x: n.out(n.act(n.one(x))), more=lambda: {"act": nn.PReLU(6)}),
    "one slope": vector(lambda n, x: n.out(n.act(n.one(x))), more=lambda: {"act": nn.PReLU()}),
    "computed slopes": vector(
        lambda n, x: n.out(functional.prelu(n.one(x), n.w.abs())),
        more=lambda: {"w": torch.zeros(6)},
    ),
    "a bias that is added, too": vector(lambda n, x: n.out(torch.relu(n.one(x) + n.one.bias))),
    "a weight that is summed, too": vector(
        lambda n, x: n.out(torch.relu(n.one(x) + n.one.weight.sum(1)))
    ),
    "a weight that is squared and scales others": vector(
        lambda n, x: n.out(torch.relu(n.one(x)) + n.two(x) * n.one.weight.square().sum(1)),
        more=SECOND, **BOTH,
    ),
    "an outer product": vector(
        lambda n, x: n.out((n.one(x)[:, :, None] * n.two(x)[:, None, :]).flatten(1)), out=12,
        more=_named(two=_linear(4, 2)), refused={"two": "stretched over several units"},
    ),
}  # fmt: skip

SUMMED = {
    "over places": line(lambda n, x: n.out(n.one(x).sum(2)), 4),
    "deviations over places": line(lambda n, x: n.out(n.one(x).std(2)), 4),
    "shares over places": line(lambda n, x: n.out(n.one(x).softmax(2).flatten(1)), 16),
    "sums so far over places": line(lambda n, x: n.out(n.one(x).cumsum(2).flatten(1)), 16),
    "length over places": line(
        lambda n, x: n.out(functional.normalize(n.one(x), dim=2).flatten(1)), 16
    ),
    "least of the units": line(lambda n, x: n.out(n.one(x).amin(1)), 4),
    "largest of the units beside them": vector(
        lambda n, x: n.out(torch.cat([n.one(x).amax(1, keepdim=True), n.one(x)], 1)), out=7
    ),
    "mean of everything": image(lambda n, x: n.out(n.one(x).mean((1, 2, 3))[:, None]), 1),
    "sum of units and places": image(lambda n, x: n.out(n.one(x).sum((1, 3))), 4),
    "distance from the mean": vector(lambda n, x: n.out(n.one(x) - n.one(x).mean(1, keepdim=True))),
    "pairs of units": vector(lambda n, x: n.out(n.one(x).view(-1, 2, 3).sum(1)), 3),
}

NORMS = {
    "LayerNorm over all": normed(lambda: nn.LayerNorm((6, 3, 3))),
    "LayerNorm over places": normed(lambda: nn.LayerNorm((3, 3))),
    "LayerNorm without parameters": vector(
        lambda n, x: n.out(n.norm(n.one(x))),
        more=lambda: {"norm": nn.LayerNorm(6, elementwise_affine=False)},
    ),
    "LayerNorm, parameters computed": vector(
        lambda n, x: n.out(functional.layer_norm(n.one(x), (6,), 1 + n.w, 2 * n.b)),
        more=lambda: {"w": torch.zeros(6), "b": torch.zeros(6)},
    ),
    "LayerNorm over all, weight computed": Small(
        lambda n, x: n.out(functional.layer_norm(n.one(x), (6, 3, 3), 1 + n.w).flatten(1)),
        lambda: {"one": nn.Conv2d(1, 6, 3), "w": torch.zeros(6, 3, 3), "out": nn.Linear(54, 3)},
        MAP, {"one": 6},
    ),
    "one LayerNorm twice": vector(
        lambda n, x: n.out(n.norm(n.two(n.norm(n.one(x))))),
        more=lambda: {"two": nn.Linear(6, 6), "norm": nn.LayerNorm(6)}, **BOTH,
    ),
    "two LayerNorms of one module": vector(
        lambda n, x: n.out(
            functional.layer_norm(n.two(functional.layer_norm(n.one(x), (6,), n.v)), (5,), n.w)
        ),
        out=5, more=lambda: {"two": nn.Linear(6, 5), "v": torch.zeros(6), "w": torch.zeros(5)},
        widths={"one": 6, "two": 5},
    ),
    "two bare LayerNorms of one module": vector(
        lambda n, x: n.out(functional.layer_norm(n.two(functional.layer_norm(n.one(x), (6,))),
                                                 (5,))),
        out=5, more=_named(two=_linear(6, 5)), widths={"one": 6, "two": 5},
    ),
    "RMSNorm": vector(
        lambda n, x: n.out(n.norm(n.one(x))), more=lambda: {"norm": nn.RMSNorm(6)}
    ),
    "GroupNorm, few groups, no parameters": normed(lambda: nn.GroupNorm(2, 6, affine=False), 3),
    "GroupNorm, many groups, no parameters": normed(lambda: nn.GroupNorm(3, 6, affine=False), 3),
    "GroupNorm, one channel each": normed(lambda: nn.GroupNorm(6, 6)),
    "GroupNorm, weight computed": Small(
        lambda n, x: n.out(functional.group_norm(n.one(x), 2, 1 + n.w).flatten(1)),
        lambda: {"one": nn.Conv2d(1, 6, 3), "w": torch.zeros(6), "out": nn.Linear(54, 3)},
        MAP, {"one": 3},
    ),
    "InstanceNorm without parameters": normed(lambda: nn.InstanceNorm2d(6)),
    "InstanceNorm with statistics": normed(
        lambda: nn.InstanceNorm2d(6, track_running_stats=True)
    ),
    "BatchNorm without parameters": normed(lambda: nn.BatchNorm2d(6, affine=False)),
    "BatchNorm of tokens": Small(
        lambda n, x: n.out(n.norm(n.one(x).transpose(1, 2)).mean(2)),
        lambda: {"one": nn.Linear(4, 6), "norm": nn.BatchNorm1d(6), "out": nn.Linear(6, 3)},
        TOKENS, {"one": 6},
    ),
}  # fmt: skip

CONVOLUTIONS = {
    "circular padding": two(lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), 3, 16,
                            {"one": 4, "two": 3}),
    "same padding, dilated": two(lambda: nn.Conv2d(4, 3, 2, padding="same", dilation=2), 3, 16,
                                 {"one": 4, "two": 3}),
    "strided, no bias": two(lambda: nn.Conv2d(4, 3, 3, 2, 1, bias=False), 3, 4,
                            {"one": 4, "two": 3}),
    "few groups, padded": two(lambda: nn.Conv2d(8, 6, 3, padding=1, groups=2), 6, 16,
                              {"one": 4, "two": 3}, one=8),
    "depthwise, twice as many": two(lambda: nn.Conv2d(4, 8, 2, groups=4), 8, 9, {"one": 4}),
    "transposed": two(lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1, output_padding=1), 3, 64,
                      {"one": 4, "two": 3}),
    "transposed, few groups": two(lambda: nn.ConvTranspose2d(8, 6, 3, 2, 1, groups=2), 6, 49,
                                  {"one": 4, "two": 3}, one=8),
    "transposed, depthwise": two(lambda: nn.ConvTranspose2d(4, 4, 2, 2, groups=4), 4, 64,
                                 {"one": 4}),
    "transposed, depthwise, twice as many": two(
        lambda: nn.ConvTranspose2d(4, 8, 2, 2, groups=4, dilation=2), 8, 81, {"one": 4}
    ),
    "transposed, one dimension": line(
        lambda n, x: n.out(n.two(n.one(x)).flatten(1)), 27,
        more=lambda: {"two": nn.ConvTranspose1d(4, 3, 3, stride=2)}, widths={"one": 4, "two": 3},
    ),
    "padded with a number": image(
        lambda n, x: n.out(n.two(functional.pad(n.one(x), (1, 1, 1, 1), value=2.0)).flatten(1)),
        48, more=lambda: {"two": nn.Conv2d(4, 3, 3)}, widths={"one": 4, "two": 3},
    ),
    "two of one module": image(
        lambda n, x: n.out(
            functional.conv2d(functional.conv2d(n.one(x), n.v, None, 1, 1), n.w, None, 1, 1)
            .flatten(1)
        ),
        48, more=lambda: {"v": torch.zeros(5, 4, 3, 3), "w": torch.zeros(3, 5, 3, 3)},
        widths={"one": 4, "v": 5, "w": 3},
    ),
    "along the units": vector(
        lambda n, x: n.out(n.two(n.one(x)[:, None]).flatten(1)), 1, 8,
        more=lambda: {"two": nn.Conv1d(1, 2, 3)}, widths={"one": 1, "two": 2},
    ),
    "of one place behind a linear layer": vector(
        lambda n, x: n.out(n.two(n.one(x)[:, :, None]).squeeze(2)), out=5,
        more=lambda: {"two": nn.Conv1d(6, 5, 1)}, widths={"one": 6, "two": 5},
    ),
}  # fmt: skip

NO_RULE = {
    "the largest three": vector(lambda n, x: n.out(n.one(x).topk(3, 1)[0]), out=3,
                                widths={}, refused={"one": "read by topk"}),
    "shares of the units": line(lambda n, x: n.out(n.one(x).log_softmax(1).flatten(1)), 16,
                                widths={}, refused={"one": "read by log_softmax"}),
    "windows": image(lambda n, x: n.out(functional.unfold(n.one(x), 2).flatten(1)), 144,
                     widths={}, refused={"one": "read by im2col"}),
    "a norm of the weight": vector(
        lambda n, x: n.out(torch.relu(n.one(x))) * n.one.weight.norm(),
        widths={}, refused={"one": "its weight is used element by element besides"},
    ),
    "a weight that another product reads": vector(
        lambda n, x: n.out(torch.relu(n.one(x))) + n.out2(n.two(x) @ n.one.weight),
        more=_named(two=_linear(4, 6), out2=_linear(4, 3)),
        widths={}, refused={"one": "element by element", "two": "read by matmul"},
    ),
}  # fmt: skip

SMALL = {**MOVED, **TIED, **SUMMED, **NORMS, **CONVOLUTIONS, **NO_RULE}
"""Every one."""


@cache
def watched(name):
    """A network of `SMALL`, traced once."""
    return look(SMALL[name].model(), SMALL[name].batches(4, 3))
