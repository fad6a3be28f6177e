"""One layer after another: LeNet, VGG, AlexNet, Network in Network, the all-convolutional net."""

import torch
from tests.architectures.architecture import CLASSES, Architecture
from torch import nn
from torch.nn import functional


class LeNet(nn.Module):
    """Two convolutions and three linear layers; the flat width is written as a number."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 12, 5)
        self.fc1 = nn.Linear(12 * 5 * 5, 20)
        self.fc2 = nn.Linear(20, 16)
        self.fc3 = nn.Linear(16, CLASSES)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = x.view(-1, 300)
        x = functional.relu(self.fc1(x))
        return self.fc3(functional.relu(self.fc2(x)))


class VGG(nn.Module):
    """3x3 convolutions with BatchNorm ("M" for max pooling), flattened maps, linear layers."""

    def __init__(self, plan=(6, 8, "M", 12, 12, "M", 16, 16, "M")):
        super().__init__()
        layers, width = [], 3
        for step in plan:
            if step == "M":
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers += [
                nn.Conv2d(width, step, 3, padding=1),
                nn.BatchNorm2d(step),
                nn.ReLU(inplace=True),
            ]
            width = step
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(width * 4, 24),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(24, 20),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(20, CLASSES),
        )

    def forward(self, x):
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


class AlexNet(nn.Module):
    """Overlapping pooling, convolutions in two groups, as when it was spread over two devices."""

    def __init__(self, norm=nn.Identity):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=2, padding=2),
            nn.ReLU(),
            norm(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(8, 12, 5, padding=2, groups=2),
            nn.ReLU(),
            norm(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(12, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(16, 12, 3, padding=1, groups=2),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(12 * 3 * 3, 24),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(24, 16),
            nn.ReLU(),
            nn.Linear(16, CLASSES),
        )

    def forward(self, x):
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


def _perceptron_conv(before, after, size, **options):
    """A convolution and two 1x1 convolutions behind it: a perceptron at every place."""
    return nn.Sequential(
        nn.Conv2d(before, after, size, **options),
        nn.ReLU(),
        nn.Conv2d(after, after, 1),
        nn.ReLU(),
        nn.Conv2d(after, after, 1),
        nn.ReLU(),
    )


def network_in_network():
    """Perceptrons for filters; the last channels are the classes, averaged over the map."""
    return nn.Sequential(
        _perceptron_conv(3, 8, 5, padding=2),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Dropout(),
        _perceptron_conv(8, 12, 3, padding=1),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.Dropout(),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, CLASSES, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class AllConv(nn.Module):
    """Strides instead of pooling, no linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.down1 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.down2 = nn.Conv2d(12, 12, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(12, 16, 3)
        self.conv4 = nn.Conv2d(16, 16, 1)
        self.classes = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x):
        for conv in (self.conv1, self.down1, self.conv2, self.down2, self.conv3, self.conv4):
            x = functional.elu(conv(x))
        return self.classes(x).mean(dim=(-2, -1))


CHAINS = (
    Architecture("lenet", LeNet),
    Architecture("vgg-bn", VGG),
    Architecture("alexnet-groups", AlexNet),
    Architecture("network-in-network", network_in_network),
    Architecture("all-conv", AllConv),
)
