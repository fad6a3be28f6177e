"""Pictures of rankings, in the manner of the neuron-ranking paper's Figures 1 and 2.

Nothing here runs a model or needs a display: figures are made of matplotlib's objects, without
pyplot and its global state. ``axes.figure.savefig(path)`` writes them.
"""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from torch import Tensor

from neurank.errors import RankingError
from neurank.ranking import LayerRanking, Ranking
from neurank.text import legible

BEST, REST = "#d1495b", "#9fb3c8"
ERROR_BARS: dict[str, Any] = {"ecolor": "#33415c", "elinewidth": 0.8, "capsize": 1.5}
EVERY_UNIT_NUMBERED = 25
"""Up to this many units, each has its number on the axis."""


def score_bars(ranking: Ranking, layer: str, *, k: int = 5, ax: Axes | None = None) -> Axes:
    """Draw the scores of one layer as bars, one per unit, the `k` best coloured; Figure 2.

    Where a score has a standard error above 0, an error bar shows one of it each way.

    Parameters
    ----------
    ranking
        Where the scores are.
    layer
        Which layer.
    k
        How many of the best units to colour; all of them if the layer has fewer.
    ax
        Where to draw; new axes in a new figure if not given.

    Returns
    -------
    Axes
        The axes; their ``.figure`` can be saved.

    Raises
    ------
    RankingError
        The layer is not in the ranking, or `k` is not a whole number from 0 on.

    Examples
    --------
    >>> ranking = Ranking.from_scores({"fc2": [0.25, -0.5, 0.75]})
    >>> [float(bar.get_height()) for bar in score_bars(ranking, "fc2", k=1).patches]
    [0.25, -0.5, 0.75]
    """
    scored = ranking[layer]
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise RankingError(f"k={k!r} units cannot be coloured: give a whole number from 0 on")
    axes = _new_axes(scored.units) if ax is None else ax
    axes.set_title(_title(ranking, layer), fontsize=10)
    axes.set_xlabel("unit")
    axes.set_ylabel("score")
    if scored.status == "undefined":
        _say(axes, "undefined: no example to score on")
        return axes
    _draw_bars(axes, scored, scored.order()[:k])
    return axes


def score_panels(
    *rankings: Ranking,
    layers: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    k: int = 5,
) -> Figure:
    """Draw the scores of several rankings side by side: a row per layer, a column per ranking.

    Parameters
    ----------
    rankings
        At least one.
    layers
        Which layers, in which order; by default all that any ranking has, in the order met.
    names
        What to call the rankings; their methods if not given.
    k
        How many of the best units to colour in each panel.

    Returns
    -------
    Figure
        Its axes go row by row. Where a ranking lacks a layer, the panel says so.

    Raises
    ------
    RankingError
        There is no ranking, or not one name for each.

    Examples
    --------
    >>> one = Ranking.from_scores({"conv1": [1, 2], "fc1": [3, 4]})
    >>> two = Ranking.from_scores({"conv1": [2, 1]})
    >>> len(score_panels(one, two, names=("SH", "IS")).axes)
    4
    """
    if not rankings or (names is not None and len(names) != len(rankings)):
        raise RankingError(
            f"{len(rankings)} rankings and the names {names}: give rankings, and a name for each"
        )
    titles = [ranking.method for ranking in rankings] if names is None else list(names)
    rows = list(dict.fromkeys(name for ranking in rankings for name in ranking))
    rows = rows if layers is None else list(layers)
    figure = Figure(figsize=(0.6 + 4.6 * len(rankings), 0.5 + 2.2 * len(rows)), dpi=120)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(len(rows), len(rankings), squeeze=False)
    for layer, across in zip(rows, panels, strict=True):
        for ranking, title, axes in zip(rankings, titles, across, strict=True):
            _draw_panel(axes, ranking, layer, k)
            axes.set_title(f"{_plain(layer)}: {_plain(title)}", fontsize=10)
            axes.set_xlabel("unit" if layer == rows[-1] else "")
            axes.set_ylabel("score" if ranking is rankings[0] else "")
    return figure


def feature_maps(
    maps: Tensor,
    ranking: Ranking,
    layer: str,
    *,
    pictures: Tensor | None = None,
    best: int = 4,
    worst: int = 1,
) -> Figure:
    r"""Draw the maps of a layer's best and worst filters, a row per picture; Figure 1.

    Parameters
    ----------
    maps
        (examples, units, height, width), as `neurank.observe.activations.layer_maps` gives them.
    ranking
        Says which filters are the best and the worst.
    layer
        The layer that the maps are of.
    pictures
        (examples, channels, height, width), one or three channels: shown first in each row.
    best, worst
        How many filters to show from the top and from the bottom.

    Returns
    -------
    Figure
        Its axes go row by row. Each filter has one grey scale in all rows, so that a filter that
        answers to one picture only looks dark for the others.

    Raises
    ------
    RankingError
        The maps do not fit the layer, the pictures do not fit the maps, or `best` and `worst`
        are not from 1 unit to all.

    Examples
    --------
    >>> ranking = Ranking.from_scores({"conv1": [0.1, 0.9, 0.5]})
    >>> import torch
    >>> figure = feature_maps(torch.rand(2, 3, 4, 4), ranking, "conv1", best=1)
    >>> [axes.get_title() for axes in figure.axes[:2]]
    ['filter 1\nrank 1', 'filter 0\nrank 3']
    """
    units = _chosen(ranking, layer, best, worst)
    _check_maps(maps, ranking[layer].units, layer, pictures)
    examples = len(maps)
    columns = len(units) + (pictures is not None)
    figure = Figure(figsize=(0.3 + 1.25 * columns, 0.7 + 1.2 * examples), dpi=120)
    figure.set_layout_engine("constrained")
    figure.suptitle(_title(ranking, layer), fontsize=10)
    panels = figure.subplots(examples, columns, squeeze=False)
    for row, across in enumerate(panels):
        panes = list(across)
        if pictures is not None:
            _draw_picture(panes.pop(0), pictures[row], "input" if row == 0 else "")
        for axes, (rank, unit) in zip(panes, units, strict=True):
            title = f"filter {unit}\nrank {rank}" if row == 0 else ""
            _draw_map(axes, maps[row, unit], title, maps[:, unit])
    return figure


def _new_axes(units: int) -> Axes:
    width = 6.0 if units <= EVERY_UNIT_NUMBERED else 9.0
    figure = Figure(figsize=(width, 3.0), dpi=120)
    figure.set_layout_engine("constrained")
    return figure.subplots()


def _draw_panel(axes: Axes, ranking: Ranking, layer: str, k: int) -> None:
    if layer in ranking:
        score_bars(ranking, layer, k=k, ax=axes)
    else:
        _say(axes, "not ranked")


def _draw_bars(axes: Axes, scored: LayerRanking, top: Sequence[int]) -> None:
    colours = [BEST if unit in top else REST for unit in range(scored.units)]
    heights = scored.scores.tolist()
    axes.bar(range(scored.units), heights, width=0.8, color=colours)
    known = scored.stderr.isfinite() & (scored.stderr > 0)
    if bool(known.any()):
        units = known.nonzero()[:, 0].tolist()
        axes.errorbar(
            units,
            [heights[unit] for unit in units],
            yerr=[scored.stderr[unit].item() for unit in units],
            fmt="none",
            **ERROR_BARS,
        )
    axes.axhline(0, color="#33415c", linewidth=0.6)
    axes.set_xlim(-0.7, scored.units - 0.3)
    _number_units(axes, scored.units)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    if top:
        shown = ", ".join(map(str, top[:10])) + (", …" if len(top) > 10 else "")
        axes.annotate(
            f"top {len(top)}: {shown}",
            (0.99, 0.98),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize=7,
            color=BEST,
        )
        _leave_room_above(axes)


def _number_units(axes: Axes, units: int) -> None:
    if units <= EVERY_UNIT_NUMBERED:
        axes.xaxis.set_major_locator(FixedLocator(range(units)))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True))


def _leave_room_above(axes: Axes) -> None:
    """Keep the note about the top units clear of the bars."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.14 * (high - low))


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#33415c")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _chosen(ranking: Ranking, layer: str, best: int, worst: int) -> list[tuple[int, int]]:
    """Return (rank, unit) of the best and the worst units, rank 1 the best."""
    order = list(enumerate(ranking.order(layer), start=1))
    if best < 0 or worst < 0 or not 1 <= best + worst <= len(order):
        raise RankingError(
            f"best={best} and worst={worst} filters cannot be shown of layer {layer!r}, which has "
            f"{len(order)}: ask for 1 to {len(order)} together"
        )
    return order[:best] + order[len(order) - worst :]


def _check_maps(maps: Tensor, units: int, layer: str, pictures: Tensor | None) -> None:
    if maps.ndim != 4 or maps.shape[1] != units or not len(maps):
        raise RankingError(
            f"maps of the shape {tuple(maps.shape)} are not of layer {layer!r} with {units} units: "
            f"give (examples, {units}, height, width)"
        )
    if pictures is None:
        return
    if pictures.ndim != 4 or len(pictures) != len(maps) or pictures.shape[1] not in (1, 3):
        raise RankingError(
            f"pictures of the shape {tuple(pictures.shape)} cannot be shown beside maps of "
            f"{len(maps)} examples: give ({len(maps)}, 1 or 3, height, width)"
        )


def _draw_picture(axes: Axes, picture: Tensor, title: str) -> None:
    low, high = float(picture.min()), float(picture.max())
    shown = (picture.float() - low) / ((high - low) or 1.0)
    _draw_image(axes, shown.permute(1, 2, 0).squeeze(2), title, 0.0, 1.0)


def _draw_map(axes: Axes, one: Tensor, title: str, all_of_filter: Tensor) -> None:
    low, high = float(all_of_filter.min()), float(all_of_filter.max())
    _draw_image(axes, one.float(), title, low, high if high > low else low + 1.0)


def _draw_image(axes: Axes, image: Tensor, title: str, low: float, high: float) -> None:
    options: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": high}
    axes.imshow(image.detach().cpu().numpy(), interpolation="nearest", **options)
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def _title(ranking: Ranking, layer: str) -> str:
    """Name the layer and the method that scored it, which in a merged ranking is one of several."""
    return f"{_plain(layer)}: {_plain(ranking.select([layer]).method)}"


def _plain(text: str) -> str:
    """Return a name that cannot be taken for mathematics or markup, nor run off the picture."""
    return legible(text).replace("$", r"\$")
