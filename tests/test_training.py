import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from neurank.data import Split
from neurank.errors import DataError, MethodError, ModelError
from neurank.training import History, error_rate, fit
from neurank.zoo import digits_net


def blobs(examples=60, seed=0):
    """Three classes round three corners, which a linear layer separates."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(examples) % 3
    inputs = 4 * torch.eye(3)[targets] + torch.randn(examples, 3, generator=generator)
    return Split(inputs, targets, "blobs", batch_size=10)


def linear(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(3, 3)


def chancy():
    """A network with chance of its own."""
    return nn.Sequential(linear(), nn.Dropout(0.5), linear(1))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def fitted(model, train=None, validation=None, **settings):
    train = blobs() if train is None else train
    validation = blobs(seed=1) if validation is None else validation
    history = fit(model, train, validation, **{"epochs": 3, "progress": False, **settings})
    return model, history


# What it learns


def test_the_digits_are_learnt_in_seconds(digits):
    model = digits_net(seed=0)
    history = fit(model, digits.train, digits.validation, epochs=30, batch_size=50, progress=False)
    assert error_rate(model, digits.test) <= 0.04
    assert history.best_error == error_rate(model, digits.validation)


def test_one_epoch_is_stochastic_gradient_descent_as_written_out():
    data, model = blobs(20), linear()
    by_hand = copy.deepcopy(model)
    fit(
        model,
        list(data),
        [(torch.zeros(1, 3), torch.tensor([0]))],
        epochs=1,
        lr=0.05,
        momentum=0.5,
        weight_decay=0.01,
        progress=False,
    )
    velocity = {}
    for inputs, targets in data:
        by_hand.zero_grad()
        nn.functional.cross_entropy(by_hand(inputs), targets).backward()
        for name, parameter in by_hand.named_parameters():
            gradient = parameter.grad + 0.01 * parameter.data
            velocity[name] = gradient + 0.5 * velocity.get(name, 0)
            parameter.data -= 0.05 * velocity[name]
    assert torch.allclose(model.weight, by_hand.weight, atol=1e-6)
    assert torch.allclose(model.bias, by_hand.bias, atol=1e-6)


def test_the_learning_rate_falls_along_half_a_cosine(monkeypatch):
    rates = []
    plain = torch.optim.SGD.step

    def step(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return plain(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    one_batch = [(torch.eye(3), torch.arange(3))]
    fitted(linear(), one_batch, epochs=5, lr=0.1, final_lr=0.02)
    assert rates == pytest.approx([0.02 + 0.04 * (1 + math.cos(math.pi * i / 4)) for i in range(5)])
    assert (rates[0], rates[-1]) == pytest.approx((0.1, 0.02))


def test_a_single_epoch_has_the_first_rate():
    fast, _ = fitted(linear(), epochs=1, lr=0.1, final_lr=0.1)
    falling, _ = fitted(linear(), epochs=1, lr=0.1, final_lr=0.001)
    assert same(state(fast), state(falling))


def test_parameters_that_need_no_gradient_stay():
    model = nn.Sequential(linear(), linear(1))
    model[0].requires_grad_(False)
    before = state(model)
    fitted(model)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[1].weight, before["1.weight"])


# Which weights it leaves


class Scripted(nn.Module):
    """A network whose validation error is told by a script, one entry per epoch."""

    def __init__(self, errors):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 3))
        self.errors = errors
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.epoch += 1
            return x @ self.weight
        wrong = int(self.errors[int(self.epoch)] * len(x))
        logits = torch.zeros(len(x), 3)
        logits[:, 0] = 1
        logits[:wrong, 1] = 2
        return logits


def scripted(errors, **settings):
    model = Scripted(errors)
    train = [(torch.eye(3), torch.arange(3))]
    validation = [(torch.zeros(10, 3), torch.zeros(10, dtype=torch.int64))]
    history = fit(
        model, train, validation, **{"epochs": len(errors) - 1, "progress": False, **settings}
    )
    return int(model.epoch), history


@pytest.mark.parametrize(
    ("errors", "best"),
    [
        ((0.9, 0.5, 0.2, 0.4), 2),
        ((0.9, 0.5, 0.2, 0.2, 0.3), 3),
        ((0.1, 0.5, 0.2), 0),
        ((0.9, 0.5, 0.4, 0.3), 3),
    ],
)
def test_the_weights_are_those_of_the_best_epoch(errors, best):
    left, history = scripted(errors)
    assert left == history.best_epoch == best
    assert (history.initial_error, *history.validation_errors) == errors
    assert history.best_error == min(errors)


def test_patience_ends_the_training():
    errors = (0.9, 0.5, 0.5, 0.6, 0.1, 0.1)
    left, history = scripted(errors, patience=2)
    assert len(history.validation_errors) == len(history.losses) == 3
    assert left == 2


def test_patience_counts_from_the_last_gain():
    left, history = scripted((0.9, 0.8, 0.85, 0.7, 0.75, 0.6, 0.7), patience=2)
    assert len(history.losses) == 6
    assert left == 5


# What it leaves alone


def test_the_same_seed_gives_the_same_weights():
    one, other = fitted(chancy(), seed=5)[0], fitted(chancy(), seed=5)[0]
    assert same(state(one), state(other))


def test_another_seed_shuffles_otherwise():
    one, other = fitted(linear(), seed=5, epochs=1)[0], fitted(linear(), seed=6, epochs=1)[0]
    assert not same(state(one), state(other))


def test_what_torchs_generator_did_before_does_not_matter():
    torch.manual_seed(1)
    one, _ = fitted(chancy())
    torch.manual_seed(2)
    other, _ = fitted(chancy())
    assert same(state(one), state(other))


def test_torchs_generator_is_left_as_it_was():
    torch.manual_seed(99)  # or an earlier test may have left what this one would
    before = torch.get_rng_state()
    fitted(chancy())
    assert torch.equal(torch.get_rng_state(), before)


class Recording(nn.Linear):
    """A network that notes what it is trained on."""

    def __init__(self):
        super().__init__(3, 3)
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.extend(x[:, 0].tolist())
        return super().forward(x)


def numbered():
    numbers = torch.arange(25.0).unsqueeze(1).expand(25, 3) / 25
    return Split(numbers, torch.arange(25) % 3, "numbers", batch_size=10)


def test_every_epoch_is_shuffled_anew_and_complete():
    seen = fitted(Recording(), numbered(), epochs=2)[0].seen
    first, second = seen[:25], seen[25:]
    assert sorted(first) == sorted(second) == numbered().inputs[:, 0].tolist()
    assert first != second
    assert first != sorted(first)


def test_networks_with_and_without_chance_see_the_same_order():
    plain, _ = fitted(Recording(), numbered())
    chance, _ = fitted(nn.Sequential(Recording(), nn.Dropout()), numbered())
    assert chance[0].seen == plain.seen


@pytest.mark.parametrize("fails", [False, True])
def test_training_flags_come_back(fails):
    model = nn.Sequential(linear(), nn.Dropout(), linear(1))
    model[1].eval()
    train = [(torch.full((2, 3), math.nan), torch.tensor([0, 1]))] if fails else None
    if fails:
        with pytest.raises(ModelError):
            fitted(model, train)
    else:
        fitted(model)
    assert [module.training for module in model.modules()] == [True, True, False, True]


def test_dropout_is_on_in_training_and_off_in_validation():
    modes = []

    class Watching(nn.Linear):
        def forward(self, x):
            modes.append(self.training)
            return super().forward(x)

    batch = [(torch.eye(3), torch.arange(3))]
    fitted(Watching(3, 3).eval(), batch, batch, epochs=2)
    assert modes == [False, True, False, True, False]


def test_no_gradients_are_left_behind():
    model, _ = fitted(linear())
    assert model.weight.grad is None


def test_an_interrupted_training_leaves_the_best_weights_so_far():
    class Interrupted(Scripted):
        def forward(self, x):
            if self.training and self.epoch == 3:
                raise KeyboardInterrupt
            return super().forward(x)

    model = Interrupted((0.9, 0.2, 0.5, 0.6))
    batch = [(torch.eye(3), torch.zeros(3, dtype=torch.int64))]
    validation = [(torch.zeros(10, 3), torch.zeros(10, dtype=torch.int64))]
    with pytest.raises(KeyboardInterrupt):
        fit(model, batch, validation, epochs=5, progress=False)
    assert int(model.epoch) == 1


# What it takes


def test_a_loader_of_torch_is_taken_as_it_comes():
    split = blobs()
    loader = DataLoader(TensorDataset(split.inputs, split.targets), batch_size=10)
    from_loader, _ = fitted(linear(), loader)
    from_list, _ = fitted(linear(), list(split))
    assert same(state(from_loader), state(from_list))


def test_batch_size_of_data_in_memory():
    default, _ = fitted(linear(), epochs=1)
    same_size, _ = fitted(linear(), epochs=1, batch_size=10)
    other_size, _ = fitted(linear(), epochs=1, batch_size=20)
    assert same(state(default), state(same_size))
    assert not same(state(default), state(other_size))


def test_the_loss_is_the_mean_over_examples_not_batches():
    data = [(torch.eye(3), torch.arange(3)), (torch.eye(3)[:1], torch.tensor([2]))]
    model = nn.Linear(3, 3, bias=False)
    nn.init.zeros_(model.weight)
    model.weight.data[2, 0] = 1.0
    with torch.no_grad():
        rows = torch.cat([inputs for inputs, _ in data])
        labels = torch.cat([targets for _, targets in data])
        expected = nn.functional.cross_entropy(model(rows), labels).item()
    _, history = fitted(model, data, lr=1e-12, final_lr=1e-12, epochs=1)
    assert history.losses == pytest.approx((expected,), rel=1e-6)


# What it refuses


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"lr": math.inf}, "lr=inf"),
        ({"lr": 0.1, "final_lr": 0.2}, "final_lr=0.2"),
        ({"final_lr": 0.0}, "final_lr=0.0"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"momentum": -0.1}, "momentum=-0.1"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"weight_decay": math.nan}, "weight_decay=nan"),
        ({"patience": 0}, "patience=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_runs(setting, fault):
    model = linear()
    before = state(model)
    with pytest.raises(MethodError, match=fault):
        fitted(model, **setting)
    assert same(state(model), before)


def test_a_batch_size_for_batches_is_refused():
    with pytest.raises(MethodError, match="batch_size=5 has no effect"):
        fitted(linear(), list(blobs()), batch_size=5)


def test_a_loss_that_is_nan_stops_at_once_and_names_the_batch():
    batches = list(blobs())
    batches[3] = (torch.full((10, 3), math.nan), batches[3][1])
    model = linear()
    before = state(model)
    with pytest.raises(ModelError, match="nan in epoch 1, batch 4: use a lower learning rate"):
        fitted(model, batches)
    assert same(state(model), before)


def test_a_rate_that_is_far_too_high_stops():
    with pytest.raises(ModelError, match=r"the training loss is (nan|inf)|NaN"):
        fitted(nn.Sequential(linear(), linear(1)), lr=1e20, epochs=20)


def test_one_shot_data_are_refused_when_they_are_used_up():
    with pytest.raises(DataError, match=r"no batches in epoch 2.*not an iterator"):
        fitted(linear(), iter(list(blobs())))


@pytest.mark.parametrize("which", ["train", "validation"])
def test_no_batches(which):
    with pytest.raises(DataError, match="no batches"):
        fitted(linear(), **{which: []})


@pytest.mark.parametrize("label", [-1, 3, -100])
@pytest.mark.parametrize("which", ["train", "validation"])
def test_labels_without_an_output(which, label):
    batches = [(torch.eye(3), torch.tensor([0, 1, label]))]
    with pytest.raises(DataError, match=f"label {label} has no output among the network's 3"):
        fitted(linear(), **{which: batches})


@pytest.mark.parametrize("targets", [torch.zeros(3), torch.zeros(3, 3), torch.tensor([0, 1])])
def test_targets_that_are_no_labels(targets):
    with pytest.raises(DataError, match="one whole label per example"):
        error_rate(linear(), [(torch.eye(3), targets)])


def test_a_network_without_parameters_that_learn():
    with pytest.raises(ModelError, match="nothing to train"):
        fitted(linear().requires_grad_(False))


@pytest.mark.parametrize("output", [lambda x: (x, x), lambda x: {"logits": x}, lambda x: x.sum()])
def test_an_output_that_is_no_tensor_of_logits(output):
    class Odd(nn.Linear):
        def forward(self, x):
            return output(super().forward(x))

    with pytest.raises(ModelError, match="returns one tensor of logits"):
        error_rate(Odd(3, 3), blobs())


# The error rate


def test_the_error_rate_counts_mistakes_over_unequal_batches():
    data = [(torch.eye(3), torch.tensor([0, 1, 1])), (torch.eye(3)[:1], torch.tensor([0]))]
    assert error_rate(nn.Identity(), data) == 0.25


def test_of_equal_logits_the_lowest_class_wins():
    assert error_rate(nn.Identity(), [(torch.zeros(2, 3), torch.tensor([0, 1]))]) == 0.5


def test_the_error_rate_leaves_the_network_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), linear())
    model[1].eval()
    before = state(model)
    error_rate(model, blobs())
    assert same(state(model), before)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert model[2].weight.grad is None


def test_the_error_rate_is_that_of_evaluation_mode():
    model = nn.Sequential(nn.Dropout(0.999), nn.Identity())
    data = [(torch.eye(3), torch.arange(3))] * 20
    assert error_rate(model, data) == 0.0


def test_nan_logits_are_refused():
    data = [(torch.eye(3), torch.arange(3)), (torch.full((1, 3), math.nan), torch.tensor([0]))]
    with pytest.raises(ModelError, match="NaN in batch 2"):
        error_rate(nn.Identity(), data)


def test_a_history_is_frozen():
    history = History((1.0,), (0.5,), 0.9, 1, 0.1)
    with pytest.raises(AttributeError):
        history.seconds = 2.0


# The paper's network


@pytest.mark.slow
def test_lenet_reaches_its_accuracy_on_mnist(mnist):
    from neurank.zoo import lenet

    model = lenet(10, 20, 100, 25, seed=0)
    fit(model, mnist.train, mnist.validation, epochs=6, batch_size=100, progress=False)
    assert error_rate(model, mnist.test) <= 0.012
