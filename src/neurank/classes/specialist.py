"""A network for one class, cut out of a many-class network."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from neurank.classes.choice import Choice, Evaluation
from neurank.classes.quality import Quality, quality
from neurank.classes.selection import Scope
from neurank.condense.condensed import Condensed, condense
from neurank.condense.costs import Report, multiply_adds, parameters
from neurank.condense.heads import (
    BatchesAgainstRest,
    Head,
    OneAgainstRest,
    fit_head,
    relabelled,
    with_head,
    with_outputs,
)
from neurank.condense.plan import Across
from neurank.errors import CondenseError, DataError
from neurank.modes import evaluating
from neurank.observe.door import device_of
from neurank.observe.examples import Batch
from neurank.observe.observer import model_digest
from neurank.rankers.class_response import ClassResponse
from neurank.rankers.method import Method
from neurank.rankers.rank import rank
from neurank.rankers.saliency import MeanReplacementSaliency
from neurank.ranking import Ranking
from neurank.text import aligned, percent
from neurank.units.trace import logits_of

AGAINST_REST = 1
"""The output that means the class where a head was folded in; 0 is the rest."""


@dataclass(frozen=True, eq=False)
class Specialist:
    """A network for one class.

    Attributes
    ----------
    label : the class.
    condensed : the smaller network, with its plan, its proof and its costs.
    head : what was folded into its last layer; None where it has the original's outputs.
    whole : how well the whole network knows the class.
    quality : how well this one does, on the same examples.
    tried : if the size was searched for, what was tried on the way.
    """

    label: int
    condensed: Condensed
    head: Head | None
    whole: Quality
    quality: Quality
    tried: tuple[Evaluation, ...] = ()

    @property
    def model(self) -> nn.Module:
        """The network; with a head its outputs are (rest, class)."""
        return self.condensed.model

    @property
    def report(self) -> Report:
        """Widths, parameters and multiply-adds before and after."""
        return self.condensed.report

    @property
    def output(self) -> int:
        """Which output means the class."""
        return self.label if self.head is None else AGAINST_REST

    def examples(
        self, data: Iterable[Batch]
    ) -> Iterable[Batch] | OneAgainstRest | BatchesAgainstRest:
        """Return examples as this network is trained on them: with a head, two labels."""
        return data if self.head is None else relabelled(data, self.label)

    def measured(self, data: Iterable[Batch]) -> Quality:
        """Measure how well the network, as it is now, tells the class from the rest.

        Raises
        ------
        DataError, ModelError
            Data or outputs cannot be used.
        """
        return _quality(self.model, data, self.label, folded=self.head is not None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network as `Condensed.save` does; `neurank.load` reads it again.

        Raises
        ------
        FileError
            The file cannot be written.
        """
        self.condensed.save(path)

    def __str__(self) -> str:
        """Return costs and quality, before and after."""
        rows = [("", "whole", "specialist")]
        for what, (whole, left) in (
            ("parameters", self.report.parameters),
            ("multiply-adds", self.report.multiply_adds),
        ):
            rows.append((what, f"{whole:,}", f"{left:,} ({percent(left / whole)})"))
        for what in ("recall", "false_positive_rate", "precision", "f1", "auroc"):
            before, after = (percent(getattr(it, what)) for it in (self.whole, self.quality))
            rows.append((what.replace("_", " "), before, after))
        return "\n".join([*aligned(rows), str(self.condensed.check)])


def specialize(
    model: nn.Module,
    data: Iterable[Batch],
    target: int | str,
    *,
    theta: float | None = None,
    scope: Scope = "layer",
    max_params: int | None = None,
    max_macs: int | None = None,
    max_drop: float | None = None,
    head: bool = False,
    method: Method | None = None,
    ranking: Ranking | None = None,
    across: Across | None = None,
    removal: str = "zero",
    layers: Sequence[str] | None = None,
    test: Iterable[Batch] | None = None,
    progress: bool = True,
) -> Specialist:
    """Cut a network for one class out of a many-class network.

    Units are scored for the class, chosen by one rule, and cut away by `neurank.condense`, with
    its proof. Nothing is retrained; see `Specialist.examples` for that.

    Parameters
    ----------
    model
        The network. It is copied, and comes back exactly as it was.
    data
        Examples of all classes, by which units are scored and chosen.
    target
        The class: its label, or its name where `data` has ``classes``.
    theta
        Semantic pruning: the share of units with the lowest responses to the class that goes, of
        every layer or, with ``scope="network"``, of all together. See `neurank.classes.Setting`.
    scope
        What `theta` is a share of.
    max_params, max_macs
        The most parameters, and multiply-adds per example.
    max_drop
        How far the class's F1 on `data` may fall below the whole network's, as a share; as small a
        network as is found within it, by bisection. 0.01 if neither `theta` nor a budget is given.
    head
        Replace the outputs by two, "the rest" and "the class", a linear function of the original
        logits fitted by logistic regression after the cut, and folded into the last layer.
    method
        How units are scored: by default `ClassResponse` for `theta`, and otherwise
        `MeanReplacementSaliency`. Methods other than `ClassResponse` score the network with such
        a head, and so the decision "is it the class"; where none can be folded in, by the examples
        of the class.
    ranking
        Scores to use in place of a method's, by class where there is a row for each of the
        network's classes.
    across
        How budgets compare scores of different layers, see `neurank.plan`: by default ``"rank"``
        for `ClassResponse`, ``"share"`` for all else.
    removal
        What consumers receive from a removed unit, see `neurank.condense`.
    layers
        Which layers may lose units; all that can if not given.
    test
        Examples on which quality is measured, of all classes, best those that neither training nor
        choosing has seen; `data` if not given.
    progress
        Show bars on a terminal.

    Raises
    ------
    DataError
        There is no such class, or no example of it.
    MethodError
        More than one of `theta`, budgets and `max_drop` is given, or one is out of range.
    PlanError
        `theta` leaves a layer without units, or a budget cannot be met.
    CondenseError, ModelError, UnitError
        Network, head or layers cannot be used.

    Examples
    --------
    >>> import neurank as nr
    >>> model, digits = nr.zoo.digits_net(seed=0), nr.data.load("digits")
    >>> _ = nr.fit(model, digits.train, digits.validation, epochs=3, batch_size=50)
    >>> three = nr.specialize(model, digits.validation, target=3, max_params=1500, head=True)
    >>> three.report.parameters[1] <= 1500, three.model.output.out_features
    (True, 2)
    """
    choice = Choice.of(theta, scope, max_params, max_macs, max_drop)
    label = _label(target, data)
    logits, targets = _answers(model, data)
    whole = quality(logits, targets, label)
    if not whole.own:
        raise DataError(
            f"class {label} has no examples in the data, so nothing is known of what it needs: "
            "give some"
        )
    default: Method = ClassResponse() if choice.setting else MeanReplacementSaliency(at="post")
    scorer = default if method is None else method
    scores = (
        _ranked(model, data, scorer, label, logits, targets, layers, folds=head, progress=progress)
        if ranking is None
        else _for_class(ranking, label, logits.shape[1])
    )
    is_response = ranking is None and isinstance(scorer, ClassResponse)
    found = choice.carried_out(
        model,
        data,
        scores,
        label,
        removal,
        across or ("rank" if is_response else "share"),
        head=head,
        progress=progress,
    )
    small = condense(model, found.plan, data, removal=removal, progress=progress)
    folded = None
    if head:
        small, folded = _with_folded_head(small, data, label)
    tested = data if test is None else test
    if test is not None:
        whole = _quality(model, test, label, folded=False)
    known = _quality(small.model, tested, label, folded=head)
    return Specialist(label, small, folded, whole, known, found.tried)


def _label(target: int | str, data: object) -> int:
    """Look a class up by its name."""
    if not isinstance(target, str):
        if isinstance(target, bool) or not isinstance(target, int) or target < 0:
            raise DataError(f"target={target!r} is no class: give a label from 0 on, or a name")
        return target
    names = list(getattr(data, "classes", ()))
    if target not in names:
        raise DataError(
            f"there is no class {target!r} in the data"
            + (f": there are {', '.join(names[:20])}" if names else ", which has no names: "
               "give a label from 0 on")
        )  # fmt: skip
    return names.index(target)


def _ranked(
    model: nn.Module,
    data: Iterable[Batch],
    method: Method,
    label: int,
    logits: Tensor,
    targets: Tensor,
    layers: Sequence[str] | None,
    *,
    folds: bool,
    progress: bool,
) -> Ranking:
    """Score units for a class, or for the decision whether it is the class."""
    if isinstance(method, ClassResponse):
        return rank(model, data, method, layers=layers, progress=progress).of_class(label)
    try:
        deciding = with_head(model, fit_head(logits, targets, label), data)
    except CondenseError:
        if folds:
            raise
        found = rank(model, data, method, layers=layers, progress=progress)
        return _for_class(found, label, logits.shape[1])
    found = rank(deciding, relabelled(data, label), method, layers=layers, progress=progress)
    source = {**found.provenance, "model": model_digest(model), "one_against_rest": label}
    return Ranking(found.layers, source)


def _for_class(ranking: Ranking, label: int, classes: int) -> Ranking:
    """Take the class's row where there is one for every class of the network."""
    rows = [layer.by_class for layer in ranking.layers.values()]
    by_class = all(row is not None and len(row) == classes for row in rows)
    return ranking.of_class(label) if by_class else ranking


def _with_folded_head(
    small: Condensed, data: Iterable[Batch], label: int
) -> tuple[Condensed, Head]:
    """Fit a head to what the condensed network says, and fold it in."""
    logits, targets = _answers(small.model, data)
    head = fit_head(logits, targets, label)
    model = with_head(small.model, head, data)
    inputs, _ = next(iter(data))
    *hidden, (last, (outputs, _)) = small.report.widths.items()
    costs = replace(
        small.report,
        widths={**dict(hidden), last: (outputs, len(head.weight))},
        parameters=(small.report.parameters[0], parameters(model)),
        multiply_adds=(
            small.report.multiply_adds[0],
            multiply_adds(model, inputs.to(device_of(model))),
        ),
    )
    return with_outputs(replace(small, model=model, report=costs)), head


def _quality(model: nn.Module, data: Iterable[Batch], label: int, *, folded: bool) -> Quality:
    """Measure how well a network, with two outputs where a head is folded in, knows a class."""
    logits, targets = _answers(model, data)
    if not folded:
        return quality(logits, targets, label)
    own = (targets == label).to(torch.int64)
    return replace(quality(logits, own, AGAINST_REST), label=label)


def _answers(model: nn.Module, data: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Run a network on all examples: (examples, outputs) and (examples,)."""
    device = device_of(model)
    logits, targets = [], []
    with evaluating(model), torch.inference_mode():
        for inputs, labels in data:
            found: Any = logits_of(model(inputs.to(device)))
            logits.append(found.cpu())
            targets.append(labels.cpu())
    if not logits:
        raise DataError("the data gives no batch: give examples of all classes")
    return torch.cat(logits).clone(), torch.cat(targets).to(torch.int64)
