"""Reading a condensed network: factory for architecture, plan for surgery, file for weights."""

import os
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from neurank.condense.condensed import Condensed, probe, rebuilt
from neurank.condense.heads import narrow_outputs
from neurank.condense.saved import Saved
from neurank.condense.surgery import named_tensors
from neurank.errors import CondenseError, ModelError, NeurankError
from neurank.units.space import UnitSpace, unit_space
from neurank.units.trace import trace

_SAME = {torch.float64: 1e-9, torch.float32: 1e-4}
_ROUGHLY_SAME = 2e-2
"""How far the probe's logits may be from those saved: kernels round differently elsewhere."""


def load(path: str | os.PathLike[str], factory: Callable[[], nn.Module]) -> Condensed:
    """Read a condensed network that `Condensed.save` wrote.

    Parameters
    ----------
    path
        The file. Nothing in it is executed.
    factory
        Builds the ORIGINAL architecture, before condensing, with any weights. The plan's surgery
        is repeated on what it returns, and the file's weights are loaded. Where a head took the
        place of the outputs (`neurank.condense.heads`), the original is the network from before
        the head.

    Returns
    -------
    Condensed
        Its ``.model`` gives the outputs of the one that was saved, and has the training flags and
        the device that `factory` gives. ``.check`` and ``.report`` are those of the condensing.

    Raises
    ------
    FileError
        The file is missing, altered, foreign, or of something else.
    CondenseError
        What `factory` builds is not the network that was condensed: the message names the layer.
    ModelError
        `factory` returns no module, or one that cannot be traced.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import neurank as nr
    >>> from neurank.condense.condensed import condense
    >>> from neurank.condense.plan import Plan
    >>> data = [(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))]
    >>> plan = Plan.from_keep({"fc2": (0, 3, 5)}, {"fc2": 16})
    >>> small = condense(nr.zoo.digits_net(seed=0), plan, data)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "small.safetensors")
    ...     small.save(path)
    ...     again = load(path, nr.zoo.digits_net)
    >>> again.original_index("fc2", 1), again.model.fc2
    (3, Linear(in_features=32, out_features=3, bias=True))
    """
    saved = Saved.read(path)
    where = os.fspath(path)
    with torch.random.fork_rng(devices=[]):  # weights that are drawn only to be overwritten
        model = factory()
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the factory returned a {type(model).__name__}: give a function that builds the "
            "original torch.nn.Module, such as neurank.zoo.lenet"
        )
    _take_types(model, saved.state)
    try:
        space = _space(model, saved)
        if saved.origin.outputs is not None:
            narrow_outputs(model, space, saved.origin.outputs)
            space = _space(model, saved)
        _check_widths(space, saved)
        small, cuts = rebuilt(model, saved.plan, space, saved.origin, saved.state)
        _fill(small, saved)
    except NeurankError as error:
        raise CondenseError(
            f"the factory does not build the {saved.origin.model_class} that {where} was condensed "
            f"from: {error}"
        ) from error
    result = Condensed(small, saved.plan, saved.check, saved.report, saved.origin, cuts, shifts={})
    _check_probe(result, saved, where)
    return result


def _take_types(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, tensor in named_tensors(model).items():
        if name in state and tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)


def _space(model: nn.Module, saved: Saved) -> UnitSpace:
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    return unit_space(trace(model, saved.origin.examples(2).to(device)), model)


def _check_widths(space: UnitSpace, saved: Saved) -> None:
    for name, (before, _) in saved.report.widths.items():
        found = space[name].width
        has_head = space[name].is_output and saved.origin.outputs is not None
        if found != before and not has_head:  # a head has rows of its own
            raise CondenseError(f"its layer {name!r} has {found} units, where {before} were")
    for name in space.layers:
        if name not in saved.report.widths:
            raise CondenseError(f"it has a layer {name!r}, which was not there")


def _fill(small: nn.Module, saved: Saved) -> None:
    try:
        small.load_state_dict(dict(saved.state), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CondenseError(f"its weights have other names or shapes: {reason}") from error
    for name, parameter in small.named_parameters():
        if parameter.requires_grad == (name in saved.frozen):
            parameter.requires_grad_(name not in saved.frozen)


def _check_probe(result: Condensed, saved: Saved, where: str) -> None:
    """Compare the logits of a made-up example: the same weights may be read by another forward."""
    found = probe(result.model, result.origin)
    tolerance = _SAME.get(found.dtype, _ROUGHLY_SAME) * float(saved.probe.abs().max())
    same = found.shape == saved.probe.shape and torch.allclose(
        found, saved.probe, rtol=0.0, atol=tolerance, equal_nan=True
    )
    if not same:
        raise CondenseError(
            f"the factory builds layers of the right names and widths, but their forward pass "
            f"gives other outputs than the {saved.origin.model_class} that {where} was condensed "
            "from: give the factory of that network, with its activations, strides and poolings"
        )
