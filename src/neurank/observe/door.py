"""What model and data must be before anything is ranked; each check names the remedy."""

import torch
from torch import Tensor, nn

from neurank.errors import DataError, ModelError
from neurank.observe.examples import Batch, Examples
from neurank.observe.execution import Runner
from neurank.units.trace import logits_of

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
"""How far the traced pass may be from the module's own, relative to the largest output."""
ROUGH_TOLERANCE = 2e-2
"""The same for half precision."""


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's parameters are; the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def check_labels(examples: Examples, outputs: Tensor) -> None:
    """Refuse labels for which the model has no output."""
    if examples.largest_label >= outputs.shape[1]:
        raise DataError(
            f"the data has the label {examples.largest_label}, but the model has "
            f"{outputs.shape[1]} outputs, classes 0 to {outputs.shape[1] - 1}: check the labels, "
            "or that this is the model for this data"
        )


def check_weights(model: nn.Module) -> None:
    """Refuse wrappers that run the network elsewhere, and weights that no score can come from."""
    for name, module in model.named_modules():
        is_compiled = hasattr(module, "_orig_mod")
        if is_compiled or isinstance(module, nn.DataParallel):
            inner = "_orig_mod" if is_compiled else "module"
            where = f"its part {name!r}" if name else "the model"
            raise ModelError(
                f"{where} is wrapped in {type(module).__name__}, inside which units cannot be "
                f"switched off: pass the network itself, which is the wrapper's .{inner} and "
                "shares its weights"
            )
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(
                f"the parameter {name!r} holds NaN or infinite values: nothing can be ranked by "
                "what it computes. Load sound weights, or train again with a smaller learning rate"
            )


def check_rows_apart(model: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
    """Refuse a model whose answer for an example hangs on the examples beside it.

    Coalitions of one example are run as one batch, so what a unit is worth would hang on them too.
    """
    twice = inputs[:1].repeat_interleave(2, dim=0)
    try:
        with torch.inference_mode():
            found = logits_of(model(twice))
    except Exception as error:
        raise ModelError(
            f"the model runs on a batch of {len(inputs)} examples but not on 2 ({error}): it may "
            "hold the batch size as a number. Write x.view(x.size(0), ...) or x.flatten(1) instead"
        ) from error
    if not _close(found, outputs[:1].expand_as(found)):
        raise ModelError(
            "the model's answer for an example changes with the other examples of its batch: "
            "give BatchNorm running statistics (track_running_stats=True), and branch on nothing "
            "and compute nothing over the whole batch in forward()"
        )


def _close(found: Tensor, wanted: Tensor) -> bool:
    return _relative_error(found, wanted) <= TOLERANCE.get(wanted.dtype, ROUGH_TOLERANCE)


def _relative_error(found: Tensor, wanted: Tensor) -> float:
    scale = float(wanted.abs().max()) or 1.0
    return float((found - wanted).abs().max()) / scale


def repeatable_outputs(model: nn.Module, inputs: Tensor, *, any_shape: bool = False) -> Tensor:
    """Run the model twice on one batch; refuse what is random, not finite or not logits.

    With `any_shape` any tensor will do whose first axis is the examples, such as maps.
    """
    with torch.inference_mode():
        # Copies, since forward() may overwrite its input, which is the user's.
        first, second = (logits_of(model(inputs.clone())) for _ in range(2))
    is_right = isinstance(first, Tensor) and (any_shape or first.ndim == 2)
    if not is_right or len(first) != len(inputs):
        shape = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ModelError(
            f"the model returns {shape} for {len(inputs)} examples: logits of shape "
            f"({len(inputs)}, classes) are needed"
        )
    _check_finite(first, "on the first batch")
    if not torch.equal(first, second):
        raise ModelError(
            "the model gives two different outputs for the same inputs, although it is in "
            "evaluation mode: turn off a dropout that is always on, or noise in forward()"
        )
    outputs: Tensor = first
    return outputs


def _check_finite(outputs: Tensor, where: str) -> None:
    if not bool(torch.isfinite(outputs).all()):
        raise ModelError(
            f"the model's outputs are NaN or infinite {where}, with every unit on: check the "
            "weights and the scale of the inputs"
        )


def check_trace(model: nn.Module, runner: Runner, examples: Examples) -> None:
    """Compare the traced pass with the module itself on the first and the last batch."""
    batches = [inputs for inputs, _ in _ends(examples)]
    for inputs in batches:
        with torch.inference_mode():
            wanted = logits_of(model(inputs.to(device_of(model)).clone())).to(inputs.device)
            (found,) = runner.forward(inputs)
        which = "last" if inputs is batches[-1] else "first"
        _check_finite(wanted, f"on the {which} batch")
        if not _close(found, wanted):
            error = _relative_error(found, wanted)
            raise ModelError(
                f"the traced forward pass differs from the model by {error:.1e} of its largest "
                "output: forward() does something that depends on the data or on hidden state. "
                "Write it with tensor operations, or rank with removal='parameters'"
            )


def _ends(examples: Examples) -> list[Batch]:
    first = last = None
    for batch in examples:
        first = first or batch
        last = batch
    assert first is not None
    assert last is not None
    return [first] if last is first else [first, last]
