"""`WeightScores` as a value: checked, ordered, kept."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurank import weights
from neurank.errors import FileError, RankingError

SCORES = weights.WeightScores(
    {"b.weight": torch.tensor([[2.0, -3.0], [2.0, 0.5]]), "a.weight": torch.tensor([[1.0, -1.0]])},
    {"method": {"name": "Taylor1", "parameters": {}}, "seed": 3},
)


def test_it_is_a_mapping_in_the_order_given():
    assert list(SCORES) == ["b.weight", "a.weight"]
    assert len(SCORES) == 2
    assert "a.weight" in SCORES
    assert SCORES["a.weight"].dtype == torch.float64
    assert SCORES.get("c.weight") is None
    assert SCORES.count == 6
    with pytest.raises(RankingError, match=r"there is no parameter 'c.weight' here: there are b"):
        SCORES["c.weight"]


def test_best_first_and_of_equals_the_first():
    assert SCORES.order("b.weight").tolist() == [0, 2, 3, 1]
    assert SCORES.order().tolist() == [0, 2, 4, 3, 5, 1]


@settings(max_examples=40)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_the_order_is_that_of_a_stable_sort(numbers):
    scores = weights.WeightScores({"w": torch.tensor(numbers)})
    wanted = sorted(range(len(numbers)), key=lambda place: -numbers[place])
    assert scores.order().tolist() == wanted


def test_sizes_keep_everything_but_the_sign():
    sizes = SCORES.absolute()
    assert sizes["b.weight"].tolist() == [[2.0, 3.0], [2.0, 0.5]]
    assert sizes.provenance == {**SCORES.provenance, "absolute": True}
    assert SCORES["b.weight"][0, 1] == -3


def test_a_row_per_weight():
    frame = SCORES.to_frame()
    assert list(frame.columns) == ["parameter", "index", "score", "rank"]
    assert frame["rank"].tolist() == [1, 4, 2, 3, 1, 2]
    assert frame[frame.parameter == "a.weight"].score.tolist() == [1.0, -1.0]


def test_it_is_not_touched_by_what_happens_to_what_was_given():
    given_one = torch.tensor([1.0, 2.0])
    scores = weights.WeightScores({"w": given_one})
    given_one += 1
    assert scores["w"].tolist() == [1.0, 2.0]
    with pytest.raises(TypeError):
        scores.tensors["w"] = given_one
    assert copy.deepcopy(scores) == scores
    assert scores != weights.WeightScores({"w": torch.tensor([1.0, 2.5])})
    assert scores != SCORES


def test_what_is_saved_comes_back(tmp_path):
    path = tmp_path / "scores.safetensors"
    SCORES.save(path)
    again = weights.WeightScores.load(path)
    assert again == SCORES
    assert list(again) == list(SCORES)
    masks = weights.mask(SCORES, 0.5)
    masks.save(path)
    assert weights.Masks.load(path) == masks
    with pytest.raises(FileError, match="'weight masks', not a 'weight scores'"):
        weights.WeightScores.load(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileError):
        weights.Masks.load(path)


def test_it_prints_the_method_and_a_line_per_parameter():
    lines = str(SCORES).splitlines()
    assert lines[0] == "WeightScores of 2 parameters (Taylor1)"
    assert " ".join(lines[1].split()) == "b.weight 2 x 2 -3 to 2 25 % below 0"


REFUSED = {
    "nothing": ({}, "one parameter or more"),
    "NaN": ({"w": torch.tensor([torch.nan])}, "'w' are NaN or infinite"),
    "lists": ({"w": [1.0]}, "maps to a list"),
    "complex": ({"w": torch.tensor([1j])}, "maps to a Tensor"),
    "sparse": ({"w": torch.eye(2).to_sparse()}, "sparse"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what):
    tensors, reason = REFUSED[what]
    with pytest.raises(RankingError, match=reason):
        weights.WeightScores(tensors)


def test_a_provenance_is_json():
    with pytest.raises(RankingError, match="provenance"):
        weights.WeightScores({"w": torch.ones(1)}, {"method": torch})
    with pytest.raises(RankingError, match="provenance"):
        weights.WeightScores({"w": torch.ones(1)}, "mine")
