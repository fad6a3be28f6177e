"""Results as JSON."""

import json

import pytest
import torch

from neurank.agreement import compare
from neurank.ranking import LayerRanking, Ranking
from neurank.report.documents import agreement_document, plain, ranking_document


def test_what_json_lacks_becomes_null():
    assert plain([float("nan"), float("inf"), 1.5, True, None, (1, {2: "a"})]) == [
        None, None, 1.5, True, None, [1, {"2": "a"}],
    ]  # fmt: skip


def test_a_ranking_survives_json():
    ranking = Ranking.from_scores({"conv1": [0.1, 0.9]}, provenance={"method": "m", "model": "x"})
    read = json.loads(json.dumps(ranking_document(ranking), allow_nan=False))
    assert read["method"] == "m"
    assert read["provenance"]["model"] == "x"
    layer = read["layers"]["conv1"]
    assert layer["scores"] == [0.1, 0.9]
    assert layer["order"] == [1, 0]
    assert layer["stderr"] == [None, None]
    assert layer["data_stderr"] is None


def test_an_undefined_layer_has_no_order():
    nothing = torch.full((2,), torch.nan)
    layer = LayerRanking(nothing, nothing, [0, 0], "undefined", stderr_of="none")
    document = ranking_document(Ranking({"fc": layer}, {}))["layers"]["fc"]
    assert document["order"] is None
    assert document["scores"] == [None, None]


def test_an_agreement_has_all_its_figures():
    one = Ranking.from_scores({"a": [1, 2, 3], "b": [1, 1, 1], "c": [1, 2]})
    two = Ranking.from_scores({"a": [3, 2, 1], "b": [1, 2, 3]})
    document = json.loads(json.dumps(agreement_document(compare(one, two, k=2)), allow_nan=False))
    assert document["layers"]["a"]["overlap"] == 1
    assert document["layers"]["a"]["spearman"] == pytest.approx(-1)
    assert document["layers"]["b"]["kendall"] is None  # no order in equal scores
    assert document["only_in_a"] == ["c"]
