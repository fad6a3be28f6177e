"""Masks in training: pruned weights stay exactly zero, whatever the optimizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import torch  # noqa: F401 (the example)
from torch import nn
from torch.optim import Optimizer

from neurank.errors import MethodError
from neurank.observe.weight_hooks import hold_at_zero, zero
from neurank.weights.masks import Masks, check_fit


@dataclass(eq=False)
class Held:
    """Masks at work on a model, until `release` or the end of a `with` block.

    Attributes
    ----------
    masks : what is kept and what is 0.
    """

    masks: Masks
    _parameters: Mapping[str, nn.Parameter] = field(repr=False)
    _releases: list[Callable[[], None]] = field(repr=False)

    @property
    def released(self) -> bool:
        """Whether the model is free again."""
        return not self._releases

    def apply(self) -> None:
        """Set the pruned weights to 0 now, such as after loading a state into the model.

        Raises
        ------
        MethodError
            The masks have been released.
        """
        if self.released:
            raise MethodError("these masks have been released: call hold(model, masks) anew")
        zero(self._parameters, self.masks)

    def release(self) -> None:
        """Take every hook away; the weights stay as they are. A second call does nothing."""
        while self._releases:
            self._releases.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def hold(model: nn.Module, masks: Masks, optimizer: Optimizer | None = None) -> Held:
    """Set the pruned weights of a model to 0 and keep them there while it is trained.

    Gradients are masked as they are accumulated and weights after each step, so neither momentum
    nor weight decay moves them. The parameters stay those that the optimizer holds; the model's
    structure, its state_dict and what is exported of it do not change. A copy of the model
    (`copy.deepcopy`) is not held.

    Parameters
    ----------
    model : the network; its weights are changed in place.
    masks : what to keep.
    optimizer : whose steps are followed; None follows every optimizer of this process.

    Returns
    -------
    Held
        A handle with `release`, and a context manager.

    Raises
    ------
    PlanError
        The masks do not fit the model.
    MethodError
        `optimizer` is none, or holds none of the masked parameters.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> masks = Masks({"weight": torch.tensor([[True, False]])})
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    >>> with hold(model, masks, optimizer):
    ...     model(torch.ones(1, 2)).sum().backward()
    ...     optimizer.step()
    >>> model.weight[0, 1].item(), model.weight.grad.tolist()
    (0.0, [[1.0, 0.0]])
    """
    check_fit(masks, model)
    parameters = dict(model.named_parameters())
    chosen = {name: parameters[name] for name in masks}
    if optimizer is not None:
        _check_optimizer(optimizer, chosen)
    held = Held(masks, chosen, hold_at_zero(chosen, masks, optimizer))
    held.apply()
    for name, parameter in chosen.items():
        if parameter.grad is not None:
            parameter.grad.masked_fill_(~masks[name].to(parameter.grad.device), 0)
    return held


def _check_optimizer(optimizer: Optimizer, chosen: Mapping[str, nn.Parameter]) -> None:
    if not isinstance(optimizer, Optimizer):
        raise MethodError(
            f"optimizer={type(optimizer).__name__} is no torch optimizer: pass the one that trains "
            "the model, or None for whichever does"
        )
    trained = {id(it) for group in optimizer.param_groups for it in group["params"]}
    strangers = [name for name, it in chosen.items() if id(it) not in trained and it.requires_grad]
    if strangers:
        raise MethodError(
            f"the optimizer does not hold {', '.join(map(repr, strangers))}, which are masked: "
            "build it from this model's parameters, or pass None to follow every optimizer"
        )
