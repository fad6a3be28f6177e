from pathlib import Path

import pytest

from neurank.data import KNOWN, load, sources
from neurank.errors import DataError


@pytest.mark.parametrize("spec", ["", "cifar", "MNIST:somewhere", "pictures:x"])
def test_an_unknown_name_lists_the_known_ones(spec):
    with pytest.raises(DataError) as refusal:
        load(spec)
    assert all(known in str(refusal.value) for known in KNOWN)
    assert repr(spec.partition(":")[0]) in str(refusal.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "folder", "mnist:"])
def test_a_missing_folder_is_asked_for(name):
    with pytest.raises(DataError, match=f"give {name.rstrip(':')}:DIR"):
        load(name)


def test_digits_have_no_folder():
    with pytest.raises(DataError, match="drop 'somewhere'"):
        load("digits:somewhere")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "folder"])
def test_a_folder_that_is_not_there_is_named(name):
    with pytest.raises(DataError, match="/no/such/folder"):
        load(f"{name}:/no/such/folder")


def test_the_batch_size_is_handed_on():
    digits = load("digits", batch_size=7)
    assert {part.batch_size for part in (digits.train, digits.validation, digits.test)} == {7}


def test_a_batch_size_of_0_is_refused():
    with pytest.raises(DataError, match="batch size 0"):
        load("digits", batch_size=0)


def test_a_path_may_have_colons_and_a_tilde(monkeypatch):
    asked = []
    monkeypatch.setitem(sources._SOURCES, "mnist", lambda folder, _: asked.append(folder))
    load("mnist:C:/data")
    load("mnist:~/data")
    assert asked == [Path("C:/data"), Path.home() / "data"]


def test_every_known_name_has_a_source():
    assert {known.partition(":")[0].partition("[")[0] for known in KNOWN} == set(sources._SOURCES)
