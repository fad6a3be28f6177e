"""Where classes get in each other's way: shared units, correlations, neighbours, projections.

Section 3.2 of "Semantic pruning for single class interpretability" (2020): of each class the units
that its network keeps, and those that are pruned; how far two classes agree in them; and whether
that agreement moves where the accuracy does. Nothing here runs a model.

A set of kept units is a mapping from layer name to a bool per unit, True where it is kept; a
sequence of them has one for each class, and all have the same layers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from neurank.errors import DataError, MethodError, RankingError, UnitError
from neurank.ranking import Ranking, refuse_other_model

Kept = Mapping[str, Tensor]
"""Layer name to which of its units are kept, bool, (units,)."""

_EXACT_IN_FLOAT32 = 1 << 24


@dataclass(frozen=True, eq=False)
class Overlap:
    """How many units any two classes share, among the kept and among the pruned.

    Every field has the shape (classes, classes), or (thetas, classes, classes) from `overlaps`.

    Parameters
    ----------
    kept_counts, pruned_counts
        Units that both classes keep, and that both have pruned: the paper's ρ, int64. On the
        diagonal is the size of a class's own set.
    kept_jaccard, pruned_jaccard
        The same over the units that either keeps (has pruned), float64; NaN where neither does.
    kept_chance, pruned_chance
        How many units two sets of the same sizes in each layer share on average if they are drawn
        at random, ``Σ n₁ n₂ / units`` over the layers, float64. Two classes that prune half of the
        units share a quarter of them without having anything in common.
    """

    kept_counts: Tensor
    pruned_counts: Tensor
    kept_jaccard: Tensor
    pruned_jaccard: Tensor
    kept_chance: Tensor
    pruned_chance: Tensor


@dataclass(frozen=True)
class Jump:
    """A step along the pruning ratio at which a class's accuracy moves most, one way.

    Parameters
    ----------
    start, end
        The pruning ratios before and after it.
    change
        By how much the accuracy changes.
    rising, falling
        The classes whose correlation with this one rises (falls) most there, with the change, the
        largest first.
    """

    start: float
    end: float
    change: float
    rising: tuple[tuple[int, float], ...]
    falling: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Neighbours:
    """Which classes move towards and away from one class where its accuracy jumps; Figure 6.

    Parameters
    ----------
    label
        The class.
    up, down
        Where its accuracy rises and falls most; None where it never does.
    """

    label: int
    up: Jump | None
    down: Jump | None


@dataclass(frozen=True)
class Association:
    """Whether accuracy rises where the pruned sets move towards those of related classes.

    Parameters
    ----------
    spearman
        Spearman's correlation of the two changes over classes and steps; NaN where one of them
        never differs.
    by_chance
        The mean of it when the accuracies of the classes are dealt out anew: what all classes have
        in common along the pruning ratio gives so much by itself.
    p_value
        The share of those dealings (and the real one) that reach `spearman`: small if a class's own
        accuracy goes up with its own correlation. One-sided, as the paper's claim is.
    pairs
        How many classes and steps were compared.
    """

    spearman: float
    by_chance: float
    p_value: float
    pairs: int


@dataclass(frozen=True, eq=False)
class Projection:
    """Classes in few dimensions: their principal components.

    Parameters
    ----------
    coordinates
        One row per class, shape (classes, components), float64; NaN for a class without responses.
    explained
        The share of the variance along each component, shape (components,); NaN where all classes
        are in one place.
    """

    coordinates: Tensor
    explained: Tensor


def overlap(kept: Sequence[Kept], layers: Sequence[str] | None = None) -> Overlap:
    """Count the units that any two classes keep in common, and those both have pruned.

    Parameters
    ----------
    kept
        For each class which units are kept.
    layers
        Which layers to count in; all if not given.

    Raises
    ------
    UnitError
        There is no class, a layer is not there, or the classes do not have the same units.

    Examples
    --------
    >>> sets = [{"conv1": torch.tensor(row) == 1} for row in ([1, 1, 0, 0], [0, 1, 1, 0])]
    >>> found = overlap(sets)
    >>> found.kept_counts.tolist(), found.pruned_counts.tolist()
    ([[2, 1], [1, 2]], [[2, 1], [1, 2]])
    >>> round(found.kept_jaccard[0, 1].item(), 3), found.kept_chance[0, 1].item()
    (0.333, 1.0)
    """
    stacked = _stacked(kept, layers)
    units = torch.cat(stacked, dim=1)  # (classes, units)
    kept_counts, pruned_counts = _shared(units), _shared(~units)
    return Overlap(
        kept_counts,
        pruned_counts,
        _jaccard(kept_counts),
        _jaccard(pruned_counts),
        _chance(stacked),
        _chance([~part for part in stacked]),
    )


def overlaps(
    kept_by_theta: Sequence[Sequence[Kept]], layers: Sequence[str] | None = None
) -> Overlap:
    """Return `overlap` at each pruning ratio, stacked: (thetas, classes, classes).

    Raises
    ------
    UnitError
        What `overlap` raises; or there is no ratio, or not as many classes at each.
    """
    found = [overlap(kept, layers) for kept in _ratios(kept_by_theta)]
    return Overlap(
        *(
            torch.stack([getattr(one, name) for one in found])
            for name in Overlap.__dataclass_fields__
        )
    )


def pruned_correlation(kept: Sequence[Kept], layers: Sequence[str] | None = None) -> Tensor:
    """Return Pearson's correlation of what any two classes prune: the phi coefficient.

    Over all units, of "pruned for the one" and "pruned for the other" as 0 and 1. What is kept is
    the contrary of what is pruned, so the correlation of the kept sets is the same number; where
    the paper's Figure 6 has two different ones, they are sizes of intersections, see `overlap`.

    Returns
    -------
    Tensor
        (classes, classes), float64; NaN where a class prunes no unit or all of them.

    Raises
    ------
    UnitError
        What `overlap` raises.

    Examples
    --------
    >>> sets = [{"conv1": torch.tensor(row) == 1} for row in ([1, 1, 0, 0], [0, 0, 1, 1])]
    >>> pruned_correlation(sets).tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    pruned = ~torch.cat(_stacked(kept, layers), dim=1)
    units = pruned.shape[1]
    both, sizes = _shared(pruned), pruned.sum(dim=1)
    spread = (sizes * (units - sizes)).double()
    shared = (units * both - sizes[:, None] * sizes[None, :]).double()  # whole numbers till here
    return shared / (spread[:, None] * spread[None, :]).sqrt()  # 0 / 0 is NaN


def pruned_correlations(
    kept_by_theta: Sequence[Sequence[Kept]], layers: Sequence[str] | None = None
) -> Tensor:
    """Return `pruned_correlation` at each pruning ratio, stacked: (thetas, classes, classes).

    Raises
    ------
    UnitError
        What `overlaps` raises.
    """
    return torch.stack([pruned_correlation(kept, layers) for kept in _ratios(kept_by_theta)])


def neighbours(
    thetas: Sequence[float], correlations: Tensor, accuracies: Tensor, label: int, *, k: int = 3
) -> Neighbours:
    """Return which classes move towards and away from a class where its accuracy jumps.

    Only steps at which some correlation is defined before and after count, so the first step from
    the whole network, which has no pruned set, does not.

    Parameters
    ----------
    thetas
        Pruning ratios, shape (thetas,).
    correlations
        Of the pruned sets at each, shape (thetas, classes, classes), NaN where undefined.
    accuracies
        Of each class when pruned for it, shape (classes, thetas).
    label
        Which class.
    k
        How many classes to name each way, at most.

    Raises
    ------
    DataError
        The shapes do not fit each other, or `label` is no class of these.
    MethodError
        `k` is not a whole number from 1 on.

    Examples
    --------
    >>> correlations = torch.tensor([[[1.0, 0.1], [0.1, 1.0]], [[1.0, 0.6], [0.6, 1.0]]])
    >>> found = neighbours([0.1, 0.2], correlations, torch.tensor([[0.5, 0.75], [0.5, 0.5]]), 0)
    >>> found.up.change, [label for label, change in found.up.rising], found.down
    (0.25, [1], None)
    """
    _check_curves(correlations, accuracies)
    classes = len(accuracies)
    if len(thetas) != len(correlations):
        raise DataError(f"{len(thetas)} ratios beside {len(correlations)} matrices; give one each")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < classes:
        raise DataError(f"label={label!r} is no class of {classes}; give 0 to {classes - 1}")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise MethodError(f"k={k!r} classes cannot be named; give a whole number from 1 on")
    others = [other for other in range(classes) if other != label]
    moves = correlations.double()[:, label, others].diff(dim=0)  # (steps, classes - 1)
    steps = accuracies.double()[label].diff()  # (steps,)
    steps = torch.where(moves.isnan().all(dim=1), math.nan, steps)

    def jump(way: int) -> Jump | None:
        towards = (way * steps).nan_to_num(nan=-math.inf)
        if not len(towards) or not bool(towards.max() > 0):
            return None
        at = int(towards.argmax())
        move = dict(zip(others, moves[at].tolist(), strict=True))
        return Jump(
            start=float(thetas[at]),
            end=float(thetas[at + 1]),
            change=float(steps[at]),
            rising=_most(move, k, 1),
            falling=_most(move, k, -1),
        )

    return Neighbours(label, up=jump(1), down=jump(-1))


def jump_association(
    correlations: Tensor,
    accuracies: Tensor,
    related: Tensor,
    *,
    permutations: int = 1000,
    seed: int = 0,
) -> Association:
    """Measure whether accuracy rises where pruned sets move towards those of related classes.

    That is the paper's last conclusion. For each class and each step from one pruning ratio to the
    next: the change of its accuracy, and the change of its mean correlation with its related
    classes. Both drift with the ratio for all classes alike, which correlates them by itself; the
    p-value is therefore found by dealing out whole accuracy curves among the classes, which leaves
    that drift in place.

    Parameters
    ----------
    correlations
        Of the pruned sets at each ratio, shape (thetas, classes, classes), NaN where undefined.
    accuracies
        Of each class when pruned for it, shape (classes, thetas), NaN where undefined.
    related
        Which classes are related, bool, shape (classes, classes); the diagonal does not count.
    permutations
        How often to deal.
    seed
        Of the dealing.

    Raises
    ------
    DataError
        The shapes do not fit each other.
    MethodError
        `permutations` is not a whole number from 1 on.

    Examples
    --------
    >>> correlations = torch.rand(9, 6, 6, generator=torch.Generator().manual_seed(0))
    >>> related = ~torch.eye(6, dtype=torch.bool)
    >>> mean = torch.stack([one[related].reshape(6, 5).mean(1) for one in correlations], dim=1)
    >>> jump_association(correlations, mean / 2, related).spearman
    1.0
    """
    _check_curves(correlations, accuracies)
    if related.dtype != torch.bool or related.shape != correlations.shape[1:]:
        raise DataError(
            f"related of the shape {tuple(related.shape)} and {related.dtype}: give a bool for "
            f"each two classes, {tuple(correlations.shape[1:])}"
        )
    if isinstance(permutations, bool) or not isinstance(permutations, int) or permutations < 1:
        raise MethodError(f"permutations={permutations!r}: give a whole number from 1 on")
    near = related & ~torch.eye(len(related), dtype=torch.bool)
    mean = torch.where(near, correlations.double(), math.nan).nanmean(dim=2)  # (thetas, classes)
    moves, steps = mean.diff(dim=0).T.numpy(), accuracies.double().diff(dim=1).numpy()
    told = ~(np.isnan(moves).all(axis=1) | np.isnan(steps).all(axis=1))  # others cannot be dealt to
    moves, steps = moves[told], steps[told]
    found = _spearman(moves.ravel(), steps.ravel())
    random = np.random.default_rng(seed)
    dealt = np.array(
        [
            _spearman(moves.ravel(), steps[random.permutation(len(steps))].ravel())
            for _ in range(permutations)
        ]
    )
    dealt = dealt[~np.isnan(dealt)]
    pairs = int((~np.isnan(moves + steps)).sum())
    if math.isnan(found) or not len(dealt):
        return Association(math.nan, math.nan, math.nan, pairs)
    # A dealing that only turns equal changes round must count, whatever its last bit says.
    reached = int((dealt >= found - 1e-12).sum())
    p_value = (1 + reached) / (1 + len(dealt))
    return Association(found, float(dealt.mean()), p_value, pairs)


def projected(responses: Tensor, components: int = 2) -> Projection:
    """Return the principal components of the classes' responses.

    Responses are centred over the classes and decomposed by SVD in float64. A component points
    where its largest loading is positive, so the same responses always give the same picture.
    Layers with large sums rule the result: scale them before if they should not.

    Parameters
    ----------
    responses
        What each unit answers to each class, shape (classes, units); a class with a NaN is left
        out, and its coordinates are NaN.
    components
        How many.

    Raises
    ------
    DataError
        The responses are not of that shape, or one is infinite.
    MethodError
        `components` is not from 1 to the number of classes with responses and of units.

    Examples
    --------
    >>> found = projected(torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]]), components=1)
    >>> [round(place, 3) for place in found.coordinates[:, 0].tolist()], found.explained.tolist()
    ([-2.236, 0.0, 2.236], [1.0])
    """
    _check_responses(responses)
    values = responses.detach().cpu().double()
    known = ~values.isnan().any(dim=1)
    at_most = min(int(known.sum()), values.shape[1])
    if isinstance(components, bool) or not isinstance(components, int):
        raise MethodError(f"components={components!r} is no whole number; give 1 to {at_most}")
    if not 1 <= components <= at_most:
        raise MethodError(
            f"components={components} of {int(known.sum())} classes with responses and "
            f"{values.shape[1]} units; give 1 to {at_most}"
        )
    centred = values[known] - values[known].mean(dim=0)
    left, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    largest = axes.abs().argmax(dim=1, keepdim=True)
    signs = torch.where(axes.gather(1, largest)[:, 0] < 0, -1.0, 1.0)
    coordinates = torch.full((len(values), components), math.nan, dtype=torch.float64)
    coordinates[known] = (left * sizes * signs)[:, :components]
    explained = sizes.square() / sizes.square().sum()
    return Projection(coordinates, explained[:components])


def projections(
    responses: Mapping[str, Tensor],
    kept_by_theta: Sequence[Sequence[Kept]],
    components: int = 2,
    layers: Sequence[str] | None = None,
) -> tuple[Projection, ...]:
    """Return `projected` at each pruning ratio, a class's pruned units answering 0; Figure 7.

    Each ratio has principal components of its own.

    Parameters
    ----------
    responses
        Layer name to what its units answer to each class, shape (classes, units).
    kept_by_theta
        For each ratio, for each class, which units are kept.
    components
        How many.
    layers
        Which layers to take in; all that the sets have if not given.

    Raises
    ------
    UnitError
        What `overlaps` raises; or the responses are not of the same layers, units and classes.
    DataError, MethodError
        What `projected` raises.

    Examples
    --------
    >>> sets = [{"fc": torch.tensor([True, True])}, {"fc": torch.tensor([True, False])}]
    >>> found = projections({"fc": torch.tensor([[1.0, 5.0], [3.0, 5.0]])}, [sets], components=1)
    >>> round((found[0].coordinates[1] - found[0].coordinates[0]).abs().item() ** 2, 6)
    29.0
    """
    found = []
    for kept in _ratios(kept_by_theta):
        stacked = _stacked(kept, layers)
        names = list(kept[0]) if layers is None else list(layers)
        parts = [
            _answered(name, responses.get(name), part)
            for name, part in zip(names, stacked, strict=True)
        ]
        found.append(projected(torch.cat(parts, dim=1), components))
    return tuple(found)


def rank_correlation(responses: Tensor) -> Tensor:
    """Return Spearman's correlation of the responses to any two classes, over the units.

    Equal responses share their mean rank. Computed in whole numbers up to the last division.

    Parameters
    ----------
    responses
        Shape (classes, units).

    Returns
    -------
    Tensor
        (classes, classes), float64; NaN for a class with a NaN, or whose responses are all equal.

    Raises
    ------
    DataError
        The responses are not of that shape, or one is infinite.

    Examples
    --------
    >>> rank_correlation(torch.tensor([[1.0, 2.0, 9.0], [3.0, 4.0, 5.0], [3.0, 2.0, 1.0]]))[0]
    tensor([ 1.,  1., -1.], dtype=torch.float64)
    """
    _check_responses(responses)
    ranks = _centred_ranks(responses)
    products = ranks @ ranks.T
    spread = products.diagonal()
    return products / (spread[:, None] * spread[None, :]).sqrt()


def agreement_by_class(one: Ranking, other: Ranking) -> pd.DataFrame:
    """Return how two rankings order the units for each class, by Spearman's correlation.

    Over the layers that both have with scores by class: Shapley values of each class's recall and
    responses to it, say.

    Returns
    -------
    pandas.DataFrame
        The columns: layer, class, spearman (NaN where a class is undefined in one of the rankings,
        or its scores are all equal), units.

    Raises
    ------
    RankingError
        The rankings are of different models; they share no layer with scores by class; or a shared
        one differs in its units or classes.

    Examples
    --------
    >>> from neurank.ranking import LayerRanking
    >>> def ranked(*rows):
    ...     layer = LayerRanking([4] * 3, [0] * 3, [9] * 3, "exact", by_class=torch.tensor(rows))
    ...     return Ranking({"fc": layer}, {})
    >>> one = ranked([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])
    >>> print(agreement_by_class(one, ranked([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])))
      layer  class  spearman  units
    0    fc      0       1.0      3
    1    fc      1      -1.0      3
    """
    refuse_other_model(one, other)
    frames = []
    for name in one:
        first = one[name].by_class
        second = other[name].by_class if name in other else None
        if first is not None and second is not None:
            frames.append(_agreement(name, first, second))
    if not frames:
        raise RankingError(
            f"the rankings share no layer with scores by class (of {', '.join(one)} and "
            f"{', '.join(other)}); rank the same layers with methods that keep them"
        )
    return pd.concat(frames, ignore_index=True)


def _stacked(kept: Sequence[Kept], layers: Sequence[str] | None) -> list[Tensor]:
    """Return the sets of all classes layer by layer, (classes, units) each."""
    if not kept:
        raise UnitError("there is no class whose units could be compared; give a set for each")
    names = list(kept[0]) if layers is None else list(layers)
    if not names:
        raise UnitError("there is no layer to compare units of; give one or more")
    return [_stacked_layer(kept, name) for name in names]


def _stacked_layer(kept: Sequence[Kept], name: str) -> Tensor:
    for label, one in enumerate(kept):
        if name not in one:
            raise UnitError(
                f"layer {name!r} is not among those of class {label} ({', '.join(one)}); give all "
                "classes the same layers"
            )
        if one[name].dtype != torch.bool or one[name].shape != kept[0][name].shape:
            raise UnitError(
                f"layer {name!r} of class {label} is {tuple(one[name].shape)}, {one[name].dtype}, "
                f"and of class 0 {tuple(kept[0][name].shape)}; give one bool per unit, (units,)"
            )
    stacked = torch.stack([one[name] for one in kept]).cpu()
    if stacked.ndim != 2:
        raise UnitError(
            f"layer {name!r} has sets of the shape {tuple(stacked.shape[1:])}; give one bool per "
            "unit, (units,)"
        )
    return stacked


def _ratios(kept_by_theta: Sequence[Sequence[Kept]]) -> Sequence[Sequence[Kept]]:
    if not kept_by_theta or len({len(kept) for kept in kept_by_theta}) != 1:
        raise UnitError(
            f"sets of {[len(kept) for kept in kept_by_theta]} classes at the pruning ratios; give "
            "one ratio or more, and the same classes at each"
        )
    return kept_by_theta


def _shared(sets: Tensor) -> Tensor:
    """Return the sizes of all intersections: sums of 0 and 1, exact in floats of enough digits."""
    exact = torch.float32 if sets.shape[1] < _EXACT_IN_FLOAT32 else torch.float64
    members = sets.to(exact)
    return (members @ members.T).long()


def _jaccard(counts: Tensor) -> Tensor:
    sizes = counts.diagonal()
    either = sizes[:, None] + sizes[None, :] - counts
    return counts.double() / either.double()  # 0 / 0 is NaN


def _chance(layers: Sequence[Tensor]) -> Tensor:
    classes = len(layers[0])
    expected = torch.zeros(classes, classes, dtype=torch.float64)
    for sets in layers:
        sizes = sets.sum(dim=1).double()
        expected += sizes[:, None] * sizes[None, :] / max(1, sets.shape[1])
    return expected


def _most(move: Mapping[int, float], k: int, way: int) -> tuple[tuple[int, float], ...]:
    """Return the `k` classes that move most that way, a tie to the lower label."""
    moved = [(label, change) for label, change in move.items() if way * change > 0]
    return tuple(sorted(moved, key=lambda one: -way * one[1])[:k])


def _check_curves(correlations: Tensor, accuracies: Tensor) -> None:
    square = correlations.ndim == 3 and correlations.shape[1] == correlations.shape[2]
    if not square or accuracies.shape != (correlations.shape[1], correlations.shape[0]):
        raise DataError(
            f"correlations of the shape {tuple(correlations.shape)} and accuracies of "
            f"{tuple(accuracies.shape)}: give (thetas, classes, classes) and (classes, thetas)"
        )


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return Spearman's correlation over the pairs without a NaN; NaN if a side is constant."""
    known = ~np.isnan(x + y)
    ranks = torch.from_numpy(np.stack([x[known], y[known]]))
    if not ranks.shape[1]:
        return math.nan
    one, other = _centred_ranks(ranks)
    return float((one @ other) / ((one @ one) * (other @ other)).sqrt())


def _centred_ranks(values: Tensor) -> Tensor:
    """Return twice the ranks of each row, less their mean: whole numbers; a NaN takes its row."""
    numbers = values.detach().cpu().double().numpy()
    ranks = stats.rankdata(numbers, axis=1, nan_policy="propagate")
    return torch.as_tensor(2 * ranks - (numbers.shape[1] + 1), dtype=torch.float64)


def _check_responses(responses: Tensor) -> None:
    if responses.ndim != 2 or not responses.numel() or not responses.is_floating_point():
        raise DataError(
            f"responses of the shape {tuple(responses.shape)} and dtype {responses.dtype}: give "
            "real numbers, (classes, units), of one class and one unit at least"
        )
    if bool(responses.isinf().any()):
        label, unit = responses.isinf().nonzero()[0].tolist()
        raise DataError(
            f"the response of unit {unit} to class {label} is infinite; look for what overflows"
        )


def _answered(name: str, responses: Tensor | None, kept: Tensor) -> Tensor:
    """Return the responses with 0 for pruned units; a NaN stays, its class has no responses."""
    if responses is None or responses.shape != kept.shape:
        found = "none" if responses is None else f"some of the shape {tuple(responses.shape)}"
        raise UnitError(
            f"layer {name!r} has sets of the shape {tuple(kept.shape)} and for responses {found}; "
            "take both from one network and the same classes"
        )
    values = responses.detach().cpu().double()
    return values.masked_fill(~kept & ~values.isnan(), 0.0)


def _agreement(name: str, one: Tensor, other: Tensor) -> pd.DataFrame:
    if one.shape != other.shape:
        raise RankingError(
            f"layer {name!r} has scores by class of the shape {tuple(one.shape)} in one ranking "
            f"and {tuple(other.shape)} in the other; rank the same network with both methods"
        )
    first, second = _centred_ranks(one), _centred_ranks(other)
    spread = ((first * first).sum(dim=1) * (second * second).sum(dim=1)).sqrt()
    return pd.DataFrame(
        {
            "layer": name,
            "class": range(len(one)),
            "spearman": ((first * second).sum(dim=1) / spread).tolist(),
            "units": one.shape[1],
        }
    )
