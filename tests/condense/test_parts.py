"""What is added to layers equals the whole layer on inputs whose removed channels are constants."""

import pytest
import torch
from tests.cases import seeded
from tests.condense.nets import error
from torch import nn
from torch.nn import functional

from neurank.condense.parts import (
    PARTS,
    Conv2dWithConstant,
    GroupNormOfRest,
    LayerNormOfRest,
    RMSNormOfRest,
    constant_term,
    group_norm_of_rest,
    layer_norm_of_rest,
    reduction_of_rest,
    rms_norm_of_rest,
)

CONSTANTS = (0.7, -1.3)


def with_constants(*shape, axis=1):
    """Inputs whose last two entries along an axis are constants, and the same without them."""
    with seeded(str(shape)):
        rest = torch.randn(*shape, dtype=torch.float64)
    tail = [torch.full_like(rest.narrow(axis, 0, 1), value) for value in CONSTANTS]
    return torch.cat([rest, *tail], axis), rest


def counted(others=1):
    """How many entries, their sum, and that of their squares; `others` of each constant."""
    values = torch.tensor(CONSTANTS, dtype=torch.float64)
    return others * torch.tensor([2.0, values.sum(), values.square().sum()], dtype=torch.float64)


def convolution(build, **settings):
    with seeded("convolution"):
        layer = build(6, 4, 3, **settings).double()
        layer.weight.data.normal_()
    return layer


CONVOLUTIONS = {
    "padded": (nn.Conv2d, {"padding": 1}),
    "wide padding, stride": (nn.Conv2d, {"padding": 2, "stride": 2}),
    "dilated": (nn.Conv2d, {"padding": 2, "dilation": 2}),
    "same": (nn.Conv2d, {"padding": "same"}),
    "one side": (nn.Conv2d, {"padding": (0, 1), "stride": (2, 1)}),
    "line": (nn.Conv1d, {"padding": 1}),
    "film": (nn.Conv3d, {"padding": 1}),
    "no bias": (nn.Conv2d, {"padding": 1, "bias": False}),
    "transposed": (nn.ConvTranspose2d, {"stride": 2, "padding": 1, "output_padding": 1}),
    "transposed, dilated": (nn.ConvTranspose2d, {"dilation": 2}),
    "transposed line": (nn.ConvTranspose1d, {"stride": 3, "output_padding": 2}),
    "transposed film": (nn.ConvTranspose3d, {"stride": 2}),
}


@pytest.mark.parametrize(("build", "settings"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("size", [5, 8])
def test_a_convolution_with_a_constant_is_the_whole_one_at_any_resolution(build, settings, size):
    """The removed channels' kernels times their constants, summed, are one kernel more."""
    whole = convolution(build, **settings)
    axes = whole.weight.ndim - 2
    full, rest = with_constants(2, 4, *[size] * axes)
    small = convolution(build, **settings)
    transposed = "Transpose" in build.__name__
    ins = 0 if transposed else 1
    small.weight = nn.Parameter(whole.weight.detach().narrow(ins, 0, 4).clone())
    small.bias = whole.bias
    removed = whole.weight.detach().narrow(ins, 4, 2)
    values = torch.tensor(CONSTANTS, dtype=torch.float64)
    kernel = torch.tensordot(removed, values, ([ins], [0]))
    small.constant = nn.Parameter(kernel[None] if transposed else kernel[:, None])
    small.__class__ = PARTS[build, "constant"]
    assert isinstance(small, build)
    assert error(small(rest), whole(full)) <= 1e-13
    assert error(build.forward(small, rest), whole(full)) > 1e-2


def test_a_convolution_with_a_constant_takes_an_output_size():
    layer = convolution(nn.ConvTranspose2d, stride=2)
    layer.constant = nn.Parameter(torch.zeros(1, 4, 3, 3, dtype=torch.float64))
    plain = layer(torch.ones(1, 6, 3, 3, dtype=torch.float64))
    layer.__class__ = PARTS[nn.ConvTranspose2d, "constant"]
    assert torch.equal(layer(torch.ones(1, 6, 3, 3, dtype=torch.float64)), plain)


def test_the_constant_is_smaller_at_the_border_and_hangs_on_the_size_alone():
    kernel = torch.arange(9.0).reshape(1, 1, 3, 3)
    small = constant_term("conv2d", torch.zeros(3, 5, 3, 3), kernel, 1, 1, 1)
    assert small.shape == (1, 1, 3, 3)
    assert small[0, 0, 1, 1] == 36
    assert small[0, 0, 0, 0] == 4 + 5 + 7 + 8
    other = constant_term("conv2d", torch.full((1, 5, 3, 3), torch.nan), kernel, 1, 1, 1)
    assert torch.equal(other, small)


def test_the_constant_trains():
    layer = nn.Conv2d(2, 3, 3, padding=1)
    layer.constant = nn.Parameter(torch.ones(3, 1, 3, 3))
    layer.__class__ = Conv2dWithConstant
    layer(torch.randn(2, 2, 4, 4)).square().sum().backward()
    assert layer.constant.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (2, 4, 5, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_a_group_norm_goes_on_counting(shape, affine):
    full, rest = with_constants(*shape)
    norm = nn.GroupNorm(1, 6, affine=affine).double()
    weights = [None, None]
    if affine:
        norm.weight.data.normal_()
        norm.bias.data.normal_()
        weights = [norm.weight[:4], norm.bias[:4]]
    found = group_norm_of_rest(rest, 1, *weights, norm.eps, counted()[None])
    assert error(found, norm(full)[:, :4]) <= 1e-13
    assert error(functional.group_norm(rest, 1, *weights), norm(full)[:, :4]) > 1e-2


def test_groups_are_counted_one_by_one():
    """Of three channels in each of two groups, the last one is gone, each another constant."""
    with seeded("groups"):
        full = torch.randn(3, 6, 4, dtype=torch.float64)
    full[:, 2], full[:, 5] = 0.4, -2.0
    removed = torch.tensor([[1, 0.4, 0.16], [1, -2.0, 4.0]], dtype=torch.float64)
    rest = [0, 1, 3, 4]
    found = group_norm_of_rest(full[:, rest], 2, None, None, 1e-5, removed)
    assert error(found, functional.group_norm(full, 2)[:, rest]) <= 1e-13


@pytest.mark.parametrize("shape", [(3, 4), (3, 7, 4)])
@pytest.mark.parametrize("affine", [True, False])
def test_a_layer_norm_goes_on_counting(shape, affine):
    full, rest = with_constants(*shape, axis=-1)
    norm = nn.LayerNorm(6, elementwise_affine=affine).double()
    weights = [None, None]
    if affine:
        norm.weight.data.normal_()
        norm.bias.data.normal_()
        weights = [norm.weight[:4], norm.bias[:4]]
    found = layer_norm_of_rest(rest, (4,), *weights, norm.eps, counted())
    assert error(found, norm(full)[..., :4]) <= 1e-13
    assert error(functional.layer_norm(rest, (4,), *weights), norm(full)[..., :4]) > 1e-2


def test_a_layer_norm_over_several_axes_counts_every_place():
    full, rest = with_constants(2, 4, 3, 3)
    found = layer_norm_of_rest(rest, (4, 3, 3), None, None, 1e-5, counted(others=9))
    assert error(found, functional.layer_norm(full, (6, 3, 3))[:, :4]) <= 1e-13


@pytest.mark.parametrize("eps", [None, 1e-3])
def test_an_rms_norm_goes_on_counting(eps):
    full, rest = with_constants(3, 7, 4, axis=-1)
    weight = torch.arange(1.0, 7, dtype=torch.float64)
    found = rms_norm_of_rest(rest, (4,), weight[:4], eps, counted())
    wanted = functional.rms_norm(full, (6,), weight, eps)[..., :4]
    assert error(found, wanted) <= 1e-13
    assert error(functional.rms_norm(rest, (4,), weight[:4], eps), wanted) > 1e-2
    without = rms_norm_of_rest(rest, (4,), None, eps, counted())
    assert error(without * weight[:4], wanted) <= 1e-13


@pytest.mark.parametrize("kind", ["mean", "sum", "amax", "amin"])
@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("axes", [[1], [1, 2]])
def test_reductions_go_on_counting(kind, keepdim, axes):
    full, rest = with_constants(3, 4, 5)
    others = 5 if 2 in axes else 1
    low, high = min(CONSTANTS), max(CONSTANTS)
    removed = torch.tensor([2 * others, others * sum(CONSTANTS), low, high], dtype=torch.float64)
    found = reduction_of_rest(kind, rest, axes, keepdim, removed)
    wanted = getattr(torch, kind)(full, axes, keepdim=keepdim)
    assert found.shape == wanted.shape
    assert error(found, wanted) <= 1e-13


def test_extremes_of_removed_units_win_where_they_are_extreme():
    removed = torch.tensor([2.0, 0.0, -9.0, 9.0])
    rest = torch.tensor([[1.0, 2.0]])
    assert reduction_of_rest("amax", rest, [1], keepdim=False, removed=removed).item() == 9
    assert reduction_of_rest("amin", rest, [1], keepdim=False, removed=removed).item() == -9


@pytest.mark.parametrize(
    ("build", "part", "shape"),
    [
        (lambda: nn.LayerNorm(4), LayerNormOfRest, (3, 5, 4)),
        (lambda: nn.GroupNorm(1, 4), GroupNormOfRest, (3, 4, 5)),
        (lambda: nn.RMSNorm(4), RMSNormOfRest, (3, 5, 4)),
    ],
)
def test_modules_do_what_the_functions_do_and_with_nothing_removed_what_torch_does(
    build, part, shape
):
    norm, x = build().double(), torch.randn(shape, dtype=torch.float64)
    norm.weight.data.normal_()
    plain = norm(x)
    groups = (1, 3) if part is GroupNormOfRest else (3,)
    norm.register_buffer("removed", torch.zeros(groups, dtype=torch.float64))
    norm.__class__ = part
    assert PARTS[type(build()), "removed"] is part
    assert error(norm(x), plain) <= 1e-13
    norm.removed += counted().expand(groups)
    full = torch.cat([x, *(torch.full_like(x[..., :1], it) for it in CONSTANTS)], -1)
    if part is LayerNormOfRest:
        wanted = functional.layer_norm(full, (6,))[..., :4] * norm.weight + norm.bias
        assert error(norm(x), wanted) <= 1e-13
    assert error(norm(x), plain) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types_stay(dtype):
    x = torch.ones(2, 4, 3, dtype=dtype)
    removed = torch.tensor([1.0, 2.0, 4.0])
    assert layer_norm_of_rest(x, (4, 3), None, None, 1e-5, removed).dtype == dtype
    assert group_norm_of_rest(x, 1, None, None, 1e-5, removed[None]).dtype == dtype
    assert rms_norm_of_rest(x, (3,), None, None, removed).dtype == dtype
    assert reduction_of_rest("mean", x, [1], False, torch.ones(4)).dtype == dtype
