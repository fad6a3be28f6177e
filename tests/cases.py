"""The small networks on which everything is tried: add a line to `CASES` and all tests meet it."""

import math
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
from tests.oracles.game import logits_of
from torch import Tensor, nn
from torch.nn import functional

from neurank.observe.observer import TracedObserver, observe
from neurank.observe.value import Accuracy

Batches = list[tuple[Tensor, Tensor]]
CLASSES = 3
EXAMPLES = 24


@dataclass(frozen=True)
class Case:
    """A network, the shape of its inputs, and where its units are read.

    Attributes
    ----------
    build : makes the network; its weights are drawn afterwards, from the case's name.
    shape : of one example.
    reads : layer -> the modules whose input its units are; () for the network's own outputs.
    whole : whole-number weights and inputs, so that sums are exact and ties are many.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    reads: Mapping[str, tuple[str, ...]]
    whole: bool = False

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        with seeded(self.name):
            model = draw_weights(self.build().double(), whole=self.whole)
        balance(model, self._inputs(), whole=self.whole)
        return model.to(dtype).train()  # scoring has to turn that off by itself

    def batches(
        self, dtype: torch.dtype = torch.float64, sizes: Iterable[int] = (5, 4, 3)
    ) -> Batches:
        """Batches of these sizes of the same examples, however they are cut.

        Most labels are the network's own answers, so that units are worth something.
        """
        sizes = list(sizes)
        inputs = self._inputs()
        with seeded(self.name + " labels"), torch.no_grad():
            own = logits_of(self.model().eval()(inputs.clone())).argmax(dim=1)
            drawn = torch.randint(CLASSES, (EXAMPLES,))
            targets = torch.where(torch.rand(EXAMPLES) < 0.75, own, drawn)
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        return [(inputs[a:b].to(dtype), targets[a:b]) for a, b in pairwise(ends)]

    def _inputs(self) -> Tensor:
        with seeded(self.name + " inputs"):
            inputs = torch.randn(EXAMPLES, *self.shape, dtype=torch.float64)
        return inputs.round() if self.whole else inputs

    def __str__(self):
        return self.name


class seeded:  # noqa: N801 (read as a verb: with seeded(...))
    """Draw from a seed that is a text, leaving torch's generator as it was."""

    def __init__(self, text):
        self.seed = int.from_bytes(text.encode(), "big") % (2**63)

    def __enter__(self):
        self.before = torch.get_rng_state()
        torch.manual_seed(self.seed)

    def __exit__(self, *_):
        torch.set_rng_state(self.before)


def draw_weights(model, *, whole=False):
    """Weights on which units differ and matter; BatchNorm with statistics that shift and scale."""
    with torch.no_grad():
        for parameter in dict.fromkeys(model.parameters()):
            fan_in = max(1, parameter[0].numel())
            parameter.copy_(torch.randn_like(parameter) * 1.6 / math.sqrt(fan_in))
            if whole:
                parameter.copy_((parameter * math.sqrt(fan_in)).round())
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


@torch.no_grad()
def balance(model, inputs, *, whole):
    """Shift the last bias so that no class always wins."""
    *_, last = (module for module in model.modules() if isinstance(module, nn.Linear))
    mean = logits_of(model.eval()(inputs.clone())).mean(dim=0)
    if last.bias is not None:
        last.bias -= mean.round() if whole else mean


def chain(**modules):
    """A Sequential whose members have names."""
    return nn.Sequential(OrderedDict(modules))


class Forward(nn.Module):
    """Named modules and a forward pass written as a function of them and the input."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


def conv(before, after, size=2, **options):
    return nn.Conv2d(before, after, size, **options)


def lenet(flatten):
    """Two convolutions with pooling, and a fully connected pair behind `flatten`."""

    def forward(net, x):
        x = functional.max_pool2d(functional.relu(net.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(net.conv2(x)), 2, stride=1)
        return net.fc2(functional.relu(net.fc1(flatten(x))))

    return Forward(
        forward, conv1=conv(1, 3), conv2=conv(3, 4), fc1=nn.Linear(16, 5), fc2=nn.Linear(5, CLASSES)
    )


def two_convolutions(*between, size=(1, 5, 5)):
    """conv1, what is given, conv2, ReLU, flatten, output."""
    middle = nn.Sequential(*between)
    conv1, conv2 = conv(size[0], 4), conv(4, 3)
    with torch.no_grad():
        features = conv2(middle.eval()(conv1(torch.zeros(1, *size)))).numel()
    return chain(
        conv1=conv1,
        middle=middle,
        conv2=conv2,
        relu=nn.ReLU(),
        flat=nn.Flatten(),
        out=nn.Linear(features, CLASSES),
    )


def perceptron(*widths, act=nn.ReLU, bias=True):
    modules = {}
    for at, (before, after) in enumerate(pairwise(widths)):
        modules[f"fc{at}"] = nn.Linear(before, after, bias=bias)
        if at < len(widths) - 2:
            modules[f"act{at}"] = act()
    return chain(**modules)


def layers(*names):
    """Each layer of a chain is read by the next, the last one by nobody."""
    return {name: (after,) for name, after in pairwise(names)} | {names[-1]: ()}


LENET = layers("conv1", "conv2", "fc1", "fc2")
TWO = layers("conv1", "conv2", "out")
PICTURE = (1, 5, 5)


def _branch(net, x):
    x = functional.relu(net.stem(x))
    return net.out((functional.relu(net.left(x)) + net.right(x)).flatten(1))


def _skip(net, x):
    x = functional.relu(net.stem(x))
    return net.out((net.down(functional.relu(net.up(x))) + x).flatten(1))


def _gate(net, x):
    early = net.early(x)
    x = functional.relu(net.up(x))
    return net.out(functional.relu(net.down(x) * torch.sigmoid(early)) + early)


def _named_logits(net, x):
    hidden = functional.relu(net.fc0(x))
    return {"loss": None, "hidden": hidden, "logits": net.fc1(hidden)}


def _in_place(net, x):
    x = net.conv1(x)
    functional.relu_(x)
    x = functional.leaky_relu_(net.conv2(x), 0.1)
    return net.out(x.flatten(1))


CASES = (
    Case("linear pair", lambda: perceptron(4, 5, 3), (4,), layers("fc0", "fc1")),
    Case("perceptron", lambda: perceptron(4, 5, 5, 4, 3), (4,), layers("fc0", "fc1", "fc2", "fc3")),
    Case("without biases", lambda: perceptron(4, 5, 4, 3, bias=False), (4,),
         layers("fc0", "fc1", "fc2")),
    Case("linear all along", lambda: perceptron(4, 5, 4, 3, act=nn.Identity), (4,),
         layers("fc0", "fc1", "fc2")),
    Case("many ties", lambda: perceptron(3, 5, 4, 3), (3,), layers("fc0", "fc1", "fc2"),
         whole=True),
    Case("many ties in pictures", lambda: two_convolutions(nn.ReLU(), nn.MaxPool2d(2)), PICTURE,
         TWO, whole=True),
    Case("sigmoid", lambda: perceptron(4, 5, 4, 3, act=nn.Sigmoid), (4,),
         layers("fc0", "fc1", "fc2")),
    Case("dropout", lambda: perceptron(4, 5, 4, 3, act=lambda: nn.Sequential(nn.ReLU(),
         nn.Dropout(0.5))), (4,), layers("fc0", "fc1", "fc2")),
    Case("batchnorm 1d", lambda: chain(fc0=nn.Linear(4, 5), norm=nn.BatchNorm1d(5), act=nn.ReLU(),
         fc1=nn.Linear(5, 4), norm1=nn.BatchNorm1d(4), act1=nn.ReLU(), out=nn.Linear(4, 3)), (4,),
         layers("fc0", "fc1", "out")),
    Case("batchnorm between linear maps", lambda: chain(fc0=nn.Linear(4, 5), act=nn.ReLU(),
         fc1=nn.Linear(5, 4), norm=nn.BatchNorm1d(4, affine=False), fc2=nn.Linear(4, 4),
         act1=nn.ReLU(), norm1=nn.BatchNorm1d(4), out=nn.Linear(4, 3)), (4,),
         layers("fc0", "fc1", "fc2", "out")),
    Case("lenet, flatten", lambda: lenet(lambda x: torch.flatten(x, 1)), (1, 9, 9), LENET),
    Case("lenet, width as a number", lambda: lenet(lambda x: x.view(-1, 16)), (1, 9, 9), LENET),
    Case("lenet, batch size asked", lambda: lenet(lambda x: x.view(x.size(0), -1)), (1, 9, 9),
         LENET),
    Case("norm before the activation", lambda: two_convolutions(nn.BatchNorm2d(4), nn.ReLU()),
         PICTURE, TWO),
    Case("norm behind the activation", lambda: two_convolutions(nn.ReLU(), nn.BatchNorm2d(4)),
         PICTURE, TWO),
    Case("tanh, average pooling", lambda: two_convolutions(nn.Tanh(), nn.AvgPool2d(2)), PICTURE,
         TWO),
    Case("max pooling, padded", lambda: two_convolutions(nn.LeakyReLU(0.2),
         nn.MaxPool2d(3, stride=2, padding=1)), PICTURE, TWO),
    Case("max pooling, ceil mode", lambda: two_convolutions(nn.ReLU(),
         nn.MaxPool2d(3, stride=2, ceil_mode=True)), PICTURE, TWO),
    Case("pooling below a consumer", lambda: chain(conv1=conv(1, 4), act=nn.ReLU(),
         conv2=conv(4, 3), pool=nn.MaxPool2d(2, stride=1), act2=nn.ReLU(), flat=nn.Flatten(),
         out=nn.Linear(12, 3)), PICTURE, TWO),
    Case("padded pooling below a consumer", lambda: chain(conv1=conv(1, 4), act=nn.ReLU(),
         conv2=conv(4, 3), pool=nn.MaxPool2d(2, padding=1), act2=nn.ReLU(), flat=nn.Flatten(),
         out=nn.Linear(12, 3)), PICTURE, TWO),
    Case("padding, stride, dilation, no bias", lambda: chain(
         conv1=conv(1, 4, 3, padding=2, stride=2, bias=False), act=nn.ReLU(),
         conv2=conv(4, 3, 2, padding="same", dilation=2), act2=nn.ReLU(),
         conv3=conv(3, 3, 2, padding=1, stride=(1, 2)), act3=nn.Softplus(), flat=nn.Flatten(),
         out=nn.Linear(45, 3)), PICTURE, layers("conv1", "conv2", "conv3", "out")),
    Case("depthwise consumer", lambda: chain(conv1=conv(1, 4), act=nn.ReLU(),
         conv2=conv(4, 4, groups=4), act2=nn.ReLU(), conv3=conv(4, 4, 1, groups=2),
         flat=nn.Flatten(), out=nn.Linear(36, 3)), PICTURE, {"out": ()}),  # the others are tied
    Case("global average", lambda: Forward(
         lambda net, x: net.out(functional.relu(net.conv1(x)).mean((2, 3))), conv1=conv(1, 5),
         out=nn.Linear(5, 3)), PICTURE, layers("conv1", "out")),
    Case("adaptive pooling", lambda: chain(conv1=conv(1, 5), act=nn.ReLU(),
         pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), out=nn.Linear(5, 3)), PICTURE,
         layers("conv1", "out")),
    Case("one dimension", lambda: chain(conv1=nn.Conv1d(2, 4, 2), act=nn.ReLU(),
         pool=nn.MaxPool1d(2), conv2=nn.Conv1d(4, 3, 2), flat=nn.Flatten(),
         out=nn.Linear(6, 3)), (2, 7), TWO),
    Case("three dimensions", lambda: chain(conv1=nn.Conv3d(1, 4, 2), act=nn.ReLU(),
         conv2=nn.Conv3d(4, 3, 2), act2=nn.ReLU(), flat=nn.Flatten(), out=nn.Linear(3, 3)),
         (1, 3, 3, 3), TWO),
    Case("in place", lambda: Forward(_in_place, conv1=conv(1, 4), conv2=conv(4, 3),
         out=nn.Linear(27, 3)), PICTURE, TWO),
    Case("in-place modules", lambda: two_convolutions(nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
         PICTURE, TWO),
    Case("log softmax", lambda: chain(fc0=nn.Linear(4, 5), act=nn.ReLU(), fc1=nn.Linear(5, 3),
         end=nn.LogSoftmax(dim=1)), (4,), {"fc0": ("fc1",)}),
    Case("relu at the end", lambda: chain(fc0=nn.Linear(4, 5), act=nn.ReLU(), fc1=nn.Linear(5, 3),
         end=nn.ReLU()), (4,), {"fc0": ("fc1",), "fc1": ()}),
    Case("mapping", lambda: Forward(_named_logits, fc0=nn.Linear(4, 5), fc1=nn.Linear(5, 3)), (4,),
         layers("fc0", "fc1")),
    Case("branch", lambda: Forward(_branch, stem=conv(1, 4), left=conv(4, 3), right=conv(4, 3),
         out=nn.Linear(27, 3)), PICTURE, {"stem": ("left", "right"), "out": ()}),
    Case("skip", lambda: Forward(_skip, stem=conv(1, 3), up=conv(3, 5, 3, padding=1),
         down=conv(5, 3, 3, padding=1), out=nn.Linear(48, 3)), PICTURE,
         {"up": ("down",), "out": ()}),
    Case("gate and skip", lambda: Forward(_gate, early=nn.Linear(4, 5),
         up=nn.Linear(4, 5), down=nn.Linear(5, 5), out=nn.Linear(5, 3)), (4,),
         {"up": ("down",), "out": ()}),
)  # fmt: skip
"""Every network."""


def named(name):
    return next(case for case in CASES if case.name == name)


def drawn(seed):
    """A network that is drawn: perceptrons and convolutions of all small widths."""
    draw = random.Random(seed)
    widths = [draw.randint(1, 5) for _ in range(draw.randint(1, 3))]
    if draw.random() < 0.6:
        names = layers(*(f"fc{at}" for at in range(len(widths) + 1)))
        act = draw.choice([nn.ReLU, nn.ReLU, nn.Tanh, nn.Identity])
        bias = draw.random() < 0.7
        return Case(
            f"drawn {seed}",
            lambda: perceptron(4, *widths, CLASSES, act=act, bias=bias),
            (4,),
            names,
            whole=draw.random() < 0.3,
        )
    pool = draw.choice([nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(2, 1), nn.Identity()])
    return Case(
        f"drawn {seed}",
        lambda: two_convolutions(nn.ReLU(), pool),
        PICTURE,
        TWO,
        whole=draw.random() < 0.3,
    )


def look(model, batches, **changes):
    """Watch a network without the entry point around it."""
    watched = observe(
        model.eval(),
        batches,
        value=Accuracy(),
        removal="zero",
        seed=0,
        device=torch.device("cpu"),
        progress=False,
    )
    return replace(watched, **changes)


@cache
def _watched(name, dtype) -> TracedObserver:
    case = named(name)
    return look(case.model(dtype), case.batches(dtype))


def watch(case, dtype=torch.float64, **changes):
    """Watch a case, traced once; `changes` are its value, removal, seed."""
    return replace(_watched(case.name, dtype), **changes)
