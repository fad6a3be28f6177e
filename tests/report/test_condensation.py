from itertools import pairwise

import pytest

from neurank.condense.measure import Measured, Stage, Times
from neurank.errors import RankingError
from neurank.report.condensation import accuracy_curves, condensation_figure, condensation_table


def stage(name, accuracy, size):
    times = {1: Times(1, size * 1e-6, size * 0.5e-6, size * 2e-6, 5)}
    return Stage(
        name, accuracy, Measured(size, 9 * size, 4 * size, {64: 2 * size}, times, "cpu", 1)
    )


@pytest.fixture
def three():
    return [stage("before", 0.99, 2000), stage("removed", 0.5, 500), stage("retrained", 0.98, 500)]


def test_the_table_has_each_networks_numbers_and_its_shares_of_the_first(three):
    lines = [line.split("  ") for line in condensation_table(three).splitlines()]
    table = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in lines[1:]}
    assert [cell.strip() for cell in lines[0] if cell.strip()] == ["before", "removed", "retrained"]
    assert table == {
        "accuracy": ["99.00 %", "50.00 %", "98.00 %"],
        "parameters": ["2,000", "500", "500", "25 %", "25 %"],
        "multiply-adds": ["18,000", "4,500", "4,500", "25 %", "25 %"],
        "file, bytes": ["8,000", "2,000", "2,000", "25 %", "25 %"],
        "memory, bytes, 64 at once": ["4,000", "1,000", "1,000", "25 %", "25 %"],
        "time, ms, 1 at once": ["2", "0.5", "0.5", "25 %", "25 %"],
    }


def test_one_network_alone_has_no_shares():
    assert "%" not in condensation_table([stage("only", 0.5, 10)]).partition("parameters")[2]


def test_the_figures_bars_are_accuracies_and_shares(three):
    left, right = condensation_figure(three).axes
    assert [bar.get_height() for bar in left.patches] == pytest.approx([99, 50, 98])
    heights = [bar.get_height() for bar in right.patches]
    assert heights == pytest.approx([100] * 5 + [25] * 10)
    assert [text.get_text() for text in right.get_legend().get_texts()] == [it.name for it in three]


def test_bars_of_one_measure_stand_side_by_side(three):
    _, right = condensation_figure(three).axes
    spans = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in right.patches)
    assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize("draw", [condensation_table, condensation_figure])
def test_nothing_to_report_on(draw):
    with pytest.raises(RankingError, match="no network to report on"):
        draw([])


def test_curves_begin_at_the_whole_network_and_go_on_in_order():
    axes = accuracy_curves({"a": [(0.5, 0.2), (0.1, 0.8)], "b$x$": [(0.3, 0.7)]}, 0.9)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["a"] == [[0, 90], [10, 80], [50, 20]]
    assert drawn[r"b\$x\$"] == [[0, 90], [30, 70]]


def test_many_curves_can_be_told_apart():
    axes = accuracy_curves({str(number): [(0.1, 0.5)] for number in range(9)}, 0.9)
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 9


def test_curves_can_be_drawn_into_given_axes():
    axes = accuracy_curves({"a": [(0.1, 0.5)]}, 0.9)
    assert accuracy_curves({"b": [(0.1, 0.5)]}, 0.9, ax=axes) is axes
    assert len(axes.lines) == 2


def test_no_curve():
    with pytest.raises(RankingError, match="no curve to draw"):
        accuracy_curves({}, 0.9)
