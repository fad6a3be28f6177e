"""One class against the rest: a head of two outputs that folds into the network's last layer.

The two outputs are a linear function of the network's logits: output 0, "the rest", is 0, and
output 1, "the class", is a score. So the class is said where the score is positive, and the
cross-entropy of the two outputs is the logistic loss of the score. A linear function of what a
linear layer or a convolution gives is one of what it reads, so the head costs nothing: the layer
gets two rows in the place of its own.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from neurank.condense.condensed import Condensed, copy_of, probe
from neurank.condense.given import real, whole
from neurank.condense.surgery import bias_of, named_tensors, replace_rows
from neurank.errors import CondenseError, DataError, MethodError, ModelError
from neurank.modes import evaluating
from neurank.observe.door import check_weights, device_of, repeatable_outputs
from neurank.observe.examples import Batch
from neurank.training import InMemory
from neurank.units.channelwise import FLATTENING
from neurank.units.graph import Graph, Operation, Weight
from neurank.units.rules import CONVOLUTIONS, groups_of
from neurank.units.space import Chain, UnitSpace, unit_space
from neurank.units.trace import logits_of, trace

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
"""How far folded outputs may be from the head's, relative to the largest sum of weighed logits."""
ROUGH_TOLERANCE = 2e-2
"""The same for half precision, in which the folded weights are rounded."""

KEEPS_CONSTANTS = FLATTENING | {"alias", "clone", "contiguous", "detach", "dropout", "mean"}
"""What may stand behind the last layer, beside average pooling: linear, a constant stays itself."""

_THRESHOLDS = ("f1", "half")
_CONVERGED = 1e-11
_STEPS = 200


@dataclass(frozen=True, eq=False)
class Head:
    """Two outputs, "the rest" and "the class", as a linear function of logits.

    Parameters
    ----------
    weight : Tensor of float64, shape (2, classes)
        What the outputs make of each logit.
    bias : Tensor of float64, shape (2,)
        What is added.

    Raises
    ------
    MethodError
        Other types or shapes, or a number that is NaN or infinite.

    Examples
    --------
    >>> weight = torch.tensor([[0.0, 0.0, 0.0], [1.0, -0.5, -0.5]], dtype=torch.float64)
    >>> head = Head(weight, torch.tensor([0.0, -1.0], dtype=torch.float64))
    >>> head(torch.tensor([[4.0, 1.0, 1.0], [0.0, 2.0, 0.0]]))
    tensor([[ 0.,  2.],
            [ 0., -2.]], dtype=torch.float64)
    """

    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.weight.shape), tuple(self.bias.shape)
        types = {self.weight.dtype, self.bias.dtype}
        fits = self.weight.ndim == 2 and shapes == ((2, self.weight.shape[1]), (2,))
        if not fits or types != {torch.float64}:
            raise MethodError(
                f"a head of weights {shapes[0]} and biases {shapes[1]} in "
                f"{' and '.join(sorted(map(str, types)))} is none: give (2, classes) and (2,) in "
                "torch.float64"
            )
        if not bool(self.weight.isfinite().all() and self.bias.isfinite().all()):
            raise MethodError("a head's weights must be finite: one is NaN or infinite")

    @property
    def classes(self) -> int:
        """How many logits it reads."""
        return self.weight.shape[1]

    def __call__(self, logits: Tensor) -> Tensor:
        """Compute the two outputs, (examples, 2) in float64, of logits, (examples, classes).

        Raises
        ------
        ModelError
            There are not as many logits as the head reads.
        """
        if logits.ndim != 2 or logits.shape[1] != self.classes:
            raise ModelError(
                f"the head reads {self.classes} logits, and those given are "
                f"{tuple(logits.shape)}: use it with the network whose logits it was fitted to"
            )
        weight, bias = self.weight.to(logits.device), self.bias.to(logits.device)
        return logits.to(torch.float64) @ weight.T + bias


def fit_head(
    logits: Tensor, targets: Tensor, label: int, *, ridge: float = 1e-3, threshold: str = "f1"
) -> Head:
    """Fit the head that tells one class from the rest by a network's logits.

    Logistic regression: with logits z brought to mean 0 and standard deviation 1, class by class
    of the network (a logit that does not vary counts as 0), the score s = w·z + b minimises ::

        mean over examples of log(1 + exp(-y s)) + ridge / 2 · |w|²,   y = 1 for the class, else -1

    which is convex and has one minimum; Newton's method finds it in float64, so that the result
    depends on nothing else. Afterwards b is shifted so that calling "the class" what has a score
    above 0 gives the highest F1 on these examples; of several such shifts the smallest is taken,
    of those between two examples the one half way.

    Parameters
    ----------
    logits
        (examples, classes), of a network on examples whose labels are known.
    targets
        The label of each example, (examples,).
    label
        The class.
    ridge
        Weight of the penalty; a positive number. Without one there is no minimum where the logits
        separate the class from the rest.
    threshold
        Where the class begins: ``"f1"``, as said above, or ``"half"``, where the fitted
        probability is a half, without the shift.

    Returns
    -------
    Head
        Row 0 is 0, row 1 the score.

    Raises
    ------
    DataError
        The label is out of range, no example or every example is of the class, or the targets are
        not one whole label for each example.
    ModelError
        The logits are no (examples, classes) tensor, or one is NaN or infinite.
    MethodError
        `ridge` is not positive and finite or too small for Newton's method to end, or `threshold`
        is unknown.

    Notes
    -----
    A network of many classes compares a logit with the largest of the others, which no linear
    score can follow: a head may call classes less well than the network. Measure it, on examples
    that neither the network nor the head was fitted to.

    Examples
    --------
    >>> logits = torch.tensor([[3.0, 0.0], [2.0, 1.0], [1.0, 2.0], [0.0, 2.0]])
    >>> head = fit_head(logits, torch.tensor([0, 0, 1, 1]), label=1)
    >>> head(logits).argmax(dim=1).tolist()
    [0, 0, 1, 1]
    """
    _check_settings(ridge, threshold)
    own = _own(logits, targets, label)
    raw = logits.detach().cpu().to(torch.float64)
    mean, spread = raw.mean(dim=0), raw.std(dim=0, correction=0)
    # A logit that only varies as single precision rounds tells nothing; dividing would blow it up.
    scale = torch.where(spread > 1e-6 * raw.abs().amax(dim=0), spread, torch.inf)
    inputs = (raw - mean) / scale
    fitted = _logistic(inputs, own.to(torch.float64), float(ridge))
    cut = _f1_cut(inputs @ fitted[:-1] + fitted[-1], own) if threshold == "f1" else 0.0
    row = fitted[:-1] / scale
    bias = fitted[-1] - row @ mean - cut
    return Head(
        torch.stack([torch.zeros_like(row), row]), torch.stack([torch.zeros_like(bias), bias])
    )


def with_head(model: nn.Module, head: Head, data: Iterable[Batch]) -> nn.Module:
    """Copy a network and fold a head into the copy's last layer, so that it has two outputs.

    The logits must be what one linear layer or convolution gives, with nothing behind it but
    flattening, dropout and means over positions. That layer's weight W and bias b become
    ``head.weight @ W`` and ``head.weight @ b + head.bias``, computed in float64 and rounded once;
    a layer without a bias gets one. The copy can be ranked, condensed and retrained like any other
    network of two classes; its data are those of `relabelled`.

    Parameters
    ----------
    model
        The network. It is copied, and comes back exactly as it was.
    head
        For the network's logits, such as `fit_head` gives.
    data
        Batches ``(inputs, targets)``. On the first of them the copy is compared with the head
        applied to the network's own logits.

    Returns
    -------
    nn.Module
        The copy, with the training flags and ``requires_grad`` of the original.

    Raises
    ------
    CondenseError
        The logits are not those of one last layer, it is used twice or shares its weight, the head
        reads another number of logits, or the copy's outputs are not the head's.
    DataError, ModelError
        There is no batch, or the network cannot be copied, traced or run.

    Examples
    --------
    >>> import neurank as nr
    >>> model, batch = nr.zoo.digits_net(seed=0), torch.rand(20, 1, 8, 8)
    >>> targets = torch.arange(20) % 10
    >>> head = fit_head(model(batch), targets, label=3)
    >>> small = with_head(model, head, [(batch, targets)])
    >>> small.output, model.output
    (Linear(in_features=16, out_features=2, bias=True), \
Linear(in_features=16, out_features=10, bias=True))
    """
    check_weights(model)
    inputs = _first(data).to(device_of(model))
    copied = copy_of(model)  # with the training flags that it has now
    with evaluating(model):
        logits = repeatable_outputs(model, inputs)
        space = unit_space(trace(model, inputs), model)
    layer = _output_layer(space, model)
    if not head.classes == layer.width == logits.shape[1]:
        raise CondenseError(
            f"a head that reads {head.classes} logits cannot be folded into layer {layer.name!r}, "
            f"which has {layer.width} rows and gives {logits.shape[1]} logits: the three must be "
            "equal"
        )
    _fold(copied, layer, head)
    _check_outputs(copied, inputs, head, logits)
    return copied


def with_outputs(condensed: Condensed, outputs: int = 2) -> Condensed:
    """Note that a condensed network has other outputs than the architecture it was made of.

    To be called on what `neurank.condense` made of a network of `with_head`, before it is saved:
    `neurank.load` then narrows the output layer of what the original's factory builds.

    Parameters
    ----------
    condensed
        The network.
    outputs
        How many outputs it has.

    Raises
    ------
    CondenseError
        It has another number of outputs.

    Examples
    --------
    >>> import neurank as nr
    >>> data = [(torch.rand(20, 1, 8, 8), torch.arange(20) % 10)]
    >>> model = nr.zoo.digits_net(seed=0)
    >>> one = with_head(model, fit_head(model(data[0][0]), data[0][1], label=3), data)
    >>> plan = nr.Plan.from_keep({"fc2": (0, 3, 5)}, {"fc2": 16})
    >>> small = nr.condense(one, plan, list(relabelled(data, 3)))
    >>> with_outputs(small).origin.outputs
    2
    """
    found = probe(condensed.model, condensed.origin).shape[-1]
    if found != outputs:
        raise CondenseError(
            f"the condensed network has {found} outputs, and {outputs} were to be noted: fold a "
            "head in first, with with_head, then condense"
        )
    return replace(condensed, origin=replace(condensed.origin, outputs=found))


def narrow_outputs(model: nn.Module, space: UnitSpace, outputs: int) -> None:
    """Give a network's output layer so many rows, of zeros, and a bias; in place.

    What `with_head` does to the shapes, for a file's weights to be loaded afterwards.

    Raises
    ------
    CondenseError
        The network's outputs are not those of one last layer.
    """
    layer = _output_layer(space, model)
    before = named_tensors(model)[layer.weight]
    weight = torch.zeros(outputs, *before.shape[1:], dtype=before.dtype, device=before.device)
    replace_rows(model, (layer.weight, weight), (_bias(layer, model), weight.new_zeros(outputs)))


@dataclass(frozen=True, eq=False)
class OneAgainstRest:
    """Examples in memory with two labels: 1 for the class, 0 for the rest.

    Iterating gives the batches in a fixed order, each a copy; training shuffles the examples, as
    it does with a `neurank.data.Split`.

    Attributes
    ----------
    inputs : (examples, ...).
    targets : (examples,), of int64.
    batch_size : examples per batch; the last batch may have fewer.
    """

    inputs: Tensor
    targets: Tensor
    batch_size: int

    def __len__(self) -> int:
        """Give the number of batches."""
        return math.ceil(len(self.targets) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches."""
        for start in range(0, len(self.targets), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.inputs[rows].clone(), self.targets[rows].clone()


@dataclass(frozen=True, eq=False)
class BatchesAgainstRest:
    """Batches with two labels, 1 for the class and 0 for the rest, read anew at every pass.

    Attributes
    ----------
    source : batches ``(inputs, targets)``; if it repeats, so do these.
    label : the class.
    """

    source: Iterable[Batch]
    label: int

    def __len__(self) -> int:
        """Give the number of batches, if the source knows it; a TypeError if not."""
        source: Any = self.source
        return len(source)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the source's batches with their new labels."""
        for batch in self.source:
            inputs, targets = _pair(batch)
            yield inputs, _against_rest(targets, self.label)


def relabelled(data: Iterable[Batch], label: int) -> OneAgainstRest | BatchesAgainstRest:
    """Give the same examples with the targets 1, of class `label`, and 0, of any other.

    Parameters
    ----------
    data
        Batches ``(inputs, targets)``. Examples in memory (anything with ``inputs``, ``targets``
        and ``batch_size``, such as a `neurank.data.Split`) stay so, and training shuffles them.
    label
        The class.

    Raises
    ------
    DataError
        The label is no whole number of 0 or more, or targets are not one whole label for each
        example; of batches that are not in memory, when they are read.

    Examples
    --------
    >>> batches = relabelled([(torch.zeros(3, 2), torch.tensor([4, 0, 4]))], label=4)
    >>> [targets.tolist() for _, targets in batches]
    [[1, 0, 1]]
    """
    number = whole(label)
    if number is None or number < 0:
        raise DataError(f"the class {label!r} is no whole number of 0 or more: give its label")
    if isinstance(data, InMemory):
        inputs, targets = _pair((data.inputs, data.targets))
        return OneAgainstRest(inputs, _against_rest(targets, number), data.batch_size)
    return BatchesAgainstRest(data, number)


def _pair(batch: Any) -> Batch:
    is_pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not is_pair or not all(isinstance(it, Tensor) for it in batch):
        raise DataError(
            f"a batch of the data is a {type(batch).__name__}, where a pair of two tensors, "
            "(inputs, targets), is needed"
        )
    inputs, targets = batch
    _check_targets(targets, len(inputs))
    return inputs, targets


def _check_targets(targets: Tensor, examples: int) -> None:
    is_whole = not (targets.is_floating_point() or targets.dtype == torch.bool)
    if targets.shape != (examples,) or not is_whole:
        raise DataError(
            f"the targets are {targets.dtype} of shape {tuple(targets.shape)} for {examples} "
            "examples: give one whole label per example"
        )


def _against_rest(targets: Tensor, label: int) -> Tensor:
    return (targets == label).to(torch.int64)


def _first(data: Iterable[Batch]) -> Tensor:
    for batch in data:
        inputs, _ = _pair(batch)
        return inputs
    raise DataError("the data gives no batch at all: give one that the folded head is checked on")


def _check_settings(ridge: float, threshold: str) -> None:
    if not 0 < real(ridge) < math.inf:
        raise MethodError(
            f"ridge={ridge!r} is no positive number: without a penalty there is no best head where "
            "the logits separate the class; give one such as 1e-3"
        )
    if threshold not in _THRESHOLDS:
        raise MethodError(f"threshold={threshold!r} is unknown: give {' or '.join(_THRESHOLDS)}")


def _own(logits: Tensor, targets: Tensor, label: int) -> Tensor:
    """Check what a head is fitted to; say which examples are of the class, (examples,) bool."""
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ModelError(
            f"the logits are {logits.dtype} of shape {tuple(logits.shape)}: give the network's "
            "outputs, (examples, classes)"
        )
    _check_targets(targets, len(logits))
    number = whole(label)
    if number is None or not 0 <= number < logits.shape[1]:
        raise DataError(
            f"the class {label!r} has no logit among {logits.shape[1]}: give a label of 0 to "
            f"{logits.shape[1] - 1}"
        )
    if not bool(logits.isfinite().all()):
        raise ModelError("a logit is NaN or infinite: check the network's weights and inputs")
    own = (targets == number).cpu()
    count = int(own.sum())
    if count in {0, len(own)}:
        raise DataError(
            f"{count} of {len(own)} examples are of class {number}: a head is fitted to examples "
            "of the class and of others"
        )
    return own


def _logistic(inputs: Tensor, own: Tensor, ridge: float) -> Tensor:
    """Minimise the penalised logistic loss by damped Newton steps; (classes + 1,), bias last.

    `inputs` (examples, classes) are standardised, `own` (examples,) is 1 or 0.
    """
    design = functional.pad(inputs, (0, 1), value=1.0)
    penalty = torch.full((design.shape[1],), ridge, dtype=torch.float64)
    penalty[-1] = 0.0
    share = own.mean()
    found = torch.zeros_like(penalty)
    found[-1] = (share / (1 - share)).log()  # the best bias of an otherwise empty head
    for _ in range(_STEPS):
        probabilities = (design @ found).sigmoid()
        gradient = design.T @ (probabilities - own) / len(own) + penalty * found
        slope = float(gradient.abs().max())
        if slope <= _CONVERGED:
            return found
        slack = probabilities * (1 - probabilities) / len(own)
        curvature = (design * slack[:, None]).T @ design + torch.diag(penalty)
        step = torch.linalg.solve(curvature, gradient)  # lstsq gives other bits at every call
        found = _stepped(found, step, design, own, ridge)
    raise MethodError(
        f"the head is not found in {_STEPS} steps (a slope of {slope:.0e} is left): give a larger "
        f"ridge than {ridge:g}"
    )


def _stepped(found: Tensor, step: Tensor, design: Tensor, own: Tensor, ridge: float) -> Tensor:
    """Take a Newton step, halved until the loss does not grow beyond its rounding."""
    before = _loss(found, design, own, ridge)
    for halvings in range(50):
        candidate = found - step * 0.5**halvings
        if _loss(candidate, design, own, ridge) <= before + 1e-14 * abs(before):
            return candidate
    return found


def _loss(found: Tensor, design: Tensor, own: Tensor, ridge: float) -> float:
    scores = design @ found
    penalty = ridge / 2 * float(found[:-1] @ found[:-1])
    return float((functional.softplus(scores) - own * scores).mean()) + penalty


def _f1_cut(scores: Tensor, own: Tensor) -> float:
    """Find the cut above which to call examples the class for the highest F1, nearest to 0."""
    ordered, order = scores.sort(descending=True)
    hits = own[order].cumsum(dim=0).to(torch.float64)
    called = torch.arange(1, len(scores) + 1)
    f1 = 2 * hits / (called + own.sum())
    below = functional.pad(ordered[1:], (0, 1), value=float(ordered[-1]) - 2.0)
    f1[ordered == below] = -1.0  # nothing can be cut between equal scores
    cuts = (ordered + below) / 2
    best = cuts[f1 == f1.max()]
    return float(best[best.abs().argmin()])


def _output_layer(space: UnitSpace, model: nn.Module) -> Chain:
    """Return the one layer whose rows are the logits, or say why there is none."""
    found = [it for it in space.layers.values() if isinstance(it, Chain) and it.is_output]
    if len(found) != 1:
        raise CondenseError(
            "a head can only be folded into a layer whose outputs are the logits, and there is "
            f"none: the logits come from {_source(space.graph)}. Let the network end in a linear "
            "layer or a convolution, flattened, that is used once"
        )
    (layer,) = found
    for operation in layer.bridge:
        if not _keeps_constants(operation):
            raise CondenseError(
                f"a head cannot be folded into layer {layer.name!r}: {operation.kind} stands "
                f"between it and the logits ({operation.line}), so that they are no linear "
                "function of what it reads. Let the network end in the layer, its activations "
                "before it"
            )
    _refuse_shared(layer, model)
    return layer


def _source(graph: Graph) -> str:
    """Say which operation makes the logits, but for what only passes them on."""
    operation = graph.by_name.get(graph.output)
    while operation is not None and operation.refs:
        if not (_keeps_constants(operation) or operation.kind == "getitem"):
            return f"{operation.kind} ({operation.line})"
        operation = graph.by_name.get(operation.refs[0])
    return "the input itself"


def _keeps_constants(operation: Operation) -> bool:
    kind = operation.kind
    return kind in KEEPS_CONSTANTS or "avg_pool" in kind


def _refuse_shared(layer: Chain, model: nn.Module) -> None:
    """Refuse a layer whose rows cannot be replaced: grouped, computed, or held elsewhere too."""
    operation = layer.producer
    grouped = operation.kind in CONVOLUTIONS and groups_of(operation) > 1
    if grouped or not isinstance(operation.args[1], Weight):
        reason = "its outputs are in groups" if grouped else "its weight is computed"
    elif any(_holders(name, model) > 1 for name in operation.weights):
        reason = "its weight or bias belongs to another module, too"
    else:
        return
    raise CondenseError(
        f"a head cannot be folded into layer {layer.name!r}: {reason} ({operation.line}). Let the "
        "network end in a layer with a weight of its own"
    )


def _holders(name: str, model: nn.Module) -> int:
    """Count the modules that hold a tensor."""
    tensor = named_tensors(model)[name]
    return sum(
        any(it is tensor for it in (*module._parameters.values(), *module._buffers.values()))
        for module in model.modules()
    )


def _bias(layer: Chain, model: nn.Module) -> str:
    """Return the dotted name of the layer's bias, there or to be made."""
    try:
        return bias_of(layer.producer, model)
    except CondenseError as error:
        raise CondenseError(
            f"a head cannot be folded into layer {layer.name!r}: it has no bias and cannot be "
            f"given one ({layer.producer.line}). Build it with a bias"
        ) from error


def _fold(model: nn.Module, layer: Chain, head: Head) -> None:
    """Replace the rows of a copy's output layer."""
    tensors, bias_name = named_tensors(model), _bias(layer, model)
    before = tensors[layer.weight].detach()
    columns = before.cpu().to(torch.float64).flatten(1)
    bias = tensors.get(bias_name)
    shift = 0 if bias is None else head.weight @ bias.detach().cpu().to(torch.float64)
    weight = (head.weight @ columns).reshape(2, *before.shape[1:])
    replace_rows(
        model,
        (layer.weight, weight.to(before)),
        (bias_name, (shift + head.bias).to(before)),
    )


def _check_outputs(copied: nn.Module, inputs: Tensor, head: Head, logits: Tensor) -> None:
    """Compare the copy's outputs with the head's, (examples, 2)."""
    wanted = head(logits)
    try:
        with evaluating(copied), torch.inference_mode():
            found = logits_of(copied(inputs.clone()))
    except Exception as error:  # whatever the user's forward pass raises
        raise CondenseError(
            f"the network does not run with two outputs ({error}): it may hold the number of its "
            "classes as a number, as in x.view(-1, 10); write x.flatten(1) instead"
        ) from error
    if found.shape != wanted.shape:
        raise CondenseError(
            f"the network gives {tuple(found.shape)} with a head of two outputs, where "
            f"{tuple(wanted.shape)} is wanted: its forward pass depends on the number of classes"
        )
    apart = float((found.to(torch.float64) - wanted).abs().max())
    # Logits that are weighed against each other round as what they are, not as what is left.
    sizes = Head(head.weight.abs(), head.bias.abs())(logits.abs())
    relative = apart / (float(sizes.max()) or 1.0)
    allowed = TOLERANCE.get(logits.dtype, ROUGH_TOLERANCE)
    if not relative <= allowed:
        raise CondenseError(
            f"the network with the head folded in differs from the head on its logits by "
            f"{relative:.1e} of the largest sum of weighed logits, and {allowed:.0e} is allowed: "
            "something behind the last layer is not linear"
        )
