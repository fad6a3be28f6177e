"""A module that runs a traced forward pass: for forwards that hold numbers of units.

``x.view(-1, 320)`` means 20 maps of 4 x 4. After surgery that line fails or, worse, makes fewer
examples of more: its Python cannot stay. The traced operations can, with the number replaced.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from neurank.errors import CondenseError
from neurank.units.graph import Graph, Operation, Ref, Weight, map_leaves
from neurank.units.trace import logits_of

_DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
_TRAINING_ARGUMENT = {**dict.fromkeys(_DROPOUTS, 2), "batch_norm": 5}
"""Which argument of an operation says that it is training."""

_SAME = 1e-6
"""Relative difference up to which two training passes in float32 count as one."""

_ALIKE = {torch.float64: 1e-12, torch.float32: 1e-5}
_ROUGHLY_ALIKE = 2e-2
"""The same for a forward pass and its trace."""


class Rewritten(nn.Module):
    """The submodules of a network and the operations of its forward pass, one after the other.

    Parameters and buffers keep their names, so state dicts fit both ways. Dropout and BatchNorm
    follow the training flags of the modules that own them. What it returns is the logits alone,
    and other methods of the original class are gone.

    Parameters
    ----------
    original
        The network whose submodules are taken over; not to be used any more.
    graph
        The operations to run.

    Example
    -------
    >>> from neurank.units.trace import trace
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).eval()
    >>> inputs = torch.ones(4, 2)
    >>> torch.equal(Rewritten(model, trace(model, inputs))(inputs), model(inputs))
    True
    """

    def __init__(self, original: nn.Module, graph: Graph) -> None:
        super().__init__()
        for name, module in original._modules.items():
            self.add_module(name, module)
        for name, parameter in original._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in original._buffers.items():
            lasting = name not in original._non_persistent_buffers_set
            self.register_buffer(name, buffer, persistent=lasting)
        self._graph = graph
        self._operations = graph.needed_for((graph.output,))
        self._read_last = _last_reads(self._operations, graph.output)
        self._constants: dict[str, str] = {}
        for number, (name, constant) in enumerate(graph.constants.items()):
            self._constants[name] = f"_constant{number}"
            self.register_buffer(f"_constant{number}", constant.detach().clone(), persistent=False)
        self._rewrites = type(original).__name__
        self.training = original.training

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs, (examples, ...), to logits, (examples, classes)."""
        results: dict[str, Any] = {self._graph.input: inputs}
        for operation, read_last in zip(self._operations, self._read_last, strict=True):
            results[operation.name] = self._run(operation, results)
            for name in read_last:  # so that its memory is there for the next results
                results.pop(name, None)
        logits: Tensor = results[self._graph.output]
        return logits

    def extra_repr(self) -> str:
        """Name the class whose forward pass this is."""
        return f"forward pass of {self._rewrites}, {len(self._operations)} operations"

    def _run(self, operation: Operation, results: Mapping[str, Any]) -> Any:
        def resolve(leaf: Any) -> Any:
            if isinstance(leaf, Ref):
                return results[leaf.name]
            if isinstance(leaf, Weight):
                return self._tensor(leaf.name)
            return map_leaves(resolve, leaf) if isinstance(leaf, list | tuple) else leaf

        arguments = [resolve(argument) for argument in operation.args]
        flag = _TRAINING_ARGUMENT.get(operation.kind)
        if flag is not None:
            owner = self.get_submodule(operation.module)
            if _is_torchs_own(owner):  # which counts batches, too, and whose settings may change
                return owner(arguments[0])
            arguments[flag] = owner.training
        named = {name: resolve(argument) for name, argument in operation.kwargs.items()}
        return operation.target(*arguments, **named)

    def _tensor(self, name: str) -> Any:
        if name in self._constants:
            return getattr(self, self._constants[name])
        return reduce(getattr, name.split("."), self)


def _last_reads(operations: Sequence[Operation], output: str) -> tuple[tuple[str, ...], ...]:
    """Return for each operation the results that no later one reads, the output aside."""
    kept = {output}
    found = []
    for operation in reversed(operations):
        names = dict.fromkeys((*operation.refs, operation.name))
        found.append(tuple(name for name in names if name not in kept))
        kept.update(names)
    return tuple(reversed(found))


def runs_as_it_is(model: nn.Module, rewritten: nn.Module, inputs: Tensor) -> bool:
    """Whether the forward pass of a condensed copy does what its trace, rewritten, does.

    The trace shows a number where the Python code may have computed it: such code adapts.
    """
    for rows in (2, 3):
        few = inputs[torch.arange(rows, device=inputs.device) % len(inputs)]
        with torch.inference_mode():
            wanted = logits_of(rewritten(few.clone()))
            try:
                found = logits_of(model(few.clone()))
            except Exception:  # a shape that does not fit may end in any error of the user's code
                return False
        alike = _ALIKE.get(wanted.dtype, _ROUGHLY_ALIKE) * float(wanted.abs().max())
        if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=0, atol=alike):
            return False
    return True


def check_training(model: nn.Module, graph: Graph, inputs: Tensor, line: str) -> None:
    """Check that the traced operations train as the module itself does, before surgery.

    One pass forwards and backwards in training mode, from one random state, must give the same
    outputs, gradients and buffers. The trace was taken in evaluation mode, so anything that the
    forward pass does in training mode alone, dropout and BatchNorm apart, is found here.

    Raises
    ------
    CondenseError
        If it does not, naming the line that makes the rewriting necessary.
    """
    few = inputs[torch.arange(4, device=inputs.device) % len(inputs)]
    itself = copy.deepcopy(model).train()
    taken = copy.deepcopy(model)
    traced = Rewritten(taken, graph).train()
    wanted, found = _training_pass(itself, few), _training_pass(traced, few)
    differing = [
        name
        for name, tensor in wanted.items()
        if not torch.allclose(tensor, found[name], rtol=_SAME, atol=_tolerance(tensor))
    ]
    if differing:
        raise CondenseError(
            f"the forward pass holds the number of units that are removed (in `{line}`), so it "
            "has to be rewritten from its trace; but in training mode it does something that the "
            f"trace, taken in evaluation mode, does not show (seen in: {differing[0]}). Write "
            "x.flatten(1) instead of a number of features and ask tensors for their sizes, or, if "
            "the result is not to be trained, condense with inference_only=True"
        )


def _training_pass(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(0)
        outputs = logits_of(model(inputs.clone()))
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        gradients: tuple[Tensor | None, ...] = (None,) * len(trained)
        if trained and outputs.requires_grad:
            gradients = torch.autograd.grad(
                outputs.square().sum(), list(trained.values()), allow_unused=True
            )
    return {
        **dict(model.state_dict()),
        "outputs": outputs.detach(),
        **{
            f"gradient of {name}": torch.zeros_like(parameter) if gradient is None else gradient
            for (name, parameter), gradient in zip(trained.items(), gradients, strict=True)
        },
    }


def _tolerance(tensor: Tensor) -> float:
    return _SAME * float(tensor.detach().abs().max()) if tensor.numel() else 0.0


def _is_torchs_own(module: nn.Module) -> bool:
    """Whether the module does one dropout or BatchNorm and nothing else; a subclass might."""
    family = nn.modules.dropout._DropoutNd | nn.modules.batchnorm._BatchNorm
    return isinstance(module, family) and type(module).__module__.startswith("torch.nn.")
