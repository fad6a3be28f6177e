"""The Hessian of the mean loss, whole or its diagonal, for small networks."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from neurank.errors import MethodError
from neurank.observe.examples import Batch
from neurank.observe.weight_loss import Loss, WeightLoss, watching_loss

LARGEST = 5_000
"""Weights whose full Hessian is computed: 25 million numbers, 200 MB."""
LARGEST_DIAGONAL = 50_000
"""Weights whose diagonal is computed; each takes a backward pass per batch."""


def hessian(
    model: nn.Module,
    data: Iterable[Batch],
    parameters: Sequence[str] | None = None,
    *,
    loss: Loss | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Tensor:
    """Compute the matrix of second derivatives of the mean loss, one backward pass per weight.

    Parameters
    ----------
    model, data, parameters, loss, device, progress : as for `neurank.weights.score`.

    Returns
    -------
    Tensor
        (weights, weights) float64: the parameters one after another, each row by row.

    Raises
    ------
    MethodError
        There are more than `LARGEST` weights.
    DataError, ModelError
        As for `neurank.weights.score`.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> data = [(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))]
    >>> hessian(model, data, loss=lambda outputs, targets: outputs.square().sum(dim=1))
    tensor([[2., 4.],
            [4., 8.]], dtype=torch.float64)
    """
    with watching_loss(
        model, data, parameters=parameters, loss=loss, device=device, progress=progress
    ) as watched:
        count = _count(watched, LARGEST, "the Hessian", "hessian_diagonal, or Hessian() scores")
        matrix = torch.zeros(count, count, dtype=torch.float64)
        for number, row in watched.hessian_rows():
            matrix[number] += row.cpu()
    return matrix


def hessian_diagonal(
    model: nn.Module,
    data: Iterable[Batch],
    parameters: Sequence[str] | None = None,
    *,
    loss: Loss | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Compute the second derivative of the mean loss by each weight, exactly.

    What equation 2.2 of the thesis asks for; one backward pass per weight and batch.

    Parameters
    ----------
    model, data, parameters, loss, device, progress : as for `neurank.weights.score`.

    Returns
    -------
    dict
        By parameter, of its shape, float64.

    Raises
    ------
    MethodError
        There are more than `LARGEST_DIAGONAL` weights.
    DataError, ModelError
        As for `neurank.weights.score`.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> data = [(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))]
    >>> hessian_diagonal(model, data, loss=lambda outputs, targets: outputs.square().sum(dim=1))
    {'weight': tensor([[2., 8.]], dtype=torch.float64)}
    """
    with watching_loss(
        model, data, parameters=parameters, loss=loss, device=device, progress=progress
    ) as watched:
        count = _count(watched, LARGEST_DIAGONAL, "the Hessian's diagonal", "Hessian() scores")
        flat = torch.zeros(count, dtype=torch.float64)
        for number, row in watched.hessian_rows():
            flat[number] += row[number].cpu()
        weights = watched.weights
    parts = torch.split(flat, [it.numel() for it in weights.values()])
    return {
        name: part.reshape(weights[name].shape) for name, part in zip(weights, parts, strict=True)
    }


def _count(watched: WeightLoss, most: int, what: str, instead: str) -> int:
    count = sum(weight.numel() for weight in watched.weights.values())
    if count > most:
        raise MethodError(
            f"{what} of {count:,} weights is more than the {most:,} that are taken on: name fewer "
            f"as parameters=[...], or use {instead}, which take one Hessian-vector product"
        )
    return count
