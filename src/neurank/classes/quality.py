"""How good a network is for one class: what it finds, and what it wrongly takes for it.

"Semantic pruning for single class interpretability" (2020) counts the share of a class's own
pictures that are still labelled as the class, its recall. A network that always names the class has
a recall of 1, so the recall alone says nothing: `Quality` holds what it says about the other
pictures beside it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor

from neurank.errors import DataError, MethodError, ModelError
from neurank.files import Json

_CHUNK = 1 << 22
"""How many logits are turned into scores at once: some 100 MB of working memory."""


@dataclass(frozen=True)
class Quality:
    """How well a network tells one class from the rest: counts of pictures, and shares of them.

    A picture is *called* the class where the class has the highest logit, the lowest index winning
    ties. A share is NaN, undefined, where there is no picture to count; it is never 0 for that.

    Parameters
    ----------
    label
        Which class.
    own
        How many pictures are of the class.
    others
        How many are not.
    hits
        How many of its own are called the class.
    false_alarms
        How many of the others are.
    auroc
        The area under the ROC curve of the class's score, see `auroc`. It asks whether the class's
        pictures come before the rest, wherever the line is drawn. NaN where there is no picture of
        the class, or no other.

    Raises
    ------
    DataError
        More pictures are called the class than there are, a count is negative, or the area is not
        from 0 to 1.

    Examples
    --------
    >>> found = Quality(label=3, own=50, others=950, hits=40, false_alarms=10, auroc=0.97)
    >>> found.recall, found.precision, found.f1
    (0.8, 0.8, 0.8)
    >>> print(found)
    class 3: recall 0.8 (40 of 50), false positives 0.0105 (10 of 950), precision 0.8, F1 0.8, \
AUROC 0.97
    >>> print(Quality(label=7, own=0, others=10, hits=0, false_alarms=1, auroc=math.nan))
    class 7: recall undefined (0 of 0), false positives 0.1 (1 of 10), precision undefined, \
F1 undefined, AUROC undefined
    """

    label: int
    own: int
    others: int
    hits: int
    false_alarms: int
    auroc: float

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.own or not 0 <= self.false_alarms <= self.others:
            raise DataError(
                f"{self.hits} of {self.own} pictures of class {self.label} and {self.false_alarms} "
                f"of {self.others} others cannot be called the class; count them again"
            )
        if not (math.isnan(self.auroc) or 0 <= self.auroc <= 1):
            raise DataError(f"auroc={self.auroc!r} is no area; give a number from 0 to 1, or NaN")

    @property
    def called(self) -> int:
        """How many pictures are called the class."""
        return self.hits + self.false_alarms

    @property
    def recall(self) -> float:
        """The share of the class's pictures that are called it; NaN where it has none."""
        return _share(self.hits, self.own)

    @property
    def false_positive_rate(self) -> float:
        """The share of the other pictures that are called the class; NaN where there are none."""
        return _share(self.false_alarms, self.others)

    @property
    def precision(self) -> float:
        """The share of the class among the pictures that are called it.

        NaN where none is called it, and where the class has no picture: then no network could have
        any precision but 0, and that 0 would speak of the data.
        """
        return _share(self.hits, self.called) if self.own else math.nan

    @property
    def f1(self) -> float:
        """The harmonic mean of recall and precision, ``2 hits / (own + called)``.

        0, and not undefined, where the class has pictures and none is called it: they were all
        missed. NaN where the class has no picture, for the reason that `precision` is.
        """
        return _share(2 * self.hits, self.own + self.called) if self.own else math.nan

    def to_json(self) -> dict[str, Json]:
        """Return the counts and the shares by name, None for undefined.

        Examples
        --------
        >>> written = Quality(0, own=2, others=0, hits=1, false_alarms=0, auroc=math.nan).to_json()
        >>> written["recall"], written["auroc"]
        (0.5, None)
        """
        counts = ("label", "own", "others", "hits", "false_alarms")
        return {name: getattr(self, name) for name in counts} | {
            name: _none_for_nan(getattr(self, name)) for name in _SHARES
        }

    def __str__(self) -> str:
        recall, false_positives, precision, f1, area = (
            _written(getattr(self, name)) for name in _SHARES
        )
        return (
            f"class {self.label}: recall {recall} ({self.hits} of {self.own}), false positives "
            f"{false_positives} ({self.false_alarms} of {self.others}), precision {precision}, "
            f"F1 {f1}, AUROC {area}"
        )


_SHARES = ("recall", "false_positive_rate", "precision", "f1", "auroc")


def quality(logits: Tensor, targets: Tensor, label: int) -> Quality:
    """Return how well the network that gave `logits` tells class `label` from the rest.

    Parameters
    ----------
    logits
        What the network gives, shape (examples, classes), at least two classes.
    targets
        The classes of the pictures, whole numbers, shape (examples,).
    label
        Which class.

    Raises
    ------
    ModelError
        The logits are not of that shape, or one is NaN or infinite.
    DataError
        The targets are not one class per example, or a target or `label` is no class of these.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [1.0, 1.0]])
    >>> found = quality(logits, torch.tensor([0, 0, 1, 0]), label=0)
    >>> found.hits, found.false_alarms, found.auroc
    (2, 1, 0.0)
    """
    return next(_qualities(logits, targets, [label]))


def qualities(
    logits: Tensor, targets: Tensor, labels: Sequence[int] | None = None
) -> tuple[Quality, ...]:
    """Return `quality` for each of `labels`, or for every class, of one set of logits.

    Raises
    ------
    ModelError, DataError
        What `quality` raises.

    Examples
    --------
    >>> logits = torch.eye(3)
    >>> [found.f1 for found in qualities(logits, torch.tensor([0, 1, 0]))]
    [0.6666666666666666, 1.0, nan]
    """
    _check_logits(logits)
    chosen = range(logits.shape[1]) if labels is None else labels
    return tuple(_qualities(logits, targets, chosen))


def class_scores(logits: Tensor, labels: Sequence[int]) -> Tensor:
    r"""Return how strongly each picture is taken for each of `labels`: log-odds of the softmax.

    .. math:: s_c = z_c - \log \sum_{j \ne c} \exp z_j

    which is the logarithm of p / (1 - p) of the softmax's probability p, in float64 and exact where
    p itself is rounded to 0 or 1. A picture whose score is above 0 is more likely of the class than
    of all others together.

    Parameters
    ----------
    logits
        Shape (examples, classes).
    labels
        Which classes.

    Returns
    -------
    Tensor
        Shape (examples, labels), float64.

    Raises
    ------
    ModelError
        The logits are not of that shape, or one is NaN or infinite.
    DataError
        A label is no class of these.

    Examples
    --------
    >>> class_scores(torch.tensor([[1.0, 3.0], [900.0, -900.0]]), [0])[:, 0]
    tensor([  -2., 1800.], dtype=torch.float64)
    """
    _check_logits(logits)
    chosen = torch.tensor([_class(label, logits.shape[1]) for label in labels], dtype=torch.int64)
    rows = max(1, _CHUNK // logits.shape[1])
    parts = [_log_odds(part, chosen) for part in torch.split(logits.detach().cpu().double(), rows)]
    return torch.cat(parts)  # (examples, labels)


def auroc(scores: Tensor, own: Tensor) -> float:
    """Return the area under the ROC curve: how often a picture of the class scores higher.

    ``P(score of own > score of other) + P(they are equal) / 2`` over all pairs of a picture of the
    class and another, from their ranks (Mann and Whitney's U), so in n log n steps for n pictures.

    Parameters
    ----------
    scores
        One per picture, not NaN, shape (examples,).
    own
        Whether the picture is of the class, bool, shape (examples,).

    Returns
    -------
    float
        From 0 to 1; a half where the score says nothing. NaN where all pictures are of the class,
        or none.

    Raises
    ------
    DataError
        The shapes differ, `own` is not bool, or a score is NaN.

    Examples
    --------
    >>> auroc(torch.tensor([0.1, 0.9, 0.9, 0.3]), torch.tensor([False, True, False, False]))
    0.8333333333333334
    """
    if scores.ndim != 1 or scores.shape != own.shape or own.dtype != torch.bool:
        raise DataError(
            f"scores of the shape {tuple(scores.shape)} and own of {tuple(own.shape)}, {own.dtype}:"
            " give one score and one bool per picture"
        )
    if bool(scores.isnan().any()):
        raise DataError("a score is NaN, which has no rank; leave the picture out")
    mine = int(own.sum())
    pairs = mine * (len(own) - mine)
    if not pairs:
        return math.nan
    ranks = stats.rankdata(scores.detach().cpu().numpy())  # equal scores share their mean rank
    wins = float(ranks[own.cpu().numpy()].sum()) - mine * (mine + 1) / 2
    return wins / pairs


def interval(
    successes: Tensor | ArrayLike, trials: Tensor | ArrayLike, confidence: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Return the ends of Wilson's interval for shares that were counted.

    For `successes` of `trials` independent pictures, the shares p for which the count is not
    further from p's expectation than z standard deviations of p's own: E. B. Wilson, "Probable
    inference, the law of succession, and statistical inference" (1927). It stays within 0 and 1
    and says something at 0 of n, where the usual ±z√(p(1-p)/n) says ±0.

    Parameters
    ----------
    successes, trials
        Counts of any shapes that go together; ``0 <= successes <= trials``.
    confidence
        In which share of cases the interval shall cover the true share.

    Returns
    -------
    tuple of Tensor
        Low and high, float64; NaN where there was no trial.

    Raises
    ------
    DataError
        A count is negative, or there are more successes than trials.
    MethodError
        `confidence` is not between 0 and 1.

    Examples
    --------
    >>> low, high = interval([25, 0], 50)
    >>> low.tolist()[1], [round(end, 3) for end in high.tolist()]
    (0.0, [0.634, 0.071])
    """
    check_confidence(confidence)
    hits, n = (torch.as_tensor(count, dtype=torch.float64) for count in (successes, trials))
    if not _go_together(hits, n):
        raise DataError(
            f"successes of the shape {tuple(hits.shape)} and trials of {tuple(n.shape)} do not go "
            "together; give one number of trials for all, or one for each"
        )
    if not bool(((hits >= 0) & (hits <= n)).all()):
        raise DataError(
            "successes are not from 0 to trials everywhere; count both over the same pictures"
        )
    z = float(stats.norm.ppf((1 + confidence) / 2))
    share = hits / n  # NaN where n is 0
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)).sqrt()
    # At 0 of n the low end is 0, at n of n the high end 1: rounding must not move them.
    low = torch.where(hits == 0, share, (middle - reach).clamp(min=0.0))
    high = torch.where(hits == n, share, (middle + reach).clamp(max=1.0))
    return low, high


def check_confidence(confidence: float) -> None:
    """Refuse what is no confidence: MethodError unless it lies between 0 and 1."""
    if not 0 < confidence < 1:
        raise MethodError(f"confidence={confidence!r}: a number between 0 and 1 is needed")


def _qualities(logits: Tensor, targets: Tensor, labels: Sequence[int]) -> Iterator[Quality]:
    _check_logits(logits)
    _check_targets(targets, *logits.shape)
    scores = class_scores(logits, labels)
    called, targets = logits.argmax(dim=1).cpu(), targets.cpu()
    for place, label in enumerate(labels):
        own = targets == label
        mine = int(own.sum())
        yield Quality(
            label=int(label),
            own=mine,
            others=len(own) - mine,
            hits=int((own & (called == label)).sum()),
            false_alarms=int((~own & (called == label)).sum()),
            auroc=auroc(scores[:, place], own),
        )


def _go_together(one: Tensor, other: Tensor) -> bool:
    sides = zip(reversed(one.shape), reversed(other.shape), strict=False)
    return all(a == b or 1 in (a, b) for a, b in sides)


def _log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum up what is left and what is right of each label, so that nothing has to be taken off."""
    edge = logits.new_full((len(logits), 1), -math.inf)
    left = torch.cat([edge, logits.logcumsumexp(dim=1)], dim=1)  # (examples, classes + 1)
    right = torch.cat([edge, logits.flip(1).logcumsumexp(dim=1)], dim=1).flip(1)
    others = torch.logaddexp(left[:, labels], right[:, labels + 1])
    return logits[:, labels] - others


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ModelError(
            f"logits of the shape {tuple(logits.shape)} and dtype {logits.dtype} have no class to "
            "tell from another; give real numbers (examples, classes) of two classes or more"
        )
    finite = logits.isfinite()
    if not bool(finite.all()):
        example, label = (~finite).nonzero()[0].tolist()
        raise ModelError(
            f"the logit of class {label} for example {example} is {float(logits[example, label])}; "
            "logits must be finite: look for the layer that overflows, or leave the example out"
        )


def _check_targets(targets: Tensor, examples: int, classes: int) -> None:
    whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if targets.shape != (examples,) or not whole:
        raise DataError(
            f"targets of the shape {tuple(targets.shape)} and dtype {targets.dtype} beside logits "
            f"of {examples} examples: give one whole number per example"
        )
    wrong = (targets < 0) | (targets >= classes)
    if bool(wrong.any()):
        example = int(wrong.nonzero()[0, 0])
        raise DataError(
            f"the target of example {example} is {int(targets[example])} and the network has the "
            f"classes 0 to {classes - 1}; give it the labels that it was trained with"
        )


def _class(label: int, classes: int) -> int:
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < classes:
        raise DataError(
            f"label={label!r} is no class of a network with {classes}; give a whole number from 0 "
            f"to {classes - 1}"
        )
    return label


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _written(share: float) -> str:
    return "undefined" if math.isnan(share) else f"{share:.3g}"


def _none_for_nan(share: float) -> float | None:
    return None if math.isnan(share) else share
