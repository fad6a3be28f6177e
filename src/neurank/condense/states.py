"""Cutting a state dict as the network was: that of an averaged copy, or an older checkpoint."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from neurank.condense.slices import (
    by_tensor,
    cuts_under,
    kept_of,
    shape_after,
    tied_names,
    weight_beside,
)
from neurank.condense.surgery import Cut, named_tensors
from neurank.errors import CondenseError

_WRAPPED = ("", "module.")
"""What stands before a parameter's name in a state dict: nothing, or what AveragedModel and
DataParallel put there."""


def sliced(
    state: Mapping[str, Tensor],
    cuts: Sequence[Cut],
    *,
    shifts: Mapping[str, Tensor] | None = None,
    made: Mapping[str, Tensor] | None = None,
    original: nn.Module | None = None,
    prefix: str | None = None,
) -> dict[str, Tensor]:
    """Cut a state dict as the network was: that of an averaged copy, an older checkpoint.

    What condensing with ``removal="mean"`` or ``"parameters"`` adds, `shifts` and `made`, are the
    network's own constants seen through its own weights, which an average nearly shares. Where the
    data are at hand, condensing the averaged copy by the same plan is exact.

    Parameters
    ----------
    state
        Tensors by name. It need not have all of the network's (averages often lack buffers); what
        has no cut is handed on as it is, the same tensor.
    cuts
        What was cut of the network, each relative to the cuts before it.
    shifts
        By name of a bias, what is added to it before it is cut, (features,). A bias that `state`
        lacks is made, where the weight beside it is there.
    made
        Further tensors that condensing made, by name, cut already.
    original
        The network before: then shapes are checked by its own, and tensors that it ties are cut
        under each of their names. Without it, only the entries that stay have to be there.
    prefix
        What stands before the network's names in `state`; by default nothing, or ``"module."``
        where the names have it, as those of `torch.optim.swa_utils.AveragedModel` do.

    Returns
    -------
    dict
        The tensors by the names they had, in their order. Made ones come last.

    Raises
    ------
    CondenseError
        A tensor does not have the original's shape or the entries that should stay, or none of
        the tensors that are cut is there.

    Examples
    --------
    >>> average = {"module.weight": torch.arange(6.0).view(3, 2), "n_averaged": torch.tensor(7)}
    >>> sliced(average, [Cut("weight", 0, (0, 2))])
    {'module.weight': tensor([[0., 1.],
            [4., 5.]]), 'n_averaged': tensor(7)}
    """
    shifts = shifts or {}
    before = _prefix(state, cuts, shifts) if prefix is None else prefix
    _check_has(state, before, cuts)
    whole = {} if original is None else named_tensors(original)
    _check_shapes(state, before, whole)
    ties = {name: names for names in tied_names(whole) for name in names}
    changed = dict(state)
    with torch.no_grad():
        for name, shift in shifts.items():
            for each in ties.get(name, (name,)):
                if (bias := _shifted(state, before, each, shift)) is not None:
                    changed[before + each] = bias
        cuts_of = by_tensor((*cuts, *_cuts_beside(cuts, shifts)))
        for names in dict.fromkeys(ties.get(name, (name,)) for name in cuts_of):
            own = cuts_under(names, cuts_of)
            for name in (before + each for each in names if before + each in changed):
                shape = tuple(changed[name].shape)
                shape_after(shape, own, name)
                changed[name] = kept_of(changed[name], shape, own)
    return changed | {before + name: tensor for name, tensor in (made or {}).items()}


def _prefix(state: Mapping[str, Tensor], cuts: Sequence[Cut], shifts: Mapping[str, Tensor]) -> str:
    names = [*(cut.tensor for cut in cuts), *shifts]
    fitting = (before for before in _WRAPPED if any(before + name in state for name in names))
    return next(fitting, "")


def _check_has(state: Mapping[str, Tensor], before: str, cuts: Sequence[Cut]) -> None:
    if cuts and not any(before + cut.tensor in state for cut in cuts):
        raise CondenseError(
            f"the state has no tensor {before + cuts[0].tensor!r}, nor any other that was cut; it "
            f"has {', '.join(list(state)[:3]) or 'none at all'}: say with prefix= what stands "
            "before the network's own names, or give the state of the network that was condensed"
        )


def _check_shapes(state: Mapping[str, Tensor], before: str, original: Mapping[str, Tensor]) -> None:
    for name, whole in original.items():
        tensor = state.get(before + name)
        if isinstance(tensor, Tensor) and tensor.shape != whole.shape:
            raise CondenseError(
                f"the state's {before + name!r} is {tuple(tensor.shape)} and the original's "
                f"{tuple(whole.shape)}: it is not of the network that was condensed, or it was "
                "cut already"
            )


def _shifted(state: Mapping[str, Tensor], before: str, name: str, shift: Tensor) -> Tensor | None:
    """Add to a bias in float64 and round once; None where the layer is not in the state."""
    bias = state.get(before + name)
    like = state.get(before + weight_beside(name)) if bias is None else bias
    if like is None:
        return None
    if len(shift) != len(like):
        raise CondenseError(
            f"the shift of {name!r} has {len(shift)} entries for {len(like)} features in the "
            "state: it is not of the network that was condensed, or it was cut already"
        )
    whole = shift.to(device=like.device, dtype=torch.float64)
    return (whole if bias is None else bias.to(torch.float64) + whole).to(like.dtype)


def _cuts_beside(cuts: Sequence[Cut], shifts: Mapping[str, Tensor]) -> Iterator[Cut]:
    """Cut a bias as the weight beside it, where no cut of its own is there."""
    own = {cut.tensor for cut in cuts}
    for name in shifts:
        if name not in own:
            rows = (c for c in cuts if c.tensor == weight_beside(name) and c.axis == 0)
            yield from (Cut(name, 0, cut.keep) for cut in rows)
