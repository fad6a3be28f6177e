"""The registry has every method, and each can be made without arguments."""

import inspect

import pytest

import neurank
from neurank.errors import MethodError
from neurank.rankers.method import Method
from neurank.rankers.registry import METHODS, method_class


def test_every_public_method_is_registered_once():
    public = {
        item
        for item in (getattr(neurank, name) for name in neurank.__all__)
        if inspect.isclass(item) and hasattr(item, "score")
    }
    assert set(METHODS.values()) == public
    assert len(set(METHODS.values())) == len(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_made_of_its_defaults(name):
    assert isinstance(method_class(name)(), Method)


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(MethodError, match=r"'shapley'.*exact, permutation"):
        method_class("shapley")
