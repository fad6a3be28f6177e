"""What cuts leave of a tensor that goes with a network: of any shape, under any of its names."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from neurank.condense.surgery import Cut
from neurank.errors import CondenseError


def by_tensor(cuts: Sequence[Cut]) -> dict[str, tuple[Cut, ...]]:
    """Return the cuts of each tensor, in their order, by its name."""
    found: dict[str, tuple[Cut, ...]] = {}
    for cut in cuts:
        found[cut.tensor] = (*found.get(cut.tensor, ()), cut)
    return found


def tied_names(tensors: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Return the names of each tensor together, in the order of the first ones.

    Examples
    --------
    >>> one, other = torch.zeros(2), torch.zeros(2)
    >>> tied_names({"a": one, "b": other, "c": one})
    [('a', 'c'), ('b',)]
    """
    names: dict[Tensor, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(tensor, []).append(name)
    return [tuple(own) for own in names.values()]


def cuts_under(names: Sequence[str], cuts_of: Mapping[str, Sequence[Cut]]) -> tuple[Cut, ...]:
    """Return the cuts of a tensor with several names: the same under two names is one cut."""
    runs: dict[tuple[tuple[int, tuple[int, ...]], ...], Sequence[Cut]] = {}
    for name in names:
        own = cuts_of.get(name, ())
        runs.setdefault(tuple((cut.axis, cut.keep) for cut in own), own)
    return tuple(cut for own in runs.values() for cut in own)


def shape_after(shape: tuple[int, ...], cuts: Sequence[Cut], name: str) -> tuple[int, ...]:
    """Return the shape that cuts leave, and refuse those that name what is not there.

    Raises
    ------
    CondenseError
        A cut is along an axis, or keeps entries, that the tensor called `name` does not have.

    Examples
    --------
    >>> shape_after((3, 2), [Cut("weight", 0, (0, 2)), Cut("weight", 0, (1,))], "weight")
    (1, 2)
    """
    sizes = list(shape)
    for cut in cuts:
        if not 0 <= cut.axis < len(sizes) or not all(0 <= i < sizes[cut.axis] for i in cut.keep):
            raise CondenseError(
                f"the tensor {name!r} of shape {shape} has no entries {_shown(cut.keep)} along "
                f"axis {cut.axis}, which should stay: it is not of the network that was condensed, "
                "or it was cut already"
            )
        sizes[cut.axis] = len(cut.keep)
    return tuple(sizes)


def kept_of(tensor: Tensor, shape: tuple[int, ...], cuts: Sequence[Cut]) -> Tensor:
    """Cut along those axes that have the size that `shape` says; the others have size 1.

    Examples
    --------
    >>> kept_of(torch.tensor([[1.0, 2.0, 3.0]]), (4, 3), [Cut("w", 0, (0, 3)), Cut("w", 1, (0, 2))])
    tensor([[1., 3.]])
    """
    whole = [size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)]
    for cut in cuts:
        if whole[cut.axis]:
            keep = torch.tensor(cut.keep, dtype=torch.long, device=tensor.device)
            tensor = tensor.index_select(cut.axis, keep)
    return tensor


def weight_beside(bias: str) -> str:
    """Name the weight of the layer that a bias belongs to.

    Examples
    --------
    >>> weight_beside("conv1.bias"), weight_beside("bias")
    ('conv1.weight', 'weight')
    """
    owner = bias.rpartition(".")[0]
    return f"{owner}.weight" if owner else "weight"


def _shown(keep: Sequence[int]) -> str:
    return f"up to {max(keep)}" if len(keep) > 8 else ", ".join(map(str, keep))
