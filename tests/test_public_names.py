import inspect
import types

import pytest

import neurank as nr

DOCUMENTED = {
    "data": "data sets in fixed splits",
    "zoo": "the papers' networks",
    "errors": "everything that is raised on purpose",
    "fit": "train", "error_rate": "test",
    "combine": "several rankings", "smallest": "search", "Smallest": "result",
    "rank": "score", "compare": "two rankings", "plan": "choose", "condense": "carry out",
    "retrain": "afterwards", "load": "a condensed network",
    "ExactShapley": "method", "PermutationShapley": "method", "ImportanceSwitch": "method",
    "PairShapley": "method", "TruncatedShapley": "method", "TwoStageShapley": "method",
    "value_table": "all coalitions", "ValueTable": "result",
    "WeightNorm": "method", "NonzeroWeights": "method", "RandomScore": "method",
    "Taylor": "method", "MeanReplacementSaliency": "method", "MeanReplacementPenalty": "method",
    "ClassResponse": "method",
    "classes": "one at a time", "specialize": "cut out", "Specialist": "result",
    "plan_in_rounds": "rank again and again", "RunningRanking": "average along a training",
    "weights": "single weights", "watch": "beside a training", "Watching": "result",
    "vitals": "dead and frozen units", "Vitals": "result", "Thresholds": "how little is nothing",
    "attack": "a learning rate", "revive": "a dead unit", "UnitPruning": "on a schedule",
    "WeightPruning": "on a schedule",
    "ParquetLog": "writer", "TensorBoardLog": "writer",
    "Accuracy": "value", "Recall": "value", "NegativeLoss": "value", "Margin": "value",
    "StderrBelow": "rule", "TopCertain": "rule", "Seconds": "rule",
    "Ranking": "result", "LayerRanking": "result", "Agreement": "result", "Plan": "result",
    "Condensed": "result",
}  # fmt: skip


def test_the_public_names_are_those_that_are_documented():
    assert set(nr.__all__) == set(DOCUMENTED)
    assert list(nr.__all__) == sorted(nr.__all__)


def test_nothing_else_is_public():
    """Names without an underscore are in __all__, or are the package's own modules."""
    others = {
        name
        for name, thing in vars(nr).items()
        if not name.startswith("_") and not isinstance(thing, types.ModuleType)
    }
    assert others <= set(nr.__all__)
    strangers = {
        name
        for name, thing in vars(nr).items()
        if isinstance(thing, types.ModuleType) and not thing.__name__.startswith("neurank")
    }
    assert strangers == set()


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_each_says_what_it_is(name):
    thing = getattr(nr, name)
    text = inspect.getdoc(thing)
    assert text
    assert not text.startswith(f"{name}(")  # what a dataclass says for lack of a docstring
    if not isinstance(thing, types.ModuleType):
        assert thing.__module__.startswith("neurank.")


MADE_BY_OTHERS = {
    "Agreement": "compare", "Condensed": "condense", "Smallest": "smallest", "Watching": "watch",
    "Specialist": "specialize",
}  # fmt: skip
"""Nobody makes these by hand; what makes them has the example."""


@pytest.mark.parametrize(
    "name", sorted(set(DOCUMENTED) - {"data", "zoo", "errors", "weights", "classes"})
)
def test_each_has_an_example_whose_answer_is_known(name):
    thing = getattr(nr, MADE_BY_OTHERS.get(name, name))
    assert ">>>" in inspect.getdoc(thing)


def test_methods_and_values_are_frozen_and_print_their_parameters():
    for name, kind in DOCUMENTED.items():
        if kind in {"method", "value"} and name not in {"Recall"}:
            made = getattr(nr, name)()
            assert type(made).__dataclass_params__.frozen
            assert repr(made).startswith(f"{name}(")
            assert made == getattr(nr, name)()


def test_a_version():
    assert nr.__version__.count(".") == 2
