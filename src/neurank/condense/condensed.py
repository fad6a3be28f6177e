"""Carrying out a plan: from a model to a smaller one that is shown to do what was promised."""

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neurank.condense.compensate import bias_shifts
from neurank.condense.costs import Report, multiply_adds_of, parameters
from neurank.condense.plan import Plan
from neurank.condense.rewritten import (
    Rewritten,
    check_training,
    fixed_widths,
    rewritten_graph,
    runs_as_it_is,
)
from neurank.condense.saved import Origin, Saved
from neurank.condense.surgery import cut_layers, cuts_for, named_tensors, operate
from neurank.condense.verify import Check, verify
from neurank.errors import CondenseError, ModelError, PlanError
from neurank.modes import evaluating
from neurank.observe.examples import Batch, Examples
from neurank.observe.observer import TracedObserver, model_digest, observe
from neurank.observe.removal import check_removal, off_values
from neurank.observe.value import Accuracy
from neurank.progress import track
from neurank.units.space import UnitSpace
from neurank.units.trace import logits_of


@dataclass(frozen=True, eq=False)
class Condensed:
    """A condensed network and what is known about it.

    Attributes
    ----------
    model : the smaller network: a module of the original's class, or, where a forward pass holds
        a width as a number, a `Rewritten` one with parameters of the same names.
    plan : which original units it keeps.
    check : how far it was from the masked network when it was made, before any retraining.
    report : widths, parameters and multiply-adds before and after.
    origin : which network it comes from, and how.
    """

    model: nn.Module
    plan: Plan
    check: Check
    report: Report
    origin: Origin

    def original_index(self, layer: str, position: int) -> int:
        """Return which unit of the original layer is the unit at `position` now.

        Raises
        ------
        PlanError
            If there is no such layer or position.
        """
        if layer not in self.report.widths:
            raise PlanError(
                f"the network has no layer {layer!r} with units: there are "
                f"{', '.join(self.report.widths)}"
            )
        kept = self.plan.keep.get(layer, range(self.report.widths[layer][1]))
        if not 0 <= position < len(kept):
            raise PlanError(
                f"layer {layer!r} has no unit {position}: its {len(kept)} units are 0 to "
                f"{len(kept) - 1}"
            )
        return kept[position]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network, with the weights it has now, and its plan as one safetensors file.

        `neurank.load` builds it again, given a function that builds the original architecture.

        Raises
        ------
        FileError
            The file cannot be written.
        """
        Saved(
            state=self.model.state_dict(),
            probe=probe(self.model, self.origin),
            frozen=tuple(
                name
                for name, parameter in self.model.named_parameters()
                if not parameter.requires_grad
            ),
            plan=self.plan,
            check=self.check,
            report=self.report,
            origin=self.origin,
        ).write(path)

    def __str__(self) -> str:
        """Return the report's table and the check."""
        return f"{self.report}\n{self.check}"


def condense(
    model: nn.Module,
    plan: Plan,
    data: Iterable[Batch],
    *,
    removal: str = "zero",
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Condensed:
    """Build the network that is left when the units that `plan` removes are cut away.

    The result equals the masked network: the original with all these units off at once, where
    "off" is what `removal` says. What that leaves in the consumers' biases is added to them.

    Parameters
    ----------
    model
        The network. It is copied, and comes back exactly as it was.
    plan
        Which units are kept.
    data
        Batches ``(inputs, targets)`` that are the same at every pass. Means are taken over all of
        them; the first and the last are what the result is verified on.
    removal
        What consumers receive from a unit that is off: ``"zero"``; ``"mean"``, the unit's mean
        where they read it, in the original network; ``"parameters"``, what is left when the unit's
        own weights and bias are 0, such as a BatchNorm's shift. The latter two leave constants,
        which fold exactly into the biases of linear layers and of convolutions without padding.
    device
        Where means and the masked network are computed; by default where the model is.
    progress
        Show a bar on a terminal.

    Returns
    -------
    Condensed
        ``.model`` is on the device of the original, with its types, training flags and
        ``requires_grad``.

    Raises
    ------
    PlanError
        The plan is for another network, or removes outputs.
    UnitError
        A layer of the plan has no units that can be removed, with the reason.
    CondenseError
        The removal cannot be made exact, a tensor that would be cut is shared, parametrized or
        grouped, or the result differs from the masked network.
    DataError, ModelError, MethodError
        Data, model or removal cannot be used.

    Examples
    --------
    >>> import neurank as nr
    >>> model = nr.zoo.lenet(seed=0)
    >>> data = [(torch.rand(2, 1, 28, 28), torch.tensor([0, 1]))]
    >>> keep = {"conv1": range(5), "conv2": range(7), "fc1": range(45), "fc2": range(20)}
    >>> plan = Plan.from_keep(keep, {"conv1": 10, "conv2": 20, "fc1": 100, "fc2": 25})
    >>> small = condense(model, plan, data)
    >>> small.report.parameters, small.report.multiply_adds
    ((40165, 7227), (498750, 134140))
    """
    _check_arguments(model, plan)
    wanted = check_removal(removal)
    where = torch.device(device) if device is not None else _device_of(model)
    cut = _copied(model)
    with evaluating(model):
        watching = _observed(model, data, where, progress)
        space, runner = watching.space, watching.runner
        cuts = cuts_for(plan, space, model)
        off = {
            layer.name: off_values(wanted, layer, runner, watching.examples)
            for layer in track(
                cut_layers(plan, space), label="measuring removed units", show=progress
            )
        }
        shifts = bias_shifts(plan, space, off, runner, model)
        made = tuple(name for name in shifts if name not in runner.tensors)
        ends = _first_and_last(watching.examples)
        operate(cut, cuts, shifts)
        small = _runnable(cut, model, plan, space, made, ends[0])
        check = verify(small, plan, space, off, runner, ends)
        origin = Origin(
            parent=model_digest(model),
            model_class=type(model).__qualname__,
            removal=wanted,
            data=watching.examples.digest,
            example_shape=tuple(ends[0].shape[1:]),
            example_dtype=str(ends[0].dtype).removeprefix("torch."),
            made_biases=made,
            rewritten=small is not cut,
        )
        return Condensed(small, plan, check, _report(model, small, plan, space), origin)


def rebuilt(model: nn.Module, plan: Plan, space: UnitSpace, origin: Origin) -> nn.Module:
    """Repeat on a model of the original architecture the surgery that `origin` describes.

    `model` is edited; its weights keep no meaning until a state dict is loaded.
    """
    cuts = cuts_for(plan, space, model)
    weights = {name: model.get_parameter(_weight_beside(name)) for name in origin.made_biases}
    operate(model, cuts, {name: torch.zeros(len(weight)) for name, weight in weights.items()})
    if not origin.rewritten:
        return model
    return Rewritten(model, rewritten_graph(plan, space, origin.made_biases))


def probe(model: nn.Module, origin: Origin) -> Tensor:
    """Compute the logits of a made-up example, by which a wrong factory is recognised."""
    with evaluating(model), torch.inference_mode():
        logits: Tensor = logits_of(model(origin.examples(1).to(_device_of(model))))
        return logits.cpu().clone()


def _check_arguments(model: object, plan: object) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}: give a torch.nn.Module")
    if hasattr(model, "_orig_mod"):
        raise ModelError(
            "the model is compiled, and compiled code cannot be cut: condense the module that was "
            "handed to torch.compile, and compile the result"
        )
    if not isinstance(plan, Plan):
        raise PlanError(
            f"the plan is a {type(plan).__name__}: make one with neurank.plan(ranking, keep=...) "
            "or Plan.from_keep"
        )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever the user's attributes raise
        raise CondenseError(
            f"the model cannot be copied ({error}), and surgery is only done on a copy: remove "
            "attributes that copy.deepcopy refuses, such as tensors that were computed"
        ) from error


def _observed(
    model: nn.Module, data: Iterable[Batch], where: torch.device, progress: bool
) -> TracedObserver:
    """Check model and data at the door; without a trace there is nothing to cut by."""
    watching = observe(
        model,
        data,
        value=Accuracy(),
        removal="zero",
        seed=0,
        device=where,
        progress=progress,
    )
    assert isinstance(watching, TracedObserver)  # only removal="parameters" goes without a trace
    return watching


def _runnable(
    small: nn.Module,
    model: nn.Module,
    plan: Plan,
    space: UnitSpace,
    made: tuple[str, ...],
    inputs: Tensor,
) -> nn.Module:
    """Return the copy after surgery, its forward pass rewritten if it holds a lost width."""
    fixed = fixed_widths(plan, space)
    inputs = inputs.to(_device_of(model))
    with evaluating(small):
        if not fixed or runs_as_it_is(small, inputs):
            return small
    check_training(model, space, inputs, fixed[0])
    return Rewritten(small, rewritten_graph(plan, space, made))


def _report(model: nn.Module, small: nn.Module, plan: Plan, space: UnitSpace) -> Report:
    widths: Mapping[str, tuple[int, int]] = {
        name: (layer.width, plan.widths_after.get(name, layer.width))
        for name, layer in space.layers.items()
    }
    return Report(
        parameters=(parameters(model), parameters(small)),
        multiply_adds=(
            multiply_adds_of(space.graph, named_tensors(model)),
            multiply_adds_of(space.graph, named_tensors(small)),
        ),
        widths=widths,
    )


def _first_and_last(examples: Examples) -> tuple[Tensor, ...]:
    first = last = None
    for inputs, _ in examples:
        first = inputs if first is None else first
        last = inputs
    assert first is not None
    assert last is not None
    return (first,) if last is first else (first, last)


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _weight_beside(bias: str) -> str:
    return f"{bias.rpartition('.')[0]}.weight"
