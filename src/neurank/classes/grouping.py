"""Which classes pruning improves, leaves alone or degrades, told from chance.

"Semantic pruning for single class interpretability" (2020) sorts its classes by eye (Figure 5): one
whose accuracy is above the whole network's at some pruning ratio improved. With 50 pictures a class
and a dozen ratios that needs one picture, and luck brings it. `groups` asks for a change that luck
does not bring; `as_printed` is the paper's reading, to compare with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor

from neurank.classes.quality import check_confidence
from neurank.errors import DataError, MethodError

Kind = Literal["improved", "unaffected", "degraded", "undefined"]
"""What becomes of a class; undefined where it has no picture to tell by."""

_HALVINGS = 60


@dataclass(frozen=True)
class Group:
    """What becomes of one class as units are pruned for it, and how sure that is.

    Parameters
    ----------
    kind
        The group, see `groups`.
    theta
        Where it shows: for an improved class the pruning ratio with the smallest p-value; for a
        degraded one the first from which on it is always significantly lower; for an unaffected
        one the last up to which it is never significantly lower. NaN for an undefined class.
    gain
        The change of its accuracy there against the whole network, a share: 0.02 are two points.
    low, high
        An interval around `gain` that holds for all pruning ratios at once, so it may be read
        although `theta` was picked. It says what "unaffected" cannot rule out.
    p_value
        Of the two-sided sign test there, times the number of pruning ratios tried (at most 1).

    Examples
    --------
    >>> print(Group("improved", theta=0.15, gain=0.02, low=0.012, high=0.033, p_value=4e-6))
    improved at θ = 0.15: +2.0 points (+1.2 to +3.3), p = 4e-06
    """

    kind: Kind
    theta: float
    gain: float
    low: float
    high: float
    p_value: float

    def __str__(self) -> str:
        if self.kind == "undefined":
            return "undefined: no picture of the class"
        where = "up to" if self.kind == "unaffected" else "at"
        return (
            f"{self.kind} {where} θ = {self.theta:g}: {100 * self.gain:+.1f} points "
            f"({100 * self.low:+.1f} to {100 * self.high:+.1f}), p = {self.p_value:.2g}"
        )


@dataclass(frozen=True)
class _Counts:
    """Checked counts: (classes,) pictures, (classes, thetas) the others."""

    pictures: Tensor
    hits: Tensor
    gained: Tensor
    lost: Tensor


def groups(
    thetas: Sequence[float],
    pictures: Tensor | ArrayLike,
    hits: Tensor | ArrayLike,
    gained: Tensor | ArrayLike,
    lost: Tensor | ArrayLike,
    *,
    confidence: float = 0.95,
    least: float = 0.15,
) -> tuple[Group, ...]:
    """Sort classes by what pruning for them does to their accuracy.

    At each pruning ratio above 0 the same pictures are compared with the whole network by an exact
    two-sided sign test of `gained` against `lost`. A change is significant where its p-value, times
    the number of ratios, is at most ``1 - confidence``. A class is

    - improved if it is significantly higher at some ratio, whatever it is at others;
    - degraded if it is significantly lower at every ratio from `least` on;
    - unaffected otherwise: no change was shown, which is not a proof that there is none;
    - undefined if it has no picture.

    At a confidence of 0.95 at most one class in twenty that pruning leaves alone is called improved
    or degraded: that holds for each class by itself, not for all classes at once.

    Parameters
    ----------
    thetas
        Pruning ratios, ascending from 0 (the whole network), shape (thetas,).
    pictures
        How many pictures each class has, shape (classes,).
    hits
        How many of them are right at each ratio, shape (classes, thetas).
    gained, lost
        How many are right there and wrong at 0, and the other way round, shape (classes, thetas).
    confidence
        See above.
    least
        From which ratio on a degraded class must be lower.

    Raises
    ------
    DataError
        The counts do not fit each other: ``hits = hits[:, 0] + gained - lost`` everywhere, within
        the pictures there are.
    MethodError
        The ratios do not ascend from 0 within 1, there is none from `least` on, or `confidence` is
        not between 0 and 1.

    Examples
    --------
    Two pictures more of 50 are luck; twenty more of 1,000, and none lost, are not:

    >>> hits, more = [[40, 42], [800, 820]], [[0, 2], [0, 20]]
    >>> for group in groups([0, 0.2], [50, 1000], hits, more, [[0, 0], [0, 0]]):
    ...     print(group)
    unaffected up to θ = 0.2: +4.0 points (-3.4 to +13.5), p = 0.5
    improved at θ = 0.2: +2.0 points (+1.3 to +3.1), p = 1.9e-06
    """
    _check_thetas(thetas)
    check_confidence(confidence)
    if not any(theta >= least and theta > 0 for theta in thetas):
        raise MethodError(
            f"least={least!r} is above every pruning ratio, of which {thetas[-1]} is the largest; "
            "no class could be degraded: lower it, or prune more"
        )
    counts = _checked(len(thetas), pictures, hits, gained, lost)
    tried, alpha = len(thetas) - 1, 1 - confidence
    p = (sign_test(counts.gained, counts.lost) * tried).clamp(max=1.0)  # (classes, thetas)
    low, high = paired_interval(
        counts.pictures[:, None], counts.gained, counts.lost, 1 - alpha / tried
    )
    low[:, 0] = high[:, 0] = 0.0  # the whole network against itself
    change = counts.gained - counts.lost
    higher, lower = (p <= alpha) & (change > 0), (p <= alpha) & (change < 0)
    found = []
    for row, shown in enumerate(counts.pictures.tolist()):
        if not shown:
            found.append(Group("undefined", *[float("nan")] * 5))
            continue
        kind, at = _judged(thetas, p[row], higher[row], lower[row], least)
        gain = int(change[row, at]) / shown
        ends = float(low[row, at]), float(high[row, at])
        found.append(Group(kind, float(thetas[at]), gain, *ends, float(p[row, at])))
    return tuple(found)


def as_printed(
    pictures: Tensor | ArrayLike, hits: Tensor | ArrayLike, *, first: int = 1
) -> tuple[Kind, ...]:
    """Sort classes as the paper's Figure 5 does, by the values alone.

    Improved if more pictures are right at some pruning ratio than in the whole network; unaffected
    if as many are at some ratio; degraded if fewer are at each.

    Parameters
    ----------
    pictures
        How many pictures each class has, shape (classes,).
    hits
        How many are right at each ratio, the first of which is 0, shape (classes, thetas).
    first
        The first ratio to look at, counted from 0: so a grid may begin with ratios that hardly
        prune, at which no class could be degraded.

    Raises
    ------
    DataError
        The counts do not fit each other.
    MethodError
        There is no ratio from `first` on, or it is the whole network.

    Examples
    --------
    >>> as_printed([50, 50, 50], [[40, 41, 2], [40, 40, 2], [40, 39, 2]])
    ('improved', 'unaffected', 'degraded')
    """
    shown, right = _whole("pictures", pictures), _whole("hits", hits)
    _check_hits(shown, right)
    if not 1 <= first < right.shape[1]:
        raise MethodError(
            f"first={first!r} is none of the pruning ratios 1 to {right.shape[1] - 1}; give one"
        )
    return tuple(
        _printed(row[0], row[first:]) if count else "undefined"
        for count, row in zip(shown.tolist(), right.tolist(), strict=True)
    )


def sign_test(gained: Tensor | ArrayLike, lost: Tensor | ArrayLike) -> Tensor:
    """Return the p-value of the exact two-sided sign test, McNemar's test of paired counts.

    Where pruning changes nothing, a picture that changes sides is as likely gained as lost: so
    gained is binomial of ``gained + lost`` with probability 1/2. The p-value is twice the chance of
    so few on the rarer side, at most 1; it is 1 where no picture changes sides.

    Parameters
    ----------
    gained, lost
        Counts of one shape.

    Returns
    -------
    Tensor
        float64, of their shape.

    Raises
    ------
    DataError
        A count is negative or no whole number.

    Examples
    --------
    >>> sign_test([2, 20, 0], [0, 0, 0]).tolist()
    [0.5, 1.9073486328125e-06, 1.0]
    """
    more, fewer = _whole("gained", gained), _whole("lost", lost)
    rarer, both = torch.minimum(more, fewer).numpy(), (more + fewer).numpy()
    return torch.as_tensor(2 * stats.binom.cdf(rarer, both, 0.5), dtype=torch.float64).clamp(max=1)


def paired_interval(
    pictures: Tensor | ArrayLike,
    gained: Tensor | ArrayLike,
    lost: Tensor | ArrayLike,
    confidence: float = 0.95,
) -> tuple[Tensor, Tensor]:
    r"""Return the ends of Tango's interval for a change of accuracy on the same pictures.

    The changes d that the score test does not reject,

    .. math:: \frac{|b - c - n d|}{\sqrt{n (2 q_d + d (1 - d))}} \le z

    for b gained and c lost of n pictures, where q_d is the likeliest probability to lose a picture
    given d. At d = 0 that is McNemar's test. T. Tango, "Equivalence test and confidence interval
    for the difference in proportions for the paired-sample design" (1998). As Wilson's interval for
    one share, it keeps within -1 and 1 and says something where no picture changes sides.

    Parameters
    ----------
    pictures, gained, lost
        Counts of shapes that go together; gained and lost are different pictures.
    confidence
        In which share of cases the interval shall cover the true change.

    Returns
    -------
    tuple of Tensor
        Low and high, float64; NaN where there is no picture.

    Raises
    ------
    DataError
        A count is negative or no whole number, or more pictures change sides than there are.
    MethodError
        `confidence` is not between 0 and 1.

    Examples
    --------
    >>> low, high = paired_interval(1000, [0, 20], [0, 0])
    >>> [round(end, 4) for end in low.tolist()], [round(end, 4) for end in high.tolist()]
    ([-0.0038, 0.013], [0.0038, 0.0307])
    """
    check_confidence(confidence)
    n, b, c = (
        _whole(name, given)
        for name, given in (("pictures", pictures), ("gained", gained), ("lost", lost))
    )
    if bool((b + c > n).any()):
        raise DataError(
            "more pictures are gained and lost together than there are; count all three over the "
            "same pictures"
        )
    z = float(stats.norm.ppf((1 + confidence) / 2))
    n, b, c = (count.double() for count in (n, b, c))
    gain = (b - c) / n  # NaN where there is no picture, and so are the ends then
    return _edge(n, b, c, gain, z, -1.0), _edge(n, b, c, gain, z, 1.0)


def _judged(
    thetas: Sequence[float], p: Tensor, higher: Tensor, lower: Tensor, least: float
) -> tuple[Kind, int]:
    """Return the group of one class and the place of the ratio where it shows."""
    if bool(higher.any()):
        return "improved", int(torch.where(higher, p, 2.0).argmin())
    late = torch.tensor([theta >= least and theta > 0 for theta in thetas])
    if bool(lower[late].all()):
        return "degraded", len(thetas) - _leading(lower.flip(0))
    return "unaffected", _leading(~lower) - 1


def _leading(true: Tensor) -> int:
    """How many come before the first that is not true."""
    return int(true.long().cumprod(0).sum())


def _printed(whole: int, pruned: list[int]) -> Kind:
    best = max(pruned)
    if best == whole:
        return "unaffected"
    return "improved" if best > whole else "degraded"


def _edge(n: Tensor, b: Tensor, c: Tensor, gain: Tensor, z: float, outside: float) -> Tensor:
    """Halve between the estimate and -1 or 1 till the score test stands on its limit."""
    inner, outer = gain, torch.full_like(gain, outside)
    for _ in range(_HALVINGS):
        middle = (inner + outer) / 2
        kept = _score(n, b, c, middle).abs() <= z
        inner, outer = torch.where(kept, middle, inner), torch.where(kept, outer, middle)
    # Where the estimate is the edge itself (all pictures gained, say) the two meet there.
    return (inner + outer) / 2 + 0 * gain


def _score(n: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Return the score statistic of a change d.

    The likeliest share q of lost pictures given d solves
    ``2 n q² + ((2 n - b + c) d - b - c) q - c d (1 - d) = 0``
    """
    half = (2 * n - b + c) * d - b - c
    root = (half * half + 8 * n * c * d * (1 - d)).clamp(min=0.0).sqrt()
    q = (root - half) / (4 * n)
    return (b - c - n * d) / (n * (2 * q + d * (1 - d))).clamp(min=1e-300).sqrt()


def _checked(
    thetas: int,
    pictures: Tensor | ArrayLike,
    hits: Tensor | ArrayLike,
    gained: Tensor | ArrayLike,
    lost: Tensor | ArrayLike,
) -> _Counts:
    counts = _Counts(
        _whole("pictures", pictures),
        _whole("hits", hits),
        _whole("gained", gained),
        _whole("lost", lost),
    )
    _check_hits(counts.pictures, counts.hits)
    if counts.hits.shape[1] != thetas:
        raise DataError(
            f"hits at {counts.hits.shape[1]} pruning ratios beside {thetas} ratios; give a column "
            "for each"
        )
    for name in ("gained", "lost"):
        if getattr(counts, name).shape != counts.hits.shape:
            raise DataError(
                f"{name} has the shape {tuple(getattr(counts, name).shape)} beside hits of the "
                f"shape {tuple(counts.hits.shape)}; give one count for each class and ratio"
            )
    whole = counts.hits[:, :1]
    told = whole + counts.gained - counts.lost == counts.hits
    possible = (counts.lost <= whole) & (counts.gained <= counts.pictures[:, None] - whole)
    alone = (counts.gained[:, :1] == 0) & (counts.lost[:, :1] == 0)
    fits = told & possible & alone
    if not bool(fits.all()):
        row, column = (~fits).nonzero()[0].tolist()
        raise DataError(
            f"class {row} at ratio {column}: {int(counts.hits[row, column])} hits are not the "
            f"{int(whole[row, 0])} of the whole network with {int(counts.gained[row, column])} "
            f"gained and {int(counts.lost[row, column])} lost, of "
            f"{int(counts.pictures[row])} pictures; count them over the same pictures"
        )
    return counts


def _check_hits(pictures: Tensor, hits: Tensor) -> None:
    if pictures.ndim != 1 or hits.ndim != 2 or len(hits) != len(pictures) or not hits.shape[1]:
        raise DataError(
            f"pictures of the shape {tuple(pictures.shape)} and hits of {tuple(hits.shape)}: give "
            "(classes,) and (classes, thetas)"
        )
    if bool((hits > pictures[:, None]).any()):
        row = int((hits > pictures[:, None]).nonzero()[0, 0])
        raise DataError(
            f"class {row} has {int(hits[row].max())} hits among {int(pictures[row])} pictures; "
            "count both over the same pictures"
        )


def _check_thetas(thetas: Sequence[float]) -> None:
    ascending = all(a < b for a, b in pairwise(thetas))
    if len(thetas) < 2 or thetas[0] != 0 or not ascending or not thetas[-1] <= 1:
        raise MethodError(
            f"the pruning ratios {list(thetas)} do not ascend from 0, the whole network, to at "
            "most 1; give two or more that do"
        )


def _whole(name: str, counts: Tensor | ArrayLike) -> Tensor:
    given = torch.as_tensor(counts).detach().cpu()
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise DataError(f"{name} are of dtype {given.dtype}; give whole numbers")
    if bool((given < 0).any()):
        raise DataError(f"{name} hold {int(given.min())}; a count is at least 0")
    return given.long()
