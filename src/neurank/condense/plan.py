"""The plan: which original units of each layer are kept. Made first, carried out elsewhere."""

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from numbers import Real
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from torch import nn

from neurank.errors import FileError, PlanError, RankingError
from neurank.files import Json, as_json, read_tensors, write_tensors
from neurank.observe.examples import Batch
from neurank.observe.removal import Removal
from neurank.ranking import Ranking
from neurank.text import aligned, legible

Across = Literal["share", "score", "rank", "share per cost", "score per cost"]
"""How the scores of different layers are compared, see `plan`."""

_KIND = "plan"
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

    def then(self, later: "Plan") -> "Plan":
        """Return the plan that does at once what this one and a later one do in turn.

        Parameters
        ----------
        later
            A plan for the network that this one leaves: its indices count the units that are
            left, and its layers have the same names. (Layers that are tied to others may be named
            after another member once units are gone; `neurank.condense.search` translates them.)

        Raises
        ------
        PlanError
            A layer of `later` has not as many units as this plan leaves.

        Examples
        --------
        >>> first = Plan({"fc1": (0, 2, 3)}, {"fc1": 5})
        >>> first.then(Plan({"fc1": (1, 2), "fc2": (0,)}, {"fc1": 3, "fc2": 2}))
        Plan for 2 layers
        layer  units  kept  which
        fc1    5      2     2 3
        fc2    2      1     0
        """
        for layer, kept in self.keep.items():
            if later.widths.get(layer, len(kept)) != len(kept):
                raise PlanError(
                    f"the later plan is for {later.widths[layer]} units of layer {layer!r}, of "
                    f"which this one leaves {len(kept)}: make it for the network that is left"
                )
        keep = {layer: tuple(range(width)) for layer, width in later.widths.items()}
        keep.update(self.keep)
        for layer, chosen in later.keep.items():
            keep[layer] = tuple(keep[layer][position] for position in chosen)
        return Plan(keep, {**later.widths, **self.widths}, later.source)

    def compare(self, other: "Plan") -> "PlanComparison":
        """Say which units both plans keep, and which only one of them, layer by layer.

        A layer that only one of the plans names is whole in the other.

        Raises
        ------
        PlanError
            A layer has another width in the other plan.

        Examples
        --------
        >>> one = Plan({"fc1": (0, 2, 3)}, {"fc1": 5})
        >>> print(one.compare(Plan({"fc1": (2, 3, 4)}, {"fc1": 5})))
        layer  units  both  only first  only second  shared
        fc1    5      2 3   0           4            50 %
        """
        widths = {**self.widths, **other.widths}
        for layer, width in self.widths.items():
            if widths[layer] != width:
                raise PlanError(
                    f"layer {layer!r} has {width} units in one plan and {widths[layer]} in the "
                    "other: compare plans for one network"
                )
        kept = [
            {layer: it.keep.get(layer, tuple(range(width))) for layer, width in widths.items()}
            for it in (self, other)
        ]
        return PlanComparison(widths, kept[0], kept[1])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as one sealed file, as `neurank.files.write_tensors` does.

        Raises
        ------
        FileError
            The file cannot be written; one that was there is untouched.
        """
        write_tensors(path, {}, self.to_json(), kind=_KIND)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """Read a plan that `save` wrote; it equals the one that was saved, source and all.

        Raises
        ------
        FileError
            The file is missing, altered, foreign, or not of a plan.
        """
        _, metadata = read_tensors(path, kind=_KIND)
        try:
            return cls.from_json(metadata)
        except PlanError as error:
            raise FileError(
                f"{os.fspath(path)} is refused: its content is no plan ({error}); save it anew"
            ) from error

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
                _listed(kept),
            )
            for layer, kept in self.keep.items()
        ]
        count = f"{len(rows)} layer{'s' if len(rows) > 1 else ''}"
        lines = aligned([("layer", "units", "kept", "which"), *rows])
        return "\n".join([f"Plan for {count}", *lines])


@dataclass(frozen=True)
class PlanComparison:
    """Which units two plans keep; `print` shows it as a table.

    Attributes
    ----------
    widths : layer name to the number of units before, of every layer that either plan names.
    first, second : layer name to the original indices that each plan keeps.
    """

    widths: Mapping[str, int]
    first: Mapping[str, tuple[int, ...]]
    second: Mapping[str, tuple[int, ...]]

    def both(self, layer: str) -> tuple[int, ...]:
        """Return the units of a layer that both plans keep."""
        second = set(_looked_up(self.second, layer))
        return tuple(unit for unit in self.first[layer] if unit in second)

    def only_first(self, layer: str) -> tuple[int, ...]:
        """Return the units of a layer that the first plan alone keeps."""
        second = set(_looked_up(self.second, layer))
        return tuple(unit for unit in self.first[layer] if unit not in second)

    def only_second(self, layer: str) -> tuple[int, ...]:
        """Return the units of a layer that the second plan alone keeps."""
        first = set(_looked_up(self.first, layer))
        return tuple(unit for unit in self.second[layer] if unit not in first)

    def shared(self, layer: str) -> float:
        """Return what share of the units that either plan keeps is kept by both, 0 to 1."""
        both, either = self.both(layer), set(self.first[layer]) | set(self.second[layer])
        return len(both) / len(either)

    def __str__(self) -> str:
        """Return one line per layer."""
        rows = [
            (
                legible(layer),
                str(width),
                _listed(self.both(layer)),
                _listed(self.only_first(layer)),
                _listed(self.only_second(layer)),
                f"{100 * self.shared(layer):.0f} %",
            )
            for layer, width in self.widths.items()
        ]
        head = ("layer", "units", "both", "only first", "only second", "shared")
        return "\n".join(aligned([head, *rows]))


@dataclass(frozen=True)
class Rules:
    """Which widths a plan may give to a layer.

    Attributes
    ----------
    min_width : of every layer, or by layer; a narrower layer stays whole.
    multiple_of : widths are multiples of this number, or the whole width.
    ignored : layers that stay whole.
    """

    min_width: int | Mapping[str, int] = 1
    multiple_of: int | Mapping[str, int] = 1
    ignored: tuple[str, ...] = ()

    def check(self, ranking: Ranking) -> None:
        """Refuse numbers that are no widths and names that are no layers, with a PlanError."""
        for what in ("min_width", "multiple_of"):
            given = getattr(self, what)
            entries = given if isinstance(given, Mapping) else dict.fromkeys(ranking, given)
            for layer, number in entries.items():
                _check_ranked(ranking, layer)
                if (_whole(number) or 0) < 1:
                    raise PlanError(
                        f"{what} of layer {layer!r} is {number!r}: give a whole number, 1 or more"
                    )
        for layer in self.ignored:
            _check_ranked(ranking, layer)

    def layers(self, ranking: Ranking) -> tuple[str, ...]:
        """Return the layers that may lose units."""
        return tuple(layer for layer in ranking if layer not in self.ignored)

    def rounded(self, layer: str, number: int, width: int) -> int:
        """Return the least width that is allowed and not below `number`.

        Examples
        --------
        >>> rules = Rules(min_width=2, multiple_of={"fc1": 8})
        >>> rules.rounded("fc1", 9, 100), rules.rounded("fc1", 98, 100), rules.rounded("fc2", 1, 9)
        (16, 100, 2)
        """
        multiple = _of_layer(self.multiple_of, layer)
        least = max(number, _of_layer(self.min_width, layer))
        return min(-(-least // multiple) * multiple, width)

    def widths(self, layer: str, width: int) -> tuple[int, ...]:
        """Return every width that is allowed, from the whole one down.

        Examples
        --------
        >>> Rules(min_width=3, multiple_of=4).widths("fc1", 14)
        (14, 12, 8, 4)
        """
        least = self.rounded(layer, 1, width)
        multiple = _of_layer(self.multiple_of, layer)
        return (width, *(it for it in range(width - 1, least - 1, -1) if it % multiple == 0))


@dataclass(frozen=True)
class Budgets:
    """What a condensed network may cost at most; None is no bound. See `plan`."""

    max_params: int | None = None
    max_macs: int | None = None
    max_latency: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        for name, number in self.given.items():
            if not 0 <= _real(number) < math.inf:
                raise PlanError(f"{name}={number!r} is no bound: give a number of 0 or more")

    @property
    def given(self) -> dict[str, float]:
        """The bounds that there are, by name."""
        named = {it.name: getattr(self, it.name) for it in fields(self)}
        return {name: number for name, number in named.items() if number is not None}


def plan(
    ranking: Ranking,
    *,
    keep: Mapping[str, int | Sequence[int]] | None = None,
    ratio: float | Mapping[str, float] | None = None,
    max_params: int | None = None,
    max_macs: int | None = None,
    max_latency: float | None = None,
    max_drop: float | None = None,
    model: nn.Module | None = None,
    data: Iterable[Batch] | None = None,
    removal: Removal = "zero",
    across: Across = "share",
    min_width: int | Mapping[str, int] = 1,
    multiple_of: int | Mapping[str, int] = 1,
    ignored: Sequence[str] = (),
    progress: bool = True,
) -> Plan:
    """Choose the units to keep by a ranking.

    Give `keep`, or `ratio`, or budgets, of which all that are given hold for the plan. Under a
    budget the least important units go one after another, whatever their layer, until it holds;
    then units come back, the most important first, as long as it still does.

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
    max_params, max_macs
        The most parameters, and multiply-adds per example, that the condensed network may have:
        what `Condensed.report` will say, tensors aside that condensing makes.
    max_latency
        The most seconds that it may take for the first batch of `data`, on the device where
        `model` is: networks on the way are condensed and timed.
    max_drop
        The largest fall of accuracy on `data` that is allowed, as a share: 0.01 is one point. The
        network is made as small as is found within it, by bisection of the order in which units
        go, and then layer by layer. What the accuracy was goes into ``source["budget"]``.
    model, data
        The network, and batches ``(inputs, targets)``; needed for budgets. Parameters and
        multiply-adds follow from the shape of the first batch.
    removal
        What `max_drop` and `max_latency` take "off" to mean, see `condense`.
    across
        How scores of different layers are compared: ``"share"``, as shares of the absolute scores
        of those units of the layer that are still there, so that the fewer are left the more each
        counts, in whatever unit the scores are; ``"score"``, as they are; ``"rank"``, by how many
        units of the layer are no better, which takes the same share of every layer;
        ``"share per cost"`` and ``"score per cost"``, divided by what the removal saves of the
        budgets that do not hold yet (of the parameters, where `max_drop` alone is given; of the
        multiply-adds for `max_latency`).
    min_width, multiple_of
        The least width of every layer, and what widths are multiples of: a number, or layer name
        to number. Widths are rounded up, at most to the whole width. Indices given in `keep` must
        fit.
    ignored
        Layers of the ranking that stay whole.
    progress
        Show a bar on a terminal.

    Raises
    ------
    PlanError
        Not one of `keep`, `ratio` and budgets is given; a layer is not in the ranking or its
        scores are undefined; a number is out of range; indices are outside the layer or given
        twice; the ranking is of another network; or the budgets cannot be met, with what can.
    DataError, ModelError
        Data or model cannot be used.

    Examples
    --------
    >>> ranking = Ranking.from_scores({"conv1": [0.1, 0.5, 0.2, 0.2], "fc1": [0.3, 0.3]})
    >>> plan(ranking, keep={"conv1": 2}).keep["conv1"]
    (1, 2)
    >>> plan(ranking, ratio=0.5).widths_after
    mappingproxy({'conv1': 2, 'fc1': 1})
    >>> import neurank as nr
    >>> model, digits = nr.zoo.digits_net(seed=0), nr.data.load("digits").validation
    >>> norms = nr.rank(model, digits, nr.WeightNorm(1))
    >>> small = plan(norms, max_params=2000, model=model, data=digits)
    >>> before, after = small.source["budget"]["parameters"]
    >>> before, after <= 2000
    (4026, True)
    """
    rules = Rules(min_width, multiple_of, _names(ignored))
    rules.check(ranking)
    budgets = Budgets(max_params, max_macs, max_latency, max_drop)
    ways = (keep is not None, ratio is not None, bool(budgets.given))
    if sum(ways) != 1:
        raise PlanError(
            "give one of keep= (how many units, or which), ratio= (the share removed) and budgets "
            f"({', '.join(f'{it.name}=' for it in fields(Budgets))}): "
            f"{('neither was', '', 'both were', 'all were')[sum(ways)]} given"
        )
    if keep is not None:
        return _planned(_by_number(ranking, keep, rules), ranking)
    if ratio is not None:
        return _planned(_by_share(ranking, ratio, rules), ranking)
    if model is None or data is None:
        raise PlanError("a budget needs the network and batches for it: give model= and data=")
    # Imported here, since condensing, by which budgets are measured, needs to know what a Plan is.
    from neurank.condense.budget import Settings, fitted  # noqa: PLC0415

    return fitted(ranking, budgets, Settings(rules, across, removal, progress), model, data)


def _planned(chosen: Mapping[str, tuple[int, ...]], ranking: Ranking) -> Plan:
    widths = {layer: ranking[layer].units for layer in chosen}
    return Plan(chosen, widths, ranking.provenance)


def _by_share(
    ranking: Ranking, ratio: float | Mapping[str, float], rules: Rules
) -> dict[str, tuple[int, ...]]:
    shares = (
        _without_ignored(ratio, "ratio", rules)
        if isinstance(ratio, Mapping)
        else dict.fromkeys(rules.layers(ranking), ratio)
    )
    return _each(
        shares,
        lambda layer, share: best_units(
            ranking,
            layer,
            rules.rounded(layer, _number_kept(ranking, layer, share), ranking[layer].units),
        ),
    )


def _by_number(
    ranking: Ranking, keep: Mapping[str, int | Sequence[int]], rules: Rules
) -> dict[str, tuple[int, ...]]:
    if not isinstance(keep, Mapping):
        raise PlanError(
            f'keep={keep!r} names no layers: give layer name to number, {{"conv1": 5}}, or '
            "to indices"
        )
    return _each(
        _without_ignored(keep, "keep", rules),
        lambda layer, wanted: _chosen(ranking, layer, wanted, rules),
    )


def _without_ignored(wanted: Mapping[str, T], what: str, rules: Rules) -> Mapping[str, T]:
    for layer in wanted:
        if layer in rules.ignored:
            raise PlanError(
                f"layer {layer!r} is in {what} and in ignored, the layers that stay whole: name it "
                "in one of them"
            )
    return wanted


def _each(
    wanted: Mapping[str, T], choose: Callable[[str, T], tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    return {layer: choose(layer, what) for layer, what in wanted.items()}


def _chosen(
    ranking: Ranking, layer: str, wanted: int | Sequence[int], rules: Rules
) -> tuple[int, ...]:
    _check_ranked(ranking, layer)
    units = ranking[layer].units
    if isinstance(wanted, str | bytes | Mapping):
        raise PlanError(
            f"keep of layer {layer!r} is {wanted!r}: give a number of units, or their indices"
        )
    if isinstance(wanted, Iterable) and getattr(wanted, "ndim", 1) != 0:
        indices = tuple(wanted)
        if indices and rules.rounded(layer, len(indices), units) != min(len(indices), units):
            raise PlanError(
                f"{len(indices)} indices are given for layer {layer!r}, which min_width and "
                f"multiple_of do not allow: give {rules.rounded(layer, len(indices), units)}"
            )
        return indices
    number = _whole(wanted)
    if number is None or not 1 <= number <= units:
        raise PlanError(
            f"{wanted!r} units of layer {layer!r} cannot be kept: it has {units}. Give a whole "
            f"number from 1 to {units}, or a list of indices"
        )
    return best_units(ranking, layer, rules.rounded(layer, number, units))


def _number_kept(ranking: Ranking, layer: str, share: object) -> int:
    _check_ranked(ranking, layer)
    number = _real(share)
    if not 0 <= number < 1:
        raise PlanError(
            f"ratio of layer {layer!r} is {share!r}: it is the share of units removed, a number "
            "from 0 to below 1"
        )
    units = ranking[layer].units
    # The decimal that was written, not its binary neighbour: 0.29 of 100 units is 29, not 28.
    return max(1, units - math.floor(Fraction(str(number)) * units))


def best_units(ranking: Ranking, layer: str, number: int | None = None) -> tuple[int, ...]:
    """Return the best units of a layer, best first; all of them if no number is given.

    Raises
    ------
    PlanError
        The scores are undefined.
    """
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


def _real(value: object) -> float:
    """Return a number as a float, NaN for anything else, True and False among it."""
    return math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)


def _whole(value: Any) -> int | None:
    """Return a whole number as an int, None for anything else, True and False among it."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return None


def _of_layer(numbers: int | Mapping[str, int], layer: str) -> int:
    return numbers.get(layer, 1) if isinstance(numbers, Mapping) else numbers


def _names(ignored: Sequence[str]) -> tuple[str, ...]:
    if isinstance(ignored, str):
        raise PlanError(f"ignored={ignored!r} is one name: write ignored=[{ignored!r}]")
    return tuple(ignored)


def _listed(units: Sequence[int]) -> str:
    return " ".join(map(str, units[:_SHOWN])) + (" …" if len(units) > _SHOWN else "")


def _looked_up(entries: Mapping[str, T], layer: str) -> T:
    if layer not in entries:
        raise PlanError(f"nothing is known of layer {layer!r}: there are {', '.join(entries)}")
    return entries[layer]
