import pytest
import torch

from neurank import zoo
from neurank.errors import ModelError

# Pictures that each is made for, and its outputs.
MADE_FOR = {
    "lenet": ((1, 28, 28), 10),
    "digits_net": ((1, 8, 8), 10),
    "vgg16": ((3, 32, 32), 10),
    "resnet20": ((3, 32, 32), 10),
    "resnet32": ((3, 32, 32), 10),
    "resnet44": ((3, 32, 32), 10),
    "resnet56": ((3, 32, 32), 10),
    "alexnet": ((3, 224, 224), 1000),
    "squeezenet1_1": ((3, 224, 224), 1000),
    "thesis_cnn": ((1, 28, 28), 10),
}


def test_every_network_is_found_by_the_name_of_its_function():
    names = {name: factory.__name__ for name, factory in zoo.FACTORIES.items()}
    assert names == {name: name for name in MADE_FOR}
    assert all(zoo.by_name(name) is factory for name, factory in zoo.FACTORIES.items())
    assert set(zoo.WIDTHS) == set(zoo.FACTORIES)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ModelError, match="'resnet': give one of lenet, digits_net"):
        zoo.by_name("resnet")


@pytest.mark.parametrize("name", list(zoo.FACTORIES))
def test_every_network_builds_without_arguments(name):
    shape, classes = MADE_FOR[name]
    model = zoo.by_name(name)()
    assert model.eval()(torch.zeros(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize("name", list(zoo.FACTORIES))
def test_every_network_takes_as_many_widths_as_are_said(name):
    shape, _ = MADE_FOR[name]
    count = zoo.WIDTHS[name]
    model = zoo.by_name(name)(*range(2, 2 + count), classes=3, seed=0).eval()
    assert model(torch.zeros(2, *shape)).shape == (2, 3)
    if name not in {"lenet", "digits_net", "thesis_cnn"}:  # which take their widths by name
        with pytest.raises(ModelError, match=f"{name} has {count} .* and {count + 1} widths"):
            zoo.by_name(name)(*range(2, 3 + count))
