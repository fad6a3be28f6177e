"""Networks for the tests of condensing, and a plan that takes every second unit."""

import torch
from tests.cases import seeded
from torch import nn
from torch.nn import functional

from neurank.condense.plan import Plan


class AuthorsLeNet(nn.Module):
    """The LeNet of the neuron-ranking authors as a user would write it, width and all."""

    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(1, 10, 5)
        self.bn1 = nn.BatchNorm2d(10)
        self.c3 = nn.Conv2d(10, 20, 5)
        self.bn2 = nn.BatchNorm2d(20)
        self.c5 = nn.Linear(320, 100)
        self.f6 = nn.Linear(100, 25)
        self.out7 = nn.Linear(25, 10)

    def forward(self, x):
        x = self.bn1(functional.relu(functional.max_pool2d(self.c1(x), 2)))
        x = self.bn2(functional.relu(functional.max_pool2d(self.c3(x), 2)))
        return self.out7(self.f6(self.c5(x.view(-1, 320))))


class WithNumber(nn.Module):
    """A forward pass that holds a width as a number, with chance in training."""

    def __init__(self, *, bias=True):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, bias=bias)
        self.drop1 = nn.Dropout2d(0.3)
        self.bn = nn.BatchNorm2d(4)
        self.fc1 = nn.Linear(16, 6, bias=bias)
        self.drop2 = nn.Dropout(0.4)
        self.fc2 = nn.Linear(6, 3, bias=bias)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x):
        x = functional.max_pool2d(self.drop1(self.bn(torch.tanh(self.conv1(x)))), 2)
        x = functional.dropout(torch.sigmoid(self.fc1(self.flat(x))), training=self.training)
        return self.fc2(self.drop2(x)) * self.scale

    def flat(self, x):
        return x.view(-1, 16)


class Computed(WithNumber):
    """The same width, computed: this Python adapts to fewer units."""

    def flat(self, x):
        return x.view(-1, x.shape[1] * x.shape[2] * x.shape[3])


def drawn(build, *args, dtype=torch.float64, **kwargs):
    """A network with weights that never change, BatchNorm that shifts, in training mode."""
    with seeded(build.__name__), torch.no_grad():
        model = build(*args, **kwargs).to(dtype)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.bias.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def pictures(*sizes, shape=(1, 6, 6), dtype=torch.float64):
    with seeded("pictures"):
        return [
            (torch.randn(size, *shape, dtype=dtype), torch.randint(3, (size,))) for size in sizes
        ]


def every_second(model, *layers):
    widths = {layer: len(model.get_submodule(layer).weight) for layer in layers}
    return Plan({layer: tuple(range(0, width, 2)) for layer, width in widths.items()}, widths)


def error(found, wanted):
    return float(((found - wanted).abs().max() / wanted.abs().max()).detach())


def everything(model):
    """All that must be as it was: tensors, identities, flags, hooks, random state."""
    return (
        {
            name: (id(tensor), tensor.tolist())
            for name, tensor in model.state_dict(keep_vars=True).items()
        },
        {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()},
        {name: (m.training, len(m._forward_hooks), repr(m)) for name, m in model.named_modules()},
        torch.get_rng_state().tolist(),
    )
