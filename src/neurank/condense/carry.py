"""Taking an optimizer and averaged copies along when the network they belong to is condensed.

Surgery makes new parameters. An optimizer built before it still holds the old ones: it steps, the
loss falls no more, and nothing says why. `carry_over` edits the optimizer in place, since learning
rate schedulers hold the optimizer itself: each group lists the small network's parameters where
the large one's were, and the state of each is cut as the parameter was. `sliced` cuts a state dict
likewise, such as that of an exponential moving average.

Nothing here knows an optimizer by name. What an optimizer keeps per parameter is told from its
shape, and what cannot be told is refused before anything is changed.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neurank.condense.surgery import Cut, named_tensors
from neurank.errors import CondenseError

_WRAPPED = ("", "module.")
"""What stands before a parameter's name in a state dict: nothing, or what AveragedModel and
DataParallel put there."""

_OWN = frozenset({"param_groups", "state"})
"""Where an optimizer keeps parameters that can be exchanged."""

_DEPTH = 4
"""How far into nested attributes of an optimizer is looked for parameters."""


@dataclass(frozen=True)
class Carried:
    """What an optimizer trains after `carry_over`, by the small network's names.

    Attributes
    ----------
    parameters : what the optimizer holds of the small network, in its order.
    made : those among them that condensing made, which have no history.
    left_out : parameters that require a gradient and are in none of the optimizer's groups, as in
        the large network: another optimizer's, or forgotten.
    """

    parameters: tuple[str, ...]
    made: tuple[str, ...]
    left_out: tuple[str, ...]


def carry_over(
    optimizer: Optimizer, old: nn.Module, small: nn.Module, cuts: Sequence[Cut]
) -> Carried:
    """Let an optimizer of a large network train the condensed one, where it left off.

    Edits the optimizer IN PLACE and all or nothing. Each parameter of `old` is exchanged for that
    of the same name of `small`: in its group, whose settings stay, and as the key of its state.
    The values are `small`'s. Step counts and other single numbers of the state are kept; tensors
    with the parameter's axes, each of its size or 1, lose the entries that the parameter lost (so
    momenta, second moments, and Adafactor's factored ones). Learning rate schedulers go on, since
    they hold the optimizer. A gradient that is there is cut, too, for accumulation in flight.
    Parameters that are not `old`'s stay as they are, with their state.

    A parameter that condensing made, such as a bias, joins the group of the weight beside it, where
    ``small.parameters()`` has it, so that checkpoints fit an optimizer built for the small network.
    It has the state that the optimizer gives a parameter when it is built, for most optimizers
    none: its moments and its own step count start at its first step.

    What is not in the optimizer: a `torch.amp.GradScaler` holds nothing per parameter and goes on;
    `DistributedDataParallel`, `torch.compile` and hooks on parameters belong to `old` and have to
    be set up again; averaged copies go by `sliced`.

    Parameters
    ----------
    optimizer
        Any but those that keep parameters elsewhere than in groups and state, such as LBFGS.
    old
        The network before, whose parameters the optimizer holds, or the part of it that was
        condensed. It is not changed.
    small
        The network after, whose parameters have the same names.
    cuts
        What was cut of `old`, each relative to the cuts before it.

    Returns
    -------
    Carried
        Names, those among them that train but are in none of the optimizer's groups.

    Raises
    ------
    CondenseError
        The optimizer holds no parameter of `old`, or holds some where they cannot be exchanged; a
        tensor of the state of a parameter that is cut has another shape; `small` is not what the
        cuts make of `old`. The optimizer is unchanged then.

    Examples
    --------
    >>> old, small = nn.Linear(2, 3), nn.Linear(2, 2)
    >>> optimizer = torch.optim.SGD(old.parameters(), lr=0.1, momentum=0.9)
    >>> old(torch.tensor([[1.0, 2.0]])).sum().backward()
    >>> optimizer.step()
    >>> carry_over(optimizer, old, small, [Cut("weight", 0, (0, 2)), Cut("bias", 0, (0, 2))])
    Carried(parameters=('weight', 'bias'), made=(), left_out=())
    >>> optimizer.param_groups[0]["params"][0] is small.weight
    True
    >>> optimizer.state[small.weight]["momentum_buffer"]
    tensor([[1., 2.],
            [1., 2.]])
    """
    _check_optimizer(optimizer)
    heirs = _heirs(old, small, cuts)
    _check_holds(optimizer, heirs)
    made = _made(old, small, heirs)
    held = _held(optimizer)
    with torch.no_grad():
        groups = [
            _group_after(group, type(optimizer), heirs, made) for group in optimizer.param_groups
        ]
        state = _state_after(optimizer, heirs)
        gradients = [(heir.new, heir.gradient()) for heir in heirs.values() if heir.old in held]
    # Nothing can fail from here on.
    for group, after in zip(optimizer.param_groups, groups, strict=True):
        group["params"][:] = after.params
        if "param_names" in group:
            group["param_names"] = after.names
        state.update(after.first)
    optimizer.state.clear()
    optimizer.state.update(state)
    for parameter, gradient in gradients:
        parameter.grad = gradient
    return _report(optimizer, small, made)


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
    ties = {name: names for names in _ties(whole) for name in names}
    changed = dict(state)
    with torch.no_grad():
        for name, shift in shifts.items():
            for each in ties.get(name, (name,)):
                if (bias := _shifted(state, before, each, shift)) is not None:
                    changed[before + each] = bias
        cuts_of = _by_tensor((*cuts, *_cuts_beside(cuts, shifts)))
        for names in dict.fromkeys(ties.get(name, (name,)) for name in cuts_of):
            own = _cuts_under(names, cuts_of)
            for name in (before + each for each in names if before + each in changed):
                shape = tuple(changed[name].shape)
                _shape_after(shape, own, name)
                changed[name] = _kept(changed[name], shape, own)
    return changed | {before + name: tensor for name, tensor in (made or {}).items()}


@dataclass(frozen=True, eq=False)
class _Heir:
    """A parameter of the large network and what is left of it in the small one."""

    name: str
    old: nn.Parameter
    new: nn.Parameter
    cuts: tuple[Cut, ...]

    def inherits(self, value: Any, key: str) -> Any:
        """Cut what the optimizer keeps for the parameter; `key` says where it was found."""
        if isinstance(value, Tensor):
            return self._tensor(value, key)
        if isinstance(value, dict):
            twin = copy.copy(value)
            for name, part in value.items():
                twin[name] = self.inherits(part, f"{key}.{name}" if key else str(name))
            return twin
        if type(value) in {list, tuple}:
            parts = (self.inherits(part, f"{key}[{i}]") for i, part in enumerate(value))
            return type(value)(parts)
        return value

    def gradient(self) -> Tensor | None:
        """Return a copy of the gradient that is there, cut."""
        return None if self.old.grad is None else self._tensor(self.old.grad, "grad").clone()

    def _tensor(self, tensor: Tensor, key: str) -> Tensor:
        if not self.cuts or tensor.numel() == 1:
            return tensor
        shape = tuple(self.old.shape)
        if tensor.ndim != len(shape) or any(
            size not in {1, whole} for size, whole in zip(tensor.shape, shape, strict=True)
        ):
            raise CondenseError(
                f"the optimizer keeps {key!r} of shape {tuple(tensor.shape)} for the parameter "
                f"{self.name!r} of shape {shape}, and which of its entries belong to the units "
                "removed cannot be told: delete it from optimizer.state before condensing, if the "
                "optimizer can start it anew, or build a new optimizer for the condensed network"
            )
        return _kept(tensor, shape, self.cuts)


@dataclass(frozen=True, eq=False)
class _Made:
    """A parameter of the small network alone, where its module has it.

    `weight` is the large network's weight beside it, `behind` what precedes it in its module.
    """

    name: str
    new: nn.Parameter
    weight: nn.Parameter | None
    behind: frozenset[nn.Parameter]


@dataclass(frozen=True, eq=False)
class _Group:
    """A parameter group after the exchange; `first` is the state of those that are new in it."""

    params: list[Tensor]
    names: list[str]
    first: dict[Tensor, dict[str, Any]]


def _check_optimizer(optimizer: object) -> None:
    if not isinstance(optimizer, Optimizer):
        raise CondenseError(
            f"the optimizer is a {type(optimizer).__name__}: give a torch.optim.Optimizer"
        )


def _heirs(old: nn.Module, small: nn.Module, cuts: Sequence[Cut]) -> dict[Tensor, _Heir]:
    """Pair the parameters of the networks, tied ones once, and check that the cuts relate them."""
    unknown = [cut.tensor for cut in cuts if cut.tensor not in named_tensors(old)]
    if unknown:
        raise CondenseError(
            f"the cuts are of a tensor {unknown[0]!r}, which the large network does not have: give "
            "the network that was condensed, and the cuts of that condensation"
        )
    before = dict(old.named_parameters(remove_duplicate=False))
    after = dict(small.named_parameters(remove_duplicate=False))
    cuts_of = _by_tensor(cuts)
    heirs = [
        _Heir(names[0], before[names[0]], _one_of(after, names), _cuts_under(names, cuts_of))
        for names in _ties(before)
    ]
    for heir in heirs:
        _check_heir(heir)
    return {heir.old: heir for heir in heirs}


def _one_of(after: Mapping[str, nn.Parameter], names: Sequence[str]) -> nn.Parameter:
    """Return the one parameter that the small network has under all these names."""
    found = {after.get(name) for name in names}
    (heir, *others) = found
    if heir is None or others:
        raise CondenseError(
            f"the large network's parameter {' = '.join(names)} is not one parameter of the small "
            "network: give the network that was condensed, and what came of it"
        )
    return heir


def _check_heir(heir: _Heir) -> None:
    wanted = _shape_after(tuple(heir.old.shape), heir.cuts, heir.name)
    found = tuple(heir.new.shape)
    if wanted != found:
        raise CondenseError(
            f"the cuts make {wanted} of the parameter {heir.name!r}, which is {found} in the small "
            "network: give the network that was condensed, what came of it, and the cuts of that "
            "condensation"
        )
    if (heir.old.dtype, heir.old.device) != (heir.new.dtype, heir.new.device):
        raise CondenseError(
            f"the parameter {heir.name!r} is {heir.old.dtype} on {heir.old.device} in the large "
            f"network and {heir.new.dtype} on {heir.new.device} in the small one, where the "
            "optimizer's state would not fit: carry the optimizer over first, or build a new one"
        )


def _check_holds(optimizer: Optimizer, heirs: Mapping[Tensor, _Heir]) -> None:
    """Refuse an optimizer whose parameters cannot all be exchanged."""
    kind = type(optimizer).__name__
    for attribute, value in vars(optimizer).items():
        if attribute in _OWN or not _holds(value, heirs, _DEPTH):
            continue
        if isinstance(value, Optimizer):
            raise CondenseError(
                f"{kind} wraps another optimizer, in its attribute {attribute!r}, which holds "
                "parameters of the large network, too: carry over that one, and build the "
                f"{kind} anew around it"
            )
        raise CondenseError(
            f"{kind} keeps parameters of the large network in its attribute {attribute!r}, beside "
            "its groups (LBFGS does, and its state is one flat vector of all of them), so they "
            f"cannot be exchanged: build a new {kind} for the condensed network"
        )
    held = _held(optimizer)
    if not any(parameter in held for parameter in heirs):
        raise CondenseError(
            f"the {kind} holds no parameter of the large network, so it would go on training "
            "something else: give the optimizer that trained it, and the network itself, not a "
            "copy. An optimizer can be carried over once per condensation"
        )
    twice = [heir.name for heir in heirs.values() if heir.new is not heir.old and heir.new in held]
    if twice:
        raise CondenseError(
            f"the {kind} holds the parameter {twice[0]!r} of the small network already: carry it "
            "over before adding parameters of the small network"
        )


def _holds(value: Any, parameters: Mapping[Tensor, _Heir], depth: int) -> bool:
    """Whether a value is, or has in it, one of the parameters."""
    if isinstance(value, Tensor):
        return value in parameters
    if depth == 0:
        return False
    return any(_holds(part, parameters, depth - 1) for part in _parts(value))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Optimizer):
        yield value.param_groups
    elif isinstance(value, Mapping):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value


def _held(optimizer: Optimizer) -> set[Tensor]:
    return {parameter for group in optimizer.param_groups for parameter in group["params"]}


def _made(old: nn.Module, small: nn.Module, heirs: Mapping[Tensor, _Heir]) -> list[_Made]:
    before = dict(old.named_parameters(remove_duplicate=False))
    inherited = {heir.new for heir in heirs.values()}
    found: list[_Made] = []
    seen: dict[str, frozenset[nn.Parameter]] = {}
    for name, parameter in small.named_parameters():
        owner = name.rpartition(".")[0]
        behind = seen.get(owner, frozenset())
        if parameter not in inherited:
            found.append(_Made(name, parameter, before.get(_weight_beside(name)), behind))
        seen[owner] = behind | {parameter}
    return found


def _group_after(
    group: Mapping[str, Any],
    kind: type[Optimizer],
    heirs: Mapping[Tensor, _Heir],
    made: Sequence[_Made],
) -> _Group:
    params = [heirs[one].new if one in heirs else one for one in group["params"]]
    after = _Group(params, list(group.get("param_names", [""] * len(params))), {})
    held = set(group["params"])
    for one in (one for one in made if one.weight in held):
        place = 1 + max(i for i, parameter in enumerate(params) if parameter in one.behind)
        after.names.insert(place, _beside(after.names[place - 1], one.name))
        params.insert(place, one.new)
        if first := _first_state(kind, group, one):
            after.first[one.new] = first
    return after


def _first_state(kind: type[Optimizer], group: Mapping[str, Any], made: _Made) -> dict[str, Any]:
    """Return the state that an optimizer of this kind and group has before its first step.

    Most have none, but Adagrad makes its sums when it is built, and Muon takes no biases: building
    one for the new parameter alone tells, whatever the kind.
    """
    known = inspect.signature(kind).parameters
    settings = {name: value for name, value in group.items() if name in known and name != "params"}
    twin = nn.Parameter(made.new.detach().clone(), requires_grad=made.new.requires_grad)
    try:
        fresh = kind([twin], **settings)
    except Exception as error:  # whatever the user's class raises
        raise CondenseError(
            f"condensing made the parameter {made.name!r}, for which no {kind.__name__} can be "
            f"built with the settings of its weight's group ({error}): give the layer a bias "
            "before training, use removal='zero', or build a new optimizer"
        ) from error
    return dict(fresh.state.get(twin, {}))


def _state_after(optimizer: Optimizer, heirs: Mapping[Tensor, _Heir]) -> dict[Any, Any]:
    """Return the state under the parameters' heirs; what belongs to others is kept."""
    return {
        (heirs[key].new if key in heirs else key): (
            heirs[key].inherits(value, "") if key in heirs else value
        )
        for key, value in optimizer.state.items()
    }


def _report(optimizer: Optimizer, small: nn.Module, made: Sequence[_Made]) -> Carried:
    names = {parameter: name for name, parameter in small.named_parameters()}
    new = {one.name for one in made}
    held = [
        names[parameter]
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter in names
    ]
    trains = [name for parameter, name in names.items() if parameter.requires_grad]
    return Carried(
        parameters=tuple(held),
        made=tuple(name for name in held if name in new),
        left_out=tuple(name for name in trains if name not in held),
    )


def _by_tensor(cuts: Sequence[Cut]) -> dict[str, tuple[Cut, ...]]:
    found: dict[str, tuple[Cut, ...]] = {}
    for cut in cuts:
        found[cut.tensor] = (*found.get(cut.tensor, ()), cut)
    return found


def _ties(tensors: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Return the names of each tensor together, in the order of the first ones."""
    names: dict[Tensor, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(tensor, []).append(name)
    return [tuple(own) for own in names.values()]


def _cuts_under(names: Sequence[str], cuts_of: Mapping[str, Sequence[Cut]]) -> tuple[Cut, ...]:
    """Return the cuts of a tensor with several names: the same under two names is one cut."""
    runs: dict[tuple[tuple[int, tuple[int, ...]], ...], Sequence[Cut]] = {}
    for name in names:
        own = cuts_of.get(name, ())
        runs.setdefault(tuple((cut.axis, cut.keep) for cut in own), own)
    return tuple(cut for own in runs.values() for cut in own)


def _shape_after(shape: tuple[int, ...], cuts: Sequence[Cut], name: str) -> tuple[int, ...]:
    """Return the shape that cuts leave, and refuse those that name what is not there."""
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


def _kept(tensor: Tensor, shape: tuple[int, ...], cuts: Sequence[Cut]) -> Tensor:
    """Cut along those axes that have the size that `shape` says; the others have size 1."""
    whole = [size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)]
    for cut in cuts:
        if whole[cut.axis]:
            keep = torch.tensor(cut.keep, dtype=torch.long, device=tensor.device)
            tensor = tensor.index_select(cut.axis, keep)
    return tensor


def _shown(keep: Sequence[int]) -> str:
    return f"up to {max(keep)}" if len(keep) > 8 else ", ".join(map(str, keep))


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
    like = state.get(before + _weight_beside(name)) if bias is None else bias
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
            rows = (c for c in cuts if c.tensor == _weight_beside(name) and c.axis == 0)
            yield from (Cut(name, 0, cut.keep) for cut in rows)


def _weight_beside(bias: str) -> str:
    owner = bias.rpartition(".")[0]
    return f"{owner}.weight" if owner else "weight"


def _beside(weight: str, made: str) -> str:
    """Name a made parameter as the optimizer names the weight beside it."""
    owner, dot, _ = weight.rpartition(".")
    return f"{owner}{dot}{made.rpartition('.')[2]}"
