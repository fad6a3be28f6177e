import pytest
import torch
from tests.cases import CASES, named

import neurank as nr
from neurank.errors import MethodError

METHODS = (
    nr.ExactShapley(),
    nr.PermutationShapley(passes=2),
    nr.WeightNorm(2),
    nr.RandomScore(),
)


def rank(case, method, **options):
    return nr.rank(case.model(), case.batches(), method, progress=False, **options)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_all_hidden_layers_are_ranked_in_the_order_of_execution(method):
    case = named("lenet, flatten")
    ranking = rank(case, method)
    assert list(ranking) == ["conv1", "conv2", "fc1"]
    assert [layer.units for layer in ranking.layers.values()] == [3, 4, 5]
    assert list(rank(case, method, layers=["fc2", "conv1"])) == ["conv1", "fc2"]


def test_provenance_says_how_it_came_about():
    case = named("skip")
    method = nr.PermutationShapley(passes=2, stop=nr.StderrBelow(0.5))
    ranking = rank(case, method, value=nr.Recall(1), removal="mean", seed=7)
    record = ranking.provenance
    assert record["method"] == {
        "name": "PermutationShapley",
        "parameters": {
            "passes": 2,
            "antithetic": False,
            "strata": 1,
            "leaps": True,
            "stop": "StderrBelow(stderr=0.5)",
        },
    }
    assert (record["value"], record["removal"], record["seed"]) == ("Recall(label=1)", "mean", 7)
    assert record["data"]["examples"] == 12
    assert record["refused_layers"] == {}
    assert set(record["by_layer"]) == {"stem", "up"}  # "down" is added to the stem
    assert record["versions"]["torch"] == str(torch.__version__)
    layer = record["by_layer"]["up"]
    assert layer["way"] == "additive"
    assert layer["seconds"] >= 0
    assert layer["coalitions"] > 0


def test_model_and_data_are_told_by_their_digests():
    one, other = named("perceptron"), named("linear all along")
    digests = [rank(case, nr.RandomScore()).provenance for case in (one, one, other)]
    assert digests[0]["model"] == digests[1]["model"] != digests[2]["model"]
    assert digests[0]["data"] == digests[1]["data"] != digests[2]["data"]


@pytest.mark.parametrize("case", CASES[::5], ids=str)
def test_every_part_is_used(case):
    """rank() itself gives what the method gives when value, removal and seed are set."""
    from tests.cases import watch

    options = {"value": nr.Margin(), "removal": "mean", "seed": 3}
    method = nr.PermutationShapley(passes=2)
    ranking = rank(case, method, layers=list(case.reads), **options)
    for layer in case.reads:
        assert ranking[layer] == method.score(watch(case, **options), layer).ranking


def test_accuracy_is_the_default_value():
    case = named("perceptron")
    assert (
        rank(case, nr.ExactShapley()).layers
        == rank(case, nr.ExactShapley(), value=nr.Accuracy()).layers
    )


@pytest.mark.parametrize("method", [nr.ExactShapley, "exact", None, 3, object()])
def test_a_method_is_an_instance(method):
    with pytest.raises(MethodError, match="is not a ranking method: pass an instance"):
        rank(named("perceptron"), method)


@pytest.mark.parametrize("seed", [-1, 1.5, None, "0"])
def test_a_seed_is_a_whole_number_from_0(seed):
    with pytest.raises(MethodError, match=r"a whole number from 0 on is needed"):
        rank(named("perceptron"), nr.RandomScore(), seed=seed)


@pytest.mark.parametrize("value", ["accuracy", nr.Accuracy, 5])
def test_a_value_is_an_instance_or_a_function(value):
    with pytest.raises(MethodError, match=r"is not a value: pass an instance"):
        rank(named("perceptron"), nr.ExactShapley(), value=value)


def test_a_removal_is_one_of_three():
    with pytest.raises(MethodError, match="removal='noise' is unknown"):
        rank(named("perceptron"), nr.ExactShapley(), removal="noise")


def test_where_to_compute_can_be_said():
    ranking = rank(named("perceptron"), nr.ExactShapley(), device="cpu")
    assert ranking.provenance["device"] == "cpu"


def test_memory_and_journal_change_nothing(tmp_path):
    case = named("skip")
    method = nr.PermutationShapley(passes=2, leaps=False)
    plain = rank(case, method)
    kept = rank(case, method, journal=tmp_path / "run.journal", max_memory=1)
    assert plain.layers == kept.layers
    assert "journal" not in plain.provenance
    assert kept.provenance["journal"] == {
        "chunks": 24,
        "reused": 0,
    }  # two layers, one example at a time


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_another_device_gives_the_same_scores():
    case = named("lenet, flatten")
    here, there = (rank(case, nr.ExactShapley(), device=device) for device in ("cpu", "cuda"))
    for layer in here:
        torch.testing.assert_close(here[layer].scores, there[layer].scores, atol=1e-10, rtol=0)
