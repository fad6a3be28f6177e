"""Removing a few units, ranking those left again, and so on."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from neurank.condense.condensed import condense
from neurank.condense.kept import Plan
from neurank.condense.plan import plan
from neurank.errors import PlanError
from neurank.observe.examples import Batch
from neurank.observe.removal import Removal
from neurank.rankers.method import Method
from neurank.rankers.rank import rank
from neurank.ranking import Ranking


def plan_in_rounds(
    model: nn.Module,
    data: Iterable[Batch],
    method: Method,
    *,
    ratio: float | Mapping[str, float],
    rounds: int,
    layers: Sequence[str] | None = None,
    removal: Removal = "mean",
    min_width: int | Mapping[str, int] = 1,
    seed: int = 0,
    progress: bool = True,
) -> Plan:
    """Choose the units to keep round by round: rank, remove a few, rank those left again.

    Scores say what a unit is worth while all others are there. Units that do the same look
    worthless each, and all go at once; removed one after another, the last of them is seen to
    matter. After each round the network is condensed, a copy, so later rounds are cheaper.

    Parameters
    ----------
    model, data, method, layers, seed, progress
        As for `neurank.rank`.
    ratio
        The share of units that is removed in all, 0 to below 1: of every ranked layer, or layer
        name to share. The number is rounded down; rounds remove as equal numbers as can be.
    rounds
        How many; one is `rank` and `plan`.
    removal
        What removed units leave behind in the rounds that follow, see `neurank.condense`.
    min_width
        The least width of every layer: a number, or layer name to number.

    Returns
    -------
    Plan
        For the network that was given.

    Raises
    ------
    PlanError
        The number of rounds is none, or a layer's share is out of range.
    UnitError, DataError, ModelError, MethodError, CondenseError
        As for `neurank.rank` and `neurank.condense`.

    Examples
    --------
    >>> import neurank as nr
    >>> model, digits = nr.zoo.digits_net(seed=0), nr.data.load("digits").validation
    >>> chosen = plan_in_rounds(model, digits, nr.Taylor(), ratio=0.5, rounds=3, progress=False)
    >>> chosen.widths_after
    mappingproxy({'conv1': 4, 'conv2': 8, 'fc1': 16, 'fc2': 8})
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise PlanError(f"rounds={rounds!r}: give a whole number of 1 or more")
    whole: Plan | None = None
    goal: dict[str, int] = {}
    current = model
    for left in range(rounds, 0, -1):
        ranking = rank(
            current, data, method, layers=layers, removal=removal, seed=seed, progress=progress
        )
        if whole is None:
            once = plan(ranking, ratio=ratio, min_width=min_width)
            goal = dict(once.widths_after)
        chosen = plan(ranking, keep=_widths(ranking, goal, left))
        whole = chosen if whole is None else whole.then(chosen)
        if left > 1:
            current = condense(current, chosen, data, removal=removal, progress=progress).model
    assert whole is not None
    return whole


def _widths(ranking: Ranking, goal: Mapping[str, int], left: int) -> dict[str, int]:
    """Take an equal part of the way that is left to the goal, rounded up."""
    found = {}
    for layer, width in goal.items():
        if layer not in ranking:
            raise PlanError(
                f"layer {layer!r} has another name since some of its units are gone: it is tied to "
                "others. Name other layers with layers=, or plan in one round"
            )
        more = ranking[layer].units - width
        found[layer] = width + more - -(-more // left)
    return found
