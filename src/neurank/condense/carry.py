"""Taking an optimizer and averaged copies along when the network they belong to is condensed.

Surgery makes new parameters. An optimizer built before it still holds the old ones: it steps, the
loss falls no more, and nothing says why. `carry_over` edits the optimizer in place, since learning
rate schedulers hold the optimizer itself: each group lists the small network's parameters where
the large one's were, and the state of each is cut as the parameter was. `sliced` cuts a state dict
likewise, such as that of an exponential moving average.

Nothing here knows an optimizer by name. What an optimizer keeps per parameter is told from its
shape, and what cannot be told is refused before anything is changed.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neurank.condense.heirs import Heir, check_holds, heirs_of, held_by
from neurank.condense.slices import weight_beside
from neurank.condense.states import sliced
from neurank.condense.surgery import Cut
from neurank.errors import CondenseError

__all__ = ["Carried", "carry_over", "sliced", "trains"]


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
    heirs = heirs_of(old, small, cuts)
    check_holds(optimizer, heirs)
    made = _made(old, small, heirs)
    held = held_by(optimizer)
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


def trains(optimizer: Optimizer, model: nn.Module) -> bool:
    """Whether an optimizer holds any parameter of a network."""
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    return any(parameter in held for parameter in model.parameters())


def _check_optimizer(optimizer: object) -> None:
    if not isinstance(optimizer, Optimizer):
        raise CondenseError(
            f"the optimizer is a {type(optimizer).__name__}: give a torch.optim.Optimizer"
        )


def _made(old: nn.Module, small: nn.Module, heirs: Mapping[Tensor, Heir]) -> list[_Made]:
    before = dict(old.named_parameters(remove_duplicate=False))
    inherited = {heir.new for heir in heirs.values()}
    found: list[_Made] = []
    seen: dict[str, frozenset[nn.Parameter]] = {}
    for name, parameter in small.named_parameters():
        owner = name.rpartition(".")[0]
        behind = seen.get(owner, frozenset())
        if parameter not in inherited:
            found.append(_Made(name, parameter, before.get(weight_beside(name)), behind))
        seen[owner] = behind | {parameter}
    return found


def _group_after(
    group: Mapping[str, Any],
    kind: type[Optimizer],
    heirs: Mapping[Tensor, Heir],
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


def _state_after(optimizer: Optimizer, heirs: Mapping[Tensor, Heir]) -> dict[Any, Any]:
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


def _beside(weight: str, made: str) -> str:
    """Name a made parameter as the optimizer names the weight beside it."""
    owner, dot, _ = weight.rpartition(".")
    return f"{owner}{dot}{made.rpartition('.')[2]}"
