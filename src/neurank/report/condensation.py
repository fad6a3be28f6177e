"""What condensing a network came to: a table, a picture, and curves over budgets.

Made of values that `neurank.condense.measure` and sweeps leave; nothing here runs a model.
"""

from collections.abc import Iterator, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neurank.condense.measure import Measured, Stage
from neurank.errors import RankingError
from neurank.text import aligned, legible

FIRST, OTHERS = "#9fb3c8", ("#d1495b", "#33415c", "#edae49", "#66a182", "#8d6a9f")
MARKERS = "os^Dv<>pX"


def condensation_table(stages: Sequence[Stage]) -> str:
    """Set networks beside each other: accuracy, size, memory and time, and shares of the first's.

    Parameters
    ----------
    stages
        At least one, as `neurank.condense.measure.stages` gives them.

    Raises
    ------
    RankingError
        There is none.

    Examples
    --------
    >>> def stage(name, accuracy, size):
    ...     return Stage(name, accuracy, Measured(size, 9 * size, 4 * size, {}, {}, "cpu", 1))
    >>> print(condensation_table([stage("before", 0.99, 1000), stage("after", 0.98, 250)]))
                   before   after
    accuracy       99.00 %  98.00 %
    parameters     1,000    250      25 %
    multiply-adds  9,000    2,250    25 %
    file, bytes    4,000    1,000    25 %
    """
    return "\n".join(aligned(list(_rows(_some(stages)))))


def condensation_figure(stages: Sequence[Stage]) -> Figure:
    """Draw what networks take as shares of what the first takes, and their accuracy beside it.

    Parameters
    ----------
    stages
        At least one, as for `condensation_table`.

    Raises
    ------
    RankingError
        There is none.
    """
    first = _some(stages)[0]
    figure = Figure(figsize=(9.0, 3.2), dpi=120)
    figure.set_layout_engine("constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 3))
    _bars(left, ["accuracy"], {it.name: [100 * it.accuracy] for it in stages})
    left.set_ylabel("%")
    measures = [name for name, _ in _measures(first.measured)]
    shares = {
        it.name: [
            100 * mine / whole if whole else 0.0
            for (_, mine), (_, whole) in zip(
                _measures(it.measured), _measures(first.measured), strict=True
            )
        ]
        for it in stages
    }
    _bars(right, measures, shares)
    right.set_ylabel(f"% of {_plain(first.name)}")
    right.legend(fontsize=7, frameon=False)
    return figure


def accuracy_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    whole: float,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw accuracy over the share of the multiply-adds that is gone, a line per method.

    Parameters
    ----------
    curves
        By label, points (share of the multiply-adds that is gone, accuracy).
    whole
        The accuracy of the whole network, where every line begins.
    ax
        Where to draw; new axes in a new figure if not given.

    Returns
    -------
    Axes
        The axes; their ``.figure`` can be saved.

    Raises
    ------
    RankingError
        There is no curve.

    Examples
    --------
    >>> axes = accuracy_curves({"norms": [(0.3, 0.5), (0.1, 0.8)]}, 0.9)
    >>> axes.lines[0].get_xdata().tolist(), axes.lines[0].get_ydata().tolist()
    ([0.0, 10.0, 30.0], [90.0, 80.0, 50.0])
    """
    if not curves:
        raise RankingError("there is no curve to draw: give at least one method with its points")
    axes = _new_axes() if ax is None else ax
    for number, (label, points) in enumerate(curves.items()):
        gone, right = zip((0.0, whole), *sorted(points), strict=True)
        axes.plot(
            [100 * it for it in gone],
            [100 * it for it in right],
            label=_plain(label),
            color=OTHERS[number % len(OTHERS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle="--" if number >= len(OTHERS) else "-",
            markersize=4,
            linewidth=1.2,
        )
    axes.set_xlabel("multiply-adds gone, %")
    axes.set_ylabel("accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    return axes


def _some(stages: Sequence[Stage]) -> Sequence[Stage]:
    if not stages:
        raise RankingError("there is no network to report on: give at least one stage")
    return stages


def _rows(stages: Sequence[Stage]) -> Iterator[tuple[str, ...]]:
    """Lines of the table: for each network a value, for all but the first its share, too."""
    first, *others = stages
    gap = [""] * len(others)
    yield ("", *(legible(it.name) for it in stages), *gap)
    yield ("accuracy", *(f"{100 * it.accuracy:.2f} %" for it in stages), *gap)
    for place, (name, whole) in enumerate(_measures(first.measured)):
        values = [list(_measures(it.measured))[place][1] for it in stages]
        shown = [f"{1e3 * it:.3g}" if name.startswith("time") else f"{it:,.0f}" for it in values]
        shares = [f"{100 * it / whole:.0f} %" if whole else "" for it in values[1:]]
        yield (name, *shown, *shares)


def _measures(costs: Measured) -> Iterator[tuple[str, float]]:
    yield "parameters", costs.parameters
    yield "multiply-adds", costs.multiply_adds
    yield "file, bytes", costs.file_size
    for size, number in costs.peak_memory.items():
        yield f"memory, bytes, {size} at once", number
    for size, times in costs.times.items():
        yield f"time, ms, {size} at once", times.median


def _bars(axes: Axes, names: Sequence[str], values: Mapping[str, Sequence[float]]) -> None:
    width = 0.8 / len(values)
    for number, (label, heights) in enumerate(values.items()):
        colour = OTHERS[(number - 1) % len(OTHERS)] if number else FIRST
        places = [place - 0.4 + width * (number + 0.5) for place in range(len(names))]
        axes.bar(places, heights, width=width, color=colour, label=_plain(label))
    axes.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names], fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _new_axes() -> Axes:
    figure = Figure(figsize=(6.0, 3.6), dpi=120)
    figure.set_layout_engine("constrained")
    return figure.subplots()


def _plain(text: str) -> str:
    """Return a name that cannot be taken for mathematics or markup."""
    return legible(text).replace("$", r"\$")
