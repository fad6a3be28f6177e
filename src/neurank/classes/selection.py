"""Which units a class keeps: semantic pruning, layer by layer (LWP) or network-wide (NWP).

A `Selection` may leave a layer without units, which a plan may not: it is for masked networks.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor

from neurank.condense.given import real, whole
from neurank.condense.kept import Plan
from neurank.errors import MethodError, PlanError
from neurank.files import Json
from neurank.ranking import Ranking
from neurank.units.space import UnitSpace

Scope = Literal["layer", "network"]
Named = Literal["zero", "median"]
_SCOPES: Mapping[Scope, str] = {"layer": "LWP", "network": "NWP"}
_LETTERS: Mapping[str, str] = {"zero": "0", "median": "M"}
_PERCENT = re.compile(r"[0-9]{1,3}(\.[0-9]+)?")
_WHOLE = "whole"


@dataclass(frozen=True)
class Setting:
    """How many units go, and what they compete with.

    Parameters
    ----------
    scope : ``"layer"`` takes the share of every layer (layer-wise pruning, LWP), ``"network"`` of
        all units together, whatever their layers (network-wise pruning, NWP).
    theta : the pruning ratio, the share of units with the lowest responses that goes, 0 to 1,
        rounded down to whole units; ``"zero"``: all with a response of 0 or below; ``"median"``:
        all below the median of the responses, of the layer or of the network. Section 3.1.1.

    Raises
    ------
    MethodError
        There is no such scope, or `theta` is no share.

    Examples
    --------
    >>> print(Setting("layer", 0.33), Setting("network", "median"), Setting.named("NWP-0"))
    LWP-33 NWP-M NWP-0
    """

    scope: Scope = "layer"
    theta: float | Named = 0.33

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise MethodError(
                f"scope={self.scope!r} is unknown: it is 'layer' (LWP) or 'network' (NWP)"
            )
        if isinstance(self.theta, str):
            if self.theta not in get_args(Named):
                raise MethodError(f"theta={self.theta!r} is unknown: a share, 'zero' or 'median'")
        elif not 0 <= real(self.theta) <= 1:  # NaN is not
            raise MethodError(f"theta={self.theta!r} is no share of units: give 0 to 1")

    @classmethod
    def named(cls, name: str) -> "Setting":
        """Read the paper's name of a setting, such as ``LWP-33`` or ``NWP-M``.

        Raises
        ------
        MethodError
            It is none.
        """
        short, _, rest = name.partition("-")
        for scope, letters in _SCOPES.items():
            if letters == short and rest == "M":
                return cls(scope, "median")
            if letters == short and rest == "0":
                return cls(scope, "zero")
            if letters == short and _PERCENT.fullmatch(rest) and 0 < Decimal(rest) <= 100:
                return cls(scope, float(Decimal(rest) / 100))
        if name == _WHOLE:
            return cls(theta=0.0)
        raise MethodError(f"{name!r} is no setting: give one such as LWP-33, NWP-M or NWP-0")

    def __str__(self) -> str:
        """Return the paper's name; ``whole`` for a ratio of 0, since LWP-0 is another setting."""
        if self.theta == 0:
            return _WHOLE
        return f"{_SCOPES[self.scope]}-{_LETTERS.get(str(self.theta)) or self._percent()}"

    def _percent(self) -> str:
        return f"{(_decimal(self.theta) * 100).normalize():f}"


DISCRETE = tuple(
    Setting(scope, theta) for scope in get_args(Scope) for theta in ("zero", 0.33, 0.66, "median")
)
"""The paper's discrete settings, both ways."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The units that a class keeps.

    Attributes
    ----------
    label : the class.
    setting : how they were chosen.
    kept : layer name to (units,) bool, True = kept; in network order.
    """

    label: int
    setting: Setting
    kept: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", MappingProxyType(dict(self.kept)))

    @property
    def removed(self) -> dict[str, tuple[int, ...]]:
        """Layer name to the indices of the units that go."""
        return {name: tuple(torch.nonzero(~on)[:, 0].tolist()) for name, on in self.kept.items()}

    @property
    def share_removed(self) -> float:
        """The share of all units that goes."""
        units = sum(len(on) for on in self.kept.values())
        return sum(int((~on).sum()) for on in self.kept.values()) / units

    @property
    def emptied(self) -> tuple[str, ...]:
        """The layers of which nothing is kept."""
        return tuple(name for name, on in self.kept.items() if not bool(on.any()))

    def plan(self) -> Plan:
        """Return the plan that keeps the same units.

        Raises
        ------
        PlanError
            A layer is left without units, which no network can be.
        """
        if self.emptied:
            raise PlanError(
                f"{self.setting} for class {self.label} leaves no unit of layer "
                f"{self.emptied[0]!r}: prune less, or layer by layer (scope='layer', theta below 1)"
            )
        keep = {name: torch.nonzero(on)[:, 0].tolist() for name, on in self.kept.items()}
        source: dict[str, Json] = {"class": self.label, "setting": str(self.setting)}
        return Plan.from_keep(
            keep, {name: len(on) for name, on in self.kept.items()}, source=source
        )


def select(ranking: Ranking, label: int, setting: Setting | str) -> Selection:
    """Choose the units that a class keeps.

    Parameters
    ----------
    ranking
        Scores by class, of `ClassResponse` in the paper. Its layers are those that are pruned.
    label
        The class.
    setting
        A `Setting`, or its name in the paper, such as ``"LWP-33"``.

    Returns
    -------
    Selection
        Of units with equal responses those of later layers, and of higher index, go first.

    Raises
    ------
    RankingError
        A layer was not scored by class, there is no such class, or it has no examples.
    MethodError
        There is no such setting.

    Examples
    --------
    >>> import neurank as nr
    >>> scores = {"conv1": [[5.0, 1.0, -1.0]], "fc1": [[0.5, 2.0, 0.1]]}
    >>> ranking = nr.Ranking(
    ...     {
    ...         name: nr.LayerRanking(
    ...             rows[0], stderr=[0] * 3, counts=[9] * 3, status="computed", by_class=rows
    ...         )
    ...         for name, rows in scores.items()
    ...     },
    ...     {},
    ... )
    >>> select(ranking, 0, "LWP-34").removed
    {'conv1': (2,), 'fc1': (2,)}
    >>> select(ranking, 0, "NWP-50").removed
    {'conv1': (2,), 'fc1': (0, 2)}
    """
    (found,) = selections(ranking, (label,), (setting,))
    return found


def selections(
    ranking: Ranking, labels: Iterable[int], settings: Iterable[Setting | str]
) -> tuple[Selection, ...]:
    """Choose for every class and setting, class after class; see `select`."""
    wanted = tuple(Setting.named(it) if isinstance(it, str) else it for it in settings)
    return tuple(
        Selection(label, setting, kept)
        for label in labels
        for setting, kept in zip(wanted, kept_units(ranking.of_class(label), wanted), strict=True)
    )


def kept_units(ranking: Ranking, settings: Iterable[Setting]) -> Iterator[dict[str, Tensor]]:
    """Yield for each setting which units of each layer are kept by a ranking's scores."""
    for name in ranking:
        ranking.order(name)  # refuses what is undefined
    scores = {name: layer.scores for name, layer in ranking.layers.items()}
    places = _places(scores)
    for setting in settings:
        yield {name: ~gone for name, gone in _gone(scores, places, setting).items()}


def _places(scores: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Say of each unit how many of its layer, and of the network, go before it."""
    joined = torch.cat(list(scores.values()))
    sizes = [len(it) for it in scores.values()]
    whole = dict(zip(scores, _turns(joined).split(sizes), strict=True))  # type: ignore[no-untyped-call]
    return {name: _turns(it) for name, it in scores.items()}, whole


def _turns(scores: Tensor) -> Tensor:
    order = torch.argsort(scores, descending=True, stable=True).flip(0)
    turns = torch.empty_like(order)
    turns[order] = torch.arange(len(order))
    return turns


def _gone(
    scores: Mapping[str, Tensor],
    places: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    setting: Setting,
) -> dict[str, Tensor]:
    """Say of each unit whether it goes."""
    own, whole = places
    everything = torch.cat(list(scores.values()))
    found = {}
    for name, it in scores.items():
        rivals = it if setting.scope == "layer" else everything
        if setting.theta == "zero":
            found[name] = it <= 0
        elif setting.theta == "median":
            found[name] = it < rivals.quantile(0.5)
        else:
            turns = own[name] if setting.scope == "layer" else whole[name]
            found[name] = turns < math.floor(_decimal(setting.theta) * len(rivals))
    return found


def _decimal(theta: float | Named) -> Decimal:
    """Return the decimal that was written, not its binary neighbour: 0.29 of 100 units is 29."""
    return Decimal(str(float(theta)))


def refuse_other_network(chosen: Iterable[Selection], space: UnitSpace) -> None:
    """Raise a PlanError (UnitError for a layer that is not there) if a network has other units."""
    for selection in chosen:
        for name, on in selection.kept.items():
            layer = space[name]
            if layer.name != name or layer.is_output or layer.width != len(on):
                what = "the network's outputs" if layer.is_output else f"{layer.width} units"
                raise PlanError(
                    f"the selection is for {len(on)} units of layer {name!r}, which in this "
                    f"network is {layer.name!r} with {what}: rank this network's hidden layers"
                )


def thetas(steps: int = 25, largest: float = 0.6) -> Sequence[float]:
    """Return pruning ratios from 0 to the largest, evenly spaced; the paper's goes to 0.6.

    Raises
    ------
    MethodError
        There are not two steps at least, or the largest is no share above 0.

    Example
    -------
    >>> thetas(4)
    (0.0, 0.2, 0.4, 0.6)
    """
    if (whole(steps) or 0) < 2:
        raise MethodError(f"steps={steps!r}: give a whole number of ratios, at least 2")
    if not 0 < real(largest) <= 1:
        raise MethodError(f"largest={largest!r} is no pruning ratio: give one above 0, up to 1")
    return tuple(round(largest * step / (steps - 1), 6) for step in range(steps))
