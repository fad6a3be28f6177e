"""What is in the pictures: bars, errors, colours, titles, maps."""

import io
import subprocess
import sys

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from neurank.errors import RankingError
from neurank.ranking import LayerRanking, Ranking
from neurank.report.plots import BEST, REST, feature_maps, score_bars, score_panels


def ranking(scores, stderr=None, name="fc1", status="sampled"):
    stderr = [0.0] * len(scores) if stderr is None else stderr
    layer = LayerRanking(scores, stderr, [9] * len(scores), status)
    return Ranking({name: layer}, {"method": "Test"})


def drawn(figure):
    """Render the figure, which is where many mistakes show."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def heights(axes):
    return [float(bar.get_height()) for bar in axes.patches]


def test_bar_heights_are_the_scores_in_unit_order():
    axes = score_bars(ranking([0.5, -0.25, 2.0]), "fc1", k=1)
    assert heights(axes) == [0.5, -0.25, 2.0]
    assert [bar.get_x() + bar.get_width() / 2 for bar in axes.patches] == [0, 1, 2]
    assert axes.get_title() == "fc1: Test"
    assert drawn(axes.figure).startswith(b"\x89PNG")


def test_the_best_units_are_coloured_and_named():
    axes = score_bars(ranking([0.5, 3.0, 2.0, 2.0]), "fc1", k=2)
    colours = [to_hex(bar.get_facecolor()) for bar in axes.patches]
    assert colours == [REST, BEST, BEST, REST]  # of the tie at 2.0 the lower index
    assert [text.get_text() for text in axes.texts] == ["top 2: 1, 2"]


def test_more_units_than_there_are_can_be_asked_for():
    axes = score_bars(ranking([0.5, 3.0]), "fc1", k=5)
    assert [text.get_text() for text in axes.texts] == ["top 2: 1, 0"]
    assert not list(score_bars(ranking([0.5, 3.0]), "fc1", k=0).texts)


def test_error_bars_are_one_standard_error_each_way_where_there_is_one():
    axes = score_bars(ranking([1.0, 2.0, 3.0], [0.1, 0.0, float("nan")]), "fc1")
    (container,) = [one for one in axes.containers if hasattr(one, "has_yerr")]
    (lines,) = container.lines[2]
    ((low, high),) = lines.get_segments()
    assert low.tolist() == pytest.approx([0, 0.9])
    assert high.tolist() == pytest.approx([0, 1.1])


def test_exact_scores_have_no_error_bars():
    axes = score_bars(ranking([1.0, 2.0], status="exact"), "fc1")
    assert not [one for one in axes.containers if hasattr(one, "has_yerr")]


def test_every_unit_is_numbered_until_there_are_too_many():
    few = score_bars(ranking([1.0] * 10), "fc1")
    assert few.get_xticks().tolist() == list(range(10))
    many = score_bars(ranking([1.0] * 100), "fc1")
    assert len(many.get_xticks()) <= 12


def test_undefined_scores_are_said_to_be():
    nothing = [float("nan")] * 2
    layer = LayerRanking(nothing, nothing, [0, 0], "undefined", stderr_of="none")
    axes = score_bars(Ranking({"fc1": layer}, {}), "fc1")
    assert not list(axes.patches)
    assert "undefined" in axes.texts[0].get_text()
    drawn(axes.figure)


def test_it_draws_where_it_is_told_to():
    axes = Figure().subplots()
    assert score_bars(ranking([1.0]), "fc1", ax=axes) is axes


@pytest.mark.parametrize("k", [-1, 1.5, True])
def test_k_that_is_no_count_is_refused(k):
    with pytest.raises(RankingError, match="coloured"):
        score_bars(ranking([1.0]), "fc1", k=k)


def test_layer_names_are_neither_mathematics_nor_control_characters():
    name = "$x_1$\x1b[2J</script>"
    axes = score_bars(ranking([1.0, 2.0], name=name), name)
    assert axes.get_title() == r"\$x_1\$\x1b[2J</script>: Test"
    drawn(axes.figure)


def test_panels_go_by_layer_and_ranking():
    one = Ranking.from_scores({"conv1": [1, 2], "fc1": [3, 4]})
    two = Ranking.from_scores({"conv1": [5, 6]})
    figure = score_panels(one, two, names=("SH", "IS"))
    assert [axes.get_title() for axes in figure.axes] == [
        "conv1: SH", "conv1: IS", "fc1: SH", "fc1: IS",
    ]  # fmt: skip
    assert [heights(axes) for axes in figure.axes] == [[1, 2], [5, 6], [3, 4], []]
    assert figure.axes[3].texts[0].get_text() == "not ranked"
    drawn(figure)


def test_panels_of_some_layers_in_the_order_asked_for():
    one = Ranking.from_scores({"conv1": [1, 2], "fc1": [3, 4]})
    figure = score_panels(one, layers=["fc1", "conv1"])
    assert [axes.get_title() for axes in figure.axes] == ["fc1: given", "conv1: given"]


def test_panels_need_rankings_and_a_name_for_each():
    with pytest.raises(RankingError, match="0 rankings"):
        score_panels()
    with pytest.raises(RankingError, match="a name for each"):
        score_panels(ranking([1.0]), names=("a", "b"))


MAPS = torch.rand(2, 6, 4, 5, generator=torch.Generator().manual_seed(0))
SIX = Ranking.from_scores({"conv1": [0.1, 0.6, 0.3, 0.5, 0.2, 0.4]})


def images(figure):
    return [torch.as_tensor(axes.get_images()[0].get_array()) for axes in figure.axes]


def test_the_maps_are_those_of_the_best_four_and_the_worst_filter():
    figure = feature_maps(MAPS, SIX, "conv1")
    shown = images(figure)
    order = [1, 3, 5, 2, 0]
    for place, (row, unit) in enumerate((row, unit) for row in range(2) for unit in order):
        assert torch.equal(shown[place], MAPS[row, unit])
    titles = [axes.get_title() for axes in figure.axes[:5]]
    assert titles[0] == "filter 1\nrank 1"
    assert titles[-1] == "filter 0\nrank 6"
    drawn(figure)


def test_the_pictures_come_first_in_each_row_in_grey_and_in_colour():
    for channels, shape in ((1, (8, 8)), (3, (8, 8, 3))):
        pictures = torch.rand(2, channels, 8, 8) * 4 - 2
        figure = feature_maps(MAPS, SIX, "conv1", pictures=pictures)
        first = images(figure)[0]
        assert tuple(first.shape) == shape
        assert float(first.min()) == 0
        assert float(first.max()) == pytest.approx(1)
        drawn(figure)


def test_a_filter_has_one_grey_scale_in_all_rows_and_a_dead_one_is_dark():
    maps = MAPS.clone()
    maps[:, 0] = 0
    figure = feature_maps(maps, SIX, "conv1")
    best = [figure.axes[0].get_images()[0].get_clim(), figure.axes[5].get_images()[0].get_clim()]
    assert best[0] == best[1] == pytest.approx((float(maps[:, 1].min()), float(maps[:, 1].max())))
    dead = figure.axes[4].get_images()[0]
    assert dead.get_clim() == (0, 1)


def test_in_a_merged_ranking_the_title_names_the_method_of_the_layer():
    merged = ranking([1.0, 2.0], name="a").merge(Ranking.from_scores({"b": [1, 2]}))
    assert score_bars(merged, "b").get_title() == "b: given"


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (MAPS[:, :5], {}, "are not of layer 'conv1' with 6 units"),
        (MAPS[0], {}, "give \\(examples, 6, height, width\\)"),
        (MAPS, {"pictures": torch.rand(3, 1, 8, 8)}, "cannot be shown beside"),
        (MAPS, {"pictures": torch.rand(2, 2, 8, 8)}, "cannot be shown beside"),
        (MAPS, {"best": 6}, "ask for 1 to 6 together"),
        (MAPS, {"best": 0, "worst": 0}, "ask for 1 to 6 together"),
        (MAPS, {"best": -1}, "ask for 1 to 6 together"),
    ],
)
def test_maps_that_do_not_fit_are_refused(maps, options, message):
    with pytest.raises(RankingError, match=message):
        feature_maps(maps, SIX, "conv1", **options)


def test_no_global_state_of_pyplot_is_touched():
    code = (
        "import sys, neurank.report.plots, neurank.cli; "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
