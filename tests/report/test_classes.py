"""What is in the pictures of one class at a time."""

import io
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from neurank.classes.interference import Projection, projected
from neurank.classes.quality import interval
from neurank.errors import DataError
from neurank.report.classes import (
    COLOURS,
    EVERY_CLASS_NAMED,
    MARKERS,
    OF_KIND,
    accuracy_panels,
    class_accuracies,
    class_matrix,
    neighbour_curves,
    projection_panels,
    pruned_by_layer,
    setting_bars,
)

NAMES = [
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
    "Australian terrier",
    "Border terrier",
    "Samoyed",
    "beagle",
    "Shih-Tzu",
    "English foxhound",
    "Rhodesian ridgeback",
    "dingo",
    "golden retriever",
    "Old English sheepdog",
]
HOSTILE = "$x_1$\x1b[2J</script>"


def drawn(figure):
    """Render the figure, which is where many mistakes show."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def heights(axes):
    return [float(bar.get_height()) for bar in axes.patches]


def ticks(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


def overlapping(texts, figure):
    """Pairs of texts that cover each other."""
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    return [
        (one, other)
        for place, (one, first) in enumerate(boxes)
        for other, second in boxes[:place]
        if first.overlaps(second)
    ]


def test_settings_show_what_they_keep_and_remove_and_how_right_they_are():
    axes = setting_bars(["whole", "NWP-0", HOSTILE], [9, 6, 4], [0, 3, 5], [0.5, math.nan, 0.25])
    assert heights(axes) == [9, 6, 4, 0, 3, 5]
    assert [bar.get_y() for bar in axes.patches][3:] == [9, 6, 4]
    assert ticks(axes) == ["whole", "NWP-0", r"\$x_1\$\x1b[2J</script>"]
    shares = axes.figure.axes[1]
    assert shares.get_lines()[0].get_ydata()[0] == 0.5
    assert [text.get_text() for text in shares.texts] == ["50.0 %", "25.0 %"]
    assert drawn(axes.figure).startswith(b"\x89PNG")


def test_each_setting_has_a_line_through_its_classes_with_a_gap_where_undefined():
    axes = class_accuracies({"whole": [0.5, 0.25], "LWP-0.33": [0.75, math.nan]}, NAMES[:2])
    first, second = axes.get_lines()
    assert list(first.get_ydata()) == [0.5, 0.25]
    assert second.get_ydata()[0] == 0.75
    assert math.isnan(second.get_ydata()[1])
    assert first.get_color() == "#000000" != second.get_color()
    assert ticks(axes) == NAMES[:2]
    drawn(axes.figure)


def test_lines_differ_in_colour_and_marker():
    axes = class_accuracies({f"s{i}": [0.5] * 3 for i in range(8)}, NAMES[:3])
    looks = {(line.get_color(), line.get_marker()) for line in axes.get_lines()}
    assert len(looks) == 8
    assert len(set(COLOURS)) == len(set(MARKERS)) == 8


def test_layers_show_direct_and_residual_on_top_of_each_other():
    figure = pruned_by_layer(["a", "b"], [[0.25, 0.5], [0, 1]], [[0.5, 0.25], [0, 0]], [0.1, 0.5])
    assert [axes.get_title() for axes in figure.axes] == ["θ = 0.1", "θ = 0.5"]
    assert heights(figure.axes[0]) == [0.25, 0.5, 0.5, 0.25]
    assert [bar.get_y() for bar in figure.axes[0].patches] == [0, 0, 0.25, 0.5]
    assert heights(figure.axes[1]) == [0, 1, 0, 0]
    drawn(figure)


THETAS = [0.0, 0.1, 0.2]
HITS = [[40, 45, 30], [20, 10, 5], [0, 0, 0], [30, 30, 30]]
PICTURES = [50, 50, 0, 50]
KINDS = ["unaffected", "degraded", "undefined", "unaffected"]


def test_classes_stand_in_their_groups_with_bands_of_wilson():
    figure = accuracy_panels(THETAS, PICTURES, HITS, NAMES[:4], KINDS)
    assert [axes.get_title() for axes in figure.axes] == [NAMES[0], NAMES[3], NAMES[1]]
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == [
        "unaffected (2)",
        "degraded (1)",
        "undefined (1), no picture: cassette player",
    ]
    axes = figure.axes[0]
    dashed, curve = axes.get_lines()
    assert list(curve.get_ydata()) == [0.8, 0.9, 0.6]
    assert list(dashed.get_ydata()) == [0.8, 0.8]
    assert curve.get_color() == OF_KIND["unaffected"]
    corners = axes.collections[0].get_paths()[0].vertices[:, 1]
    low, high = interval(HITS[0], 50)
    assert min(corners) == pytest.approx(float(low.min()))
    assert max(corners) == pytest.approx(float(high.max()))
    drawn(figure)


def test_nothing_but_undefined_classes_can_be_drawn():
    figure = accuracy_panels([0, 0.1], [0] * 7, [[0, 0]] * 7, NAMES[:7], ["undefined"] * 7)
    assert not figure.axes
    assert figure.subfigs[0].get_suptitle().endswith("church, …")
    drawn(figure)


def test_neighbours_are_drawn_twice_before_the_grey_accuracy():
    kept = {"pug": [9.0, 5.0, 1.0], HOSTILE: [9.0, 4.0, 2.0]}
    pruned = {"pug": [math.nan, 0.5, 0.25], HOSTILE: [math.nan, 0.0, 0.5]}
    figure = neighbour_curves(THETAS, kept, pruned, [0.5, 0.75, 0.25], title="beagle")
    above, below, *greys = figure.axes
    assert [list(line.get_ydata()) for line in above.get_lines()] == list(kept.values())
    assert list(below.get_lines()[0].get_ydata())[1:] == [0.5, 0.25]
    for grey in greys:
        assert list(grey.get_lines()[0].get_ydata()) == [0.5, 0.75, 0.25]
        assert above.get_zorder() > grey.get_zorder()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["pug", r"\$x_1\$\x1b[2J</script>", "accuracy (right)"]
    assert below.get_title() == "beagle: pruned units"
    drawn(figure)


def responses(classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_twenty_names_do_not_cover_each_other_nor_leave_the_panel(seed):
    one = projected(responses(20, seed))
    figure = projection_panels([one], [0.1], NAMES, highlight=13)
    (axes,) = figure.axes
    assert sorted(text.get_text() for text in axes.texts) == sorted(NAMES)
    assert overlapping(axes.texts, figure) == []
    inside = axes.get_window_extent().padded(2)
    for text in axes.texts:
        assert inside.contains(*text.get_window_extent().min)
        assert inside.contains(*text.get_window_extent().max)
    assert axes.collections[0].get_offsets()[:, 0].tolist() == one.coordinates[:, 0].tolist()
    assert axes.collections[1].get_offsets().tolist() == [one.coordinates[13].tolist()]
    drawn(figure)


def test_explained_variance_is_on_the_axes_and_undefined_classes_are_left_out():
    values = responses(5)
    values[2] = math.nan
    one = projected(values)
    figure = projection_panels([one, one], [0.1, 0.2], NAMES[:5])
    first, second = (f"{100 * float(share):.1f} %" for share in one.explained)
    assert figure.axes[1].get_xlabel() == f"component 1 ({first})"
    assert figure.axes[1].get_ylabel() == f"component 2 ({second})"
    assert NAMES[2] not in {text.get_text() for text in figure.axes[0].texts}
    same = projected(torch.ones(3, 4))
    assert "undefined" in projection_panels([same], [0], NAMES[:3]).axes[0].get_xlabel()
    drawn(figure)


def test_of_many_classes_the_nearest_ten_are_named():
    one, names = projected(responses(100)), [f"c{place}" for place in range(100)]
    axes = projection_panels([one], [0.1], names, highlight=7).axes[0]
    far = (one.coordinates - one.coordinates[7]).norm(dim=1)
    nearest = {names[label] for label in far.argsort()[:11].tolist()}
    assert {text.get_text() for text in axes.texts} == nearest
    assert not projection_panels([one], [0.1], names).axes[0].texts


def test_a_matrix_is_coloured_beside_its_diagonal_and_blank_where_undefined():
    values = [[9.0, 0.25, math.nan], [0.25, 9.0, 0.75], [math.nan, 0.75, 9.0]]
    axes = class_matrix(values, NAMES[:3], measure="Jaccard")
    (image,) = axes.get_images()
    assert image.get_clim() == (0.25, 0.75)
    assert image.get_array().mask.tolist() == [
        [False, False, True],
        [False] * 3,
        [True, False, False],
    ]
    assert image.get_cmap().get_bad()[3] == 0
    numbers = [text.get_text() for text in axes.texts]
    assert numbers == ["9", "0.25", "0.25", "9", "0.75", "0.75", "9"]
    assert ticks(axes) == NAMES[:3]
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES[:3]
    bar = image.colorbar
    assert bar.extend == "max"
    assert bar.ax.get_ylabel() == "Jaccard"
    drawn(axes.figure)


def test_zero_is_the_middle_where_a_number_is_negative():
    image = class_matrix([[1, -0.5], [0.25, 1]], NAMES[:2]).get_images()[0]
    assert image.get_clim() == (-0.5, 0.5)
    given = class_matrix([[1, 0.5], [0.5, 1]], NAMES[:2], limits=(-1, 1)).get_images()[0]
    assert given.get_clim() == (-1, 1)
    assert given.get_cmap().name == image.get_cmap().name
    assert given.colorbar.extend == "neither"
    for flat in ([[math.nan]], [[0.5]], [[0.0]]):
        drawn(class_matrix(flat, NAMES[:1]).figure)


def test_names_along_an_axis_do_not_cover_each_other():
    axes = class_matrix(torch.rand(20, 20), NAMES)
    assert overlapping(axes.get_xticklabels(), axes.figure) == []
    assert overlapping(axes.get_yticklabels(), axes.figure) == []
    assert not axes.texts
    lines = class_accuracies({"whole": [0.5] * 20}, NAMES)
    assert overlapping(lines.get_xticklabels(), lines.figure) == []


def test_too_many_classes_are_numbered_here_and_there():
    many = EVERY_CLASS_NAMED + 1
    axes = class_matrix(torch.rand(many, many), [f"c{place}" for place in range(many)])
    assert len(axes.get_xticks()) <= 12
    assert not any(label.startswith("c") for label in ticks(axes))


def test_they_draw_where_they_are_told_to():
    for draw in (
        lambda axes: setting_bars(["a"], [1], [1], [0.5], ax=axes),
        lambda axes: class_accuracies({"a": [0.5]}, ["c"], ax=axes),
        lambda axes: class_matrix([[1.0]], ["c"], ax=axes),
    ):
        axes = Figure().subplots()
        assert draw(axes) is axes


FLAT = Projection(torch.zeros(3, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: setting_bars(["a"], [1, 2], [1], [0.5]), "'kept' has 2 entries beside 1 settings"),
        (lambda: class_accuracies({}, ["c"]), "0 settings cannot be told apart"),
        (lambda: class_accuracies({str(i): [1] for i in range(9)}, ["c"]), "draw 1 to 8"),
        (lambda: class_accuracies({"a": [0.5, 0.5]}, ["c"]), "beside 1 classes"),
        (lambda: pruned_by_layer(["a"], [[0.5]], [[0.5, 0.5]], [0.1]), "residual has the shape"),
        (
            lambda: pruned_by_layer(["a"], torch.ones(0, 1), torch.ones(0, 1), []),
            "no pruning ratio",
        ),
        (lambda: accuracy_panels(THETAS, PICTURES, HITS[:3], NAMES[:4], KINDS), "hits has the"),
        (lambda: accuracy_panels(THETAS, PICTURES, HITS, NAMES[:4], KINDS[:3]), "'kinds' has 3"),
        (lambda: accuracy_panels(THETAS, [9] * 4, HITS, NAMES[:4], KINDS), "undefined just where"),
        (
            lambda: accuracy_panels(THETAS, PICTURES, HITS, NAMES[:4], ["better"] * 4),
            "kinds among improved, unaffected",
        ),
        (lambda: neighbour_curves([0], {"a": [1]}, {"b": [1]}, [0.5]), "give the same 1 to 8"),
        (lambda: neighbour_curves([0], {"a": [1, 2]}, {"a": [1]}, [0.5]), "'a' has 2 entries"),
        (lambda: projection_panels([FLAT], [0.1], NAMES[:3]), "no second component"),
        (lambda: projection_panels([], [0.1], NAMES[:3]), "'projections' has 0"),
        (lambda: projection_panels([projected(torch.rand(3, 4))], [0], NAMES[:4]), "has 3 entries"),
        (
            lambda: projection_panels([projected(torch.rand(3, 4))], [0], NAMES[:3], highlight=3),
            "highlight=3 is none of 3",
        ),
        (lambda: class_matrix(torch.rand(2, 3), NAMES[:2]), "matrix has the shape"),
    ],
)
def test_what_does_not_fit_is_refused(draw, message):
    with pytest.raises(DataError, match=message):
        draw()


def test_no_global_state_of_pyplot_is_touched():
    code = "import sys, neurank.report.classes; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_columns_of_a_table_can_be_drawn():
    """They are read-only, of which torch warns when it shares their memory."""
    accuracies = np.array([0.5, 0.6])
    accuracies.flags.writeable = False
    axes = class_accuracies({"whole": accuracies}, ("one", "two"))
    assert axes.lines[0].get_ydata().tolist() == [0.5, 0.6]
