"""Carrying out a plan: from a model to a smaller one that is shown to do what was promised."""

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim import Optimizer

from neurank.condense.carry import Carried, carry_over
from neurank.condense.compensate import Border, Compensation, check_border, compensation
from neurank.condense.costs import Report, multiply_adds_of, parameters
from neurank.condense.export import to_onnx
from neurank.condense.kept import Plan
from neurank.condense.narrowed import Narrowing, groups_left, narrowed_graph
from neurank.condense.rewritten import Rewritten, check_training, runs_as_it_is
from neurank.condense.saved import Origin, Saved
from neurank.condense.surgery import (
    Changes,
    Cut,
    cut_layers,
    cuts_for,
    gone_classes,
    named_tensors,
    operate,
    parts_fit,
    swap_parts,
)
from neurank.condense.verify import Check, verify
from neurank.errors import CondenseError, ModelError, PlanError
from neurank.modes import evaluating
from neurank.observe.examples import Batch, Examples
from neurank.observe.observer import TracedObserver, model_digest, observe
from neurank.observe.removal import Removal, check_removal, off_constants
from neurank.observe.value import Accuracy
from neurank.progress import reporting
from neurank.units.graph import Graph
from neurank.units.rules import CONVOLUTIONS, MOVES, TRANSPOSED
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
    cuts : what was cut, tensor by tensor.
    shifts : by dotted name of a bias, what was added to it before it was cut.
    """

    model: nn.Module
    plan: Plan
    check: Check
    report: Report
    origin: Origin
    cuts: tuple[Cut, ...]
    shifts: Mapping[str, Tensor]

    def original_index(self, layer: str, position: int) -> int:
        """Return which channel of the original layer is the channel at `position` now.

        Parameters
        ----------
        layer
            Dotted name of a convolution or linear layer, alone or tied to others.
        position
            Of the channel in the condensed layer.

        Raises
        ------
        PlanError
            If there is no such layer or position.
        """
        weights = dict(self.model.named_parameters(remove_duplicate=False))
        weight = weights.get(f"{layer}.weight")
        if weight is None:
            known = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
            raise PlanError(f"the network has no layer {layer!r}: there are {', '.join(known)}")
        axis = 1 if isinstance(self.model.get_submodule(layer), _ConvTransposeNd) else 0
        kept: Sequence[int] = range(weight.shape[axis])
        for cut in self.cuts:
            if (cut.tensor, cut.axis) == (f"{layer}.weight", axis):
                kept = cut.keep
        if not 0 <= position < len(kept):
            raise PlanError(
                f"layer {layer!r} has no unit {position}: its {len(kept)} units are 0 to "
                f"{len(kept) - 1}"
            )
        return kept[position]

    def carry_over(self, optimizer: Optimizer, old: nn.Module) -> Carried:
        """Let the optimizer of the network that was condensed train this one, where it left off.

        See `neurank.condense.carry.carry_over`: momenta and the like are cut as the parameters
        were, groups and step counts stay, schedulers go on.

        Parameters
        ----------
        optimizer
            Changed in place, all or nothing.
        old
            The network that was condensed.

        Raises
        ------
        CondenseError
            It cannot be carried over, with the reason; it is unchanged then.
        """
        return carry_over(optimizer, old, self.model, self.cuts)

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the network as one ONNX file, for any number of examples.

        Raises
        ------
        CondenseError, ModelError
            ONNX's packages are missing (``pip install 'neurank[onnx]'``), or cannot express it.
        FileError
            The file cannot be written.
        """
        dtype = getattr(torch, self.origin.example_dtype)
        to_onnx(self.model, self.origin.example_shape, path, dtype=dtype)

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
    border: str = "exact",
    inference_only: bool = False,
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
        which go into the biases of the layers that read them.
    border
        What to do about constants in front of zero padding, of which the border sees fewer:
        ``"exact"`` gives the convolution a kernel of one channel more, which it applies to ones;
        ``"folded"`` puts what the middle sees into the bias, and the check says how far that is
        from the masked network.
    inference_only
        Accept a forward pass that leaves out what the original does in training alone, such as
        dropping whole branches, where it has to be rewritten from its trace. Otherwise that is
        refused.
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
        The removal cannot be made exact, a tensor that would be cut is parametrized or would be
        left empty, or the result differs from the masked network.
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
    wanted, at_border = check_removal(removal), check_border(border)
    where = torch.device(device) if device is not None else _device_of(model)
    copied = copy_of(model)  # with the training flags that it has now
    with evaluating(model):
        watching = _observed(model, data, where, progress)
        return carried_out(plan, watching, wanted, at_border, copied, inference_only)


def carried_out(
    plan: Plan,
    watching: TracedObserver,
    removal: Removal,
    border: Border = "exact",
    copied: nn.Module | None = None,
    inference_only: bool = False,
) -> Condensed:
    """Carry out a plan on a copy of the network that is watched, which is in evaluation mode.

    `copied` is a copy that may be edited, such as one with other training flags.
    """
    model, space, runner = watching.model, watching.space, watching.runner
    cuts = cuts_for(plan, space, model)
    label = "measuring removed units"
    with reporting(label, 1, show=watching.progress) as advance:
        off = off_constants(removal, cut_layers(plan, space), runner, watching.examples)
        advance("")
    gone = gone_classes(plan, space)
    added = compensation(plan, space, off, runner, model, gone, border)
    cut = copy_of(model) if copied is None else copied
    narrow = _narrow(cut, space, cuts, gone, added)
    ends = _first_and_last(watching.examples)
    small = _runnable(cut, narrow, model, space, ends[0].to(_device_of(model)), inference_only)
    check = verify(small, plan, space, off, runner, ends, exact=border == "exact")
    origin = Origin(
        parent=model_digest(model),
        model_class=type(model).__qualname__,
        removal=removal,
        data=watching.examples.digest,
        example_shape=tuple(ends[0].shape[1:]),
        example_dtype=str(ends[0].dtype).removeprefix("torch."),
        made=narrow.made,
        rewritten=small is not cut,
    )
    report = _report(model, small, plan, space, narrow.graph)
    return Condensed(small, plan, check, report, origin, cuts, added.shifts)


@dataclass(frozen=True)
class _Narrow:
    """What surgery leaves: the traced forward pass, and the names of the tensors it made.

    Attributes
    ----------
    graph : the forward pass with the numbers of what is left.
    made : dotted names of made tensors.
    swapped : whether torch's own layers use all that was made for them.
    """

    graph: Graph
    made: tuple[str, ...]
    swapped: bool


def _narrow(
    model: nn.Module, space: UnitSpace, cuts: tuple[Cut, ...], gone: Tensor, added: Compensation
) -> _Narrow:
    """Operate on `model`, and work out its forward pass."""
    tensors = {**space.graph.constants, **named_tensors(model)}
    biases = tuple(name for name in added.shifts if name not in tensors)
    made = (*biases, *added.made)
    narrowing = Narrowing(space.coupling, gone, tensors, frozenset(made))
    graph = narrowed_graph(narrowing, biases)
    fit = parts_fit(model, added.made)
    groups, shapes = _groups(narrowing), _bare_norms(narrowing)
    operate(model, Changes(cuts, added.shifts, added.made, groups, shapes))
    if fit:
        swap_parts(model, added.made)
    return _Narrow(graph, made, fit)


def _groups(narrowing: Narrowing) -> dict[str, int]:
    """By dotted name of a convolution or GroupNorm that loses groups, how many are left."""
    found = {}
    for operation in narrowing.coupling.graph.operations:
        is_grouped = operation.kind in {*CONVOLUTIONS, *TRANSPOSED, "group_norm"}
        if is_grouped and narrowing.changes(operation.name):
            stored = [weight.rpartition(".")[0] for weight in operation.weights]
            found[(*stored, operation.module)[0]] = groups_left(operation, narrowing)
    return found


def _bare_norms(narrowing: Narrowing) -> dict[str, tuple[int, ...]]:
    """By module of a norm without parameters, the shape over which it goes on normalising."""
    found = {}
    for operation in narrowing.coupling.graph.operations:
        is_bare = operation.kind in _NORMS and not operation.weights and operation.module
        if is_bare and narrowing.changes(operation.name):
            over_last = operation.kind in {"layer_norm", "rms_norm"}
            axes = slice(-len(operation.args[1]), None) if over_last else slice(1, 2)
            found[operation.module] = narrowing.sizes(operation.name)[axes]
    return found


_NORMS = frozenset({"layer_norm", "rms_norm", "group_norm", "instance_norm"})


def rebuilt(
    model: nn.Module, plan: Plan, space: UnitSpace, origin: Origin, state: Mapping[str, Tensor]
) -> tuple[nn.Module, tuple[Cut, ...]]:
    """Repeat on a model of the original architecture the surgery that `origin` describes.

    `model` is edited; its weights keep no meaning until `state` is loaded.
    """
    tensors = named_tensors(model)
    biases = [name for name in origin.made if name.endswith(".bias")]
    shifts = {
        name: torch.zeros(_rows(model, name.rpartition(".")[0]))
        for name in biases
        if name not in tensors
    }
    made = {name: torch.zeros_like(state[name]) for name in origin.made if name not in shifts}
    cuts = cuts_for(plan, space, model)
    added = Compensation(shifts, made)
    narrow = _narrow(model, space, cuts, gone_classes(plan, space), added)
    return (Rewritten(model, narrow.graph) if origin.rewritten else model), cuts


def _rows(model: nn.Module, layer: str) -> int:
    module = model.get_submodule(layer)
    weight = module.get_parameter("weight")
    return weight.shape[1] if isinstance(module, _ConvTransposeNd) else weight.shape[0]


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


def copy_of(model: nn.Module) -> nn.Module:
    """Copy a model so that the copy may be edited.

    Raises
    ------
    CondenseError
        An attribute of the model refuses to be copied.
    """
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
        any_output=True,
    )
    assert isinstance(watching, TracedObserver)  # only removal="parameters" goes without a trace
    return watching


def _runnable(
    cut: nn.Module,
    narrow: _Narrow,
    model: nn.Module,
    space: UnitSpace,
    inputs: Tensor,
    inference_only: bool,
) -> nn.Module:
    """Return the copy after surgery, its forward pass rewritten if its Python cannot stay."""
    rewritten = Rewritten(cut, narrow.graph)
    with evaluating(cut), evaluating(rewritten):
        if narrow.swapped and runs_as_it_is(cut, rewritten, inputs):
            return cut
    if not inference_only:
        check_training(model, space.graph, inputs, _rewritten_line(space.graph, narrow.graph))
    return rewritten


def _rewritten_line(before: Graph, after: Graph) -> str:
    """Return the first line of the user's code whose numbers had to change."""
    for operation in after.operations:
        same = before.by_name.get(operation.name)
        if same is None or same.kind not in MOVES:  # layers know their own numbers
            continue
        if (same.args, same.target) != (operation.args, operation.target):
            return operation.line
    return ""


def _report(
    model: nn.Module, small: nn.Module, plan: Plan, space: UnitSpace, graph: Graph
) -> Report:
    widths: Mapping[str, tuple[int, int]] = {
        name: (layer.width, plan.widths_after.get(name, layer.width))
        for name, layer in space.layers.items()
    }
    return Report(
        parameters=(parameters(model), parameters(small)),
        multiply_adds=(
            multiply_adds_of(space.graph, named_tensors(model)),
            multiply_adds_of(graph, named_tensors(small)),
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
