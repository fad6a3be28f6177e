import copy
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from neurank.errors import FileError, RankingError
from neurank.files import read_tensors, write_tensors
from neurank.ranking import LayerRanking, Ranking
from neurank.text import aligned, legible

NAN = float("nan")


def layer(scores, **changes):
    n = len(scores)
    fields = {"stderr": [0.1] * n, "counts": [5] * n, "status": "sampled", **changes}
    return LayerRanking(torch.tensor(scores, dtype=torch.float64), **fields)


def undefined(units=2):
    return layer([NAN] * units, stderr=[NAN] * units, counts=[0] * units, status="undefined")


@pytest.fixture
def ranking():
    return Ranking(
        {
            "conv1": layer([0.25, 0.5], stderr=[0, 0], status="exact", data_stderr=[0.01, 0.02]),
            "fc1": layer([0.3, -0.1, 0.3], stderr_of="total"),
            "recall": undefined(),
        },
        {"method": {"name": "Mixed", "passes": 2}, "model": "0ff", "seeds": (1, 2)},
    )


@pytest.mark.parametrize("real", [torch.float32, torch.float64])
@pytest.mark.parametrize("whole", [torch.int32, torch.int64])
def test_scores_are_kept_as_float64_copies_on_the_cpu(real, whole):
    scores = torch.tensor([1.0, 2.0], dtype=real, requires_grad=True)
    counts = torch.tensor([1, 2], dtype=whole)
    kept = LayerRanking(scores, torch.zeros(2), counts, "sampled")
    with torch.no_grad():
        scores.zero_()
    counts.zero_()
    assert (kept.scores.dtype, kept.counts.dtype) == (torch.float64, torch.int64)
    assert kept.scores.tolist() == [1, 2]
    assert kept.counts.tolist() == [1, 2]
    assert not kept.scores.requires_grad


def test_lists_and_arrays_keep_their_precision():
    third = 1 / 3
    array = np.array([third, 0.0])
    kept = LayerRanking([third, 0], stderr=array, counts=np.array([1, 1]), status="sampled")
    array[:] = 9
    assert kept.scores[0].item() == third
    assert kept.stderr[0].item() == third


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scores": torch.zeros(2, 2)}, r"scores have the shape \(2, 2\)"),
        ({"scores": torch.zeros(0)}, r"scores have the shape \(0,\)"),
        ({"scores": torch.tensor(1.0)}, r"scores have the shape \(\)"),
        ({"scores": [[1], [1, 2]]}, "not one number per unit"),
        ({"scores": ["a", "b"]}, "not one number per unit"),
        ({"scores": torch.ones(2, dtype=torch.complex64)}, "give real numbers"),
        ({"scores": [True, False]}, "give real numbers"),
        ({"scores": torch.ones(2).to_sparse()}, "dense"),
        ({"scores": torch.ones(2, device="meta")}, "without data"),
        ({"scores": [1.0, NAN]}, "score of unit 1 is nan"),
        ({"scores": [NAN, NAN]}, "score of unit 0 is nan"),
        ({"scores": [1.0, -math.inf]}, "score of unit 1 is -inf"),
        ({"stderr": [0.1]}, r"stderr has the shape \(1,\) beside scores of the shape \(2,\)"),
        ({"stderr": [0.1, -0.1]}, "stderr holds a negative or infinite"),
        ({"stderr": [0.1, math.inf]}, "stderr holds a negative or infinite"),
        ({"data_stderr": [0.1]}, "data_stderr has the shape"),
        ({"data_stderr": [0.1, -0.1]}, "data_stderr holds a negative"),
        ({"freedom": [9.0]}, r"freedom has the shape \(1,\) beside scores of the shape \(2,\)"),
        ({"by_class": [0.1, 0.2]}, r"by_class has the shape \(2,\) .* one row per class"),
        ({"by_class": [[0.1], [0.2]]}, r"by_class has the shape \(2, 1\) beside"),
        ({"by_class_stderr": [[[0.1, 0.2]]]}, r"by_class_stderr has the shape \(1, 1, 2\)"),
        ({"by_class_stderr": [[0.1, -0.2]]}, "by_class_stderr holds a negative or infinite"),
        ({"by_class_stderr": [[0.1, math.inf]]}, "by_class_stderr holds a negative or infinite"),
        ({"counts": [1]}, "counts has the shape"),
        ({"counts": [1.0, 2.0]}, "give whole numbers"),
        ({"counts": [1, -1]}, "counts hold -1"),
        ({"status": "guessed"}, "status 'guessed' is unknown; use one of exact, sampled"),
        ({"status": "undefined"}, "must all be NaN"),
        ({"status": "exact"}, "exact scores have no estimator's error"),
        ({"stderr_of": "all"}, "stderr_of='all' is unknown; use one of estimator"),
        ({"stderr_of": "none"}, "every stderr must be NaN"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_value(changes, reason):
    fields = {"scores": [1.0, 2.0], "stderr": [0.1, 0.1], "counts": [1, 1], "status": "sampled"}
    LayerRanking(**fields)
    with pytest.raises(RankingError, match=reason):
        LayerRanking(**{**fields, **changes})


def test_an_exact_layer_may_tell_its_total_error():
    assert layer([1.0], status="exact", stderr_of="total").stderr.tolist() == [0.1]


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3) | st.just(-0.0), min_size=1, max_size=40))
def test_order_is_best_first_and_ties_by_index(scores):
    expected = tuple(sorted(range(len(scores)), key=lambda unit: (-scores[unit], unit)))
    assert Ranking.from_scores({"fc": scores}).order() == expected


def test_top_is_the_head_of_the_order(ranking):
    assert ranking.order("fc1") == (0, 2, 1)
    assert [ranking.top(k, "fc1") for k in (1, 2, 3)] == [(0,), (0, 2), (0, 2, 1)]
    assert all(type(unit) is int for unit in ranking.top(3, "fc1"))


@pytest.mark.parametrize("k", [0, 4, -1, True, 1.0, None])
def test_k_out_of_range_is_refused(ranking, k):
    with pytest.raises(RankingError, match="'fc1' cannot be taken: it has 3 units"):
        ranking.top(k, "fc1")


def test_undefined_scores_have_no_order(ranking):
    with pytest.raises(RankingError, match=r"layer 'recall': .*undefined"):
        ranking.order("recall")
    with pytest.raises(RankingError, match="undefined"):
        ranking.top(1, "recall")


def test_the_layer_must_be_said_where_there_are_several(ranking):
    with pytest.raises(RankingError, match="say which layer: this ranking has conv1, fc1, recall"):
        ranking.order()
    with pytest.raises(RankingError, match="say which layer"):
        ranking.top(1)
    assert Ranking.from_scores({"fc": [1, 2]}).top(1) == (1,)


def test_an_unknown_layer_lists_the_known(ranking):
    for ask in (ranking.__getitem__, ranking.order, lambda name: ranking.select([name])):
        with pytest.raises(RankingError, match="no layer 'fc9' in this ranking; it has conv1, fc1"):
            ask("fc9")


def test_a_ranking_reads_like_a_mapping_in_network_order(ranking):
    assert list(ranking) == list(ranking.layers) == ["conv1", "fc1", "recall"]
    assert len(ranking) == 3
    assert "fc1" in ranking
    assert "fc9" not in ranking
    assert ranking["fc1"] is ranking.layers["fc1"]


def test_a_ranking_is_frozen():
    layers, provenance = {"fc": layer([1.0])}, {"list": [1]}
    kept = Ranking(layers, provenance)
    layers["fc2"] = layers["fc"]
    provenance["list"].append(2)
    assert list(kept) == ["fc"]
    assert kept.provenance == {"list": [1]}
    with pytest.raises(TypeError):
        kept.layers["fc2"] = layers["fc"]
    with pytest.raises(AttributeError):
        kept.layers = layers
    with pytest.raises(AttributeError):
        kept["fc"].scores = torch.zeros(1)


@pytest.mark.parametrize(
    ("layers", "provenance", "reason"),
    [
        ({}, {}, "at least one layer"),
        ({"fc": torch.ones(2)}, {}, "'fc' maps to a Tensor"),
        ({3: layer([1.0])}, {}, "3 maps to"),
        ({"fc": layer([1.0])}, {"when": math.nan}, r"provenance\['when'\] is nan"),
        ({"fc": layer([1.0])}, {"model": torch.ones(1)}, r"provenance\['model'\] is a Tensor"),
        ({"fc": layer([1.0])}, [1], "give a mapping"),
    ],
)
def test_a_ranking_of_anything_else_is_refused(layers, provenance, reason):
    with pytest.raises(RankingError, match=reason):
        Ranking(layers, provenance)


def test_provenance_goes_into_json(ranking):
    assert json.loads(json.dumps(ranking.provenance)) == ranking.provenance


def test_given_scores_promise_nothing():
    given_ = Ranking.from_scores({"fc": np.array([1, 3], dtype=np.int16)})["fc"]
    assert (given_.status, given_.stderr_of) == ("given", "none")
    assert given_.stderr.isnan().all()
    assert given_.counts.tolist() == [0, 0]
    with pytest.raises(RankingError, match="layer 'fc': the score of unit 1 is nan"):
        Ranking.from_scores({"fc": [1, NAN]})


def test_equality_is_by_value_and_nan_equals_nan(ranking):
    again = Ranking(dict(ranking.layers), {"model": "0ff", **ranking.provenance})
    assert again == ranking
    assert undefined() == undefined()
    assert copy.deepcopy(ranking) == ranking


@pytest.mark.parametrize(
    "other",
    [
        layer([1.0, 2.5]),
        layer([1.0, 2.0, 3.0]),
        layer([1.0, 2.0], stderr=[0.1, 0.2]),
        layer([1.0, 2.0], stderr=[0.1, NAN]),
        layer([1.0, 2.0], counts=[5, 6]),
        layer([1.0, 2.0], status="learned"),
        layer([1.0, 2.0], stderr_of="total"),
        layer([1.0, 2.0], data_stderr=[0.1, 0.1]),
        "something else",
    ],
)
def test_any_difference_makes_rankings_unequal(other):
    one = layer([1.0, 2.0])
    assert one != other
    assert one == layer([1.0, 2.0])
    if isinstance(other, LayerRanking):
        assert Ranking({"fc": one}, {}) != Ranking({"fc": other}, {})


def test_names_order_and_provenance_count_in_equality():
    a, b = layer([1.0]), layer([2.0])
    assert Ranking({"a": a, "b": b}, {}) != Ranking({"b": b, "a": a}, {})
    assert Ranking({"a": a}, {}) != Ranking({"b": a}, {})
    assert Ranking({"a": a}, {"seed": 1}) != Ranking({"a": a}, {"seed": 2})
    assert Ranking({"a": a}, {}) != "a ranking"


def test_saved_rankings_come_back_equal(ranking, tmp_path):
    ranking.save(tmp_path / "r.safetensors")
    back = Ranking.load(tmp_path / "r.safetensors")
    assert back == ranking
    assert list(back) == list(ranking)
    back.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "r.safetensors"
    ).read_bytes()


def sampled():
    """Two units, three classes, of which the last has no examples."""
    return layer(
        [0.5, 0.25],
        data_stderr=[0.01, 0.02],
        freedom=[4.5, math.inf],
        by_class=[[0.1, 0.2], [0.9, 0.3], [NAN, NAN]],
        by_class_stderr=[[0.01, 0.02], [0.03, 0.0], [NAN, NAN]],
    )


def test_errors_by_class_come_back_with_their_undefined_rows(tmp_path):
    ranking = Ranking({"fc1": sampled(), "fc2": layer([1.0])}, {})
    ranking.save(tmp_path / "r")
    back = Ranking.load(tmp_path / "r")
    assert back == ranking
    assert back["fc1"].freedom.tolist() == [4.5, math.inf]
    assert back["fc1"].by_class[1].tolist() == [0.9, 0.3]
    assert back["fc1"].by_class[2].isnan().all()
    assert back["fc1"].by_class_stderr[2].isnan().all()
    assert back["fc2"].freedom is back["fc2"].by_class is back["fc2"].by_class_stderr is None


def test_files_written_before_there_were_classes_still_load(tmp_path):
    Ranking({"fc1": sampled()}, {"seed": 1}).save(tmp_path / "new")
    tensors, metadata = read_tensors(tmp_path / "new", kind="ranking")
    late = ("freedom", "by_class", "by_class_stderr")
    kept = {name: it for name, it in tensors.items() if name.split("/")[-1] not in late}
    assert len(kept) == len(tensors) - 3
    write_tensors(tmp_path / "old", kept, metadata, kind="ranking")
    back = Ranking.load(tmp_path / "old")["fc1"]
    assert back.scores.tolist() == [0.5, 0.25]
    assert back.freedom is back.by_class is back.by_class_stderr is None


@pytest.mark.parametrize("field", ["freedom", "by_class", "by_class_stderr"])
def test_every_field_counts_in_equality(field):
    one, other = sampled(), sampled()
    assert one == other
    getattr(other, field)[0] += 1
    assert one != other


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_intervals_are_student_s(confidence):
    found = layer([0.5, -0.25, 3.0], stderr=[0.1, 0.0, 0.2], freedom=[3.0, 8.0, math.inf])
    low, high = found.interval(confidence)
    for unit, freedom in enumerate([3.0, 8.0, 1e12]):
        score, stderr = float(found.scores[unit]), float(found.stderr[unit])
        wanted = stats.t(freedom, loc=score, scale=stderr or 1e-300).interval(confidence)
        assert (float(low[unit]), float(high[unit])) == pytest.approx(wanted, abs=1e-9)


def test_without_degrees_of_freedom_intervals_are_normal():
    low, high = layer([2.0], stderr=[0.5]).interval(0.95)
    assert (float(low), float(high)) == pytest.approx(stats.norm(2, 0.5).interval(0.95))


def test_what_has_no_error_has_no_interval():
    low, high = undefined().interval()
    assert low.isnan().all()
    assert high.isnan().all()
    low, high = Ranking.from_scores({"fc1": [1.0]})["fc1"].interval()
    assert low.isnan().all()


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 95, NAN])
def test_a_confidence_is_a_probability(confidence):
    with pytest.raises(RankingError, match=r"confidence=.*a number between 0 and 1"):
        layer([1.0]).interval(confidence)


def test_layer_names_may_look_like_paths(tmp_path):
    names = {"a": [1, 2], "a/scores": [3, 4], "../a": [5, 6], "conv\x1b": [7, 8]}
    ranking = Ranking.from_scores(names)
    ranking.save(tmp_path / "r")
    assert Ranking.load(tmp_path / "r") == ranking
    assert [file.name for file in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda metadata: metadata.pop("layers"),
        lambda metadata: metadata.update(layers=3),
        lambda metadata: metadata.update(layers=["fc1"]),
        lambda metadata: metadata.update(provenance=[1]),
        lambda metadata: metadata["layers"][0].update(name="fc9"),
        lambda metadata: metadata["layers"][0].update(name=[]),
        lambda metadata: metadata["layers"][0].update(status="guessed"),
        lambda metadata: metadata["layers"][0].pop("stderr_of"),
    ],
)
def test_a_well_sealed_file_that_is_no_ranking_is_refused(ranking, tmp_path, spoil):
    path = tmp_path / "r"
    ranking.save(path)
    tensors, metadata = read_tensors(path, kind="ranking")
    spoil(metadata)
    write_tensors(path, tensors, metadata, kind="ranking")
    with pytest.raises(FileError, match="r is refused: its content is no ranking"):
        Ranking.load(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    write_tensors(tmp_path / "m", {}, {}, kind="model")
    with pytest.raises(FileError, match="holds a 'model', not a 'ranking'"):
        Ranking.load(tmp_path / "m")


def test_the_frame_has_a_row_per_unit(ranking):
    frame = ranking.to_frame()
    assert list(frame.columns) == [
        "layer", "unit", "score", "stderr", "data_stderr", "count", "status", "rank",
    ]  # fmt: skip
    fc1 = frame[frame["layer"] == "fc1"]
    assert fc1["score"].tolist() == [0.3, -0.1, 0.3]
    assert fc1["rank"].tolist() == [1, 3, 2]
    assert fc1["data_stderr"].isna().all()
    assert frame[frame["layer"] == "conv1"]["data_stderr"].tolist() == [0.01, 0.02]
    assert frame[frame["layer"] == "recall"]["rank"].isna().all()
    assert frame["unit"].tolist() == [0, 1, 0, 1, 2, 0, 1]
    assert isinstance(frame["rank"].dtype, pd.Int64Dtype)


def test_select_keeps_the_layers_in_the_order_asked(ranking):
    part = ranking.select(["fc1", "conv1"])
    assert list(part) == ["fc1", "conv1"]
    assert part.provenance == ranking.provenance
    assert part["fc1"] == ranking["fc1"]


@pytest.mark.parametrize(
    ("layers", "reason"),
    [("fc1", r"give a list: \['fc1'\]"), (["fc1", "fc1"], "name one twice"), ([], "at least one")],
)
def test_select_refuses_what_it_cannot_mean(ranking, layers, reason):
    with pytest.raises(RankingError, match=reason):
        ranking.select(layers)


def test_merge_joins_layers_and_keeps_where_each_comes_from():
    exact = Ranking({"conv1": layer([1.0]), "fc2": layer([2.0])}, {"method": "E", "model": "0ff"})
    sampled = Ranking({"fc1": layer([3.0])}, {"method": {"name": "P"}, "model": "0ff"})
    given_ = Ranking.from_scores({"fc3": [4]})
    joined = exact.merge(sampled).merge(given_)
    assert list(joined) == ["conv1", "fc2", "fc1", "fc3"]
    assert joined.provenance == {
        "model": "0ff",
        "parts": [
            {"method": "E", "model": "0ff", "layers": ["conv1", "fc2"]},
            {"method": {"name": "P"}, "model": "0ff", "layers": ["fc1"]},
            {"method": "given", "layers": ["fc3"]},
        ],
    }
    assert joined.method == "E + P + given"
    assert joined == exact.merge(sampled.merge(given_))
    narrowed = joined.select(["fc1", "conv1"])
    assert [part["layers"] for part in narrowed.provenance["parts"]] == [["conv1"], ["fc1"]]
    assert narrowed.method == "E + P"


def test_merge_refuses_a_layer_in_both_and_another_model():
    one = Ranking({"fc1": layer([1.0])}, {"model": "0ff"})
    with pytest.raises(RankingError, match=r"both rankings have the layers \['fc1'\]"):
        one.merge(Ranking.from_scores({"fc1": [1], "fc2": [2]}))
    with pytest.raises(RankingError, match="different models"):
        one.merge(Ranking({"fc2": layer([1.0])}, {"model": "0fe"}))


def test_printing_shows_the_five_best_with_their_errors(ranking):
    assert str(ranking).splitlines() == [
        "Ranking of 3 layers (Mixed)",
        "conv1 (2)   exact      1: 0.5 ± 0, 0: 0.25 ± 0",
        "fc1 (3)     sampled    0: 0.3 ± 0.1, 2: 0.3 ± 0.1, 1: -0.1 ± 0.1",
        "recall (2)  undefined  no unit has a score",
    ]
    assert repr(ranking) == str(ranking)
    six = Ranking.from_scores({"fc": range(6)})
    assert str(six).splitlines()[1].endswith("5: 5, 4: 4, 3: 3, 2: 2, 1: 1, …")
    assert repr(ranking["fc1"]).startswith("LayerRanking(3 units, sampled: 0: 0.3 ± 0.1")


def test_an_unnamed_method_and_odd_parts_still_print():
    assert "unknown method" in str(Ranking({"fc": layer([1.0])}, {}))
    for parts in (3, [], ["x"], [{"layers": 3}]):
        odd = Ranking({"fc": layer([1.0])}, {"parts": parts})
        assert "unknown method" in str(odd)
        assert list(odd.select(["fc"])) == ["fc"]


def test_names_are_made_legible():
    assert legible("conv1.größe") == "conv1.größe"
    assert legible("a\nb\x1b[2J\u202e") == r"a\nb\x1b[2J\u202e"
    long = legible("x" * 500 + "end")
    assert len(long) == 40
    assert long.endswith("end")
    odd = Ranking.from_scores({"a\nb\x1b": [1]}, provenance={"method": "\x07"})
    assert len(str(odd).splitlines()) == 2
    assert "\x1b" not in str(odd)
    assert "\x07" not in str(odd)


def test_columns_are_aligned():
    assert aligned([("a", "bbb", ""), ("aa", "b", "c")]) == ["a   bbb", "aa  b    c"]
