"""Networks that give a map or a picture, or gather several maps: U-Net, FPN, GAN, autoencoders."""

import torch
from tests.architectures.architecture import CLASSES, PICTURE, Architecture
from tests.architectures.parts import conv_norm
from torch import nn
from torch.nn import functional

SMALL = (3, 16, 16)


def twice(before, after):
    return nn.Sequential(conv_norm(before, after), conv_norm(after, after))


class UNet(nn.Module):
    """Down twice and up again by transposed convolutions; what was seen going down is appended."""

    def __init__(self, marks=4):
        super().__init__()
        self.enc1, self.enc2 = twice(3, 6), twice(6, 10)
        self.bottom = twice(10, 16)
        self.up2 = nn.ConvTranspose2d(16, 10, 2, stride=2)
        self.dec2 = twice(20, 10)
        self.up1 = nn.ConvTranspose2d(10, 6, 2, stride=2)
        self.dec1 = twice(12, 6)
        self.marks = nn.Conv2d(6, marks, 1)

    def forward(self, x):
        first = self.enc1(x)
        second = self.enc2(functional.max_pool2d(first, 2))
        x = self.bottom(functional.max_pool2d(second, 2))
        x = self.dec2(torch.cat([second, self.up2(x)], dim=1))
        x = self.dec1(torch.cat([self.up1(x), first], dim=1))
        return self.marks(x)


class FeaturePyramid(nn.Module):
    """Maps of three sizes, brought to one width; each receives the one above, upsampled."""

    def __init__(self, widths=(8, 12, 16), common=10):
        super().__init__()
        ends = zip((3, *widths), widths, strict=False)
        self.trunk = nn.ModuleList(conv_norm(before, after, stride=2) for before, after in ends)
        self.lateral = nn.ModuleList(nn.Conv2d(width, common, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(common, common, 3, padding=1) for _ in widths)
        self.head = nn.Linear(common, CLASSES)

    def forward(self, x):
        levels = []
        for stage, lateral in zip(self.trunk, self.lateral, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        merged = [levels.pop()]
        while levels:
            lower = levels.pop()
            above = functional.interpolate(merged[-1], size=lower.shape[-2:], mode="nearest")
            merged.append(lower + above)
        smoothed = [conv(level) for conv, level in zip(self.smooth, merged, strict=True)]
        pooled = [functional.relu(level).mean(dim=(2, 3)) for level in smoothed]
        return self.head(torch.stack(pooled).sum(dim=0))


class Parallel(nn.Module):
    """DeepLab's ASPP: dilated depthwise-separable branches, and one that sees the mean only."""

    def __init__(self, before, width, rates=(1, 2, 3)):
        super().__init__()
        self.point = conv_norm(before, width, 1)
        self.dilated = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, before, 3, padding=r, dilation=r, groups=before, bias=False),
                nn.BatchNorm2d(before),
                nn.ReLU(),
                conv_norm(before, width, 1),
            )
            for r in rates
        )
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_norm(before, width, 1))
        self.project = conv_norm(width * (len(rates) + 2), width, 1)

    def forward(self, x):
        whole = self.whole(x).expand(-1, -1, x.shape[2], x.shape[3])
        branches = [self.point(x), *(branch(x) for branch in self.dilated), whole]
        return self.project(torch.cat(branches, dim=1))


def deeplab(marks=4):
    return nn.Sequential(
        conv_norm(3, 8, stride=2),
        conv_norm(8, 12, stride=2),
        Parallel(12, 8),
        nn.Dropout(0.1),
        nn.Conv2d(8, marks, 1),
        nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False),
    )


def generator(code=12):
    """DCGAN: a linear layer gives a small map, transposed convolutions enlarge it."""
    return nn.Sequential(
        nn.Linear(code, 16 * 4 * 4),
        nn.Unflatten(1, (16, 4, 4)),
        nn.BatchNorm2d(16),
        nn.ReLU(True),
        nn.ConvTranspose2d(16, 12, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(True),
        nn.ConvTranspose2d(12, 8, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(True),
        nn.Conv2d(8, 3, 3, padding=1),
        nn.Tanh(),
    )


def discriminator():
    """Strided convolutions, GroupNorm, leaky ReLUs; the last map is the answer."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(8, 12, 4, stride=2, padding=1, bias=False),
        nn.GroupNorm(4, 12),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(12, 16, 4, stride=2, padding=1, bias=False),
        nn.GroupNorm(2, 16),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(16, 2, 4),
        nn.Flatten(),
    )


class Autoencoder(nn.Module):
    """Convolutions down to a code, a linear layer and transposed convolutions back."""

    def __init__(self, code=10):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.code = nn.Linear(12 * 4 * 4, code)
        self.back = nn.Linear(code, 12 * 4 * 4)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(12, 8, 3, stride=2, padding=1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 3, 3, stride=2, padding=1, output_padding=1),
        )

    def forward(self, x):
        code = self.code(self.encoder(x).flatten(1))
        maps = functional.relu(self.back(code)).view(-1, 12, 4, 4)
        return self.decoder(maps)


class TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's weights, transposed."""

    def __init__(self, width=24, hidden=16, code=8):
        super().__init__()
        self.enc1 = nn.Linear(width, hidden)
        self.enc2 = nn.Linear(hidden, code)
        self.bias2 = nn.Parameter(torch.zeros(hidden))
        self.bias1 = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        code = torch.sigmoid(self.enc2(torch.relu(self.enc1(x))))
        hidden = torch.relu(functional.linear(code, self.enc2.weight.t(), self.bias2))
        return functional.linear(hidden, self.enc1.weight.t(), self.bias1)


class SuperResolution(nn.Module):
    """ESPCN with a shortcut: channels become pixels; the enlarged input is added."""

    def __init__(self, factor=2):
        super().__init__()
        self.factor = factor
        self.conv1 = nn.Conv2d(3, 12, 5, padding=2)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1)
        self.up = nn.Sequential(nn.Conv2d(8, 6 * factor**2, 3, padding=1), nn.PixelShuffle(factor))
        self.act = nn.PReLU(6)
        self.out = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x):
        maps = torch.tanh(self.conv2(torch.tanh(self.conv1(x))))
        enlarged = functional.interpolate(
            x, scale_factor=self.factor, mode="bilinear", align_corners=False
        )
        return self.out(self.act(self.up(maps))) + enlarged


MAPS = (
    Architecture("u-net", UNet, SMALL, classes=None),
    Architecture("feature-pyramid", FeaturePyramid),
    Architecture("deeplab-aspp", deeplab, PICTURE, classes=None),
    Architecture("gan-generator", generator, (12,), classes=None),
    Architecture("gan-discriminator", discriminator, PICTURE, classes=2),
    Architecture("autoencoder", Autoencoder, SMALL, classes=None),
    Architecture("tied-autoencoder", TiedAutoencoder, (24,), classes=None),
    Architecture("super-resolution", SuperResolution, SMALL, classes=None),
)
