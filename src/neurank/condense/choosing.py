"""The units to keep of each layer, by their scores: so many, such a share, or those named."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

from neurank.condense.given import real, whole
from neurank.condense.limits import Rules, check_ranked
from neurank.errors import PlanError, RankingError
from neurank.ranking import Ranking

T = TypeVar("T")


def by_share(
    ranking: Ranking, ratio: float | Mapping[str, float], rules: Rules
) -> dict[str, tuple[int, ...]]:
    """Return the units that stay, by layer, after a share of every layer, or of some, is removed.

    Raises
    ------
    PlanError
        A share is out of range, a layer is unknown or ignored, or its scores are undefined.
    """
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


def by_threshold(
    ranking: Ranking, above: float | Mapping[str, float], rules: Rules
) -> dict[str, tuple[int, ...]]:
    """Return the units that stay, by layer: those whose score is above a threshold.

    Raises
    ------
    PlanError
        A threshold is no number, a layer is unknown or ignored, or its scores are undefined.
    """
    thresholds = (
        _without_ignored(above, "above", rules)
        if isinstance(above, Mapping)
        else dict.fromkeys(rules.layers(ranking), above)
    )
    return _each(
        thresholds,
        lambda layer, threshold: best_units(
            ranking,
            layer,
            rules.rounded(layer, _number_above(ranking, layer, threshold), ranking[layer].units),
        ),
    )


def _number_above(ranking: Ranking, layer: str, threshold: object) -> int:
    """Count the units above a threshold; one stays where there is none."""
    check_ranked(ranking, layer)
    least = real(threshold)
    if math.isnan(least):
        raise PlanError(f"the threshold of layer {layer!r} is {threshold!r}: give a number")
    return max(1, int((ranking[layer].scores > least).sum()))


def by_number(
    ranking: Ranking, keep: Mapping[str, int | Sequence[int]], rules: Rules
) -> dict[str, tuple[int, ...]]:
    """Return the units that stay, by layer: so many of the best, or the indices that are given.

    Raises
    ------
    PlanError
        A number is out of range or not allowed, a layer is unknown or ignored, or its scores are
        undefined.
    """
    if not isinstance(keep, Mapping):
        raise PlanError(
            f'keep={keep!r} names no layers: give layer name to number, {{"conv1": 5}}, or '
            "to indices"
        )
    return _each(
        _without_ignored(keep, "keep", rules),
        lambda layer, wanted: _chosen(ranking, layer, wanted, rules),
    )


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
    check_ranked(ranking, layer)
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
    number = whole(wanted)
    if number is None or not 1 <= number <= units:
        raise PlanError(
            f"{wanted!r} units of layer {layer!r} cannot be kept: it has {units}. Give a whole "
            f"number from 1 to {units}, or a list of indices"
        )
    return best_units(ranking, layer, rules.rounded(layer, number, units))


def _number_kept(ranking: Ranking, layer: str, share: object) -> int:
    check_ranked(ranking, layer)
    number = real(share)
    if not 0 <= number < 1:
        raise PlanError(
            f"ratio of layer {layer!r} is {share!r}: it is the share of units removed, a number "
            "from 0 to below 1"
        )
    units = ranking[layer].units
    # The decimal that was written, not its binary neighbour: 0.29 of 100 units is 29, not 28.
    return max(1, units - math.floor(Fraction(str(number)) * units))
