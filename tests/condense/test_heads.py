from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from tests.cases import CASES, named, seeded
from tests.condense.nets import drawn, error, everything, pictures
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from neurank import zoo
from neurank.condense.condensed import condense
from neurank.condense.heads import (
    BatchesAgainstRest,
    Head,
    OneAgainstRest,
    _f1_cut,
    fit_head,
    relabelled,
    with_head,
    with_outputs,
)
from neurank.condense.load import load
from neurank.condense.plan import Plan
from neurank.condense.surgery import named_tensors
from neurank.data import Split
from neurank.errors import CondenseError, DataError, MethodError, ModelError
from neurank.observe.examples import check_examples
from neurank.rankers.rank import rank
from neurank.rankers.weight_norm import WeightNorm
from neurank.training import InMemory, fit
from neurank.units.space import unit_space
from neurank.units.trace import logits_of, trace

CPU = torch.device("cpu")


def problem(examples=200, classes=5, scale=3.0):
    """Logits with a label that they tell most of the time."""
    with seeded(f"logits {examples} {classes}"):
        targets = torch.randint(classes, (examples,))
        logits = torch.randn(examples, classes, dtype=torch.float64) * 2 + 7
        logits += scale * functional.one_hot(targets, classes)
        logits[:, 0] *= 40  # so that standardising matters
    return logits, targets


def some_head(classes=3):
    with seeded(f"head {classes}"):
        weight = torch.randn(2, classes, dtype=torch.float64)
        return Head(weight, torch.randn(2, dtype=torch.float64))


def standardised(logits):
    return (logits - logits.mean(dim=0)) / logits.std(dim=0, correction=0)


def coefficients(head, logits):
    """The fitted numbers as functions of standardised logits, bias last."""
    row = head.weight[1]
    weights = row * logits.std(dim=0, correction=0)
    return torch.cat([weights, (head.bias[1] + row @ logits.mean(dim=0))[None]])


def penalised(numbers, inputs, own, ridge):
    """The loss as its formula says."""
    sign = torch.where(own, 1.0, -1.0)
    scores = inputs @ numbers[:-1] + numbers[-1]
    losses = torch.log1p(torch.exp(-sign * scores))
    return losses.mean() + ridge / 2 * (numbers[:-1] ** 2).sum()


def f1(called, own):
    return 2 * int((called & own).sum()) / (int(called.sum()) + int(own.sum()))


@pytest.mark.parametrize("ridge", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("label", [0, 3])
def test_the_fit_is_where_the_penalised_loss_has_no_slope(ridge, label):
    logits, targets = problem()
    head = fit_head(logits, targets, label, ridge=ridge, threshold="half")
    numbers = coefficients(head, logits).requires_grad_()
    loss = penalised(numbers, standardised(logits), targets == label, ridge)
    (slope,) = torch.autograd.grad(loss, numbers)
    assert bool((slope.abs() < 1e-8).all())
    assert bool((numbers[:-1].abs() > 0.01).any())


@pytest.mark.parametrize("scale", [3.0, 60.0])
def test_the_fit_is_the_one_that_another_library_finds(scale):
    """Also where the logits separate the class, so that only the penalty keeps weights finite."""
    logits, targets = problem(scale=scale)
    inputs, own = standardised(logits).numpy(), (targets == 2).numpy()
    sign = np.where(own, 1.0, -1.0)

    def loss_and_slope(numbers):
        margins = sign * (inputs @ numbers[:-1] + numbers[-1])
        wrong = -sign / (1 + np.exp(margins)) / len(sign)
        loss = np.logaddexp(0, -margins).mean() + 5e-3 * numbers[:-1] @ numbers[:-1]
        slope = np.append(inputs.T @ wrong + 1e-2 * numbers[:-1], wrong.sum())
        return loss, slope

    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10_000}
    twin = minimize(loss_and_slope, np.zeros(6), jac=True, method="L-BFGS-B", options=options)
    head = fit_head(logits, targets, 2, ridge=1e-2, threshold="half")
    assert np.abs(coefficients(head, logits).numpy() - twin.x).max() < 1e-6


def test_the_fit_knows_no_order_of_examples_and_no_scale_of_logits():
    logits, targets = problem()
    head = fit_head(logits, targets, 1)
    with seeded("order"):
        order = torch.randperm(len(targets))
    again = fit_head(logits[order], targets[order], 1)
    scaled = fit_head(logits * 3 - 5, targets, 1)
    assert torch.allclose(again(logits), head(logits), rtol=0, atol=1e-9)
    assert torch.allclose(scaled(logits * 3 - 5), head(logits), rtol=0, atol=1e-9)


def test_the_fit_gives_the_same_bits_at_every_call():
    logits, targets = problem()
    heads = [fit_head(logits, targets, 1) for _ in range(100)]
    assert all(torch.equal(head.weight, heads[0].weight) for head in heads)
    assert all(torch.equal(head.bias, heads[0].bias) for head in heads)


@pytest.mark.parametrize("label", range(5))
def test_no_other_threshold_has_a_higher_f1(label):
    logits, targets = problem(examples=60, scale=1.0)
    own = targets == label
    head = fit_head(logits, targets, label)
    scores = fit_head(logits, targets, label, threshold="half")(logits)[:, 1]
    ordered = scores.sort().values
    cuts = [float(ordered[0]) - 1, *((ordered[1:] + ordered[:-1]) / 2).tolist()]
    found = {cut: f1(scores > cut, own) for cut in cuts}
    called = head(logits).argmax(dim=1) == 1
    assert f1(called, own) == max(found.values())
    assert torch.equal(called, head(logits)[:, 1] > 0)
    shift = float((scores - head(logits)[:, 1])[0])
    best = [abs(cut) for cut in cuts if found[cut] == max(found.values())]
    assert abs(shift) == pytest.approx(min(best), abs=1e-9)


def test_of_equal_f1_the_cut_nearest_to_nought_is_taken():
    """One of two found by calling one, or both by calling four: 2/3 either way."""
    own = torch.tensor([True, False, False, True, False])
    scores = torch.tensor([5.0, 1.0, 0.5, -0.1, -3.0], dtype=torch.float64)
    assert _f1_cut(scores, own) == pytest.approx((-0.1 - 3.0) / 2)
    assert _f1_cut(scores - 2, own) == pytest.approx(3 - 2)


def test_the_f1_is_counted_in_double_precision():
    """5448/5993 and 5458/6004 are one number in single precision, and the latter is larger."""
    calls = [*[0] * 272, *[1] * 2724, *[0] * 6, *[1] * 5, *[0] * 9000, *[1] * 268]
    own = torch.tensor(calls, dtype=torch.bool)
    scores = -torch.arange(len(own), dtype=torch.float64)
    assert int(own.sum()) == 2997
    assert torch.tensor(5448) / 5993 == torch.tensor(5458) / 6004
    assert _f1_cut(scores, own) == -3006.5


def test_equal_scores_are_not_cut_apart():
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    head = fit_head(logits, torch.tensor([1, 0, 1, 0]), 1)
    assert head(logits).argmax(dim=1).tolist() == [1, 1, 1, 0]
    useless = torch.zeros(4, 2)
    assert fit_head(useless, torch.tensor([1, 0, 1, 0]), 1)(useless).argmax(dim=1).sum() == 4


def test_the_rest_is_zero_and_a_logit_without_variance_does_not_count():
    logits, targets = problem()
    logits[:, 4] = 1e6 + torch.rand(len(logits), dtype=torch.float64) * 1e-3
    head = fit_head(logits, targets, 1)
    assert not bool(head.weight[0].any())
    assert float(head.bias[0]) == 0
    assert float(head.weight[1, 4]) == 0
    assert bool((head.weight[1, :4] != 0).all())


def test_cross_entropy_of_the_two_outputs_is_the_logistic_loss():
    logits, targets = problem()
    outputs = fit_head(logits, targets, 1)(logits)
    own = targets == 1
    found = functional.cross_entropy(outputs, own.long())
    wanted = functional.binary_cross_entropy_with_logits(outputs[:, 1], own.double())
    assert float(found) == pytest.approx(float(wanted), abs=1e-12)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"label": 5}, DataError, "class 5 has no logit among 5"),
        ({"label": -1}, DataError, "class -1 has no logit"),
        ({"label": True}, DataError, "class True has no logit"),
        ({"targets": torch.full((200,), 2)}, DataError, "0 of 200 examples are of class 1"),
        ({"targets": torch.ones(200).long()}, DataError, "200 of 200 examples are of class 1"),
        ({"targets": torch.ones(199).long()}, DataError, "for 200 examples"),
        ({"targets": torch.ones(200)}, DataError, "one whole label"),
        ({"logits": torch.ones(200, 5, 1)}, ModelError, r"shape \(200, 5, 1\)"),
        ({"logits": torch.ones(200, 5).long()}, ModelError, "int64"),
        ({"logits": torch.full((200, 5), torch.nan)}, ModelError, "NaN"),
        ({"logits": torch.full((200, 5), torch.inf)}, ModelError, "infinite"),
        ({"ridge": 0.0}, MethodError, "ridge=0.0"),
        ({"ridge": -1e-3}, MethodError, "ridge=-0.001"),
        ({"ridge": float("nan")}, MethodError, "ridge=nan"),
        ({"ridge": "much"}, MethodError, "ridge='much'"),
        ({"threshold": "best"}, MethodError, "threshold='best'"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, kind, message):
    logits, targets = problem()
    given = {"logits": logits, "targets": targets, "label": 1, **change}
    with pytest.raises(kind, match=message):
        fit_head(**given)


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (torch.zeros(3, 4).double(), torch.zeros(2).double()),
        (torch.zeros(2).double(), torch.zeros(2).double()),
        (torch.zeros(2, 4).double(), torch.zeros(1).double()),
        (torch.zeros(2, 4), torch.zeros(2)),
        (torch.zeros(2, 4).double(), torch.zeros(2)),
        (torch.full((2, 4), torch.nan).double(), torch.zeros(2).double()),
        (torch.zeros(2, 4).double(), torch.full((2,), torch.inf).double()),
    ],
)
def test_what_is_no_head_is_refused(weight, bias):
    with pytest.raises(MethodError, match="head"):
        Head(weight, bias)


@pytest.mark.parametrize("ridge", [1e-9, 1e-12])
def test_a_class_that_is_far_from_the_rest_is_fitted(ridge):
    """With next to no penalty the examples become certain, and the loss next to flat."""
    logits, targets = problem(scale=500.0)
    head = fit_head(logits, targets, 1, ridge=ridge)
    assert torch.equal(head(logits).argmax(dim=1) == 1, targets == 1)


def test_a_head_for_other_logits_is_refused():
    with pytest.raises(ModelError, match="reads 3 logits"):
        some_head(3)(torch.zeros(2, 4))


class Maps(nn.Module):
    """A network whose logits are the means of a convolution's maps."""

    def __init__(self, *behind, kernel=1, groups=1):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.last = nn.Conv2d(4, 4 if groups > 1 else 3, kernel, groups=groups)
        self.behind = nn.Sequential(*(behind or (nn.AdaptiveAvgPool2d(1), nn.Flatten())))

    def forward(self, x):
        return self.behind(self.last(torch.relu(self.conv(x))))


class Ends(nn.Module):
    """A network that ends in some way of its own."""

    def __init__(self, end, bias=True):
        super().__init__()
        self.fc1 = nn.Linear(36, 5)
        self.fc2 = nn.Linear(5, 3, bias=bias)
        self.end = end

    def forward(self, x):
        return self.end(self, torch.relu(self.fc1(x.flatten(1))))


class OwnLayer(nn.Module):
    """A linear layer of the user's own."""

    def __init__(self, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 5))
        self.bias = nn.Parameter(torch.zeros(3)) if bias else None

    def forward(self, x):
        return functional.linear(x, self.weight, self.bias)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3))


def own_layer(bias=True):
    model = Ends(lambda self, x: self.fc2(x))
    model.fc2 = OwnLayer(bias)
    return model


GOOD = {
    "linear": lambda: Ends(lambda self, x: self.fc2(x)),
    "without bias": lambda: Ends(lambda self, x: self.fc2(x), bias=False),
    "dropout behind": lambda: Ends(lambda self, x: functional.dropout(self.fc2(x), 0.5, False)),
    "in a mapping": lambda: Ends(lambda self, x: {"logits": self.fc2(x)}),
    "the user's own layer": own_layer,
    "1 x 1 convolution": Maps,
    "3 x 3 convolution": lambda: Maps(kernel=3),
    "mean": lambda: Maps(Mean()),
    "average pooling": lambda: Maps(nn.AvgPool2d(4), nn.Flatten()),
    "flattened": lambda: Maps(nn.Flatten(), kernel=4),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", GOOD)
def test_the_copy_gives_the_heads_outputs(name, dtype):
    model = drawn(GOOD[name], dtype=dtype)
    before = everything(model)
    data, head = pictures(8, 4, dtype=dtype), some_head()
    small = with_head(model, head, data)
    assert everything(model) == before
    inputs = data[1][0]
    with torch.no_grad():
        found = logits_of(small.eval()(inputs))
        wanted = head(logits_of(model.eval()(inputs)))
    assert found.dtype == dtype
    allowed = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    assert error(found.double(), wanted) < allowed


def test_the_last_layer_alone_is_another_one():
    model = drawn(GOOD["linear"])
    model.fc2.requires_grad_(requires_grad=False)
    model.fc1.eval()
    small = with_head(model, some_head(), pictures(4))
    assert (small.fc2.in_features, small.fc2.out_features) == (5, 2)
    assert not any(it.requires_grad for it in small.fc2.parameters())
    assert torch.equal(small.fc1.weight, model.fc1.weight)
    assert small.fc1.weight is not model.fc1.weight
    assert small.fc1.weight.requires_grad
    assert (small.training, small.fc1.training) == (True, False)
    maps = with_head(drawn(Maps), some_head(), pictures(4))
    assert (maps.last.in_channels, maps.last.out_channels) == (4, 2)
    assert maps.last.weight.is_contiguous()


def test_a_head_can_be_folded_into_what_a_head_was_folded_into():
    model, data = drawn(GOOD["linear"]), pictures(6)
    first, second = some_head(3), some_head(2)
    twice = with_head(with_head(model, first, data), second, data)
    inputs = data[0][0]
    wanted = second(first(model.eval()(inputs)))
    assert error(twice.eval()(inputs), wanted) < 1e-12


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_gets_a_head_or_a_reason(case):
    """What is refused is refused by name; what is not gives the head's outputs."""
    model, data = case.model(), case.batches()
    inputs = data[0][0]
    with torch.no_grad():
        logits = logits_of(model.eval()(inputs))
    head = some_head(logits.shape[1])
    try:
        small = with_head(model, head, data)
    except CondenseError as refusal:
        assert "head" in str(refusal)  # noqa: PT017
    else:
        with torch.no_grad():
            assert error(logits_of(small.eval()(inputs)), head(logits)) < 1e-11


def test_most_cases_get_a_head():
    got = 0
    for case in CASES:
        try:
            with_head(case.model(), some_head(), case.batches())
        except CondenseError:
            continue
        got += 1
    assert got > len(CASES) // 2


def shared():
    model = Ends(lambda self, x: self.fc2(x))
    model.twin = nn.Linear(5, 3)
    model.twin.weight = model.fc2.weight
    return model


def computed():
    model = Ends(lambda self, x: self.fc2(x))
    parametrizations.weight_norm(model.fc2)
    return model


BAD = {
    "relu": (lambda: Maps(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "relu stands between"),
    "max pooling": (
        lambda: Maps(nn.AdaptiveMaxPool2d(1), nn.Flatten()),
        "there is none: the logits come from .*max_pool2d",
    ),
    "softmax": (
        lambda: Ends(lambda self, x: self.fc2(x).softmax(1)),
        "there is none: the logits come from softmax",
    ),
    "a norm": (lambda: Maps(Mean(), nn.BatchNorm1d(3)), "batch_norm stands between"),
    "a factor": (lambda: Ends(lambda self, x: 2 * self.fc2(x)), "come from mul"),
    "a sum": (lambda: Ends(lambda self, x: self.fc2(x) + self.fc2(2 * x)), "come from add"),
    "used twice": (
        lambda: Ends(lambda self, x: self.fc2(self.fc2.weight.sum() * x)),
        "come from linear",
    ),
    "shared": (shared, "belongs to another module"),
    "computed": (computed, "come from linear"),
    "groups": (lambda: Maps(groups=2), "in groups"),
    "no bias to give": (lambda: own_layer(bias=False), "no bias and cannot be given one"),
    "a number": (
        lambda: Ends(lambda self, x: self.fc2(x).view(-1, 3)),
        "does not run with two outputs .*x.flatten",
    ),
    "positions": (lambda: Maps(nn.Flatten(), kernel=3), "3 rows and gives 12 logits"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_head_cannot_be_folded_into_is_refused(name):
    build, message = BAD[name]
    model = drawn(build)
    before = everything(model)
    data = pictures(4)
    with torch.no_grad():
        classes = model.eval()(data[0][0]).shape[1]
    model.train()
    with pytest.raises(CondenseError, match=message):
        with_head(model, some_head(classes), data)
    assert everything(model) == before


def test_a_number_of_classes_that_only_shows_in_the_shape_is_refused():
    """Six examples of two outputs are four of three."""
    model = drawn(BAD["a number"][0])
    with pytest.raises(CondenseError, match=r"gives \(4, 3\) with a head of two outputs"):
        with_head(model, some_head(), pictures(6))


def test_a_squeezenet_is_refused_by_its_last_relu():
    widths = (4, *(2, 2, 2) * 8)
    model = zoo.squeezenet1_1(*widths, classes=3, seed=0)
    data = pictures(3, shape=(3, 64, 64), dtype=torch.float32)
    with pytest.raises(CondenseError, match="relu stands between it and the logits"):
        with_head(model, some_head(), data)


def test_a_head_for_another_number_of_classes_is_refused():
    with pytest.raises(CondenseError, match=r"reads 4 logits .* 3 rows and gives 3 logits"):
        with_head(drawn(GOOD["linear"]), some_head(4), pictures(4))


def test_a_head_for_the_rows_of_a_layer_that_gives_more_logits_is_refused():
    with pytest.raises(CondenseError, match=r"reads 3 logits .* 3 rows and gives 12 logits"):
        with_head(drawn(BAD["positions"][0]), some_head(3), pictures(4))


@pytest.mark.parametrize("data", [[], [torch.zeros(2, 36)], [(torch.zeros(2, 36),)], [(1, 2)]])
def test_data_that_are_none_are_refused(data):
    with pytest.raises(DataError, match=r"no batch|pair"):
        with_head(drawn(GOOD["linear"]), some_head(), data)


def test_the_comparison_on_the_first_batch_decides():
    """A pooling that counts zeros beside the map does not pass constants on: the bias tells."""
    pooled = nn.Sequential(nn.AvgPool2d(2, padding=1), nn.Flatten())
    model = Ends(lambda self, x: self.end_of(self.maps(x[:, :4].reshape(-1, 4, 1, 1))))
    model.maps, model.end_of = nn.Conv2d(4, 3, 1), pooled
    model = model.double()
    with pytest.raises(CondenseError, match="differs from the head on its logits by"):
        with_head(model, some_head(), pictures(4))


NETWORKS = {
    "lenet": (lambda: zoo.lenet(4, 6, 12, 8), (1, 28, 28), ("conv1", "conv2", "fc1", "fc2")),
    "vgg16": (
        lambda: zoo.vgg16(*(4,) * 13, 8, 6),
        (3, 32, 32),
        ("features.0", "features.17", "classifier.0", "classifier.3"),
    ),
    "resnet20": (lambda: zoo.resnet20(4, 6, 8), (3, 32, 32), ("conv1", "layer3.0.conv1")),
    "maps": (lambda: Maps(kernel=3), (1, 6, 6), ("conv",)),
    "without bias": (GOOD["without bias"], (1, 6, 6), ("fc1",)),
    "the width as a number": (
        lambda: Ends(lambda self, x: self.fc2(x.view(-1, 5))),
        (1, 6, 6),
        ("fc1",),
    ),
}


def one_of_many(name, removal):
    """A network with a head, condensed; what was condensed, and its data."""
    build, shape, layers = NETWORKS[name]
    model = drawn(build)
    data = pictures(7, 5, shape=shape)
    with torch.no_grad():
        classes = model.eval()(data[0][0]).shape[1]
    whole = with_head(model, some_head(classes), data)
    data = list(relabelled(data, 1))
    space = unit_space(trace(whole, data[0][0]), whole)
    widths = {layer: space[layer].width for layer in layers}
    plan = Plan({layer: tuple(range(0, width, 2)) for layer, width in widths.items()}, widths)
    return condense(whole, plan, data, removal=removal), whole, data


@pytest.mark.parametrize("removal", ["zero", "mean"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_with_a_head_is_condensed_saved_and_loaded_by_the_original_factory(
    name, removal, tmp_path
):
    small, _, data = one_of_many(name, removal)
    assert small.check.max_error <= small.check.tolerance == 1e-12
    (output,) = [layer for layer, widths in small.report.widths.items() if widths == (2, 2)]
    assert output == list(small.report.widths)[-1]
    noted = with_outputs(small)
    noted.save(tmp_path / "one.safetensors")
    again = load(tmp_path / "one.safetensors", NETWORKS[name][0])
    inputs = torch.cat([inputs for inputs, _ in data])
    with torch.no_grad():
        found, wanted = (it.model.eval()(inputs) for it in (again, small))
    assert wanted.shape == (12, 2)
    assert torch.equal(found, wanted)
    assert (again.report, again.origin) == (noted.report, noted.origin)
    assert again.origin.outputs == 2
    assert set(again.model.state_dict()) == set(small.model.state_dict())
    assert {n: type(it) for n, it in named_tensors(again.model).items()} == {
        n: type(it) for n, it in named_tensors(small.model).items()
    }
    assert [m.extra_repr() for m in again.model.modules()] == [
        m.extra_repr() for m in small.model.modules()
    ]


def test_a_factory_of_another_network_is_refused(tmp_path):
    path = tmp_path / "one.safetensors"
    with_outputs(one_of_many("lenet", "zero")[0]).save(path)
    for factory, message in (
        (lambda: zoo.lenet(4, 6, 14, 8), "'fc1' has 14 units, where 12 were"),
        (lambda: zoo.lenet(4, 6, 12, 9), "'fc2' has 9 units, where 8 were"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.ReLU()), "relu stands between"),
        (lambda: zoo.digits_net(4, 6, 12, 8), "cannot be traced"),
        (negative, "other outputs"),
    ):
        with pytest.raises(CondenseError, match=message):
            load(path, factory)


class Negative(zoo.ConvNet):
    def forward(self, x):
        return super().forward(-x)


def negative():
    model = zoo.lenet(4, 6, 12, 8)
    model.__class__ = Negative
    return model


def test_without_the_note_the_original_factory_is_refused(tmp_path):
    path = tmp_path / "one.safetensors"
    small, whole, _ = one_of_many("lenet", "zero")
    small.save(path)
    with pytest.raises(CondenseError, match="'output' has 10 units, where 2 were"):
        load(path, NETWORKS["lenet"][0])
    narrow = NETWORKS["lenet"][0]()
    narrow.output = nn.Linear(8, 2)
    assert load(path, lambda: narrow).origin.outputs is None
    assert whole.output.out_features == 2


@pytest.mark.parametrize("outputs", [1, 3, 10])
def test_a_note_of_another_number_of_outputs_is_refused(outputs):
    small, _, _ = one_of_many("without bias", "zero")
    with pytest.raises(CondenseError, match=f"has 2 outputs, and {outputs} were"):
        with_outputs(small, outputs)


def test_a_network_with_a_head_is_ranked_and_retrained():
    case = named("perceptron")
    model = case.model(torch.float32)
    data = case.batches(torch.float32)
    inputs, targets = (torch.cat(it) for it in zip(*data, strict=True))
    with torch.no_grad():
        head = fit_head(model.eval()(inputs), targets, 1)
    one = with_head(model, head, data)
    batches = list(relabelled(data, 1))
    ranking = rank(one, batches, WeightNorm(), progress=False)
    assert "fc0" in ranking.layers
    history = fit(one, batches, batches, epochs=5, lr=0.001, final_lr=0.001, progress=False)
    assert history.losses[-1] < history.losses[0]


def split(batch_size=4):
    with seeded("split"):
        return Split(torch.randn(10, 2), torch.arange(10) % 3, "ten", batch_size=batch_size)


def test_examples_in_memory_stay_there_and_are_shuffled_by_training():
    given = split()
    found = relabelled(given, 2)
    assert isinstance(found, OneAgainstRest)
    assert isinstance(found, InMemory)
    assert found.inputs is given.inputs
    assert found.targets.tolist() == [0, 0, 1, 0, 0, 1, 0, 0, 1, 0]
    assert found.targets.dtype == torch.int64
    assert len(found) == len(list(found)) == len(given) == 3
    for (inputs, targets), (wanted, labels) in zip(found, given, strict=True):
        assert torch.equal(inputs, wanted)
        assert torch.equal(targets, (labels == 2).long())
        inputs.zero_()  # a copy
    assert bool(given.inputs.any(dim=1).all())
    model = nn.Linear(2, 2)
    fit(model, found, found, epochs=1, batch_size=3, lr=0.01, progress=False)


def test_batches_are_relabelled_at_every_pass():
    batches = pictures(3, 2)
    found = relabelled(batches, 0)
    assert isinstance(found, BatchesAgainstRest)
    assert not isinstance(found, InMemory)
    assert len(found) == 2
    assert check_examples(found, CPU).largest_label == 1
    for _ in range(2):
        for (inputs, targets), (wanted, labels) in zip(found, batches, strict=True):
            assert inputs is wanted
            assert targets.tolist() == [int(label == 0) for label in labels]
    assert len(list(relabelled((batch for batch in batches), 0))) == 2


@pytest.mark.parametrize("label", [-1, 1.0, True, "cat", None])
def test_a_label_that_is_none_is_refused(label):
    with pytest.raises(DataError, match="no whole number"):
        relabelled(split(), label)


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(2, 3),),
        torch.zeros(2, 3),
        ([[0.0]], [1]),
        (torch.zeros(2, 3), torch.zeros(2)),
        (torch.zeros(2, 3), torch.zeros(3).long()),
        (torch.zeros(2, 3), torch.zeros(2, 1).long()),
        (torch.zeros(2, 3), torch.zeros(2).bool()),
    ],
)
def test_batches_without_labels_are_refused(batch):
    with pytest.raises(DataError, match=r"pair|whole label"):
        list(relabelled([batch], 1))


def test_a_label_that_nothing_has_gives_only_the_rest():
    assert not bool(relabelled(split(), 7).targets.any())


def test_a_saved_network_is_of_the_copy(tmp_path):
    small, _, _ = one_of_many("lenet", "zero")
    noted = with_outputs(small)
    assert replace(noted.origin, outputs=None) == small.origin
    assert noted.model is small.model
    noted.save(tmp_path / "one.safetensors")
