"""The small languages of the options."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurank.cli.words import layer_names, memory, number_or_per_layer, per_layer, stop, value
from neurank.errors import MethodError, PlanError
from neurank.observe.value import Accuracy, Margin, NegativeLoss, Recall
from neurank.rankers.stopping import Seconds, StderrBelow, TopCertain

NAMES = st.text("abc.019=_", min_size=1).filter(lambda name: not name.endswith("="))


@given(st.dictionaries(NAMES, st.integers(), min_size=1))
def test_numbers_by_layer_read_back(numbers):
    text = ",".join(f"{name}={number}" for name, number in numbers.items())
    assert per_layer(text, int, "--keep") == numbers


@pytest.mark.parametrize("text", ["", "a", "a=", "=3", "a=1,", "a=1,a=1", "a=1.5"])
def test_other_forms_are_refused(text):
    with pytest.raises(PlanError, match="--keep"):
        per_layer(text, int, "--keep")


def test_one_number_is_for_all_layers():
    assert number_or_per_layer("7", int, "-k") == 7
    assert number_or_per_layer("a=0.5", float, "--ratio") == {"a": 0.5}


def test_values():
    found = [value(text) for text in ("accuracy", "loss", "margin", "recall:0")]
    assert found == [Accuracy(), NegativeLoss(), Margin(), Recall(0)]
    for text in ("", "recall", "recall:", "recall:-1", "Accuracy"):
        with pytest.raises(MethodError, match="--value"):
            value(text)


def test_layer_names():
    assert layer_names(None) is None
    assert layer_names("a.b, c,") == ["a.b", "c"]


def test_rules_to_stop_by():
    found = [stop(text) for text in ("stderr:1e-3", "top:5", "seconds:0.5")]
    assert found == [StderrBelow(0.001), TopCertain(5), Seconds(0.5)]
    for text in ("", "stderr", "stderr:", "top:1.5", "Seconds:3", "top:0", "stderr:-1"):
        with pytest.raises(MethodError, match=r"--stop|is needed"):
            stop(text)


def test_numbers_of_bytes():
    found = [memory(text) for text in ("1", "1k", "1.5M", "2GB", "7B")]
    assert found == [1, 1024, 3 * 2**19, 2**31, 7]
    for text in ("", "G", "-1", "1T", "1 G", "1e3"):
        with pytest.raises(MethodError, match="--max-memory"):
            memory(text)
