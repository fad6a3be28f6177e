"""What a plan must keep to: the widths allowed, and what the network may cost at most."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from neurank.condense.given import real, whole
from neurank.errors import PlanError
from neurank.ranking import Ranking


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
                check_ranked(ranking, layer)
                if (whole(number) or 0) < 1:
                    raise PlanError(
                        f"{what} of layer {layer!r} is {number!r}: give a whole number, 1 or more"
                    )
        for layer in self.ignored:
            check_ranked(ranking, layer)

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
    """What a condensed network may cost at most; None is no bound.

    See `neurank.condense.plan.plan`.
    """

    max_params: int | None = None
    max_macs: int | None = None
    max_latency: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        for name, number in self.given.items():
            if not 0 <= real(number) < math.inf:
                raise PlanError(f"{name}={number!r} is no bound: give a number of 0 or more")

    @property
    def given(self) -> dict[str, float]:
        """The bounds that there are, by name."""
        named = {it.name: getattr(self, it.name) for it in fields(self)}
        return {name: number for name, number in named.items() if number is not None}


def check_ranked(ranking: Ranking, layer: str) -> None:
    """Refuse a name that is no layer of the ranking, with a PlanError."""
    if layer not in ranking:
        raise PlanError(f"layer {layer!r} is not in the ranking, which has {', '.join(ranking)}")


def _of_layer(numbers: int | Mapping[str, int], layer: str) -> int:
    return numbers.get(layer, 1) if isinstance(numbers, Mapping) else numbers
