"""The papers' networks, untrained."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from neurank.errors import ModelError
from neurank.zoo.convnet import ConvNet, digits_net, lenet

Factory = Callable[..., ConvNet]

FACTORIES: Mapping[str, Factory] = MappingProxyType({"lenet": lenet, "digits_net": digits_net})
"""Every network by its name, which is also the name of its function."""

__all__ = ["FACTORIES", "ConvNet", "Factory", "by_name", "digits_net", "lenet"]


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
