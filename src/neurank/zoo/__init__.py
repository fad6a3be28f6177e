"""Networks of the literature, untrained."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from neurank.errors import ModelError
from neurank.zoo.alexnet import AlexNet, alexnet
from neurank.zoo.convnet import ConvNet, digits_net, lenet
from neurank.zoo.resnet import ResNet, resnet20, resnet32, resnet44, resnet56
from neurank.zoo.squeezenet import SqueezeNet, squeezenet1_1
from neurank.zoo.thesis import ThesisCNN, thesis_cnn
from neurank.zoo.vgg import VGG, vgg16

Factory = Callable[..., nn.Module]

FACTORIES: Mapping[str, Factory] = MappingProxyType(
    {
        "lenet": lenet,
        "digits_net": digits_net,
        "vgg16": vgg16,
        "resnet20": resnet20,
        "resnet32": resnet32,
        "resnet44": resnet44,
        "resnet56": resnet56,
        "alexnet": alexnet,
        "squeezenet1_1": squeezenet1_1,
        "thesis_cnn": thesis_cnn,
    }
)
"""Every network by its name, which is also the name of its function."""

WIDTHS: Mapping[str, int] = MappingProxyType(
    {
        "lenet": 4,
        "digits_net": 4,
        "vgg16": 15,
        "resnet20": 3,
        "resnet32": 3,
        "resnet44": 3,
        "resnet56": 3,
        "alexnet": 7,
        "squeezenet1_1": 25,
        "thesis_cnn": 3,
    }
)
"""How many widths each takes: one for each layer of units but the output, or for each stage."""

__all__ = [
    "FACTORIES",
    "VGG",
    "WIDTHS",
    "AlexNet",
    "ConvNet",
    "Factory",
    "ResNet",
    "SqueezeNet",
    "ThesisCNN",
    "alexnet",
    "by_name",
    "digits_net",
    "lenet",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "squeezenet1_1",
    "thesis_cnn",
    "vgg16",
]


def by_name(name: str) -> Factory:
    """Find the function that builds the network called `name`.

    Raises
    ------
    ModelError
        There is none of that name.

    Examples
    --------
    >>> by_name("lenet") is lenet
    True
    """
    if name not in FACTORIES:
        raise ModelError(f"no network is called {name!r}: give one of {', '.join(FACTORIES)}")
    return FACTORIES[name]
