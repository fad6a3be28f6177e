"""Handing a network to other runtimes: as a `torch.export` program, and as an ONNX file."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from neurank.errors import CondenseError, ModelError
from neurank.files import destination, write_bytes
from neurank.modes import evaluating
from neurank.units.trace import logits_of

OPSET = 18
"""The version of ONNX's operators; runtimes since 2023 know it."""
EXAMPLES = "examples"
"""What the file calls the axis of examples."""


class _Logits(nn.Module):
    """A network that returns the logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = logits_of(self.model(inputs))
        return logits


def exported(model: nn.Module, inputs: Tensor) -> torch.export.ExportedProgram:
    """Export a network with `torch.export`, in evaluation mode, for any number of examples.

    Parameters
    ----------
    model : a condensed network's ``.model``, or any that takes one tensor; it comes back as it
        was.
    inputs : a batch, of which only shape and type matter.

    Raises
    ------
    ModelError
        `torch.export` cannot take it, with the reason that torch gives.

    Example
    -------
    >>> program = exported(nn.Linear(2, 3), torch.zeros(1, 2))
    >>> program.module()(torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """
    rows = inputs[torch.arange(2, device=inputs.device) % len(inputs)]
    any_number = ({0: torch.export.Dim(EXAMPLES)},)
    with evaluating(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            whole = _Logits(model).eval()
            return torch.export.export(whole, (rows,), dynamic_shapes=any_number, strict=False)
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} cannot be exported by torch.export: {_reason(error)}"
            ) from error


def to_onnx(
    model: nn.Module,
    example_shape: Sequence[int],
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a network in evaluation mode as one ONNX file, for any number of examples.

    The file's input is called ``inputs``, its output ``logits``; both begin with the axis
    ``examples``. Weights are in the file, so it must stay below 2 GB.

    Parameters
    ----------
    model
        A condensed network's ``.model``, or any that takes one tensor; it comes back as it was.
    example_shape
        The shape of one example, without the axis of examples.
    path
        The file; one that was there before survives a failure.
    dtype
        The inputs' type, such as ``torch.int64`` for words.

    Raises
    ------
    ModelError
        `torch.export` cannot take the network, with the reason that torch gives.
    CondenseError
        The packages for it are missing, or ONNX has no form for one of the operations.
    FileError
        The file cannot be written.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import neurank as nr
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "net.onnx")
    ...     to_onnx(nr.zoo.digits_net(2, 3, 4, 5, seed=0), (1, 8, 8), path)
    ...     path.stat().st_size > 1000
    True
    """
    target = destination(path)
    for package in ("onnx", "onnxscript"):
        _need(package)
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    program = exported(model, torch.zeros(2, *example_shape, dtype=dtype, device=device))
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["inputs"],
                output_names=["logits"],
                dynamic_shapes=({0: EXAMPLES},),
                opset_version=OPSET,
                verbose=False,
            )
            blob = _bytes_of(made)
        except Exception as error:
            raise CondenseError(
                f"{type(model).__name__} cannot be written as ONNX: {_reason(error)}. Hand it over "
                "with torch.export instead"
            ) from error
    write_bytes(target, blob)


def _bytes_of(made: Any) -> bytes:
    """Serialise a program without the notes that the exporter leaves, which name files."""
    proto = made.model_proto
    graph = proto.graph
    for noted in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        noted.ClearField("metadata_props")
    for tensor in graph.initializer:
        tensor.ClearField("metadata_props")
    found: bytes = proto.SerializeToString()
    return found


def _need(package: str) -> None:
    try:
        import_module(package)
    except ImportError as error:
        raise CondenseError(
            f"writing ONNX needs {package}, which is not installed: pip install 'neurank[onnx]'"
        ) from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else repr(error))[:300]


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep the exporter from logging, as it does about packages that nobody asked for."""
    logger = logging.getLogger(name)
    children = [
        it
        for key, it in logging.root.manager.loggerDict.items()
        if key.startswith(name) and isinstance(it, logging.Logger)
    ]
    levels = [(it, it.level) for it in (logger, *children)]
    try:
        for it, _ in levels:
            it.setLevel(logging.ERROR)
        yield
    finally:
        for it, level in levels:
            it.setLevel(level)
