"""From a module to its `Graph`: `torch.export` in evaluation mode, batch dimension dynamic."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from neurank.errors import ModelError
from neurank.modes import evaluating
from neurank.units.graph import Graph, Operation, Ref, Weight, map_leaves

EXAMPLES_TO_TRACE = 3
"""Two or more, since `torch.export` takes a batch of one for a constant."""


def trace(model: nn.Module, inputs: Tensor) -> Graph:
    """Trace the forward pass of `model` in evaluation mode.

    The trace follows the Python code once; a branch that depends on the data, or a batch size held
    as a number, is refused here and never frozen into a wrong answer.

    Parameters
    ----------
    model : any module that takes one tensor and returns logits (see `logits_of`).
    inputs : a batch, (examples, ...); only its shape and type matter.

    Raises
    ------
    ModelError
        If the forward pass cannot be traced, with the reason that torch gives.

    Example
    -------
    >>> graph = trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(4, 2))
    >>> [operation.kind for operation in graph.operations]
    ['linear', 'relu']
    """
    rows = inputs[torch.arange(EXAMPLES_TO_TRACE, device=inputs.device) % len(inputs)]
    with evaluating(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            batch_varies = ({0: torch.export.Dim.DYNAMIC},)
            program = torch.export.export(model, (rows,), dynamic_shapes=batch_varies, strict=False)
        except Exception as error:
            raise ModelError(
                f"the forward pass of {type(model).__name__} cannot be traced by torch.export: "
                f"{_first_line(error)}. Branches that depend on the data, and batch sizes held as "
                "numbers, are the usual reasons; write them with tensor operations, or rank with "
                "removal='parameters', which runs the module itself"
            ) from error
    return _graph_of(program)


def logits_of(output: Any) -> Any:
    """Pick the logits out of what a model returns.

    A tensor is the logits; so is the entry "logits" of a mapping or of a structured output as in
    Hugging Face's models, and the only member of a tuple or list.

    Raises
    ------
    ModelError
        If the output is anything else.

    Example
    -------
    >>> logits_of({"logits": 1, "hidden": 2})
    1
    """
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if isinstance(output, tuple | list) and len(output) == 1:
        return output[0]
    if isinstance(output, Mapping | tuple | list):
        raise ModelError(
            f"the model returns a {type(output).__name__} in which the logits cannot be told: "
            'return a tensor, or a mapping with the key "logits", or wrap the model in a module '
            "that does"
        )
    return output


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _graph_of(program: torch.export.ExportedProgram) -> Graph:
    weights, constants, inputs = _placeholders(program)
    names: dict[str, Ref | Weight] = {**weights, **{name: Ref(name) for name in inputs}}
    operations = []
    for node in program.graph.nodes:
        if node.op != "call_function" or _is_assertion(node):
            continue
        operations.append(_operation(node, names))
        names[node.name] = Ref(node.name)
        if _works_in_place(node):
            # Later readers of the overwritten tensor see what was written over it.
            names[node.args[0].name] = Ref(node.name)
    outputs = [
        names[output] if isinstance(output, str) else output
        for output in program.graph_signature.user_outputs
    ]
    logits = logits_of(_unflatten(outputs, program))
    if not isinstance(logits, Ref):
        raise ModelError(
            "the model's output does not depend on its input, or is not a tensor: neurank needs "
            "logits of shape (examples, classes)"
        )
    shapes = {node.name: _shape(node.meta.get("val")) for node in program.graph.nodes}
    shape = shapes[inputs[0]] or ()
    return Graph(inputs[0], tuple(operations), logits.name, constants, shape)


def _placeholders(
    program: torch.export.ExportedProgram,
) -> tuple[dict[str, Ref | Weight], dict[str, Tensor], list[str]]:
    weights: dict[str, Ref | Weight] = {}
    constants: dict[str, Tensor] = {}
    inputs: list[str] = []
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(name)
        elif spec.target is not None:
            weights[name] = Weight(spec.target)
            if spec.kind is InputKind.CONSTANT_TENSOR:
                constants[spec.target] = program.constants[spec.target]
    return weights, constants, inputs


def _operation(node: fx.Node, names: dict[str, Ref | Weight]) -> Operation:
    def replace(leaf: Any) -> Any:
        return names[leaf.name] if isinstance(leaf, fx.Node) else leaf

    stack = node.meta.get("nn_module_stack") or {}
    innermost = list(stack.values())[-1][0] if stack else ""
    return Operation(
        name=node.name,
        target=_out_of_place(node.target),
        args=map_leaves(replace, tuple(node.args)),
        kwargs=map_leaves(replace, dict(node.kwargs)),
        module=innermost if isinstance(innermost, str) else "",
        shape=_shape(node.meta.get("val")),
        line=(node.meta.get("stack_trace") or "").strip().rsplit("\n", maxsplit=1)[-1].strip(),
    )


def _shape(value: Any) -> tuple[int | None, ...] | None:
    if not isinstance(value, Tensor):
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _is_assertion(node: fx.Node) -> bool:
    return "assert" in str(node.target) or "guard" in str(node.target)


def _works_in_place(node: fx.Node) -> bool:
    return _out_of_place(node.target) is not node.target


def _out_of_place(target: Any) -> Any:
    """Return the overload that leaves its input alone: ``relu`` for ``relu_``."""
    packet = getattr(target, "overloadpacket", None)
    name = getattr(packet, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return target
    functional = getattr(getattr(torch.ops.aten, name[:-1], None), target._overloadname, None)
    if functional is None:
        raise ModelError(
            f"the forward pass overwrites a tensor with {name}, for which torch has no form that "
            "leaves its input alone: use an operation that returns a new tensor"
        )
    return functional


def _unflatten(outputs: list[Any], program: torch.export.ExportedProgram) -> Any:
    spec = program.call_spec.out_spec
    return outputs[0] if spec is None else pytree.tree_unflatten(outputs, spec)
