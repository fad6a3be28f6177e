"""The check that the condensed network is the masked one: same outputs on real batches.

The masked network is the original with every unit that the plan removes switched off at once. What
its consumers receive instead is what the ORIGINAL network gives: 0, or the unit's mean there, or
the constant of its BatchNorm there; the mean of a later layer does not follow what the removal of
earlier units does to it.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from neurank.condense.kept import Plan
from neurank.condense.surgery import cut_layers
from neurank.errors import CondenseError
from neurank.modes import evaluating
from neurank.observe.execution import Runner
from neurank.observe.masking import switched_off
from neurank.units.space import UnitSpace
from neurank.units.trace import logits_of

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
"""How far condensed and masked outputs may differ, relative to the largest masked output."""
ROUNDED = 1e-3
"""A difference in single precision below this may be rounding, which double precision tells."""
ROUGH_TOLERANCE = 2e-2
"""The same for half precision, whose sums round at every step."""


@dataclass(frozen=True)
class Check:
    """How far the condensed network is from the masked one.

    Attributes
    ----------
    max_error : max |condensed − masked| / max |masked| over the logits of all examples compared; in
        the model's own precision, or, where that rounds more than is allowed, in double precision.
    tolerance : what it was allowed to be.
    examples : how many examples were compared.
    seconds : how long it took, wall clock.
    rounded : the same in the model's own precision, whatever it is; None if it was not noted.
    """

    max_error: float
    tolerance: float
    examples: int
    seconds: float
    rounded: float | None = None

    def __str__(self) -> str:
        """Say it in a line."""
        if math.isinf(self.tolerance):
            return (
                f"condensed differs from masked by {self.max_error:.1e} of the largest output, "
                f"since constants were folded in front of padding ({self.examples} examples)"
            )
        if self.rounded is not None and self.rounded > self.tolerance:
            return (
                f"condensed = masked to {self.max_error:.1e} of the largest output in double "
                f"precision, {self.rounded:.1e} in single ({self.examples} examples, "
                f"{self.tolerance:.0e} allowed)"
            )
        return (
            f"condensed = masked to {self.max_error:.1e} of the largest output "
            f"({self.examples} examples, {self.tolerance:.0e} allowed)"
        )


def masked_logits(
    plan: Plan,
    space: UnitSpace,
    off: Mapping[str, Sequence[Tensor]],
    runner: Runner,
    inputs: Tensor,
) -> Tensor:
    """Run the original network with the plan's units off.

    Parameters
    ----------
    plan : which units are removed.
    space, runner : the original network.
    off : by layer, for each of its reads what is received for entries that are off.
    inputs : a batch.

    Returns
    -------
    Tensor
        (examples, classes), or whatever the network returns.
    """
    layers = cut_layers(plan, space)
    removed = {layer.name: plan.removed(layer.name) for layer in layers}
    whole = Runner(space.graph, runner.tensors)
    running, switches = switched_off(whole, layers, removed, off)
    graph = running.graph
    known = {graph.input: inputs, **switches}
    needed = graph.needed_for((graph.output,), known=known)
    output: Tensor = running.run(needed, known, len(inputs), (graph.output,))[graph.output]
    return output


def verify(
    small: nn.Module,
    plan: Plan,
    space: UnitSpace,
    off: Mapping[str, Sequence[Tensor]],
    runner: Runner,
    batches: Sequence[Tensor],
    *,
    exact: bool = True,
) -> Check:
    """Compare the condensed network with the masked one, in evaluation mode.

    Parameters
    ----------
    small : the condensed network.
    plan, space, off, runner : as for `masked_logits`.
    batches : inputs; the comparison is made at two batch sizes at least.
    exact : whether they must be equal, not only compared.

    Raises
    ------
    CondenseError
        If they differ by more than `TOLERANCE`, or in shape, with the number. Where single
        precision rounds more than that (gates that follow one another, sums that nearly cancel),
        it is the same numbers in double precision that must agree.
    """
    started = time.perf_counter()
    wanted = partial(masked_logits, plan, space, off, runner)
    error, dtype, examples = _compared(small, wanted, batches)
    tolerance = TOLERANCE.get(dtype, ROUGH_TOLERANCE) if exact else math.inf
    own = error
    if dtype == torch.float32 and tolerance < error < ROUNDED:
        error = _in_double(small, plan, space, off, runner, batches)
    if not error <= tolerance:  # NaN is not
        raise CondenseError(
            f"the condensed network differs from the masked one by {error:.1e} of the largest "
            f"output, where {tolerance:.0e} is allowed: forward() depends on the number of units "
            "in a way that the trace does not show, or computes in lower precision than its "
            "weights. The model is untouched"
        )
    return Check(error, tolerance, examples, time.perf_counter() - started, own)


def _compared(
    small: nn.Module, wanted_of: Callable[[Tensor], Tensor], batches: Sequence[Tensor]
) -> tuple[float, torch.dtype, int]:
    """Return how far two networks are apart, in which precision, and on how many examples."""
    device = next((tensor.device for tensor in small.parameters()), torch.device("cpu"))
    largest = difference = 0.0
    examples = 0
    dtype = torch.float32
    with evaluating(small), torch.inference_mode(), _full_precision(device):
        for inputs in _two_sizes(batches):
            wanted = wanted_of(inputs)
            found = logits_of(small(inputs.to(device, copy=True))).to(wanted.device)
            if found.shape != wanted.shape:
                raise CondenseError(
                    f"the condensed network returns {tuple(found.shape)} for {len(inputs)} "
                    f"examples, the masked one {tuple(wanted.shape)}: forward() depends on the "
                    "number of units in a way that the trace does not show"
                )
            precise = wanted.to(torch.float64)
            largest = max(largest, float(precise.abs().max()))
            apart = (found.to(torch.float64) - precise).abs().max()
            difference = _larger(difference, float(apart))
            examples += len(inputs)
            dtype = wanted.dtype
    return difference / (largest or 1.0), dtype, examples


def _in_double(
    small: nn.Module,
    plan: Plan,
    space: UnitSpace,
    off: Mapping[str, Sequence[Tensor]],
    runner: Runner,
    batches: Sequence[Tensor],
) -> float:
    """Compare both networks with the same numbers in double precision; NaN where that cannot be.

    What is left is what the surgery makes: sums in another order round alike there.
    """
    tensors = {name: _double(tensor) for name, tensor in runner.tensors.items()}
    wanted = partial(masked_logits, plan, space, off, Runner(runner.graph, tensors))
    try:
        error, dtype, _ = _compared(
            copy.deepcopy(small).double(), wanted, [_double(inputs) for inputs in batches]
        )
    except RuntimeError:  # the forward pass itself makes numbers of single precision
        return math.nan
    return error if dtype == torch.float64 else math.nan


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _two_sizes(batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the batches and, where all are of one size, part of the first (or it twice over)."""
    yield from batches
    if len({len(inputs) for inputs in batches}) == 1:
        first = batches[0]
        yield first[: len(first) // 2] if len(first) > 1 else torch.cat([first, first])


def _larger(one: float, other: float) -> float:
    """Return the larger number; NaN, which no comparison sees, is the largest."""
    return other if not other <= one else one


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Keep CUDA convolutions from rounding their factors to 10 bits (TF32), torch's default."""
    flags = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with flags if device.type == "cuda" else nullcontext():
        yield
