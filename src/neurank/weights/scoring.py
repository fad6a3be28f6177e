"""The entry point: score the single weights of a trained network."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from neurank.errors import MethodError
from neurank.files import Json, as_json
from neurank.observe.examples import Batch
from neurank.observe.observer import model_digest
from neurank.observe.weight_loss import Loss, loss_name, watching_loss
from neurank.weights.methods import Method
from neurank.weights.scores import WeightScores

Direction = Literal["pruning", "sensitivity"]
"""Where a weight would move: to 0, or a step towards 0."""

STEP = 1e-3


def score(
    model: nn.Module,
    data: Iterable[Batch],
    method: Method,
    *,
    parameters: Sequence[str] | None = None,
    direction: Direction = "pruning",
    step: float = STEP,
    loss: Loss | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> WeightScores:
    """Score every weight of some parameters: higher is more important, signed, never normalised.

    Parameters
    ----------
    model : any module that takes one tensor and returns logits (examples, classes), or a mapping
        with the key "logits". It is run in evaluation mode and comes back exactly as it was,
        gradients included; parameters that require none are scored like the others.
    data : batches of (inputs, targets): a `DataLoader`, a split of `neurank.data.load`, a list.
        It must give the same batches at every pass; two passes are compared.
    method : `Magnitude`, `Taylor1`, `Taylor2`, `Hessian`, `LossChange`, `Random`.
    parameters : dotted names, biases included if named; None is every parameter with two axes or
        more, that is all weights, and no biases or scales. Tied weights are one parameter, under
        their first name.
    direction : what Δw is in a method's formula. "pruning" is Δw = -w, a weight set to 0;
        "sensitivity" is Δw = -ε sign w, a weight brought closer to 0.
    step : ε. Table 2.1 of the thesis leaves the ε before its scores away: they are these divided
        by ε, with λ = 1.
    loss : `(outputs, targets) -> (examples,)`; None is the cross-entropy. The mean over all
        examples counts.
    seed : every random draw follows from it.
    device : where to compute; None is where the model is. The model itself is not moved.
    progress : show progress bars.

    Returns
    -------
    WeightScores
        Scores and provenance. The derivatives and loss changes of a parameter that never runs are
        exactly 0, and ``provenance["never_run"]`` of `Taylor1`, `Taylor2` and `LossChange` names
        it.

    Raises
    ------
    MethodError
        If method, direction, step, seed or loss is none.
    DataError, ModelError
        If data, model or parameter names cannot be used: empty data, unknown names, weights in
        half precision, a loss or a derivative that is NaN or infinite.

    Example
    -------
    >>> import neurank as nr
    >>> from neurank import weights
    >>> model = nr.zoo.digits_net(seed=0)
    >>> data = nr.data.load("digits").validation.first(100)
    >>> scores = weights.score(model, data, weights.Taylor1(), progress=False)
    >>> list(scores)
    ['conv1.weight', 'conv2.weight', 'fc1.weight', 'fc2.weight', 'output.weight']
    """
    if not isinstance(method, Method) or isinstance(method, type):
        raise MethodError(
            f"method={method!r} scores no weights: pass an instance, such as Magnitude()"
        )
    _check(direction, step, seed)
    with watching_loss(
        model, data, parameters=parameters, loss=loss, device=device, progress=progress
    ) as watched:
        moves = {name: _move(weight, direction, step) for name, weight in watched.weights.items()}
        started = time.perf_counter()
        found = method.score(watched, moves, seed)
        seconds = round(time.perf_counter() - started, 4)
        provenance: dict[str, Json] = {
            "method": {"name": type(method).__name__, "parameters": as_json(asdict(method))},
            "direction": direction,
            "step": step if direction == "sensitivity" else None,
            "loss": loss_name(watched.loss),
            "seed": seed,
            "model": model_digest(model),
            "model_class": type(model).__qualname__,
            "data": {"digest": watched.examples.digest, "examples": watched.examples.count},
            "device": str(watched.examples.device),
            "seconds": seconds,
            "versions": {"neurank": version("neurank"), "torch": str(torch.__version__)},
            **found.record,
        }
    return WeightScores(found.scores, provenance)


def _check(direction: str, step: float, seed: int) -> None:
    if direction not in get_args(Direction):
        raise MethodError(
            f"direction={direction!r}: give one of {', '.join(map(repr, get_args(Direction)))}"
        )
    is_number = isinstance(step, int | float) and not isinstance(step, bool)
    if not is_number or not 0 < step < math.inf:
        raise MethodError(f"step={step!r}: a positive number is needed, such as {STEP}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise MethodError(f"seed={seed!r}: a whole number from 0 on is needed")


def _move(weight: Tensor, direction: Direction, step: float) -> Tensor:
    """Return Δw, float64."""
    exact = weight.to(torch.float64)
    return -exact if direction == "pruning" else -step * exact.sign()
