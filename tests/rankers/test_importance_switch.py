import copy
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles import switch as oracle
from torch import nn
from torch.nn import functional

import neurank as nr
from neurank.errors import MethodError, ModelError
from neurank.observe import switchboard as switchboard_module
from neurank.observe.observer import observe
from neurank.observe.switchboard import HOMOGENEOUS
from neurank.observe.value import Accuracy
from neurank.rankers import importance_switch
from neurank.rankers.importance_switch import (
    ImportanceSwitch,
    cross_entropy,
    dirichlet_kl,
    draw_switches,
    lower_bound,
    posterior_mean,
    posterior_std,
)

CPU = torch.device("cpu")


class Pooled(nn.Module):
    """Pooling before ReLU, BatchNorm behind it, and a side path from above the switch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 2)
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(12, 4)
        self.side = nn.Linear(25, 4)

    def forward(self, x):
        z = self.norm(functional.relu(functional.max_pool2d(self.conv(x), 2)))
        return self.fc(z.flatten(1)) + torch.sigmoid(self.side(x.flatten(1)))


class Gated(nn.Module):
    """The input itself is read again below the switch."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.second(functional.relu(self.first(x))) * x[:, :3]


def perceptron(activation=nn.ReLU):
    return nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3))


def normalised():
    return nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(12, 4),
    )  # fmt: skip


def pooled_then_normalised():
    return nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(),
        nn.Linear(12, 4),
    )  # fmt: skip


def in_place():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))


CASES = {  # name: (network, layer, module whose result is multiplied, shape of an input)
    "perceptron": (perceptron, "0", "0", (4,)),
    "in place": (in_place, "0", "0", (4,)),
    "tanh": (lambda: perceptron(nn.Tanh), "0", "0", (4,)),
    "sigmoid": (lambda: perceptron(nn.Sigmoid), "0", "0", (4,)),
    "leaky": (lambda: perceptron(nn.LeakyReLU), "0", "0", (4,)),
    "softplus": (lambda: perceptron(nn.Softplus), "0", "0", (4,)),
    "no nonlinearity": (lambda: perceptron(nn.Identity), "0", "0", (4,)),
    "the outputs": (perceptron, "2", "2", (4,)),
    "norm before": (normalised, "0", "1", (1, 5, 5)),
    "pool and norm before": (pooled_then_normalised, "0", "2", (1, 5, 5)),
    "gated": (Gated, "first", "first", (4,)),
    "norm behind": (Pooled, "conv", "conv", (1, 5, 5)),
}
every_case = pytest.mark.parametrize("case", CASES)


def problem(case, *, examples=24, batch=10, dtype=torch.float64, seed=0):
    """A trained-looking network, its data in uneven batches, the layer and the module."""
    make, layer, module, shape = CASES[case]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().to(dtype).eval()
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand_like(tensor) * 2 - 0.7)
            for norm in (it for it in model.modules() if isinstance(it, nn.BatchNorm2d)):
                norm.running_var.copy_(torch.rand_like(norm.running_var) + 0.5)
        inputs = torch.randn(examples, *shape, dtype=dtype)
        classes = model(inputs).shape[1]
        targets = torch.randint(classes, (examples,))
    batches = list(zip(inputs.split(batch), targets.split(batch), strict=True))
    return model, batches, layer, module


def watching(model, batches, seed=0):
    return observe(
        model, batches, value=Accuracy(), removal="zero", seed=seed, device=CPU, progress=False
    )


def board_of(model, batches, layer):
    return watching(model, batches).switchboard(layer)


def at_the_mean(phi, _batch, _examples):
    return posterior_mean(phi)


def some_phi(units, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(0.2, 3, units))


def ranked(model, batches, layer, method=None, **options):
    method = ImportanceSwitch(epochs=3) if method is None else method
    return nr.rank(model, batches, method, layers=[layer], progress=False, **options)


def record_of(ranking):
    (record,) = ranking.provenance["by_layer"].values()
    return record


# The bound and its gradient.


@given(phi=st.lists(st.floats(0.01, 50), min_size=2, max_size=8), alpha=st.floats(0.05, 20))
@settings(deadline=None, max_examples=50)
def test_divergence_is_that_of_torch_and_of_the_formula(phi, alpha):
    tensor = torch.tensor(phi, dtype=torch.float64)
    prior = torch.distributions.Dirichlet(torch.full_like(tensor, alpha))
    wanted = torch.distributions.kl_divergence(torch.distributions.Dirichlet(tensor), prior)
    found = float(dirichlet_kl(tensor, alpha))
    assert found == pytest.approx(float(wanted), rel=1e-10, abs=1e-10)
    assert found == pytest.approx(oracle.divergence(phi, alpha), rel=1e-10, abs=1e-10)
    assert found >= -1e-10


@pytest.mark.parametrize(("phi", "alpha"), [([1.5, 3.0], 2.0), ([0.7, 4.0], 0.9), ([2, 2], 2)])
def test_divergence_is_the_integral(phi, alpha):
    found = float(dirichlet_kl(torch.tensor(phi, dtype=torch.float64), alpha))
    assert found == pytest.approx(oracle.divergence_by_integration(phi, alpha), abs=1e-8)


@given(phi=st.lists(st.floats(0.01, 50), min_size=2, max_size=8), alpha=st.floats(0.05, 20))
@settings(deadline=None, max_examples=50)
def test_slope_of_the_divergence_is_that_of_the_formula(phi, alpha):
    tensor = torch.tensor(phi, dtype=torch.float64, requires_grad=True)
    dirichlet_kl(tensor, alpha).backward()
    wanted = oracle.divergence_slope(phi, alpha)
    scale = np.abs((np.array(phi) - alpha) / np.array(phi) ** 2).max()
    np.testing.assert_allclose(tensor.grad.numpy(), wanted, rtol=1e-10, atol=1e-12 * (1 + scale))


@every_case
def test_bound_is_that_of_the_equations(case):
    model, batches, layer, module = problem(case)
    board = board_of(model, batches, layer)
    for seed, alpha in ((0, 2.0), (1, 0.5)):
        phi = some_phi(board.units, seed)
        found = float(lower_bound(board, phi, alpha, at_the_mean))
        wanted = oracle.bound(model, module, batches, phi.tolist(), alpha)
        assert found == pytest.approx(wanted, rel=1e-10, abs=1e-10)


@every_case
def test_gradient_of_the_bound_is_that_of_differences(case):
    model, batches, layer, module = problem(case)
    phi = some_phi(board_of(model, batches, layer).units).requires_grad_()
    lower_bound(board_of(model, batches, layer), phi, 2.0, at_the_mean).backward()
    wanted = oracle.slope_by_differences(
        lambda moved: oracle.bound(model, module, batches, moved, 2.0), phi.tolist()
    )
    np.testing.assert_allclose(phi.grad.numpy(), wanted, rtol=1e-8, atol=1e-8)


def test_gradient_of_the_bound_is_that_of_the_chain_rule():
    model, batches, layer, _ = problem("perceptron")
    phi = some_phi(5).requires_grad_()
    lower_bound(board_of(model, batches, layer), phi, 2.0, at_the_mean).backward()
    weights = [
        (it.weight.detach().numpy(), it.bias.detach().numpy()) for it in (model[0], model[2])
    ]
    inputs = torch.cat([inputs for inputs, _ in batches]).numpy()
    targets = torch.cat([targets for _, targets in batches]).numpy()
    wanted = oracle.perceptron_bound_slope(weights, inputs, targets, phi.tolist(), 2.0)
    np.testing.assert_allclose(phi.grad.numpy(), wanted, rtol=1e-10, atol=1e-10)


@every_case
def test_training_follows_the_equations(case):
    model, batches, layer, module = problem(case)
    settings_ = {"epochs": 3, "alpha": 0.7, "lr": 0.05, "start": -0.4}
    ranking = ranked(model, batches, layer, ImportanceSwitch(**settings_))
    phi = oracle.train(model, module, batches, units=len(ranking[layer].scores), **settings_)
    record = record_of(ranking)
    # torch's derivative of digamma, which the oracle takes, has errors of 5e-10.
    np.testing.assert_allclose(record["phi"], phi.numpy(), rtol=1e-8)
    np.testing.assert_allclose(ranking[layer].scores.numpy(), oracle.mean(phi), rtol=1e-8)
    wanted = oracle.bound(model, module, batches, phi.tolist(), 0.7)
    assert record["bound"] == pytest.approx(wanted, rel=1e-8)


# What is learnt.


@given(
    case=st.sampled_from(sorted(CASES)),
    alpha=st.floats(0.1, 10),
    lr=st.floats(1e-4, 1),
    estimate=st.sampled_from(["mean", "sample"]),
)
@settings(deadline=None, max_examples=15)
def test_switches_are_a_probability_vector(case, alpha, lr, estimate):
    model, batches, layer, _ = problem(case)
    method = ImportanceSwitch(epochs=2, alpha=alpha, lr=lr, estimate=estimate)
    scores = ranked(model, batches, layer, method)[layer].scores
    assert scores.dtype == torch.float64
    assert float(scores.sum()) == pytest.approx(1, abs=1e-12)
    assert bool((scores > 0).all())


@given(order=st.permutations(range(5)))
@settings(deadline=None, max_examples=10)
def test_relabelling_units_relabels_their_switches(order):
    model, batches, layer, _ = problem("perceptron")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight[order])
        other[0].bias.copy_(model[0].bias[order])
        other[2].weight.copy_(model[2].weight[:, order])
    first, second = (ranked(it, batches, layer)[layer].scores for it in (model, other))
    np.testing.assert_allclose(second.numpy(), first[order].numpy(), rtol=1e-10)


def test_only_the_divergence_moves_a_dead_unit():
    model, batches, layer, _ = problem("perceptron")
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    board = board_of(model, batches, layer)
    # With the other switches held, the likelihood does not see this one at all.
    switch = torch.full((5,), 0.2, dtype=torch.float64, requires_grad=True)
    logits = next(iter(board.batches())).forward(switch)
    functional.cross_entropy(logits, batches[0][1]).backward()
    assert float(switch.grad[1]) == 0
    assert bool((switch.grad[[0, 2, 3, 4]] != 0).all())


def test_a_unit_that_alone_carries_the_class_gets_the_largest_switch():
    targets = torch.arange(300) % 2
    inputs = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    inputs[:, 2] = 6 * targets - 3.0
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[0.0, 0, -1, 0], [0, 0, 1, 0]]))
    ranking = ranked(model, [(inputs, targets)], "0", ImportanceSwitch(epochs=30))
    assert ranking.top(1, "0") == (2,)
    assert float(ranking["0"].scores[2]) > 0.4


def test_a_weaker_prior_lets_switches_differ_more():
    model, batches, layer, _ = problem("perceptron")
    spreads = [
        float(ranked(model, batches, layer, ImportanceSwitch(50, alpha))[layer].scores.std())
        for alpha in (0.5, 5, 500)
    ]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[0] > 1.5 * spreads[2]


def test_the_bound_rises_over_epochs_and_is_recorded():
    model, batches, layer, _ = problem("perceptron")
    ranking = ranked(model, batches, layer, ImportanceSwitch(epochs=20))
    record = record_of(ranking)
    bounds = record["bound_by_epoch"]
    assert len(bounds) == record["epochs"] == 20
    assert record["batches"] == 3
    assert bounds[0] < bounds[5] < bounds[-1]
    assert record["bound"] == pytest.approx(bounds[-1], rel=0.02)
    phi = torch.tensor(record["phi"], dtype=torch.float64)
    variance = torch.distributions.Dirichlet(phi).variance
    np.testing.assert_allclose(record["posterior_std"], variance.sqrt().numpy(), rtol=1e-12)
    np.testing.assert_allclose(posterior_std(phi).numpy(), variance.sqrt().numpy(), rtol=1e-12)


def test_bound_by_epoch_is_the_bound_where_phi_hardly_moves():
    model, batches, layer, module = problem("perceptron")
    record = record_of(ranked(model, batches, layer, ImportanceSwitch(epochs=2, lr=1e-13)))
    phi = [math.log1p(math.exp(-1))] * 5
    wanted = oracle.bound(model, module, batches, phi, 2.0)
    assert record["bound_by_epoch"] == pytest.approx([wanted, wanted], rel=1e-9)


def test_result_promises_no_error_and_counts_examples_times_epochs():
    model, batches, layer, _ = problem("perceptron")
    entry = ranked(model, batches, layer)[layer]
    assert entry.status == "learned"
    assert entry.stderr_of == "none"
    assert bool(entry.stderr.isnan().all())
    assert entry.counts.tolist() == [24 * 3] * 5


def test_all_layers_are_switched_one_at_a_time():
    model = nr.zoo.digits_net(2, 3, 6, 4, seed=0)
    data = nr.data.load("digits").train.first(60)
    together = nr.rank(model, data, ImportanceSwitch(epochs=2), progress=False)
    assert list(together) == ["conv1", "conv2", "fc1", "fc2"]
    for layer in together:
        assert together[layer] == ranked(model, data, layer, ImportanceSwitch(epochs=2))[layer]


def test_ranking_is_saved_and_loaded(tmp_path):
    model, batches, layer, _ = problem("perceptron")
    ranking = ranked(model, batches, layer)
    ranking.save(tmp_path / "switch.safetensors")
    assert nr.Ranking.load(tmp_path / "switch.safetensors") == ranking


# Draws from the posterior.


def test_draws_follow_from_the_key_alone_and_leave_the_generator_as_it_is():
    before = torch.get_rng_state()
    phi = some_phi(4)
    first, again, other = (draw_switches(phi, 6, key) for key in ([1, 2], [1, 2], [1, 3]))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_have_the_posterior_s_mean_and_spread():
    phi = some_phi(4)
    draws = draw_switches(phi, 200_000, [0])
    np.testing.assert_allclose(draws.mean(dim=0).numpy(), posterior_mean(phi).numpy(), atol=2e-3)
    np.testing.assert_allclose(draws.std(dim=0).numpy(), posterior_std(phi).numpy(), atol=2e-3)


def test_draws_carry_the_gradient_of_their_mean():
    worth = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    sampled, analytic = (some_phi(3).requires_grad_() for _ in range(2))
    (draw_switches(sampled, 200_000, [0]).mean(dim=0) @ worth).backward()
    (posterior_mean(analytic) @ worth).backward()
    np.testing.assert_allclose(sampled.grad.numpy(), analytic.grad.numpy(), atol=5e-3)


def test_sampled_bound_lies_below_the_point_estimate_and_meets_it_where_the_posterior_is_narrow():
    # The logits are linear in a switch on the outputs, so log p is concave in it: Jensen.
    model, batches, layer, _ = problem("the outputs", examples=2000, batch=2000)
    board = board_of(model, batches, layer)
    gaps = []
    for concentration in (1, 100, 1e8):
        phi = some_phi(3) * concentration
        point, sampled = (
            float(lower_bound(board, phi, 2.0, stand_in))
            for stand_in in (at_the_mean, lambda phi, b, n: draw_switches(phi, n, [b]))
        )
        gaps.append((point - sampled) / 2000)
    assert gaps[0] > 0.01
    assert gaps[0] > gaps[1] > 0
    assert gaps[2] == pytest.approx(0, abs=1e-4)


def test_each_example_can_have_a_switch_of_its_own():
    for case in CASES:
        model, batches, layer, module = problem(case)
        inputs, _ = batches[0]
        board = board_of(model, batches, layer)
        switches = draw_switches(some_phi(board.units), len(inputs), [0])
        found = next(iter(board.batches())).forward(switches)
        for row, switch in enumerate(switches):
            wanted = oracle.logits(model, module, switch, inputs[row : row + 1])[0]
            torch.testing.assert_close(found[row], wanted, rtol=1e-12, atol=1e-12)


def test_same_seed_same_bits_other_seed_other_draws():
    model, batches, layer, _ = problem("perceptron")
    method = ImportanceSwitch(epochs=2, estimate="sample")
    first, again, other = (ranked(model, batches, layer, method, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first[layer].scores, again[layer].scores)
    assert not torch.equal(first[layer].scores, other[layer].scores)


def test_every_layer_epoch_and_batch_draws_anew(monkeypatch):
    keys = []

    def recording(phi, examples, key):
        keys.append(tuple(key))
        return draw_switches(phi, examples, key)

    monkeypatch.setattr(importance_switch, "draw_switches", recording)
    data = nr.data.load("digits").train.first(60).rebatched(20)
    method = ImportanceSwitch(epochs=2, estimate="sample")
    nr.rank(nr.zoo.digits_net(2, 3, 6, 4, seed=0), data, method, progress=False)
    assert len(set(keys)) == len(keys) == 4 * (2 + 1) * 3  # a last pass takes the bound


def test_sampling_learns_much_the_same_as_the_mean():
    model, batches, layer, _ = problem("perceptron", examples=400, batch=100)
    by_mean, by_draws = (
        ranked(model, batches, layer, ImportanceSwitch(epochs=60, estimate=estimate))[layer].scores
        for estimate in ("mean", "sample")
    )
    assert float((by_mean - by_draws).abs().max()) < 0.15
    assert int(by_mean.argmax()) == int(by_draws.argmax())


def test_nothing_random_enters_the_mean():
    model, batches, layer, _ = problem("perceptron")
    first, other = (ranked(model, batches, layer, seed=seed)[layer].scores for seed in (1, 2))
    assert torch.equal(first, other)


@pytest.mark.parametrize("estimate", ["mean", "sample"])
def test_torch_s_generator_is_left_as_it_is(estimate):
    model, batches, layer, _ = problem("perceptron")
    observer = watching(model, batches)
    before = torch.get_rng_state()
    ImportanceSwitch(epochs=2, estimate=estimate).score(observer, layer)
    assert torch.equal(torch.get_rng_state(), before)


# Where it runs.


def wrapped_in(context, *args):
    @contextmanager
    def wrapped():
        with context(*args):
            yield

    return wrapped


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("case", ["perceptron", "gated", "norm behind"])
def test_gradients_work_whatever_mode_the_caller_is_in(context, case):
    model, batches, layer, _ = problem(case)
    wanted = ranked(model, batches, layer)[layer]
    with context():
        own_model, own_batches, _, _ = problem(case)  # tensors made in that mode
        found = ranked(own_model, own_batches, layer)[layer]
    assert found == wanted


@pytest.mark.parametrize("estimate", ["mean", "sample"])
def test_network_runs_in_the_user_s_precision(estimate):
    model, batches, layer, _ = problem("norm behind", dtype=torch.float32)
    board = board_of(model, batches, layer)
    batch, switch = next(iter(board.batches())), posterior_mean(some_phi(board.units))
    assert batch.forward(switch).dtype == torch.float32
    assert cross_entropy(batch, switch).dtype == torch.float64
    method = ImportanceSwitch(epochs=3, estimate=estimate)
    rough = ranked(model, batches, layer, method)[layer].scores
    fine_batches = [(inputs.double(), targets) for inputs, targets in batches]
    fine = ranked(model.double(), fine_batches, layer, method)[layer].scores
    assert rough.dtype == torch.float64
    torch.testing.assert_close(rough, fine, rtol=1e-4, atol=1e-5)
    assert not torch.equal(rough, fine)


def test_model_comes_back_as_it_was():
    model, batches, layer, _ = problem("norm behind")
    model.train()
    model.conv.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    ranked(model, batches, layer)
    assert all(torch.equal(it, before[name]) for name, it in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert [it.requires_grad for it in model.parameters()].count(False) == 1
    assert all(it.grad is None for it in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_an_untraceable_model_is_refused_with_the_reason():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)
            self.register_buffer("sign", torch.ones(()))

        def forward(self, x):
            z = self.first(x)
            return self.second(z if float(self.sign) > 0 else -z)

    batches = [(torch.randn(6, 4), torch.zeros(6, dtype=torch.int64))]
    with pytest.raises(ModelError, match=r"importance switch on 'first' needs .* traced"):
        ranked(Branching(), batches, "first", removal="parameters")


def test_a_loss_that_is_not_a_number_names_layer_epoch_and_batch():
    model, batches, layer, _ = problem("perceptron")
    with pytest.raises(ModelError, match=r"'0' is NaN or infinite in epoch 1, batch 2.*lr=1e\+308"):
        ranked(model, batches, layer, ImportanceSwitch(epochs=3, lr=1e308))


def test_a_loss_that_is_not_a_number_at_the_last_step_is_seen_too():
    model, batches, layer, _ = problem("perceptron", batch=24)
    with pytest.raises(ModelError, match="NaN or infinite after the last epoch"):
        ranked(model, batches, layer, ImportanceSwitch(epochs=1, lr=1e308))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 2.0}, r"epochs=2\.0"),
        ({"epochs": True}, "epochs=True"),
        ({"alpha": 0}, "alpha=0"),
        ({"alpha": math.nan}, "alpha=nan"),
        ({"alpha": math.inf}, "alpha=inf"),
        ({"lr": -0.1}, r"lr=-0\.1"),
        ({"start": -1e3}, r"start=-1000\.0"),
        ({"start": math.nan}, "start=nan"),
        ({"estimate": "median"}, "estimate='median'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(MethodError, match=message):
        ImportanceSwitch(**arguments)


# The switchboard: where the switch is applied, and what is kept.


HOMOGENEOUS_CALLS = {
    "alias": torch.ops.aten.alias,
    "clone": torch.clone,
    "contiguous": torch.Tensor.contiguous,
    "detach": torch.detach,
    "dropout": lambda h: functional.dropout(h, training=False),
    "feature_dropout": lambda h: functional.dropout2d(h, training=False),
    "leaky_relu": functional.leaky_relu,
    "relu": functional.relu,
    "mean": lambda h: h.mean(dim=(2, 3)),
    "flatten": lambda h: h.flatten(1),
    "view": lambda h: h.view(len(h), -1),
    "reshape": lambda h: h.reshape(len(h), -1),
    "unsafe_view": lambda h: torch.ops.aten._unsafe_view(h, [len(h), h[0].numel()]),
    "max_pool1d": lambda h: functional.max_pool1d(h.flatten(2), 3, padding=1),
    "max_pool2d": lambda h: functional.max_pool2d(h, 3, padding=1),
    "max_pool3d": lambda h: functional.max_pool3d(h[:, :, None], (1, 2, 2)),
    "avg_pool1d": lambda h: functional.avg_pool1d(h.flatten(2), 3, padding=1),
    "avg_pool2d": lambda h: functional.avg_pool2d(h, 3, padding=1),
    "avg_pool3d": lambda h: functional.avg_pool3d(h[:, :, None], (1, 2, 2)),
    "adaptive_avg_pool1d": lambda h: functional.adaptive_avg_pool1d(h.flatten(2), 2),
    "adaptive_avg_pool2d": lambda h: functional.adaptive_avg_pool2d(h, 2),
    "adaptive_avg_pool3d": lambda h: functional.adaptive_avg_pool3d(h[:, :, None], (1, 2, 2)),
}


@pytest.mark.parametrize("kind", sorted(HOMOGENEOUS))
def test_what_a_switch_is_moved_past_is_homogeneous(kind):
    function = HOMOGENEOUS_CALLS[kind]
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=generator)
    switch = torch.tensor([0.1, 0.7, 0.2], dtype=torch.float64)
    before = function(maps * switch[:, None, None])
    behind = function(maps).reshape(2, 3, -1) * switch[:, None]
    torch.testing.assert_close(before.reshape(2, 3, -1), behind, rtol=1e-12, atol=1e-14)


class Counting:
    """Batches that count how often they are gone through."""

    def __init__(self, batches):
        self.batches = batches
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


def test_what_is_above_the_switch_runs_once():
    model, batches, layer, _ = problem("norm behind")
    passes = []
    for epochs in (1, 9):
        data = Counting(batches)
        ranked(model, data, layer, ImportanceSwitch(epochs=epochs))
        passes.append(data.passes)
    assert passes[0] == passes[1]


@pytest.mark.parametrize("limit", [0, 1000])
def test_too_large_to_keep_is_run_anew_with_the_same_bits(monkeypatch, limit):
    model, batches, layer, _ = problem("norm behind")
    wanted = ranked(model, batches, layer)[layer]
    monkeypatch.setattr(switchboard_module, "CACHE_BYTES", limit)
    passes = []
    for epochs in (1, 3):
        data = Counting(batches)
        found = ranked(model, data, layer, ImportanceSwitch(epochs=epochs))[layer]
        passes.append(data.passes)
    assert found == wanted
    assert passes[1] == passes[0] + 2


def test_an_epoch_that_was_broken_off_leaves_nothing_half_kept():
    model, batches, layer, _ = problem("perceptron")
    board = board_of(model, batches, layer)
    next(iter(board.batches()))
    first, second = list(board.batches()), list(board.batches())
    assert [len(batch.targets) for batch in first] == [10, 10, 4]
    assert all(one is other for one, other in zip(first, second, strict=True))


def test_a_batch_says_what_it_holds():
    model, batches, layer, _ = problem("norm behind")
    batch = next(iter(board_of(model, batches, layer).batches()))
    pooled, side = 10 * 3 * 2 * 2, 10 * 4
    assert batch.held_bytes == 8 * (pooled + side)
