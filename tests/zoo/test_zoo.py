import pytest
import torch

from neurank import zoo
from neurank.errors import ModelError


def test_every_network_is_found_by_the_name_of_its_function():
    assert {name: factory.__name__ for name, factory in zoo.FACTORIES.items()} == {
        "lenet": "lenet",
        "digits_net": "digits_net",
        "vgg16": "vgg16",
    }
    assert all(zoo.by_name(name) is factory for name, factory in zoo.FACTORIES.items())


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ModelError, match="'resnet': give one of lenet, digits_net"):
        zoo.by_name("resnet")


@pytest.mark.parametrize("name", list(zoo.FACTORIES))
def test_every_network_builds_without_arguments(name):
    model = zoo.by_name(name)()
    shape = {"lenet": (1, 28, 28), "digits_net": (1, 8, 8), "vgg16": (3, 32, 32)}[name]
    assert model.eval()(torch.zeros(2, *shape)).shape == (2, 10)
