"""When how much goes: shares on a schedule of epochs, and what they come to in units."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

from neurank.errors import MethodError

CountedFrom = Literal["original", "current"]
"""What a share is a share of: the units that the network began with, or those that it has now."""

Share: TypeAlias = float | Mapping[str, float]
"""The share that is gone, of every layer or layer name to share."""


@dataclass(frozen=True)
class Schedule:
    """After which epochs which share goes.

    Parameters
    ----------
    shares
        Epoch, by the caller's own count, to the share that is gone after it, 0 to below 1: one
        number for all layers, or layer name to number.
    counted_from
        ``"original"``: the share of what was there at the beginning, so that shares grow from epoch
        to epoch; ``"current"``: of what is there when the epoch ends.

    Raises
    ------
    MethodError
        There is no epoch, an epoch is no whole number of 0 or more, a share is out of range, or
        shares of the original fall.

    Examples
    --------
    >>> thesis = Schedule({2: 0.1, 3: 0.2, 4: 0.4, 5: 0.6})
    >>> thesis.width("fc1", 5, original=64, current=39)
    26
    >>> thesis.last
    5
    """

    shares: Mapping[int, Share]
    counted_from: CountedFrom = "original"

    def __post_init__(self) -> None:
        if self.counted_from not in get_args(CountedFrom):
            raise MethodError(
                f"counted_from={self.counted_from!r} is unknown: give one of "
                f"{', '.join(map(repr, get_args(CountedFrom)))}"
            )
        if not isinstance(self.shares, Mapping) or not self.shares:
            raise MethodError(
                f"the schedule {self.shares!r} names no epoch: give epoch to share, such as "
                "{2: 0.1, 3: 0.2}"
            )
        for epoch, share in self.shares.items():
            _check_epoch(epoch)
            for name, number in _numbers(share):
                _check_share(number, f"epoch {epoch}" + (f", layer {name!r}" if name else ""))
        in_order = {
            epoch: MappingProxyType(dict(share)) if isinstance(share, Mapping) else share
            for epoch, share in sorted(self.shares.items())
        }
        object.__setattr__(self, "shares", MappingProxyType(in_order))
        if self.counted_from == "original":
            _check_growth(self.shares)

    @property
    def last(self) -> int:
        """The last epoch after which something goes."""
        return max(self.shares)

    def share(self, epoch: int, layer: str) -> float:
        """Return the share of a layer that an epoch asks for; 0 where it does not name it."""
        share = self.shares[epoch]
        return share.get(layer, 0.0) if isinstance(share, Mapping) else share

    def width(self, layer: str, epoch: int, *, original: int, current: int) -> int:
        """Return how many units a layer has after an epoch of the schedule.

        The number that is gone is rounded down, by the decimal that was written, not by its binary
        neighbour; at least one unit stays, and none comes back.

        Parameters
        ----------
        layer
            Its name.
        epoch
            One of the schedule's.
        original, current
            How many units the layer had at the beginning, and has now.
        """
        share = Fraction(str(self.share(epoch, layer)))
        whole = original if self.counted_from == "original" else current
        return max(1, min(current, whole - math.floor(share * whole)))

    def layers(self) -> tuple[str, ...] | None:
        """Return the layers that the schedule names, None if it means all."""
        if any(not isinstance(share, Mapping) for share in self.shares.values()):
            return None
        named = (name for share in self.shares.values() for name, _ in _numbers(share))
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def to_json(self) -> list[list[object]]:
        """Return the shares as pairs, for files."""
        return [
            [epoch, dict(share) if isinstance(share, Mapping) else share]
            for epoch, share in self.shares.items()
        ]


def check_later(epoch: int, last: int | None) -> None:
    """Refuse an epoch that does not come after the last one.

    Raises
    ------
    MethodError
        It is the same, or an earlier one.
    """
    if last is not None and epoch <= last:
        raise MethodError(f"epoch {epoch} comes after epoch {last}: give each epoch once, in order")


def widths_between(before: int, after: int, rounds: int) -> tuple[int, ...]:
    """Go from one width to a smaller one in so many rounds, as evenly as whole numbers allow.

    Examples
    --------
    >>> widths_between(10, 3, 3)
    (8, 6, 3)
    """
    gone = before - after
    return tuple(before - gone * done // rounds for done in range(1, rounds + 1))


def _numbers(share: Share) -> Iterator[tuple[str | None, object]]:
    if isinstance(share, Mapping):
        yield from share.items()
    else:
        yield None, share


def _check_epoch(epoch: object) -> None:
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
        raise MethodError(
            f"the schedule has the epoch {epoch!r}: give whole numbers of 0 or more, by the count "
            "that the training loop uses"
        )


def _check_share(share: object, where: str) -> None:
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    if not is_number or not 0 <= share < 1:  # type: ignore[operator]  # a number by now
        raise MethodError(
            f"the schedule's share of {where} is {share!r}: it is the share that is gone, a number "
            "from 0 to below 1"
        )


def _check_growth(shares: Mapping[int, Share]) -> None:
    before: dict[str | None, tuple[int, float]] = {}
    for epoch, share in shares.items():
        for name, number in _numbers(share):
            assert isinstance(number, int | float)
            earlier, most = before.get(name, (epoch, 0.0))
            if number < most:
                layer = f" of layer {name!r}" if name else ""
                raise MethodError(
                    f"the share{layer} falls from {most} after epoch {earlier} to {number} after "
                    f"epoch {epoch}, and what is gone does not come back: let shares of the "
                    "original grow, or count them from what is there, counted_from='current'"
                )
            before[name] = (epoch, float(number))
