"""Vital signs of all layers in one pass against hooks and autograd, example by example."""

import math
from dataclasses import replace

import pytest
import torch
from tests.architectures import architecture
from tests.cases import CASES, Case, Forward, chain, conv, look, named, watch
from tests.oracles import vital_signs as oracle
from tests.oracles.condense import At
from tests.oracles.reads import READS, last
from torch import nn
from torch.nn import functional

from neurank.errors import ModelError
from neurank.observe.vital_signs import BINS, Held, fan_out_norms, penalties, sighting

GROUPS = Case(
    "grouped and transposed",
    lambda: chain(
        conv1=conv(2, 6), act=nn.ReLU(), conv2=conv(6, 4, groups=2), act2=nn.ReLU(),
        up=nn.ConvTranspose2d(4, 3, 2), act3=nn.Tanh(), last=nn.ConvTranspose2d(3, 2, 2),
        act4=nn.ReLU(), flat=nn.Flatten(), out=nn.Linear(50, 3),
    ),
    (2, 5, 5),
    {},
)  # fmt: skip


def _in_parts(net, x):
    x = functional.relu(net.fc0(x))
    return net.out(functional.relu(net.left(x[:, :2]) + net.right(x[:, 2:4])))


PARTS = Case(
    "read in parts, and one unit not at all",
    lambda: Forward(_in_parts, fc0=nn.Linear(4, 5), left=nn.Linear(2, 3), right=nn.Linear(2, 3),
                    out=nn.Linear(3, 3)),
    (4,),
    {},
)  # fmt: skip
WRITTEN = {
    GROUPS.name: {
        "conv1": oracle.Places(3, (At("conv1", (0, 1, 2) * 2),), (At("conv2", (0, 1, 2) * 2),)),
        "conv2": oracle.Places(2, (At("conv2", (0, 1) * 2),), (At("up", (0, 1) * 2),)),
        "up": oracle.Places(3, (At("up", (0, 1, 2)),), (At("last", (0, 1, 2)),)),
        "last": oracle.Places(2, (At("last", (0, 1)),), (At("out", (0,) * 25 + (1,) * 25),)),
    },
    PARTS.name: {
        "fc0": oracle.Places(
            4, (At("fc0", (0, 1, 2, 3, -1)),), (At("left", (0, 1)), At("right", (2, 3)))
        ),
    },
}
"""A grouped convolution loses the same place of every group, of its inputs and of its outputs."""
MORE = [GROUPS, PARTS]
HIDDEN = [case for case in CASES if any(case.reads.values())]
QUICK = {
    "linear pair", "many ties in pictures", "batchnorm 1d", "dropout", "in place", "branch",
    "norm behind the activation", "tanh, average pooling", "one dimension", "log softmax", "skip",
    "max pooling, padded", "gate and skip", "mapping",
}  # fmt: skip


def slow_but(names, cases):
    return [
        pytest.param(case, id=str(case), marks=[] if str(case) in names else [pytest.mark.slow])
        for case in cases
    ]


def watched(case):
    return look(case.model(), case.batches()) if case in MORE else watch(case)


def by_hand(case, model):
    """Where units are, from what is written down of a case."""
    if case in MORE:
        return WRITTEN[case.name]
    return oracle.places_of(case, model)


def assert_signs(signs, model, places, batches, *, whole=False):
    for unit in range(places.width):
        close = {"rel": 1e-9, "abs": 1e-13}
        found = {name: float(getattr(signs, name)[unit]) for name in (
            "saliency", "gradient_norm", "gradient_peak", "weight_norm", "fan_out_norm",
        )}  # fmt: skip
        assert found == pytest.approx(
            {
                "saliency": oracle.saliency(batches, places, unit),
                "gradient_norm": oracle.gradient_norm(batches, places, unit),
                "gradient_peak": oracle.gradient_peak(batches, places, unit),
                "weight_norm": oracle.weight_norm(model, places, unit),
                "fan_out_norm": oracle.fan_out_norm(model, places, unit),
            },
            nan_ok=True,
            **close,
        )
        for which, spread in (("given", signs.given), ("read", signs.read)):
            ends = float(spread.low[unit]), float(spread.high[unit])
            wanted = oracle.extremes(batches, places, unit, which)
            assert ends == pytest.approx(wanted, **close)
            counts = oracle.histogram(batches, places, unit, which, BINS)
            assert int(spread.counts[unit].sum()) == sum(counts)
            if not whole:  # whole numbers lie on the borders
                assert spread.counts[unit].tolist() == counts
            first = oracle.extremes(batches[:1], places, unit, which)
            assert spread.ends[unit].tolist() == pytest.approx(first, **close)


@pytest.mark.parametrize("case", slow_but({*QUICK, *map(str, MORE)}, [*HIDDEN, *MORE]))
def test_signs_are_those_of_autograd_example_by_example(case):
    observer, model = watched(case), case.model().eval()
    written = by_hand(case, model)
    seen = sighting(observer, tuple(written))
    everything = None
    for layer, places in written.items():
        batches = oracle.shown(model, places, case.batches())
        assert_signs(seen.layers[layer], model, places, batches, whole=case.whole)
        everything = [it for batch in batches for it in batch]
    assert seen.loss == pytest.approx(sum(it.loss for it in everything) / len(everything))
    assert seen.signal == pytest.approx(sum(it.signal for it in everything) / len(everything))


@pytest.mark.parametrize("case", slow_but({*QUICK, *map(str, MORE)}, [*HIDDEN, *MORE]))
def test_penalties_are_changes_of_one_forward_pass_each(case):
    observer, model = watched(case), case.model().eval()
    for layer, places in by_hand(case, model).items():
        found = penalties(observer, layer)
        for unit in range(places.width):
            changes = oracle.changes(model, places, case.batches(), unit)
            assert float(found.mean[unit]) == pytest.approx(float(changes.mean()), abs=1e-12)
            assert float(found.largest[unit]) == pytest.approx(float(changes.max()), abs=1e-12)


def _all(width, *modules, axis=1):
    return tuple(At(module, tuple(range(width)), axis) for module in modules)


RESNET = {
    "stem.0": _all(8, "stem.0", "blocks.0.conv2", "blocks.1.conv2"),
    "blocks.2.conv2": _all(12, "blocks.2.conv2", "blocks.2.downsample.0", "blocks.3.conv2"),
    "blocks.4.conv1": _all(16, "blocks.4.conv1"),
}
ALEXNET = {
    "features.4": (At("features.4", tuple(range(6)) * 2),),
    "features.12": (At("features.12", tuple(range(6)) * 2),),
    "classifier.1": _all(24, "classifier.1"),
}
VIT = {
    "patches": (
        *_all(12, "patches"),
        *last(12, *(f"blocks.{at}.{name}" for at in (0, 1) for name in ("attn.proj", "mlp.3"))),
    ),
    "blocks.0.attn.qkv": (
        At("blocks.0.attn.qkv", tuple(place % 12 // 4 for place in range(36)), -1),
    ),
    "blocks.1.mlp.0": last(24, "blocks.1.mlp.0"),
}
GIVEN = {"resnet-basic": RESNET, "alexnet-groups": ALEXNET, "vit-fused-attention": VIT}
"""By architecture and layer, which modules compute the units; written down by hand."""


@pytest.fixture(scope="module")
def seen_once():
    """Each architecture traced and looked at once."""
    kept = {}

    def of(name):
        if name not in kept:
            one = architecture(name)
            observer = look(one.model(), one.batches())
            kept[name] = one, observer, sighting(observer, observer.space.hidden)
        return kept[name]

    return of


@pytest.mark.parametrize("name", GIVEN)
def test_signs_of_tied_and_grouped_units_and_of_heads(name, seen_once):
    one, _, seen = seen_once(name)
    model = one.model().eval()
    for layer, given in GIVEN[name].items():
        places = oracle.Places(max(given[0].units) + 1, given, READS[name][layer])
        batches = oracle.shown(model, places, one.batches())
        assert_signs(seen.layers[layer], model, places, batches)


@pytest.mark.parametrize("name", GIVEN)
def test_penalties_of_tied_and_grouped_units_and_of_heads(name, seen_once):
    one, observer, _ = seen_once(name)
    model = one.model().eval()
    for layer, given in GIVEN[name].items():
        places = oracle.Places(max(given[0].units) + 1, given, READS[name][layer])
        found = penalties(observer, layer)
        for unit in {0, places.width - 1}:
            changes = oracle.changes(model, places, one.batches(), unit)
            assert float(found.mean[unit]) == pytest.approx(float(changes.mean()), abs=1e-12)
            assert float(found.largest[unit]) == pytest.approx(float(changes.max()), abs=1e-12)


def test_what_a_layernorm_reads_has_no_fan_out(seen_once):
    _, _, seen = seen_once("vit-fused-attention")
    assert seen.layers["patches"].fan_out_norm.isnan().all()
    assert not seen.layers["blocks.1.mlp.0"].fan_out_norm.isnan().any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenet-v2", "densenet", "inception-v1"])
def test_ranges_of_units_that_no_reader_reads_all_of(name, seen_once):
    one, observer, seen = seen_once(name)
    model = one.model().eval()
    assert set(READS[name]) >= set(seen.layers)
    for layer, signs in seen.layers.items():
        places = oracle.Places(observer.width(layer), (), READS[name][layer])
        batches = oracle.shown(model, places, one.batches())
        for unit in range(places.width):
            ends = float(signs.read.low[unit]), float(signs.read.high[unit])
            assert ends == pytest.approx(oracle.extremes(batches, places, unit, "read"), rel=1e-9)
            assert float(signs.fan_out_norm[unit]) == pytest.approx(
                oracle.fan_out_norm(model, places, unit)
            )


def test_a_unit_that_nobody_reads_is_nowhere():
    signs = sighting(watched(PARTS), ("fc0",)).layers["fc0"]
    assert signs.read.low[4] == signs.read.high[4] == signs.fan_out_norm[4] == 0
    assert signs.read.counts[4].sum() == 0
    assert signs.read.ends[4].tolist() == [0, 0]
    assert signs.saliency[4] == signs.gradient_peak[4] == 0
    assert signs.given.high[4] > signs.given.low[4]


def test_histograms_count_each_value_once():
    observer = watch(named("lenet, flatten"))
    seen = sighting(observer, ("conv1", "fc1"), bins=7)
    first = observer.examples.sizes[0]
    assert seen.layers["conv1"].given.counts.shape == (3, 7)
    assert seen.layers["conv1"].given.counts.sum(dim=1).tolist() == [first * 8 * 8] * 3
    assert seen.layers["conv1"].read.counts.sum(dim=1).tolist() == [first * 4 * 4] * 3
    assert seen.layers["fc1"].given.counts.sum(dim=1).tolist() == [first] * 5


def test_without_histograms_all_else_is_the_same():
    observer = watch(named("lenet, flatten"))
    with_, without = (sighting(observer, ("conv1",), bins=bins).layers["conv1"] for bins in (9, 0))
    assert without.given.counts.shape == (3, 0)
    assert torch.equal(with_.given.low, without.given.low)
    assert torch.equal(with_.saliency, without.saliency)


def test_batches_and_memory_make_no_difference():
    case = named("tanh, average pooling")
    names = ("conv1", "conv2")
    one = sighting(look(case.model(), case.batches(sizes=(12,))), names)
    other = sighting(replace(watch(case), memory=40_000), names)
    for layer in names:
        for sign in ("saliency", "gradient_norm", "gradient_peak"):
            torch.testing.assert_close(
                getattr(one.layers[layer], sign), getattr(other.layers[layer], sign)
            )
        for which in ("given", "read"):
            a, b = getattr(one.layers[layer], which), getattr(other.layers[layer], which)
            torch.testing.assert_close(a.low, b.low)
            torch.testing.assert_close(a.high, b.high)
    assert one.loss == pytest.approx(other.loss)


def test_there_is_no_signal_where_the_loss_is_nothing_in_the_networks_own_precision():
    logits = torch.tensor([[120.0, 0], [0, 120]])
    for dtype, expected in ((torch.float32, 0.0), (torch.float64, math.exp(-120))):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(dtype)
        with torch.no_grad():
            for linear in model:
                linear.weight.copy_(torch.eye(2))
                linear.bias.zero_()
        data = [(logits.to(dtype), torch.tensor([0, 1]))]
        assert sighting(look(model, data), ("0",)).signal == pytest.approx(
            expected, rel=1e-6, abs=0
        )


def test_losses_that_are_not_finite_are_refused():
    case = named("perceptron")
    observer = look(case.model(), case.batches())
    broken = dict(observer.runner.tensors)
    broken["fc0.bias"] = broken["fc0.bias"] * torch.nan
    broken = replace(observer, runner=replace(observer.runner, tensors=broken))
    with pytest.raises(ModelError, match="NaN or infinite: check the weights"):
        sighting(broken, ("fc0",))


def test_held_batches_are_copies_that_are_not_compared_again():
    observer = watch(named("perceptron"))
    source = [(inputs.clone(), targets) for inputs, targets in observer.examples]
    held = Held.of(replace(observer.examples, source=source))
    before = [inputs.clone() for inputs, _ in held]
    source[0][0].zero_()
    assert all(torch.equal(a, b) for a, (b, _) in zip(before, held, strict=True))
    assert held.count == observer.examples.count


def test_fan_out_counts_every_reader():
    observer = watch(named("branch"))
    model = named("branch").model()
    wanted = model.left.weight.abs().sum((0, 2, 3)) + model.right.weight.abs().sum((0, 2, 3))
    found = fan_out_norms(observer.space["stem"], observer.runner)
    torch.testing.assert_close(found, wanted.detach())
