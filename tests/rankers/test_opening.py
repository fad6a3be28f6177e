import pytest
import torch
from tests.cases import named

import neurank as nr
from neurank.errors import MethodError
from neurank.rankers.opening import versions, watching

OPTIONS = {"value": None, "removal": "zero", "seed": 0, "device": None, "progress": False}


def opened(**changes):
    case = named("perceptron")
    return watching(case.model(), case.batches(), **{**OPTIONS, **changes})


def test_the_observer_has_what_was_asked_for():
    with opened(value=nr.Margin(), removal="mean", seed=7, device="cpu") as observer:
        assert (observer.value, observer.removal, observer.seed) == (nr.Margin(), "mean", 7)
        assert observer.examples.device == torch.device("cpu")
        assert not observer.model.training
    assert observer.model.training
    with opened() as observer:
        assert observer.value == nr.Accuracy()


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"seed": 1.5}, {"value": nr.Margin}, {"value": 3}, {"removal": "ones"}]
)
def test_what_is_none_is_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(MethodError, match=f"{name}={value!r}"), opened(**wrong):
        pass


def test_versions_are_those_that_run():
    assert versions()["torch"] == str(torch.__version__)
    assert versions()["neurank"] == nr.__version__
