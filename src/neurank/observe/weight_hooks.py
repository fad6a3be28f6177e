"""Hooks that keep weights at zero while a network is trained, to be taken away again."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


def zero(parameters: Mapping[str, nn.Parameter], kept: Mapping[str, Tensor]) -> None:
    """Set the weights that are not kept to 0, where they are."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.masked_fill_(~_beside(kept[name], parameter), 0)


def hold_at_zero(
    parameters: Mapping[str, nn.Parameter],
    kept: Mapping[str, Tensor],
    optimizer: Optimizer | None,
) -> list[Callable[[], None]]:
    """Mask gradients as they come in and weights after every step of the optimizer.

    Parameters
    ----------
    parameters : the parameters by name, the very tensors that are trained.
    kept : by name, False where a weight stays 0.
    optimizer : whose steps; None is every optimizer of this process, whichever holds them.

    Returns
    -------
    list
        Calls that take the hooks away.
    """
    handles = [
        parameter.register_post_accumulate_grad_hook(_masking(kept[name]))  # type: ignore[no-untyped-call]
        for name, parameter in parameters.items()
        if parameter.requires_grad  # torch lets no other have such a hook, and it has no gradient
    ]

    def after_step(optimizer: Optimizer, arguments: Any, keywords: Any) -> None:  # noqa: ARG001
        zero(parameters, kept)

    if optimizer is None:
        handles.append(register_optimizer_step_post_hook(after_step))
    else:
        handles.append(optimizer.register_step_post_hook(after_step))
    return [handle.remove for handle in handles]


def _masking(kept: Tensor) -> Callable[[Tensor], None]:
    def mask(parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is not None and gradient.layout == torch.strided:
            # in place: an optimizer, or a view over several gradients, may hold this tensor
            gradient.detach().masked_fill_(~_beside(kept, gradient), 0)

    return mask


def _beside(kept: Tensor, tensor: Tensor) -> Tensor:
    return kept.to(tensor.device)
