"""Compiled loops keep to the threads that torch was given, as under `rank`."""

import pytest

from neurank.modes import threads_as_torch


@pytest.fixture(autouse=True, scope="session")
def _threads():
    with threads_as_torch():
        yield
