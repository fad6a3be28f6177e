"""Making a plan by a ranking: so many units, a share of them, or what budgets allow."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

from torch import nn

from neurank.condense.budget import Settings, fitted
from neurank.condense.choosing import by_number, by_share, by_threshold
from neurank.condense.descent import Across
from neurank.condense.kept import Plan
from neurank.condense.limits import Budgets, Rules
from neurank.errors import PlanError
from neurank.observe.examples import Batch
from neurank.observe.removal import Removal
from neurank.ranking import Ranking

__all__ = ["Across", "Budgets", "Plan", "Rules", "plan"]


_GIVEN = ("none was", "one was", "two of them were", "three of them were", "all were")


def plan(
    ranking: Ranking,
    *,
    keep: Mapping[str, int | Sequence[int]] | None = None,
    ratio: float | Mapping[str, float] | None = None,
    above: float | Mapping[str, float] | None = None,
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

    Give `keep`, or `ratio`, or `above`, or budgets, of which all that are given hold for the plan.
    Under a budget the least important units go one after another, whatever their layer, until it
    holds; then units come back, the most important first, as long as it still does.

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
    above
        Units whose score is above this threshold are kept, and at least the best one of a layer: in
        every layer of the ranking, or layer name to threshold. ``above=0`` removes what the ranking
        says does nothing, or harm.
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
        Not one of `keep`, `ratio`, `above` and budgets is given; a layer is not in the ranking or
        its scores are undefined; a number is out of range; indices are outside the layer or given
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
    >>> plan(ranking, above=0.2).keep["conv1"]
    (1,)
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
    ways = (keep is not None, ratio is not None, above is not None, bool(budgets.given))
    if sum(ways) != 1:
        raise PlanError(
            "give one of keep= (how many units, or which), ratio= (the share removed), above= (the "
            "score from which on units stay) and budgets "
            f"({', '.join(f'{it.name}=' for it in fields(Budgets))}): "
            f"{_GIVEN[sum(ways)]} given"
        )
    if keep is not None:
        return _planned(by_number(ranking, keep, rules), ranking)
    if ratio is not None:
        return _planned(by_share(ranking, ratio, rules), ranking)
    if above is not None:
        return _planned(by_threshold(ranking, above, rules), ranking)
    if model is None or data is None:
        raise PlanError("a budget needs the network and batches for it: give model= and data=")
    return fitted(ranking, budgets, Settings(rules, across, removal, progress), model, data)


def _planned(chosen: Mapping[str, tuple[int, ...]], ranking: Ranking) -> Plan:
    widths = {layer: ranking[layer].units for layer in chosen}
    return Plan(chosen, widths, ranking.provenance)


def _names(ignored: Sequence[str]) -> tuple[str, ...]:
    if isinstance(ignored, str):
        raise PlanError(f"ignored={ignored!r} is one name: write ignored=[{ignored!r}]")
    return tuple(ignored)
