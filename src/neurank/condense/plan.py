"""The plan: which original units of each layer are kept. Made first, carried out elsewhere."""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Real
from types import MappingProxyType
from typing import Any, TypeVar

from neurank.errors import FileError, PlanError, RankingError
from neurank.files import Json, as_json
from neurank.ranking import Ranking
from neurank.text import aligned, legible

_SHOWN = 16

T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Plan:
    """Which units of which layers are kept; layers that it does not name stay whole.

    Two plans are equal if they keep the same units of the same layers, wherever they come from.

    Parameters
    ----------
    keep
        Layer name to the original indices of the units kept. Stored in ascending order.
    widths
        Layer name to the number of units before, for the same layers.
    source
        Where the choice comes from, such as the provenance of the ranking, in anything JSON can
        say. Does not count in comparisons.

    Raises
    ------
    PlanError
        A layer keeps no unit, an index is outside the layer, given twice or no whole number, or
        `widths` is not about the layers of `keep`.

    Examples
    --------
    >>> plan = Plan({"conv1": (4, 0, 2), "fc1": (1, 2)}, {"conv1": 5, "fc1": 3})
    >>> plan.keep["conv1"], plan.removed("conv1")
    ((0, 2, 4), (1, 3))
    >>> print(plan)
    Plan for 2 layers
    layer  units  kept  which
    conv1  5      3     0 2 4
    fc1    3      2     1 2
    """

    keep: Mapping[str, tuple[int, ...]]
    widths: Mapping[str, int]
    source: Mapping[str, Json] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.keep:
            raise PlanError("the plan names no layer: say what to keep of at least one")
        if set(self.keep) != set(self.widths):
            raise PlanError(
                f"the plan keeps units of {', '.join(self.keep)} and gives the widths of "
                f"{', '.join(self.widths) or 'no layer'}: give one width for each layer"
            )
        widths = {layer: _width(layer, self.widths[layer]) for layer in self.keep}
        keep = {layer: _kept(layer, self.keep[layer], widths[layer]) for layer in self.keep}
        try:
            source = as_json(self.source, "source")
        except FileError as error:
            raise PlanError(str(error)) from error
        if not isinstance(source, dict):
            raise PlanError(f"source is {self.source!r}: give a mapping")
        object.__setattr__(self, "keep", MappingProxyType(keep))
        object.__setattr__(self, "widths", MappingProxyType(widths))
        object.__setattr__(self, "source", source)

    @classmethod
    def from_keep(
        cls,
        keep: Mapping[str, Sequence[int]],
        widths: Mapping[str, int],
        *,
        source: Mapping[str, Json] | None = None,
    ) -> "Plan":
        """Make a plan of explicit indices; `widths` may cover more layers than are planned.

        Raises
        ------
        PlanError
            As for `Plan`; or a layer of `keep` has no width.

        Examples
        --------
        >>> Plan.from_keep({"fc1": range(2)}, {"fc1": 3, "fc2": 9}).removed("fc1")
        (2,)
        """
        known = {layer: _looked_up(widths, layer) for layer in keep}
        return cls(keep, known, source or {})  # type: ignore[arg-type]  # made tuples when checked

    @property
    def widths_after(self) -> Mapping[str, int]:
        """Layer name to the number of units kept."""
        return MappingProxyType({layer: len(kept) for layer, kept in self.keep.items()})

    def removed(self, layer: str) -> tuple[int, ...]:
        """Return the original indices of the units of a layer that are not kept, ascending.

        Raises
        ------
        PlanError
            The plan does not name the layer.
        """
        kept = set(_looked_up(self.keep, layer))
        return tuple(unit for unit in range(self.widths[layer]) if unit not in kept)

    def to_json(self) -> dict[str, Json]:
        """Return the plan in dicts, lists and numbers; `from_json` turns it back.

        Examples
        --------
        >>> Plan({"fc1": (0, 2)}, {"fc1": 3}).to_json()
        {'layers': [{'name': 'fc1', 'units': 3, 'keep': [0, 2]}], 'source': {}}
        """
        return {
            # a list, since a file does not keep the order of a mapping
            "layers": [
                {"name": layer, "units": self.widths[layer], "keep": list(kept)}
                for layer, kept in self.keep.items()
            ],
            "source": dict(self.source),
        }

    @classmethod
    def from_json(cls, value: Json) -> "Plan":
        """Make a plan of what `to_json` returned.

        Raises
        ------
        PlanError
            `value` is no plan.

        Examples
        --------
        >>> Plan.from_json({"layers": [{"name": "fc1", "units": 3, "keep": [0, 2]}]})
        Plan for 1 layer
        layer  units  kept  which
        fc1    3      2     0 2
        """
        try:
            parts: Any = value
            entries = {entry["name"]: entry for entry in parts["layers"]}
            keep = {name: entry["keep"] for name, entry in entries.items()}
            widths = {name: entry["units"] for name, entry in entries.items()}
            source = parts.get("source", {})
        except (AttributeError, KeyError, TypeError) as error:
            raise PlanError(
                f"this is no plan ({error!r}): it needs a list 'layers' of name, units and keep, "
                "as Plan.to_json returns it"
            ) from error
        return cls(keep, widths, source)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let copy.deepcopy work, which the read-only mappings alone do not allow."""
        return Plan, (dict(self.keep), dict(self.widths), dict(self.source))

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """Return one line per layer: how many units are kept, and which."""
        rows = [
            (
                legible(layer),
                str(self.widths[layer]),
                str(len(kept)),
                " ".join(map(str, kept[:_SHOWN])) + (" …" if len(kept) > _SHOWN else ""),
            )
            for layer, kept in self.keep.items()
        ]
        count = f"{len(rows)} layer{'s' if len(rows) > 1 else ''}"
        lines = aligned([("layer", "units", "kept", "which"), *rows])
        return "\n".join([f"Plan for {count}", *lines])


def plan(
    ranking: Ranking,
    *,
    keep: Mapping[str, int | Sequence[int]] | None = None,
    ratio: float | Mapping[str, float] | None = None,
) -> Plan:
    """Choose the units to keep by a ranking.

    Parameters
    ----------
    ranking
        Scores, higher = keep. Of units with equal scores the one with the lower index is kept.
    keep
        Layer name to how many of its best units are kept, or to the original indices of those
        that are, whatever their scores. Layers that are not named stay whole.
    ratio
        The share of units that is REMOVED, 0 to below 1: of every layer of the ranking, or layer
        name to share. The number removed is rounded down and at least one unit is kept.

    Raises
    ------
    PlanError
        Neither or both of `keep` and `ratio` are given; a layer is not in the ranking or its
        scores are undefined; a number is out of range; indices are outside the layer or given
        twice.

    Examples
    --------
    >>> ranking = Ranking.from_scores({"conv1": [0.1, 0.5, 0.2, 0.2], "fc1": [0.3, 0.3]})
    >>> plan(ranking, keep={"conv1": 2}).keep["conv1"]
    (1, 2)
    >>> plan(ranking, ratio=0.5).widths_after
    mappingproxy({'conv1': 2, 'fc1': 1})
    """
    if (keep is None) == (ratio is None):
        raise PlanError(
            "give one of keep= (how many units, or which) and ratio= (the share removed): "
            f"{'neither' if keep is None else 'both'} was given"
        )
    if keep is None:
        shares = ratio if isinstance(ratio, Mapping) else dict.fromkeys(ranking, ratio)
        chosen = _each(
            shares, lambda layer, share: _best(ranking, layer, _number_kept(ranking, layer, share))
        )
    else:
        if not isinstance(keep, Mapping):
            raise PlanError(
                f'keep={keep!r} names no layers: give layer name to number, {{"conv1": 5}}, or '
                "to indices"
            )
        chosen = _each(keep, lambda layer, wanted: _chosen(ranking, layer, wanted))
    widths = {layer: ranking[layer].units for layer in chosen}
    return Plan(chosen, widths, ranking.provenance)


def _each(
    wanted: Mapping[str, T], choose: Callable[[str, T], tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    return {layer: choose(layer, what) for layer, what in wanted.items()}


def _chosen(ranking: Ranking, layer: str, wanted: int | Sequence[int]) -> tuple[int, ...]:
    _check_ranked(ranking, layer)
    if isinstance(wanted, str | bytes | Mapping):
        raise PlanError(
            f"keep of layer {layer!r} is {wanted!r}: give a number of units, or their indices"
        )
    if isinstance(wanted, Iterable) and getattr(wanted, "ndim", 1) != 0:
        return tuple(wanted)
    number = _whole(wanted)
    units = ranking[layer].units
    if number is None or not 1 <= number <= units:
        raise PlanError(
            f"{wanted!r} units of layer {layer!r} cannot be kept: it has {units}. Give a whole "
            f"number from 1 to {units}, or a list of indices"
        )
    return _best(ranking, layer, number)


def _number_kept(ranking: Ranking, layer: str, share: object) -> int:
    _check_ranked(ranking, layer)
    number = math.nan if isinstance(share, bool) or not isinstance(share, Real) else float(share)
    if not 0 <= number < 1:
        raise PlanError(
            f"ratio of layer {layer!r} is {share!r}: it is the share of units removed, a number "
            "from 0 to below 1"
        )
    units = ranking[layer].units
    # The decimal that was written, not its binary neighbour: 0.29 of 100 units is 29, not 28.
    return max(1, units - math.floor(Fraction(str(number)) * units))


def _best(ranking: Ranking, layer: str, number: int) -> tuple[int, ...]:
    try:
        return ranking.order(layer)[:number]
    except RankingError as error:
        raise PlanError(f"the units cannot be chosen by their scores: {error}") from error


def _check_ranked(ranking: Ranking, layer: str) -> None:
    if layer not in ranking:
        raise PlanError(f"layer {layer!r} is not in the ranking, which has {', '.join(ranking)}")


def _kept(layer: str, units: Iterable[object], width: int) -> tuple[int, ...]:
    """Check the units kept of one layer and sort them."""
    if isinstance(units, str | bytes | Mapping) or not isinstance(units, Iterable):
        raise PlanError(f"keep of layer {layer!r} is {units!r}: give the indices of its units")
    found: list[int] = []
    for unit in units:
        index = _whole(unit)
        if index is None or not 0 <= index < width:
            raise PlanError(
                f"layer {layer!r} has no unit {unit!r}: its {width} units are 0 to {width - 1}"
            )
        if index in found:
            raise PlanError(f"unit {index} of layer {layer!r} is given twice: give it once")
        found.append(index)
    if not found:
        raise PlanError(
            f"the plan removes all {width} units of layer {layer!r}, after which nothing would "
            "pass: keep at least one"
        )
    return tuple(sorted(found))


def _width(layer: str, width: object) -> int:
    number = _whole(width)
    if number is None or number < 1:
        raise PlanError(
            f"the width of layer {layer!r} is {width!r}: give the number of its units, 1 or more"
        )
    return number


def _whole(value: Any) -> int | None:
    """Return a whole number as an int, None for anything else, True and False among it."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return None


def _looked_up(entries: Mapping[str, T], layer: str) -> T:
    if layer not in entries:
        raise PlanError(f"nothing is known of layer {layer!r}: there are {', '.join(entries)}")
    return entries[layer]
