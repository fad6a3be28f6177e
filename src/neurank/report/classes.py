"""Pictures of one class at a time, after Figures 2 to 7 of "Semantic pruning" (2020).

"Semantic pruning for single class interpretability" prunes a network for each class by itself.
These functions draw plain numbers, made by `neurank.classes` or elsewhere, with matplotlib's
objects, without pyplot and its global state; ``figure.savefig(path)`` writes them. What is
undefined (NaN) is left blank. Colours are those of Okabe and Ito, which the colour-blind can tell
apart, and lines differ in their markers too.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike
from torch import Tensor

from neurank.classes.grouping import Kind
from neurank.classes.interference import Projection
from neurank.classes.quality import interval
from neurank.errors import DataError
from neurank.text import legible

INK, FAINT = "#33415c", "#9aa5b1"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#000000")
WHOLE: Mapping[str, Any] = {"color": "#000000", "marker": "o"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
OF_KIND: Mapping[Kind, str] = {
    "improved": "#009E73",
    "unaffected": "#0072B2",
    "degraded": "#D55E00",
    "undefined": FAINT,
}
EVERY_CLASS_NAMED = 60
"""Up to this many classes along an axis, each has its name; more are numbered here and there."""
EVERY_POINT_NAMED = 30
"""Up to this many classes in a projection, each has its name; of more, the nearest to the one."""
_LONGEST_NAME = 24


def setting_bars(
    settings: Sequence[str],
    kept: Sequence[float],
    removed: Sequence[float],
    accuracies: Sequence[float],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw the parameters that each setting keeps and removes, and its accuracy; Figure 2.

    Parameters
    ----------
    settings
        What the settings are called, such as ``"NWP-0.33"``.
    kept, removed
        How many parameters, for each setting; the mean over the classes, say.
    accuracies
        Shares, for each setting: diamonds on a second axis, each with its value.
    ax
        Where to draw; new axes in a new figure if not given.

    Raises
    ------
    DataError
        Not one number for each setting.

    Examples
    --------
    >>> axes = setting_bars(["whole", "LWP-0.33"], [100, 60], [0, 40], [0.6, 0.5])
    >>> [float(bar.get_height()) for bar in axes.patches]
    [100.0, 60.0, 0.0, 40.0]
    """
    counts = {"kept": kept, "removed": removed, "accuracies": accuracies}
    _check_lengths(len(settings), "settings", **counts)
    axes = _new_axes(max(5.0, 1.5 + 0.7 * len(settings)), 3.6) if ax is None else ax
    places = range(len(settings))
    axes.bar(places, kept, width=0.7, color="#56B4E9", label="parameters kept")
    bars: dict[str, Any] = {"color": "#e3e8ee", "edgecolor": FAINT, "hatch": "///"}
    axes.bar(places, removed, width=0.7, bottom=kept, label="removed", linewidth=0.6, **bars)
    most = max((a + b for a, b in zip(kept, removed, strict=True) if a + b == a + b), default=1.0)
    axes.set_ylim(0, 1.18 * (most or 1.0))
    axes.set_ylabel("parameters")
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    _name_places(axes, settings)
    shares = axes.twinx()
    shares.plot(places, accuracies, "D", color=INK, markersize=5, label="accuracy (right)")
    shares.set_ylim(0, 1.18)
    shares.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    shares.yaxis.set_major_formatter(PercentFormatter(1))
    shares.set_ylabel("mean accuracy")
    for place, accuracy in zip(places, accuracies, strict=True):
        if not math.isnan(accuracy):
            _note(shares, f"{100 * accuracy:.1f} %", place, accuracy)
    _legend_above(axes, [*axes.get_legend_handles_labels()[0], *shares.get_lines()], 3)
    _bare(axes, shares)
    return axes


def class_accuracies(
    accuracies: Mapping[str, Sequence[float]], classes: Sequence[str], *, ax: Axes | None = None
) -> Axes:
    """Draw the accuracy of each class, a line for each setting, classes along x; Figure 3.

    Parameters
    ----------
    accuracies
        Setting to a share for each class. The first is drawn in black: the whole network.
    classes
        What the classes are called.
    ax
        Where to draw; new axes in a new figure if not given.

    Raises
    ------
    DataError
        There is no setting, more than eight, or not one number for each class.

    Examples
    --------
    >>> axes = class_accuracies({"whole": [0.9, 0.8], "LWP-0.33": [0.95, 0.4]}, ["tench", "pug"])
    >>> [line.get_label() for line in axes.get_lines()]
    ['whole', 'LWP-0.33']
    """
    _check_lengths(len(classes), "classes", **accuracies)
    if not 1 <= len(accuracies) <= len(COLOURS):
        raise DataError(
            f"{len(accuracies)} settings cannot be told apart as lines; draw 1 to {len(COLOURS)}"
        )
    axes = _new_axes(min(24.0, max(6.0, 1.5 + 0.38 * len(classes))), 4.0) if ax is None else ax
    # Without neighbours along x that mean anything, the lines only lead the eye.
    for place, (setting, shares) in enumerate(accuracies.items()):
        style = _line_style(place - 1) if place else dict(WHOLE)
        axes.plot(
            range(len(classes)),
            list(shares),
            markersize=4.5 if place else 6,
            linewidth=1.0 if place else 1.6,
            label=_name(setting),
            **style,
        )
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel("accuracy")
    axes.grid(axis="x", color="#e3e8ee", linewidth=0.6)
    axes.set_axisbelow(True)
    _name_places(axes, classes)
    _legend_above(axes, axes.get_lines(), 5)
    _bare(axes)
    return axes


def pruned_by_layer(
    layers: Sequence[str],
    direct: ArrayLike | Tensor,
    residual: ArrayLike | Tensor,
    thetas: Sequence[float],
) -> Figure:
    """Draw the share of each layer's filters that is pruned, a panel per ratio; Figure 4.

    Parameters
    ----------
    layers
        What the layers are called, in network order.
    direct, residual
        Shares of a layer's filters that are pruned themselves, and because their input has gone,
        shape (thetas, layers); stacked on each other.
    thetas
        The pruning ratios.

    Raises
    ------
    DataError
        The shares are not of that shape.

    Examples
    --------
    >>> figure = pruned_by_layer(["conv1", "conv2"], [[0, 0.4]], [[0, 0.1]], [0.25])
    >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
    [0.0, 0.4, 0.0, 0.1]
    """
    shape = (len(thetas), len(layers))
    own = _numbers("direct", direct, shape).tolist()
    due = _numbers("residual", residual, shape).tolist()
    columns = max(1, min(len(thetas), 3 if len(layers) <= 25 else 1))
    width = max(2.6, 1.0 + 0.24 * len(layers))
    figure, panels = _panels(len(thetas), columns, width, 2.8)
    places = range(len(layers))
    for place, (axes, theta) in enumerate(zip(panels, thetas, strict=True)):
        axes.bar(places, own[place], width=0.8, color="#0072B2", label="direct")
        axes.bar(
            places, due[place], width=0.8, bottom=own[place], color="#E69F00", label="residual"
        )
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_title(f"θ = {theta:g}", fontsize=10)
        axes.set_ylabel("filters pruned" if place % columns == 0 else "")
        _name_places(axes, layers)
        _bare(axes)
    if len(thetas):
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper right", ncols=2, fontsize=8, frameon=False
        )
    return figure


def accuracy_panels(
    thetas: Sequence[float],
    pictures: ArrayLike | Tensor,
    hits: ArrayLike | Tensor,
    classes: Sequence[str],
    kinds: Sequence[Kind],
    *,
    confidence: float = 0.95,
) -> Figure:
    """Draw the accuracy of each class against the pruning ratio, in groups; Figure 5.

    Around each curve lies Wilson's interval of every point by itself; the dashed line is the whole
    network.

    Parameters
    ----------
    thetas
        Pruning ratios, the first of the whole network.
    pictures
        How many pictures each class has, shape (classes,).
    hits
        How many are right, shape (classes, thetas).
    classes
        What the classes are called.
    kinds
        The group of each, as `neurank.classes.grouping.groups` tells.
    confidence
        Of the intervals.

    Raises
    ------
    DataError
        There is no class, the counts are not of these shapes or not counts, a kind is unknown, or
        a class is undefined and has pictures or the other way round.
    MethodError
        `confidence` is not between 0 and 1.

    Examples
    --------
    >>> hits, kinds = [[40, 45], [40, 30]], ["improved", "degraded"]
    >>> figure = accuracy_panels([0, 0.2], [50, 50], hits, ["jeep", "pug"], kinds)
    >>> [axes.get_title() for axes in figure.axes]
    ['jeep', 'pug']
    """
    right = _numbers("hits", hits, (len(classes), len(thetas)))
    shown = _numbers("pictures", pictures, (len(classes),))
    _check_lengths(len(classes), "classes", kinds=kinds)
    if not classes or not thetas or not set(kinds) <= OF_KIND.keys():
        raise DataError(
            f"{len(classes)} classes at {len(thetas)} ratios of the kinds {sorted(set(kinds))}: "
            f"give one or more of each, and kinds among {', '.join(OF_KIND)}"
        )
    if bool(((shown == 0) != torch.tensor([kind == "undefined" for kind in kinds])).any()):
        raise DataError(
            "a class is undefined just where it has no picture; take kinds and pictures from the "
            "same counts"
        )
    low, high = interval(right, shown[:, None], confidence)
    share = right / shown[:, None]  # NaN for a class without pictures
    members = {
        kind: [place for place, one in enumerate(kinds) if one == kind]
        for kind in OF_KIND
        if kind in kinds
    }
    columns = min(4, max(map(len, members.values())))
    rows = {
        kind: 0 if kind == "undefined" else -(-len(places) // columns)
        for kind, places in members.items()
    }
    heights = [0.45 + 1.75 * count for count in rows.values()]
    figure = Figure(figsize=(0.4 + 2.3 * max(2, columns), sum(heights)), dpi=120)
    figure.set_layout_engine("constrained")
    parts = figure.subfigures(len(members), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (kind, places) in zip(parts, members.items(), strict=True):
        title = f"{kind} ({len(places)})"
        if kind == "undefined":
            without = ", ".join(_name(classes[place]) for place in places[:5])
            title += f", no picture: {without}{', …' if len(places) > 5 else ''}"
        size = 9 if kind == "undefined" else 11
        part.suptitle(title, fontsize=size, color=_dark(kind), weight="bold")
        if not rows[kind]:
            continue
        grid = part.subplots(rows[kind], columns, squeeze=False).ravel()
        for axes, place in zip(grid, places, strict=False):
            axes.set_title(_name(classes[place]), fontsize=9)
            ends = low[place].tolist(), high[place].tolist()
            _draw_curve(axes, thetas, share[place].tolist(), *ends, OF_KIND[kind])
        for axes in grid[len(places) :]:
            axes.remove()
        part.supxlabel("pruning ratio θ", fontsize=8)
        part.supylabel("accuracy", fontsize=8)
    return figure


def neighbour_curves(
    thetas: Sequence[float],
    kept: Mapping[str, Sequence[float]],
    pruned: Mapping[str, Sequence[float]],
    accuracies: Sequence[float],
    *,
    title: str = "",
    measure: str = "overlap",
) -> Figure:
    """Draw what a class shares with its neighbours, kept above and pruned below; Figure 6.

    The accuracy of the class is the grey line on the axis to the right.

    Parameters
    ----------
    thetas
        Pruning ratios.
    kept, pruned
        Neighbour to what its kept (pruned) units share with the class's at each ratio. The same
        neighbours in both, at most eight.
    accuracies
        Of the class itself, at each ratio.
    title
        What the class is called.
    measure
        What is drawn: ``"shared units"``, ``"correlation"``, ``"Jaccard"`` …

    Raises
    ------
    DataError
        Not the same neighbours in both, more than eight or none, or not one number for each ratio.

    Examples
    --------
    >>> curves = {"pug": [1.0, 0.5], "sax": [1.0, 0.25]}
    >>> figure = neighbour_curves([0, 0.1], curves, curves, [0.5, 0.75], title="beagle")
    >>> [axes.get_title() for axes in figure.axes[:2]]
    ['beagle: kept units', 'beagle: pruned units']
    """
    _check_lengths(len(thetas), "ratios", accuracies=accuracies, **kept)
    _check_lengths(len(thetas), "ratios", **pruned)
    if list(kept) != list(pruned) or not 1 <= len(kept) <= len(COLOURS):
        raise DataError(
            f"the neighbours {list(kept)} and {list(pruned)} cannot be drawn; give the same 1 to "
            f"{len(COLOURS)} in both, in one order"
        )
    figure, (above, below) = _panels(2, 1, 6.2, 2.5)
    for axes, curves, kind in ((above, kept, "kept"), (below, pruned, "pruned")):
        shares = axes.twinx()
        shares.plot(thetas, list(accuracies), color=FAINT, linewidth=3.5, alpha=0.7, zorder=1)
        shares.set_ylabel("accuracy", color="#66717e")
        shares.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        shares.tick_params(labelsize=8, colors="#66717e")
        # The grey line belongs behind: the first axes go in front, and let it shine through.
        axes.set_zorder(shares.get_zorder() + 1)
        axes.patch.set_visible(False)
        for place, (neighbour, curve) in enumerate(curves.items()):
            style = _line_style(place)
            axes.plot(
                thetas, list(curve), markersize=4, linewidth=1.2, label=_name(neighbour), **style
            )
        named = f"{_name(title)}: " if title else ""
        axes.set_title(f"{named}{kind} units", fontsize=10)
        axes.set_ylabel(measure)
        axes.tick_params(labelsize=8)
        _bare(axes, shares)
    below.set_xlabel("pruning ratio θ")
    handles, labels = above.get_legend_handles_labels()
    (grey,) = figure.axes[-1].get_lines()
    figure.legend(
        [*handles, grey],
        [*labels, "accuracy (right)"],
        loc="outside right center",
        fontsize=8,
        frameon=False,
    )
    return figure


def projection_panels(
    projections: Sequence[Projection],
    thetas: Sequence[float],
    classes: Sequence[str],
    *,
    highlight: int | None = None,
) -> Figure:
    """Draw the classes along their first two principal components, a panel per ratio; Figure 7.

    Up to `EVERY_POINT_NAMED` classes are all named; of more, the highlighted one and the ten that
    are nearest to it. Names keep clear of each other, and a thin line leads from one that had to
    move to its point.

    Parameters
    ----------
    projections
        Of two components or more, at each ratio.
    thetas
        The pruning ratios.
    classes
        What the classes are called.
    highlight
        Which class to draw large and coloured.

    Raises
    ------
    DataError
        Not one projection per ratio, or one of fewer components or other classes, or `highlight`
        is no class.

    Examples
    --------
    >>> from neurank.classes.interference import projected
    >>> places = projected(torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 5.0]]))
    >>> axes = projection_panels([places], [0.1], ["pug", "sax", "jeep"], highlight=2).axes[0]
    >>> axes.get_title(), axes.get_xlabel()
    ('θ = 0.1', 'component 1 (99.8 %)')
    """
    _check_lengths(len(thetas), "ratios", projections=projections)
    for one in projections:
        if one.coordinates.ndim != 2 or one.coordinates.shape[1] < 2:
            raise DataError(
                f"a projection of the shape {tuple(one.coordinates.shape)} has no second component"
                " to draw; project to two"
            )
        _check_lengths(len(classes), "classes", coordinates=one.coordinates.tolist())
    if highlight is not None and not 0 <= highlight < len(classes):
        raise DataError(
            f"highlight={highlight!r} is none of {len(classes)} classes; give its place"
        )
    columns = min(3, max(1, len(thetas)))
    figure, panels = _panels(len(thetas), columns, 4.2, 3.8)
    for axes, theta, one in zip(panels, thetas, projections, strict=True):
        places = one.coordinates[:, :2]
        across, up = places.T.tolist()
        axes.scatter(across, up, s=16, color=COLOURS[0], linewidths=0)
        if highlight is not None:
            mine: dict[str, Any] = {"s": 70, "color": COLOURS[1], "marker": "*", "zorder": 4}
            axes.scatter([across[highlight]], [up[highlight]], **mine)
        axes.set_title(f"θ = {theta:g}", fontsize=10)
        axes.set_xlabel(f"component 1 ({_explained(one, 0)})", fontsize=8)
        axes.set_ylabel(f"component 2 ({_explained(one, 1)})", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.margins(0.16)
        _bare(axes)
    # Where a name fits is only known once the panels have their sizes, which then must stay.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, one in zip(panels, projections, strict=True):
        _name_points(axes, one.coordinates[:, :2], classes, highlight)
    return figure


def class_matrix(
    matrix: ArrayLike | Tensor,
    classes: Sequence[str],
    *,
    measure: str = "",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a number for each two classes as a heat map with names; NaN is left blank.

    Where a number is negative, white is 0 and the colours are purple and orange; otherwise dark is
    low. The diagonal, a class beside itself, does not stretch the scale. Up to twelve classes have
    their numbers written in.

    Parameters
    ----------
    matrix
        Shape (classes, classes).
    classes
        What the classes are called, along both axes.
    measure
        What the numbers are, beside the scale.
    limits
        The ends of the scale; the lowest and highest number beside the diagonal if not given, or -m
        and m where one is negative.
    ax
        Where to draw; new axes in a new figure if not given.

    Raises
    ------
    DataError
        The matrix is not of that shape.

    Examples
    --------
    >>> axes = class_matrix([[1.0, -0.5], [-0.5, 1.0]], ["pug", "sax"])
    >>> axes.get_images()[0].get_clim(), [text.get_text() for text in axes.texts][:2]
    ((-0.5, 0.5), ['1', '-0.5'])
    """
    values = _numbers("matrix", matrix, (len(classes), len(classes)))
    low, high, signed = _scale_of(values, limits)
    size = min(16.0, 2.4 + 0.27 * len(classes))
    axes = _new_axes(size + 0.9, size) if ax is None else ax
    scale = colormaps["PuOr_r" if signed else "cividis"].with_extremes(bad=(0, 0, 0, 0))
    image = axes.imshow(
        values.numpy(),
        cmap=scale,
        vmin=low,
        vmax=high,
        interpolation="nearest",
    )
    _name_places(axes, classes)
    _name_places(axes, classes, upright=True)
    axes.spines[:].set_visible(False)
    clipped = values.nan_to_num(nan=low) > max(low, high)
    extend = "max" if bool(clipped.any()) else "neither"
    figure = axes.get_figure(root=True)
    assert figure is not None  # axes that are drawn on have one
    figure.colorbar(image, ax=axes, shrink=0.8, label=measure, extend=extend)
    if len(classes) <= 12:
        _write_numbers(axes, values, (low, high), scale)
    return axes


def _scale_of(values: Tensor, limits: tuple[float, float] | None) -> tuple[float, float, bool]:
    """Return the ends of the scale, and whether 0 is its middle."""
    if limits is not None:
        return *limits, limits[0] < 0
    beside = values[~torch.eye(len(values), dtype=torch.bool) & values.isfinite()]
    known = beside if len(beside) else values[values.isfinite()]
    if not len(known):
        return 0.0, 1.0, False
    low, high = float(known.min()), float(known.max())
    if low < 0:
        most = max(-low, high)
        return -most, most, True
    return low, high if high > low else low + 1.0, False


def _write_numbers(
    axes: Axes, values: Tensor, limits: tuple[float, float], scale: Colormap
) -> None:
    low, high = limits
    for row, column in (~values.isnan()).nonzero().tolist():
        number = float(values[row, column])
        red, green, blue, _ = scale((number - low) / (high - low))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        axes.text(
            column,
            row,
            f"{number:.2g}" if abs(number) < 100 else _short(number),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else "black",
        )


def _draw_curve(
    axes: Axes,
    thetas: Sequence[float],
    share: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    colour: str,
) -> None:
    axes.fill_between(thetas, low, high, color=colour, alpha=0.2, lw=0)
    axes.axhline(share[0], color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
    axes.plot(thetas, share, color=colour, marker="o", markersize=2.5)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.tick_params(labelsize=7)
    _bare(axes)


def _check_lengths(expected: int, of: str, **given: Sequence[object]) -> None:
    for name, values in given.items():
        if len(values) != expected:
            raise DataError(
                f"{name!r} has {len(values)} entries beside {expected} {of}; give one for each"
            )


def _numbers(name: str, values: ArrayLike | Tensor, shape: tuple[int, ...]) -> Tensor:
    given = values.detach().cpu() if isinstance(values, Tensor) else np.array(values)  # a table's
    numbers = torch.as_tensor(given, dtype=torch.float64)  # are read-only, which torch warns of
    if numbers.shape != shape:
        raise DataError(f"{name} has the shape {tuple(numbers.shape)}; give {shape}")
    return numbers


def _new_axes(width: float, height: float) -> Axes:
    figure = Figure(figsize=(width, height), dpi=120)
    figure.set_layout_engine("constrained")
    return figure.subplots()


def _panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels of that size, row by row."""
    if not count:
        raise DataError("there is no pruning ratio to draw; give one or more")
    rows = -(-count // columns)
    figure = Figure(figsize=(0.3 + width * columns, 0.4 + height * rows), dpi=120)
    figure.set_layout_engine("constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for spare in panels[count:]:
        spare.remove()
    return figure, panels[:count]


def _line_style(place: int) -> dict[str, Any]:
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def _name_places(axes: Axes, names: Sequence[str], *, upright: bool = False) -> None:
    """Put a name at each place of an axis, or numbers at some where there are too many."""
    axis = axes.yaxis if upright else axes.xaxis
    if len(names) > EVERY_CLASS_NAMED:
        axis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True))
        axis.set_tick_params(labelsize=7)
        return
    labels = [_name(name) for name in names]
    if not upright:
        axes.set_xlim(-0.6, len(names) - 0.4)
    axis.set_ticks(range(len(names)), labels=labels, fontsize=7 if len(names) > 8 else 8)
    axis.set_minor_locator(NullLocator())
    if not upright and (len(names) > 8 or max(map(len, labels), default=0) > 8):
        for label in axes.get_xticklabels():
            label.set(rotation=90 if len(names) > 12 else 45, rotation_mode="anchor")
            label.set(ha="right", va="center" if len(names) > 12 else "top")


def _note(axes: Axes, text: str, x: float, y: float) -> None:
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    axes.annotate(
        text,
        (x, y),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=7,
        color=INK,
        bbox=box,
    )


def _legend_above(axes: Axes, handles: Sequence[Any], columns: int) -> None:
    axes.legend(
        handles=list(handles),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=columns,
        fontsize=8,
        frameon=False,
    )


def _bare(*all_axes: Axes) -> None:
    for axes in all_axes:
        axes.spines["top"].set_visible(False)
    if len(all_axes) == 1:
        all_axes[0].spines["right"].set_visible(False)


def _dark(kind: Kind) -> str:
    return INK if kind == "undefined" else OF_KIND[kind]


def _explained(one: Projection, component: int) -> str:
    share = float(one.explained[component])
    return "undefined" if math.isnan(share) else f"{100 * share:.1f} %"


def _short(number: float, _place: object = None) -> str:
    """Write 61,100,840 as 61.1M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def _name(text: str) -> str:
    """Return a name that cannot be taken for mathematics or markup, short enough for a tick."""
    return legible(text, _LONGEST_NAME).replace("$", r"\$")


def _name_points(axes: Axes, places: Tensor, classes: Sequence[str], highlight: int | None) -> None:
    """Name points so that no name covers another, a point or the edge of the panel."""
    named = _to_name(places, highlight)
    points = axes.transData.transform(places.numpy())  # in pixels
    scale = axes.figure.dpi / 72
    reach = 3.0 * scale
    taken = [
        Bbox.from_extents(x - reach, y - reach, x + reach, y + reach)
        for x, y in points.tolist()
        if not math.isnan(x)
    ]
    inside = axes.get_window_extent()
    for label in named:
        first = label == highlight
        style: dict[str, Any] = {"color": "#a84300", "weight": "bold"} if first else {"color": INK}
        text = axes.annotate(
            _name(classes[label]),
            tuple(places[label].tolist()),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7,
            zorder=5,
            **style,
        )
        size = text.get_window_extent().padded(1.5 * scale)
        centre, box = _free_place(points[label].tolist(), size, taken, inside, scale)
        taken.append(box)
        point = points[label].tolist()
        text.set_position(((centre[0] - point[0]) / scale, (centre[1] - point[1]) / scale))
        edge = _nearest(point, box)
        if math.dist(point, edge) > 6 * scale:
            ends = axes.transData.inverted().transform([point, edge])
            leader: dict[str, Any] = {"color": FAINT, "linewidth": 0.5, "zorder": 0.5}
            axes.plot(*ends.T.tolist(), scalex=False, scaley=False, **leader)


def _to_name(places: Tensor, highlight: int | None) -> list[int]:
    """Which points get a name, the highlighted one first."""
    known = (~places.isnan().any(dim=1)).nonzero()[:, 0].tolist()
    if highlight is None or highlight not in known:
        return known if len(known) <= EVERY_POINT_NAMED else []
    far = (places - places[highlight]).norm(dim=1)
    nearest = sorted(known, key=lambda label: float(far[label]))
    return nearest if len(nearest) <= EVERY_POINT_NAMED else nearest[:11]


def _free_place(
    point: Sequence[float], size: Bbox, taken: Sequence[Bbox], inside: Bbox, scale: float
) -> tuple[tuple[float, float], Bbox]:
    """Return the first place round a point where a name touches nothing; else the least bad."""
    best: tuple[float, tuple[float, float], Bbox] | None = None
    for x, y in _round_about(point, size, scale):
        half, tall = size.width / 2, size.height / 2
        box = Bbox.from_extents(x - half, y - tall, x + half, y + tall)
        covered = sum(_common_area(box, other) for other in taken)
        covered += box.width * box.height - _common_area(box, inside)
        if covered <= 0.01 * box.width * box.height:
            return (x, y), box
        if best is None or covered < best[0]:
            best = covered, (x, y), box
    assert best is not None  # there are always places to try
    return best[1], best[2]


def _round_about(point: Sequence[float], size: Bbox, scale: float) -> Iterator[tuple[float, float]]:
    """Go round a point in growing ellipses that a name of that size just clears."""
    for ring in range(12):
        gap = (3.5 + 7 * ring) * scale
        for step in range(16):
            turn = math.tau * (step / 16 + ring / 32)
            yield (
                point[0] + math.cos(turn) * (size.width / 2 + gap),
                point[1] + math.sin(turn) * (size.height / 2 + gap),
            )


def _nearest(point: Sequence[float], box: Bbox) -> tuple[float, float]:
    """Return the point of a box that is nearest to a point."""
    return min(max(point[0], box.x0), box.x1), min(max(point[1], box.y0), box.y1)


def _common_area(one: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(one, other)
    return float(common.width * common.height) if common is not None else 0.0
