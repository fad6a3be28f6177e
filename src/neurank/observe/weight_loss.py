"""The mean loss as a function of some weights: its value, gradient and Hessian-vector products.

The model itself is run, with other tensors in the place of its own (`torch.func.functional_call`),
so its parameters, their gradients and what requires one are never touched.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from neurank.errors import MethodError, ModelError
from neurank.modes import evaluating
from neurank.observe.door import (
    check_labels,
    check_rows_apart,
    check_weights,
    device_of,
    repeatable_outputs,
)
from neurank.observe.examples import Batch, Examples, check_examples
from neurank.progress import track
from neurank.units.trace import logits_of

Loss = Callable[[Tensor, Tensor], Tensor]
"""A per-example loss: `(outputs, targets) -> (examples,)`, lower is better."""

Tensors = Mapping[str, Tensor]
"""Tensors by dotted names of parameters."""

HALF = (torch.float16, torch.bfloat16)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute minus the log probability of the target class per example, float64.

    Example:
    -------
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([0])).exp()
    tensor([2.], dtype=torch.float64)
    """
    return functional.cross_entropy(outputs.to(torch.float64), targets, reduction="none")


@dataclass(frozen=True)
class WeightLoss:
    """A model's mean loss on its data, to be asked as a function of some of its weights.

    Attributes
    ----------
    model : the user's module; it is in evaluation mode while it is watched.
    examples : the checked data.
    tensors : all parameters and buffers by dotted name, where the examples are, detached; of a
        tensor with several names the first.
    names : the parameters that are asked about.
    loss : the loss of each example.
    progress : whether to show progress bars.
    """

    model: nn.Module
    examples: Examples
    tensors: Tensors
    names: tuple[str, ...]
    loss: Loss
    progress: bool

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters that are asked about."""
        return {name: self.tensors[name] for name in self.names}

    def losses(self, outputs: Tensor, targets: Tensor, where: str) -> Tensor:
        """Apply the loss and check what comes back: (examples,), finite, float64.

        Raises
        ------
        MethodError
            If the loss returns another shape than one number per example.
        ModelError
            If a number is NaN or infinite, naming `where`.
        """
        found = self.loss(outputs, targets)
        if not isinstance(found, Tensor) or found.shape != targets.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise MethodError(
                f"the loss {loss_name(self.loss)} returned {shape} where one number per example, "
                f"{tuple(targets.shape)}, is needed: do not average inside it (reduction='none')"
            )
        if not bool(torch.isfinite(found).all()):
            raise ModelError(
                f"the loss {loss_name(self.loss)} is NaN or infinite {where}: check the weights "
                "and the scale of the inputs"
            )
        return found.to(torch.float64)

    def value(self, replaced: Tensors | None = None) -> float:
        """Compute the mean loss with some parameters replaced by other tensors."""
        total = 0.0
        with torch.no_grad():
            for number, (inputs, targets) in enumerate(self.examples, start=1):
                outputs = self.outputs(replaced or {}, inputs)
                total += float(self.losses(outputs, targets, f"on batch {number}").sum())
        return total / self.examples.count

    def gradient(self) -> dict[str, Tensor | None]:
        """Compute the gradient of the mean loss, float64; None for a weight that never counts."""
        found: dict[str, Tensor | None] = dict.fromkeys(self.names)
        for number, inputs, targets in self._batches("gradients"):
            leaves = self._leaves()
            with torch.enable_grad():
                mean = self._part(leaves, inputs, targets, number)
                gradients = _derivatives(mean, list(leaves.values()))
            self._add(found, gradients, number)
        return found

    def times_hessian(self, vector: Tensors) -> dict[str, Tensor]:
        """Compute the Hessian of the mean loss times a vector, in one pass over the data.

        The gradient is differentiated once more, backwards. A forward derivative of the gradient
        gives the same; it was never faster (by 0 to 50 % slower on perceptrons and LeNets) and is
        known for fewer operations.

        Parameters
        ----------
        vector : a tensor of its shape for each of the parameters.

        Returns
        -------
        dict
            Likewise, float64; rows and columns are those of the watched parameters alone.
        """
        found: dict[str, Tensor | None] = dict.fromkeys(self.names)
        for number, inputs, targets in self._batches("Hessian-vector products"):
            leaves = self._leaves()
            with torch.enable_grad(), _twice_differentiable():
                gradients = self._differentiable_gradient(leaves, inputs, targets, number)
                pairs = zip(self.names, gradients, strict=True)
                slope = sum(
                    ((it * vector[name].to(it)).sum() for name, it in pairs if it is not None),
                    torch.zeros((), device=inputs.device),
                )
                products = _derivatives(slope, list(leaves.values()))
            self._add(found, products, number)
        return _filled(found, self.weights)

    def hessian_rows(self) -> Iterator[tuple[int, Tensor]]:
        """Yield rows of the Hessian of the mean loss, batch after batch.

        Yields
        ------
        tuple
            The number of a weight, counting all parameters in turn, and the row that a batch adds
            for it, (weights,) float64; over the batches each number comes once per batch.
        """
        for number, inputs, targets in self._batches("Hessian"):
            leaves = self._leaves()
            with torch.enable_grad(), _twice_differentiable():
                gradients = self._differentiable_gradient(leaves, inputs, targets, number)
                place = 0
                for name, gradient in zip(self.names, gradients, strict=True):
                    count = leaves[name].numel()
                    if gradient is not None and gradient.requires_grad:
                        flat = gradient.reshape(-1)
                        for at in range(count):
                            row = _derivatives(flat[at], list(leaves.values()))
                            full = _filled(dict(zip(self.names, row, strict=True)), self.weights)
                            self._check_finite(full, number)
                            yield place + at, torch.cat([full[it].reshape(-1) for it in self.names])
                    place += count

    def outputs(self, replaced: Tensors, inputs: Tensor) -> Tensor:
        """Run the model on inputs with some parameters replaced."""
        # A copy, since forward() may overwrite its input, which is the user's.
        found = functional_call(self.model, {**self.tensors, **replaced}, (inputs.clone(),))
        outputs: Tensor = logits_of(found)
        return outputs

    def _leaves(self) -> dict[str, Tensor]:
        """Return copies that gradients are taken of, so that frozen parameters have one too."""
        return {name: it.clone().requires_grad_() for name, it in self.weights.items()}

    def _part(self, leaves: Tensors, inputs: Tensor, targets: Tensor, number: int) -> Tensor:
        """Return what a batch adds to the mean loss."""
        outputs = self.outputs(leaves, inputs)
        return self.losses(outputs, targets, f"on batch {number}").sum() / self.examples.count

    def _differentiable_gradient(
        self, leaves: Tensors, inputs: Tensor, targets: Tensor, number: int
    ) -> list[Tensor | None]:
        mean = self._part(leaves, inputs, targets, number)
        return _derivatives(mean, list(leaves.values()), again=True)

    def _batches(self, label: str) -> Iterator[tuple[int, Tensor, Tensor]]:
        batches = enumerate(self.examples, start=1)
        total = len(self.examples)
        for number, (inputs, targets) in track(
            batches, label=label, total=total, show=self.progress
        ):
            yield number, _plain(inputs), _plain(targets)

    def _add(
        self, sums: dict[str, Tensor | None], added: Sequence[Tensor | None], number: int
    ) -> None:
        """Add to the sums in float64; what no batch has counted with stays None."""
        for name, part in zip(self.names, added, strict=True):
            if part is None:
                continue
            self._check_finite({name: part}, number)
            before = sums[name]
            exact = part.detach().to(torch.float64)
            sums[name] = exact if before is None else before + exact

    def _check_finite(self, found: Tensors, number: int) -> None:
        for name, part in found.items():
            if not bool(torch.isfinite(part).all()):
                raise ModelError(
                    f"a derivative of the loss with respect to {name!r} is NaN or infinite on "
                    f"batch {number}: check the weights and the scale of the inputs, and that "
                    "forward() has no square root of 0 or the like"
                )


@contextmanager
def watching_loss(
    model: nn.Module,
    data: Iterable[Batch],
    *,
    parameters: Sequence[str] | None,
    loss: Loss | None,
    device: str | torch.device | None,
    progress: bool,
) -> Iterator[WeightLoss]:
    """Watch a model's loss for the length of a `with` block, in evaluation mode.

    The arguments are those of `neurank.weights.score`. Afterwards flags, buffers and random state
    are what they were.

    Raises
    ------
    MethodError
        If `loss` is none.
    DataError, ModelError
        If data, model or parameter names cannot be used.
    """
    if isinstance(loss, type) or not (loss is None or callable(loss)):
        raise MethodError(
            f"loss={loss!r} is not a loss: pass a function (outputs, targets) -> (examples,), or "
            "None for the cross-entropy"
        )
    names = choose_parameters(model, parameters)
    with evaluating(model):
        check_weights(model)
        examples = check_examples(data, _device(model, device))
        inputs, _ = next(iter(examples))
        own = inputs.to(device_of(model))
        outputs = repeatable_outputs(model, own, any_shape=loss is not None)
        if loss is None:
            check_labels(examples, outputs)
        check_rows_apart(model, own, outputs)
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        tensors = {name: _plain(it.detach().to(examples.device)) for name, it in named.items()}
        yield WeightLoss(model, examples, tensors, names, loss or cross_entropy, progress)


def choose_parameters(model: nn.Module, parameters: Sequence[str] | None) -> tuple[str, ...]:
    """Return the parameters that are named, or all with two axes or more, checked.

    Raises
    ------
    ModelError
        A name is unknown, given twice, or another name of a tensor; there is none; weights are in
        half precision.

    Example:
    -------
    >>> choose_parameters(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), None)
    ('0.weight',)
    """
    known = dict(model.named_parameters())
    for name, parameter in known.items():
        if parameter.dtype in HALF or parameter.is_complex():
            raise ModelError(
                f"the parameter {name!r} is {str(parameter.dtype).removeprefix('torch.')}: what "
                "one weight does to the loss is lost in its rounding. Score a copy in single "
                "precision, copy.deepcopy(model).float()"
            )
    if parameters is None:
        chosen = [name for name, parameter in known.items() if parameter.ndim >= 2]
        if not chosen:
            raise ModelError(
                "the model has no parameter with two axes or more, and others are scored by name "
                f"only: name some of {_listed(known)} as parameters=[...]"
            )
        return tuple(chosen)
    if isinstance(parameters, str):
        raise ModelError(f"parameters={parameters!r} is one name: write [{parameters!r}]")
    chosen = list(parameters)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ModelError(
            f"parameters={chosen} names none, or one twice: name each once, or pass None for all "
            "with two axes or more"
        )
    for name in chosen:
        if name not in known:
            raise ModelError(_unknown(name, model, known))
    return tuple(chosen)


def loss_name(loss: Loss) -> str:
    """Describe a loss for the records.

    Example:
    -------
    >>> loss_name(cross_entropy)
    'cross_entropy'
    """
    return str(getattr(loss, "__qualname__", repr(loss)))


def _unknown(name: str, model: nn.Module, known: Mapping[str, nn.Parameter]) -> str:
    everything = dict(model.named_parameters(remove_duplicate=False))
    if name in everything:
        first = next(it for it, parameter in known.items() if parameter is everything[name])
        return (
            f"the parameter {name!r} is the same tensor as {first!r}: tied weights are scored once "
            f"and change wherever they are read. Name {first!r}"
        )
    return f"the model has no parameter {name!r}: it has {_listed(known)}"


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:20]) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")


def _device(model: nn.Module, device: str | torch.device | None) -> torch.device:
    return device_of(model) if device is None else torch.device(device)


def _derivatives(
    of: Tensor, leaves: Sequence[Tensor], *, again: bool = False
) -> list[Tensor | None]:
    """Differentiate; None for leaves on which it does not depend."""
    if not of.requires_grad:
        return [None] * len(leaves)
    found = torch.autograd.grad(
        of, leaves, create_graph=again, retain_graph=True, allow_unused=True
    )
    return list(found)


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Let attention be computed in steps: its fused forms can be differentiated once only."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def _filled(found: Mapping[str, Tensor | None], weights: Tensors) -> dict[str, Tensor]:
    """Put zeros where nothing depends on a weight."""
    filled = {}
    for name, weight in weights.items():
        part = found[name]
        zeros = torch.zeros_like(weight, dtype=torch.float64)
        filled[name] = zeros if part is None else part.detach().to(torch.float64)
    return filled


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may keep, which one made in inference mode is not."""
    return tensor.clone() if tensor.is_inference() else tensor
