"""The plan as a value: which original units of each layer are kept. Made elsewhere."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from neurank.condense.given import whole
from neurank.errors import FileError, PlanError
from neurank.files import Json, as_json, read_tensors, write_tensors
from neurank.text import aligned, legible

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


def _kept(layer: str, units: Iterable[object], width: int) -> tuple[int, ...]:
    """Check the units kept of one layer and sort them."""
    if isinstance(units, str | bytes | Mapping) or not isinstance(units, Iterable):
        raise PlanError(f"keep of layer {layer!r} is {units!r}: give the indices of its units")
    found: list[int] = []
    for unit in units:
        index = whole(unit)
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
    number = whole(width)
    if number is None or number < 1:
        raise PlanError(
            f"the width of layer {layer!r} is {width!r}: give the number of its units, 1 or more"
        )
    return number


def _listed(units: Sequence[int]) -> str:
    return " ".join(map(str, units[:_SHOWN])) + (" …" if len(units) > _SHOWN else "")


def _looked_up(entries: Mapping[str, T], layer: str) -> T:
    if layer not in entries:
        raise PlanError(f"nothing is known of layer {layer!r}: there are {', '.join(entries)}")
    return entries[layer]
