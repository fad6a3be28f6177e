"""Scores of single weights: signs by hand, axioms, oracles, and a model that stays as it was."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from tests.cases import chain, conv, named
from tests.oracles import weights as slow
from torch import nn

from neurank import weights
from neurank.errors import MethodError, ModelError

METHODS = (
    weights.Magnitude(),
    weights.Taylor1(),
    weights.Taylor2(),
    weights.Taylor2(0.5),
    weights.Hessian(),
    weights.LossChange(),
    weights.Random(),
)
every_method = pytest.mark.parametrize("method", METHODS, ids=str)


def score(model, data, method, **options):
    return weights.score(model, data, method, progress=False, **options)


def squares(outputs, targets):
    """How far the outputs are from the label's one-hot vector; quadratic in a linear model."""
    wanted = torch.nn.functional.one_hot(targets, outputs.shape[1])
    return (outputs - wanted).square().sum(dim=1)


def line(weight):
    """One weight, one output: L(w) = (w - 1)² on the example 1 with the label 0."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(weight)
    return model, [(torch.ones(2, 1, dtype=torch.float64), torch.tensor([0, 0]))]


# By hand: L(3) = 4, L(0) = 1, dL/dw = 4, d²L/dw² = 2; pruning moves by -3, sensitivity by -0.1.
BY_HAND = {
    "pruning": {"Magnitude": 3, "Taylor1": -12, "Taylor2": 6, "Hessian": 18, "LossChange": -3},
    "sensitivity": {
        "Magnitude": 3, "Taylor1": -0.4, "Taylor2": -0.38, "Hessian": 0.02, "LossChange": -0.39,
    },
}  # fmt: skip


@pytest.mark.parametrize("direction", BY_HAND)
@pytest.mark.parametrize("name", BY_HAND["pruning"])
def test_signs_by_hand(direction, name):
    model, data = line(3.0)
    method = getattr(weights, name)()
    scores = score(model, data, method, direction=direction, step=0.1, loss=squares)
    assert scores["weight"].item() == pytest.approx(BY_HAND[direction][name], abs=1e-12)


def test_a_weight_that_helps_has_a_positive_change_and_its_mirror_the_other_sign():
    """At w = 1 the loss is 0, so pruning costs 1; a step towards 0 costs, one beyond 1 saves."""
    model, data = line(1.0)
    assert score(model, data, weights.LossChange(), loss=squares)["weight"].item() == 1
    options = {"direction": "sensitivity", "loss": squares, "step": 0.1}
    for weight, sign in ((0.5, 1), (1.5, -1), (-0.5, -1)):
        model, data = line(weight)
        for method in (weights.Taylor1(), weights.LossChange()):
            assert score(model, data, method, **options)["weight"].sign().item() == sign


def test_a_weight_that_is_zero_moves_nowhere():
    model, data = line(0.0)
    for direction in BY_HAND:
        for method in METHODS[:-1]:
            found = score(model, data, method, direction=direction, loss=squares)["weight"]
            assert found.item() == 0
            assert str(found.item()) == "0.0"  # and not -0.0


def quadratic(seed=0):
    """A linear model: with squares its loss is a quadratic form of the weights."""
    torch.manual_seed(seed)
    model = nn.Linear(4, 3).double()
    return model, [(torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3)]


@pytest.mark.parametrize("direction", BY_HAND)
def test_taylor_with_a_half_sums_to_the_change_of_a_quadratic_loss(direction):
    """Sum of Δw (g + ½ H Δw) is L(w + Δw) - L(w), all weights moved together."""
    model, data = quadratic()
    before = slow.mean_loss(model, data, squares).item()
    scores = score(model, data, weights.Taylor2(0.5), direction=direction, step=0.3, loss=squares)
    with torch.no_grad():
        move = -model.weight if direction == "pruning" else -0.3 * model.weight.sign()
        model.weight += move
    change = slow.mean_loss(model, data, squares).item() - before
    assert scores["weight"].sum().item() == pytest.approx(change, abs=1e-12)


def test_taylor_with_a_half_is_each_change_where_weights_do_not_meet():
    """With inputs of which one is not zero at a time the Hessian is diagonal."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    data = [(2 * torch.eye(3, dtype=torch.float64), torch.tensor([0, 1, 1]))]
    half = score(model, data, weights.Taylor2(0.5), loss=squares)["weight"]
    change = score(model, data, weights.LossChange(), loss=squares)["weight"]
    torch.testing.assert_close(half, change, rtol=0, atol=1e-13)


def test_what_taylor_leaves_out_is_what_it_says():
    """λ = 1, the thesis, is Taylor1 + Hessian; λ is linear between."""
    case = named("lenet, flatten")
    model, data = case.model(), case.batches()
    first, second = (score(model, data, it) for it in (weights.Taylor1(), weights.Hessian()))
    for part in (0.0, 0.5, 1.0):
        both = score(model, data, weights.Taylor2(part))
        for name in both:
            torch.testing.assert_close(both[name], first[name] + part * second[name])


def test_scores_are_those_of_the_slow_twins():
    case = named("norm before the activation")
    model, data = case.model(), case.batches()
    moves = {n: -p.detach() for n, p in model.named_parameters() if p.ndim > 1}
    slopes = slow.gradients(model, data, list(moves))
    bends = slow.times_hessian(model, data, moves)
    wanted = {
        weights.Magnitude(): {n: m.abs() for n, m in moves.items()},
        weights.Taylor1(): {n: m * slopes[n] for n, m in moves.items()},
        weights.Taylor2(2.0): {n: m * (slopes[n] + 2 * bends[n]) for n, m in moves.items()},
        weights.Hessian(): {n: m * bends[n] for n, m in moves.items()},
        weights.LossChange(): slow.loss_changes(model, data, moves),
    }
    for method, numbers in wanted.items():
        found = score(model, data, method)
        assert list(found) == list(numbers)
        for name, tensor in numbers.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS[1:-1], ids=str)
def test_units_in_another_order_have_their_scores_in_that_order(method):
    torch.manual_seed(0)
    model = chain(one=nn.Linear(4, 5), act=nn.Tanh(), two=nn.Linear(5, 3)).double()
    data = [(torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 3)]
    before = score(model, data, method)
    units, inputs = torch.randperm(5), torch.randperm(4)
    with torch.no_grad():
        model.one.weight.copy_(model.one.weight[units][:, inputs].clone())
        model.one.bias.copy_(model.one.bias[units].clone())
        model.two.weight.copy_(model.two.weight[:, units].clone())
    after = score(model, [(data[0][0][:, inputs], data[0][1])], method)
    moved = before["one.weight"][units][:, inputs]
    torch.testing.assert_close(after["one.weight"], moved, rtol=0, atol=1e-12)
    moved = before["two.weight"][:, units]
    torch.testing.assert_close(after["two.weight"], moved, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS[1:-1], ids=str)
def test_batches_and_their_order_do_not_count(method):
    case = named("perceptron")
    model = case.model()
    once = score(model, case.batches(sizes=(12,)), method)
    for batches in (case.batches(sizes=(5, 4, 3)), case.batches(sizes=(5, 4, 3))[::-1]):
        again = score(model, batches, method)
        for name in once:
            torch.testing.assert_close(again[name], once[name], rtol=0, atol=1e-12)


def test_magnitude_knows_nothing_of_data_signs_or_directions():
    model, data = quadratic()
    found = score(model, data, weights.Magnitude())
    _, other = quadratic(seed=1)
    assert torch.equal(score(model, other, weights.Magnitude())["weight"], found["weight"])
    towards = score(model, data, weights.Magnitude(), direction="sensitivity")
    assert torch.equal(towards["weight"], found["weight"])
    with torch.no_grad():
        model.weight *= -2
    assert torch.equal(score(model, data, weights.Magnitude())["weight"], 2 * found["weight"])


def test_random_scores_come_from_seed_and_name_alone():
    model, data = quadratic()
    named_one = score(model, data, weights.Random(), parameters=["weight"], seed=3)
    both = score(model, data, weights.Random(), parameters=["bias", "weight"], seed=3)
    assert torch.equal(named_one["weight"], both["weight"])
    other = score(model, data, weights.Random(), seed=4)
    assert not torch.equal(other["weight"], both["weight"])
    assert bool(((both["weight"] >= 0) & (both["weight"] < 1)).all())


class Idle(nn.Module):
    """A layer that never runs."""

    def __init__(self):
        super().__init__()
        self.used = nn.Linear(4, 3)
        self.idle = nn.Linear(4, 3)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize("method", METHODS[1:-1], ids=str)
def test_a_parameter_that_never_runs_scores_zero_and_is_named(method):
    data = [(torch.randn(6, 4), torch.arange(6) % 3)]
    scores = score(Idle(), data, method)
    assert not scores["idle.weight"].any()
    assert scores["used.weight"].any()
    if not isinstance(method, weights.Hessian):
        assert scores.provenance["never_run"] == ["idle.weight"]


# The model comes back bit for bit.


def furnished():
    """A network with all that can be disturbed."""
    torch.manual_seed(1)
    model = chain(
        conv1=conv(1, 4), norm=nn.BatchNorm2d(4), act=nn.ReLU(inplace=True), conv2=conv(4, 3),
        drop=nn.Dropout2d(0.5), flat=nn.Flatten(), out=nn.Linear(27, 3),
    )  # fmt: skip
    model.norm.eval()
    model.conv1.weight.requires_grad_(requires_grad=False)
    model.out(torch.randn(2, 27)).sum().backward()
    model.conv2.register_forward_hook(lambda *_: None)
    model.out.weight.register_post_accumulate_grad_hook(lambda _: None)
    return model


def snapshot(model):
    """Everything about a model, and about the process, that scoring might disturb."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "tensors": [
            (name, id(it), it.data_ptr(), it.requires_grad, it.detach().numpy().tobytes())
            for name, it in tensors
        ],
        "gradients": [
            None if it.grad is None else (id(it.grad), it.grad.numpy().tobytes())
            for it in model.parameters()
        ],
        "versions": [it._version for it in model.parameters()],
        "flags": [module.training for module in model.modules()],
        "hooks": [list(getattr(m, kind).items()) for m in model.modules() for kind in hooks],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": np.random.get_state()[1].tobytes(),  # noqa: NPY002 (the global one is meant)
        "python": random.getstate(),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
                  torch.get_default_dtype(), torch.get_num_threads()),
    }  # fmt: skip


PICTURES = [(torch.randn(5, 1, 5, 5), torch.arange(5) % 3) for _ in range(2)]


@every_method
def test_the_model_is_as_it_was(method):
    model = furnished()
    before = snapshot(model)
    scores = score(model, PICTURES, method)
    after = snapshot(model)
    for what, value in before.items():
        assert after[what] == value, what
    assert list(scores) == ["conv1.weight", "conv2.weight", "out.weight"]


@pytest.mark.parametrize("method", METHODS[1:-1], ids=str)
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_the_model_is_as_it_was_after_a_failure(method, error):
    class Breaking:
        passes = 0

        def __iter__(self):
            self.passes += 1
            yield PICTURES[0]
            if self.passes > 3:  # the checks at the door are over
                raise error("in the middle")
            yield PICTURES[1]

    model = furnished()
    before = snapshot(model)
    with pytest.raises(error, match="in the middle"):
        score(model, Breaking(), method)
    assert snapshot(model) == before


@pytest.mark.parametrize("method", METHODS[1:-1], ids=str)
def test_frozen_parameters_score_as_others_do(method):
    case = named("perceptron")
    model, data = case.model(), case.batches()
    free = score(model, data, method)
    frozen = score(model.requires_grad_(requires_grad=False), data, method)
    for name in free:
        assert torch.equal(free[name], frozen[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_under_no_grad():
    case = named("perceptron")
    model, data = case.model(), case.batches()
    wanted = score(model, data, weights.Taylor2())
    with torch.no_grad():
        found = score(model, data, weights.Taylor2())
    assert torch.equal(found["fc0.weight"], wanted["fc0.weight"])


def test_the_provenance_says_how():
    model, data = quadratic()
    scores = score(model, data, weights.Taylor2(0.5), direction="sensitivity", step=0.1, seed=7)
    said = scores.provenance
    assert said["method"] == {"name": "Taylor2", "parameters": {"curvature": 0.5}}
    assert (said["direction"], said["step"], said["seed"]) == ("sensitivity", 0.1, 7)
    assert said["loss"] == "cross_entropy"
    assert said["data"]["examples"] == 9
    same = score(model, data, weights.Magnitude()).provenance
    assert (same["model"], same["data"]) == (said["model"], said["data"])
    assert same["step"] is None
    with torch.no_grad():
        model.weight[0, 0] += 1
    assert score(model, data, weights.Magnitude()).provenance["model"] != said["model"]


REFUSED = [
    ({"method": weights.Taylor1}, "pass an instance"),
    ({"method": "magnitude"}, "pass an instance"),
    ({"direction": "up"}, "direction='up'"),
    ({"step": 0.0}, "step=0.0"),
    ({"step": float("nan")}, "step=nan"),
    ({"seed": -1}, "seed=-1"),
    ({"seed": True}, "seed=True"),
]


@pytest.mark.parametrize(("options", "reason"), REFUSED)
def test_arguments_that_are_refused(options, reason):
    model, data = quadratic()
    with pytest.raises(MethodError, match=reason):
        score(model, data, **{"method": weights.Magnitude(), **options})


@pytest.mark.parametrize("curvature", [float("inf"), "1", True])
def test_curvatures_that_are_refused(curvature):
    with pytest.raises(MethodError, match="curvature="):
        weights.Taylor2(curvature)


def test_methods_are_frozen_values():
    for method in METHODS:
        assert dataclasses.replace(method) == method
        assert isinstance(method, weights.Method)


def test_weights_that_are_not_finite():
    model, data = quadratic()
    with torch.no_grad():
        model.weight[0, 0] = torch.inf
    with pytest.raises(ModelError, match="'weight' holds NaN or infinite"):
        score(model, data, weights.Magnitude())
