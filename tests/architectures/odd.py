"""Other norms, other activations, three dimensions, and modules that are used twice."""

import torch
from tests.architectures.architecture import CLASSES, Architecture
from tests.architectures.chains import AlexNet
from tests.architectures.parts import Pooled, conv_norm
from torch import nn
from torch.nn import functional


def conv3d_net():
    """Convolutions over a film."""
    return nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm3d(6),
        nn.ReLU(),
        nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(6, 10, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(10, 12, (1, 3, 3)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 2, 16),
        nn.ReLU(),
        nn.Linear(16, CLASSES),
    )


class Normed(nn.Module):
    """A residual block of convolutions that another norm than BatchNorm follows."""

    def __init__(self, width, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = norm(width)

    def forward(self, x):
        out = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(x + self.norm2(self.conv2(out)))


def normed(norm):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        norm(8),
        nn.ReLU(),
        Normed(8, norm),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        norm(12),
        nn.ReLU(),
        Normed(12, norm),
        Pooled(12),
    )


class Maxout(nn.Module):
    """The largest of `pieces` channels that stand side by side."""

    def __init__(self, before, after, pieces=2):
        super().__init__()
        self.conv = nn.Conv2d(before, after * pieces, 3, stride=2, padding=1)
        self.pieces = pieces

    def forward(self, x):
        x = self.conv(x)
        examples, channels, height, width = x.shape
        x = x.view(examples, channels // self.pieces, self.pieces, height, width)
        return x.max(dim=2).values


class GatedConv(nn.Module):
    """One half of the channels is the gate of the other."""

    def __init__(self, before, after):
        super().__init__()
        self.conv = nn.Conv2d(before, 2 * after, 3, stride=2, padding=1)

    def forward(self, x):
        a, b = self.conv(x).chunk(2, dim=1)
        return a * torch.sigmoid(b)


def two_sided(x):
    """CReLU: what is positive and what is negative, side by side."""
    return functional.relu(torch.cat([x, -x], dim=1))


class TwoSided(nn.Module):
    """Convolutions behind which every channel counts twice."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(12, 8, 3, stride=2, padding=1)
        self.head = Pooled(16)

    def forward(self, x):
        return self.head(two_sided(self.conv2(two_sided(self.conv1(x)))))


def trunk():
    return nn.Sequential(
        conv_norm(3, 8, stride=2), conv_norm(8, 12, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


class Siamese(nn.Module):
    """One trunk sees the picture and its mirror image; the features are summed."""

    def __init__(self):
        super().__init__()
        self.trunk = trunk()
        self.hidden = nn.Linear(12, 16)
        self.out = nn.Linear(16, CLASSES)

    def forward(self, x):
        features = self.trunk(x) + self.trunk(torch.flip(x, dims=[3]))
        return self.out(functional.relu(self.hidden(features)))


class SharedHead(nn.Module):
    """Two trunks of unlike insides, one head for both; the logits are averaged."""

    def __init__(self):
        super().__init__()
        self.fine = trunk()
        self.coarse = nn.Sequential(
            nn.Conv2d(3, 12, 8, stride=4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, CLASSES))

    def forward(self, x):
        return (self.head(self.fine(x)) + self.head(self.coarse(x))) / 2


class Recursive(nn.Module):
    """One convolution, run three times on its own result."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, stride=2, padding=1)
        self.again = nn.Conv2d(10, 10, 3, padding=1)
        self.head = Pooled(10)

    def forward(self, x):
        first = x = functional.relu(self.stem(x))
        for _ in range(3):
            x = functional.relu(self.again(x) + first)
        return self.head(x)


def gated():
    return nn.Sequential(GatedConv(3, 8), GatedConv(8, 12), Pooled(12))


def local_response():
    """Divides by what the channels beside it say, so that places among channels matter."""
    return nn.LocalResponseNorm(3, alpha=0.5, beta=0.75, k=1.0)


ODD = (
    Architecture("conv3d", conv3d_net, (1, 4, 12, 12)),
    Architecture("group-norm", lambda: normed(lambda width: nn.GroupNorm(4, width))),
    Architecture(
        "instance-norm", lambda: normed(lambda width: nn.InstanceNorm2d(width, affine=True))
    ),
    Architecture("maxout", lambda: nn.Sequential(Maxout(3, 8), Maxout(8, 12), Pooled(12))),
    Architecture("gated-conv", gated),
    Architecture("two-sided-relu", TwoSided),
    Architecture("siamese", Siamese),
    Architecture("shared-head", SharedHead),
    Architecture("recursive", Recursive),
    Architecture("alexnet-local-response", lambda: AlexNet(local_response)),
)
