"""Refusing what would cost too much, before the time has been spent."""

import math

from neurank.errors import MethodError
from neurank.observe.game import Game
from neurank.observe.observer import Observer


def check_cost(
    what: str,
    observer: Observer,
    game: Game,
    *,
    coalitions: int,
    seen: int,
    max_operations: float,
    remedy: str,
) -> None:
    """Refuse at the first batch that shows what the whole would cost.

    Parameters
    ----------
    what : what would cost it, at the beginning of a sentence.
    observer, game : the data, and the game of the present batch.
    coalitions, seen : coalitions needed by the examples so far, the present batch included.
    max_operations : how many additions and multiply-adds are allowed.
    remedy : what to do instead.

    Raises
    ------
    MethodError
        If at this rate the whole would cost more than `max_operations`.
    """
    expected = coalitions * observer.examples.count // max(seen, 1)
    operations = expected * game.operations_per_coalition
    if operations > max_operations:
        raise MethodError(
            f"{what} of layer {game.layer!r} would take about {scientific(expected)} coalitions, "
            f"{scientific(operations)} operations, more than "
            f"max_operations={max_operations:.0e}: up to {int(game.active.sum(dim=1).max())} of "
            f"{game.units} units are active on one example. {remedy}, or use fewer examples, or "
            "raise max_operations"
        )


def scientific(number: int) -> str:
    """Write a whole number like 1.3e+08, however large: 2^2000 is beyond a float.

    Examples
    --------
    >>> scientific(130_000_000), scientific(2**2000)
    ('1.3e+08', '1e+602')
    """
    return f"{number:.1e}" if number < 1e300 else f"1e+{math.floor(math.log10(number))}"
