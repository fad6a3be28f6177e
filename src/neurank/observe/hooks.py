"""Forward hooks, each inside a `with` that takes it away again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from neurank.errors import UnitError


@contextmanager
def units_off(model: nn.Module, layer: str, off: Tensor) -> Iterator[None]:
    """Zero what a layer computes for some units while the block runs.

    Parameters
    ----------
    model : the module that holds the layer.
    layer : dotted name of a convolution or linear layer.
    off : (examples, units) bool, True = the unit's output, weights and bias together, is 0.

    Raises
    ------
    UnitError
        If the layer does not compute these units on these examples.

    Example
    -------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(1, 2))
    >>> with units_off(model, "0", torch.tensor([[True, False]])):
    ...     bool(model(torch.ones(1, 1))[0, 0] == 0)
    True
    """

    def zero(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:  # noqa: ARG001 (torch's signature)
        if output.shape[:2] != off.shape:
            raise UnitError(
                f"layer {layer!r} returned a tensor of shape {tuple(output.shape)} where "
                f"{len(off)} examples x {off.shape[1]} units were given: forward() hands it "
                "another number of examples, so its units cannot be switched off"
            )
        shape = (*off.shape, *([1] * (output.ndim - 2)))
        return output.masked_fill(off.reshape(shape), 0)

    handle = model.get_submodule(layer).register_forward_hook(zero)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def calls_recorded(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Record what every convolution and linear layer returns while the block runs.

    Yields a mapping from dotted names, in the order of their first call, to the results.

    Example:
    -------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU())
    >>> with calls_recorded(model) as calls:
    ...     _ = model(torch.ones(3, 1))
    >>> {name: tuple(results[0].shape) for name, results in calls.items()}
    {'0': (3, 2)}
    """
    calls: dict[str, list[Tensor]] = {}
    handles = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):

                def record(
                    module: nn.Module,  # noqa: ARG001 (torch's signature)
                    arguments: Any,  # noqa: ARG001
                    output: Tensor,
                    name: str = name,
                ) -> None:
                    calls.setdefault(name, []).append(output.detach())

                handles.append(module.register_forward_hook(record))
        yield calls
    finally:
        for handle in handles:
            handle.remove()
