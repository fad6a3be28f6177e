"""What all tests share: real data, and no deadline for properties on a busy machine."""

import os
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

settings.register_profile("neurank", deadline=None, print_blob=True)
settings.load_profile("neurank")


def unavailable(reason: str) -> NoReturn:
    """Skip the test that lacks its data; in continuous integration nothing may be skipped."""
    if os.environ.get("CI", "").lower() in {"true", "1"}:
        pytest.fail(f"{reason} (and CI is set, where real data must not be missing)")
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _threads():
    """Let numba start now: when it does, it gives torch a thread per core, whatever was chosen.

    Entry points see to that themselves; tests that call compiled loops directly do not, and on a
    busy machine two threads take many times as long as one for the small networks of all others.
    """
    if "numba" in sys.modules:
        from neurank.modes import threads_as_torch

        with threads_as_torch():
            pass


@pytest.fixture(scope="session")
def data_dir():
    """The folder with the real data sets and weights."""
    named = os.environ.get("NEURANK_DATA")
    if not named:
        unavailable("NEURANK_DATA does not name the folder with the real data sets")
    folder = Path(named)
    if not folder.is_dir():
        unavailable(f"NEURANK_DATA={named} is no folder")
    return folder


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits; always there."""
    from neurank.data import load

    return load("digits")


@pytest.fixture(scope="session")
def mnist(data_dir):
    """The real MNIST."""
    return _loaded("mnist", data_dir / "mnist")


@pytest.fixture(scope="session")
def cifar10(data_dir):
    """The real CIFAR-10; takes some ten seconds."""
    return _loaded("cifar10", data_dir / "cifar10")


@pytest.fixture(scope="session")
def fashion_mnist():
    """The real Fashion-MNIST, from Debian's package."""
    from neurank.data import load
    from neurank.data.idx import DEBIAN_FASHION_MNIST

    if not DEBIAN_FASHION_MNIST.is_dir():
        unavailable(
            f"{DEBIAN_FASHION_MNIST} is not there; `apt install dataset-fashion-mnist` brings it"
        )
    return load("fashion-mnist")


def _loaded(name, folder):
    if not folder.is_dir():
        unavailable(f"{folder} is not there")
    from neurank.data import load

    return load(f"{name}:{folder}")
