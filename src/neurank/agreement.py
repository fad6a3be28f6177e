"""Where two rankings agree: the top units they share, how likely that is by chance, correlations.

The table is Table 1 of "Neuron ranking — an informed way to condense convolutional neural networks
architecture" (Adamczewski and Park, 2019), with the figures behind it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pandas as pd
from scipy import stats

from neurank.errors import RankingError
from neurank.ranking import LayerRanking, Ranking, refuse_other_model
from neurank.text import aligned, legible


@dataclass(frozen=True)
class LayerAgreement:
    """How two rankings of one layer agree.

    Parameters
    ----------
    units
        How many units the layer has.
    k
        How many top units are compared.
    top_a, top_b
        The `k` best units by each ranking, best first; of equal scores the lower index comes first.
    chance
        Probability that two independent uniformly random choices of `k` of the units share at
        least as many, see `chance_of_overlap`.
    spearman
        Spearman's rank correlation of all scores, tied scores sharing their mean rank. NaN
        (undefined) where all scores of a ranking are equal.
    kendall
        Kendall's tau-b of all scores, which allows for ties. NaN where `spearman` is.
    """

    units: int
    k: int
    top_a: tuple[int, ...]
    top_b: tuple[int, ...]
    chance: float
    spearman: float
    kendall: float

    @property
    def common(self) -> tuple[int, ...]:
        """The units in both tops, in the first ranking's order."""
        return tuple(unit for unit in self.top_a if unit in self.top_b)

    @property
    def overlap(self) -> int:
        """How many units are in both tops."""
        return len(self.common)


@dataclass(frozen=True, repr=False)
class Agreement:
    """How two rankings agree, layer by layer; `print` shows it as a table.

    Parameters
    ----------
    layers
        Layer name to `LayerAgreement`, for the layers in both rankings, in the first one's order.
    names
        What the rankings are called.
    only_in_a, only_in_b
        The layers that could not be compared because one ranking alone has them.
    """

    layers: Mapping[str, LayerAgreement]
    names: tuple[str, str]
    only_in_a: tuple[str, ...] = ()
    only_in_b: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))

    def __getitem__(self, layer: str) -> LayerAgreement:
        """Return one layer's agreement; a RankingError lists the layers if it is not there."""
        if layer not in self.layers:
            raise RankingError(
                f"layer {layer!r} was not compared; {', '.join(map(repr, self.layers))} were"
            )
        return self.layers[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    __hash__ = None  # type: ignore[assignment]  # a mapping is compared, not hashed

    def __reduce__(self) -> tuple[Any, ...]:
        """Let copy.deepcopy work, which the read-only mapping alone does not allow."""
        return Agreement, (dict(self.layers), self.names, self.only_in_a, self.only_in_b)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per layer.

        The columns: layer, units, k, top_a, top_b, overlap, chance, spearman, kendall.
        """
        return pd.DataFrame(
            [
                {
                    "layer": name,
                    "units": layer.units,
                    "k": layer.k,
                    "top_a": layer.top_a,
                    "top_b": layer.top_b,
                    "overlap": layer.overlap,
                    "chance": layer.chance,
                    "spearman": layer.spearman,
                    "kendall": layer.kendall,
                }
                for name, layer in self.layers.items()
            ]
        )

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """Return the table, two lines per layer, common units marked with ``*``."""
        head = ("layer", "ranking", "top units (* in both)", "shared", "by chance", "ρ", "τ")
        rows = [row for name in self.layers for row in self._rows(name)]
        return "\n".join([*aligned([head, *rows]), *self._left_out()])

    def _rows(self, name: str) -> list[tuple[str, ...]]:
        layer = self.layers[name]
        first, second = (legible(name) for name in self.names)
        figures = (
            f"{layer.overlap} of {layer.k}",
            f"{layer.chance:.2g}",
            _correlation(layer.spearman),
            _correlation(layer.kendall),
        )
        return [
            (f"{legible(name)} ({layer.units})", first, _marked(layer.top_a, layer), *figures),
            ("", second, _marked(layer.top_b, layer), "", "", "", ""),
        ]

    def _left_out(self) -> list[str]:
        return [
            f"only in {legible(name)}: {', '.join(map(legible, layers))}"
            for name, layers in zip(self.names, (self.only_in_a, self.only_in_b), strict=True)
            if layers
        ]


def compare(
    a: Ranking,
    b: Ranking,
    k: int | Mapping[str, int] = 5,
    *,
    names: tuple[str, str] | None = None,
) -> Agreement:
    """Compare two rankings of one model on every layer that both have.

    Parameters
    ----------
    a, b
        The rankings. Layers that only one of them has are named in the result.
    k
        How many top units to compare: one number, or one for each common layer by name.
    names
        What to call the rankings; their methods if not given.

    Raises
    ------
    RankingError
        The rankings share no layer, are of different models or of different widths; `k` does not
        fit a layer; or the scores of a common layer are undefined.

    Notes
    -----
    Where both provenances have ``"model"`` the two must be equal; where one has none (scores that
    the user brought) only the widths are checked.

    Examples
    --------
    >>> a = Ranking.from_scores({"fc2": [9, 8, 7, 6, 5, 4]})
    >>> b = Ranking.from_scores({"fc2": [4, 9, 8, 7, 6, 5]})
    >>> agreement = compare(a, b, k=3, names=("SH", "IS"))
    >>> agreement["fc2"].common, round(agreement["fc2"].chance, 12)
    ((1, 2), 0.5)
    >>> print(agreement)
    layer    ranking  top units (* in both)  shared  by chance  ρ      τ
    fc2 (6)  SH       0,*1,*2                2 of 3  0.5        +0.14  +0.33
             IS       *1,*2,3
    """
    common = [name for name in a if name in b]
    if not common:
        raise RankingError(
            f"the rankings have no layer in common: {', '.join(a)} and {', '.join(b)}; "
            "rank the same layers with both methods"
        )
    refuse_other_model(a, b)
    sizes = _sizes(k, {name: a[name].units for name in common})
    return Agreement(
        {name: _compared(name, a, b, sizes[name]) for name in common},
        names=_names(a, b) if names is None else names,
        only_in_a=tuple(name for name in a if name not in b),
        only_in_b=tuple(name for name in b if name not in a),
    )


def chance_of_overlap(units: int, k: int, overlap: int) -> float:
    r"""Return the probability that two random choices of `k` units share at least `overlap`.

    The overlap of independent uniform choices of k of n units is hypergeometric:

    .. math:: P(X \ge m) = \sum_{j=m}^{k} \binom{k}{j} \binom{n-k}{k-j} \Big/ \binom{n}{k}

    computed in whole numbers, so correctly rounded.

    Raises
    ------
    RankingError
        Not 0 ≤ `overlap` ≤ `k` ≤ `units`.

    Examples
    --------
    Five of five, among 20 units and among 25:

    >>> f"{chance_of_overlap(20, 5, 5):.1e}", f"{chance_of_overlap(25, 5, 5):.1e}"
    ('6.4e-05', '1.9e-05')
    """
    if not 0 <= overlap <= k <= units:
        raise RankingError(f"an overlap of {overlap} in {k} of {units} units cannot be; check them")
    ways = sum(math.comb(k, j) * math.comb(units - k, k - j) for j in range(overlap, k + 1))
    return ways / math.comb(units, k)


def _compared(name: str, a: Ranking, b: Ranking, k: int) -> LayerAgreement:
    first, second = a[name], b[name]
    if first.units != second.units:
        raise RankingError(
            f"layer {name!r} has {first.units} units in one ranking and {second.units} in the "
            "other; rank the same network with both methods"
        )
    top_a, top_b = a.top(k, name), b.top(k, name)
    spearman, kendall = _correlations(first, second)
    chance = chance_of_overlap(first.units, k, len(set(top_a) & set(top_b)))
    return LayerAgreement(first.units, k, top_a, top_b, chance, spearman, kendall)


def _correlations(first: LayerRanking, second: LayerRanking) -> tuple[float, float]:
    x, y = first.scores.numpy(), second.scores.numpy()
    if x.min() == x.max() or y.min() == y.max():
        return math.nan, math.nan  # no order to correlate; scipy would warn and say the same
    ranks_x, ranks_y = stats.rankdata(x), stats.rankdata(y)
    spearman = stats.pearsonr(ranks_x, ranks_y).statistic
    return float(spearman), float(stats.kendalltau(x, y, variant="b").statistic)


def _sizes(k: int | Mapping[str, int], units: Mapping[str, int]) -> Mapping[str, int]:
    """Return how many top units to compare in each common layer, given how many units it has."""
    sizes = k if isinstance(k, Mapping) else dict.fromkeys(units, k)
    if set(sizes) != set(units):
        raise RankingError(
            f"k names the layers {sorted(sizes)} and the rankings share {list(units)}; give one "
            "number for each shared layer, or select the layers to compare"
        )
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= units[name]:
            raise RankingError(
                f"k={size!r} does not fit layer {name!r} of {units[name]} units; give every layer "
                f"its own whole number, such as k={ {n: min(5, u) for n, u in units.items()} }"
            )
    return sizes


def _names(a: Ranking, b: Ranking) -> tuple[str, str]:
    if a.method == b.method:
        return f"a: {a.method}", f"b: {b.method}"
    return a.method, b.method


def _marked(top: tuple[int, ...], layer: LayerAgreement) -> str:
    return ",".join(f"*{unit}" if unit in layer.common else str(unit) for unit in top)


def _correlation(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:+.2f}"
