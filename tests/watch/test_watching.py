"""Watching beside a training: what is counted, what is left alone, what goes on."""

import copy
import re
import statistics
import time
from pathlib import Path

import pytest
import torch
from tests.cases import seeded
from tests.watch.nets import DATA, epoch_of, network, same, state_of
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import neurank as nr
from neurank.condense.carry import carry_over
from neurank.errors import MethodError, ModelError, UnitError
from neurank.observe import observer
from neurank.units.trace import trace


@pytest.fixture(scope="module", autouse=True)
def _traced_once():
    """Trace networks that are built alike once: a trace takes time and holds no weights."""
    traces = {}

    def of_its_kind(model, inputs):
        shapes = tuple((name, it.shape, it.dtype) for name, it in model.state_dict().items())
        key = (repr(model), shapes, inputs.shape[1:])
        if key not in traces:
            traces[key] = trace(model, inputs)
        return traces[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observer, "trace", of_its_kind)
        yield


def sgd(model, **settings):
    return torch.optim.SGD(model.parameters(), **({"lr": 0.1, "momentum": 0.9} | settings))


def hooks_of(optimizer):
    return len(optimizer._optimizer_step_post_hooks) + len(optimizer._optimizer_step_pre_hooks)


def steps(watching):
    return [vitals.step for vitals in watching.history]


class Dropping(nn.Module):
    """With dropout and BatchNorm, whose statistics and random numbers must not be touched."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        net = self.net
        x = net.flat(net.active(net.norm(net.conv(x))))
        return net.fc2(self.drop(net.tanh(net.fc1(x))))


def trained(watched, data=DATA):
    """Train a little; give all that a training leaves behind."""
    with seeded("training"):
        model = Dropping().train()
        model.net.tanh.eval()  # flags that differ must come back as they were
        optimizer = sgd(model)
        losses, calls = [], []
        model.net.fc1.register_forward_hook(lambda *_: calls.append(model.training))

        def loop():
            calls.clear()
            for inputs, targets in DATA * 2:
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(inputs), targets)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())

        if watched:
            with nr.watch(model, optimizer, data, every=3, exact_every=2) as watching:
                loop()
            assert steps(watching) == [0, 3, 6, 8]
            assert watching.history[0].layers["net.fc1"].penalties is not None
            assert watching.history[1].layers["net.fc1"].penalties is None
        else:
            loop()
        grads = {name: it.grad.clone() for name, it in model.named_parameters()}
        flags = [module.training for module in model.modules()]
        momenta = [optimizer.state[it]["momentum_buffer"] for it in model.parameters()]
        return losses, state_of(model), grads, flags, momenta, torch.get_rng_state(), calls


@pytest.mark.parametrize("kind", ["list", "loader"])
def test_a_watched_training_is_bit_for_bit_the_same(kind):
    joined = TensorDataset(*(torch.cat(parts) for parts in zip(*DATA, strict=True)))
    data = DATA if kind == "list" else DataLoader(joined, batch_size=10)
    plain, watched = trained(False), trained(True, data)
    assert plain[0] == watched[0]
    assert same(plain[1], watched[1])
    assert same(plain[2], watched[2])
    assert plain[3] == watched[3]
    assert all(map(torch.equal, plain[4], watched[4]))
    assert torch.equal(plain[5], watched[5])
    assert plain[6] == watched[6] == [True] * 8  # looks do not call the module


def test_data_that_change_afterwards_change_nothing():
    data = [(inputs.clone(), targets) for inputs, targets in DATA]
    model = network()
    watching = nr.watch(model, sgd(model), data)
    before = watching.look()
    for inputs, _ in data:
        inputs.zero_()
    assert watching.look().loss == before.loss


def test_looks_show_the_weights_of_their_time():
    model = network()
    optimizer = sgd(model)
    shown = []
    with nr.watch(model, optimizer, DATA, every=2, writers=[shown.append]) as watching:
        epoch_of(model, optimizer, DATA[:2])
        halfway = nr.vitals(model, DATA, exact=False)
        epoch_of(model, optimizer, DATA[2:])
    assert watching.history == shown
    assert steps(watching) == [0, 2, 4]
    assert shown[1].loss == halfway.loss
    for name, layer in halfway.layers.items():
        assert torch.equal(layer.signs.saliency, shown[1].layers[name].signs.saliency)
    assert shown[0].loss != shown[1].loss != shown[2].loss
    frame = watching.to_frame()
    assert frame["step"].unique().tolist() == [0, 2, 4]
    assert len(frame) == 3 * (6 + 10)
    assert watching.seconds > 0


@pytest.mark.parametrize("failure", [None, ValueError, KeyboardInterrupt])
def test_no_hook_is_left(failure):
    model = network()
    optimizer = sgd(model)
    watching = nr.watch(model, optimizer, DATA, every=3)

    def training():
        with watching:
            assert hooks_of(optimizer) == 1
            epoch_of(model, optimizer)
            if failure:
                raise failure

    if failure:
        with pytest.raises(failure):
            training()
    else:
        training()
    assert hooks_of(optimizer) == 0
    assert steps(watching) == ([0, 3] if failure else [0, 3, 4])
    epoch_of(model, optimizer)
    assert watching.step == 4
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_no_hook_is_left_where_a_look_fails(failure):
    model = network()
    optimizer = sgd(model)
    count = iter(range(10))

    def failing(at):
        def write(_):
            if next(count) == at:
                raise failure

        return write

    for at in (0, 2):
        with (
            pytest.raises(failure),
            nr.watch(model, optimizer, DATA, every=1, writers=[failing(at)]),
        ):
            epoch_of(model, optimizer)
        assert hooks_of(optimizer) == 0


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.SGD])
def test_closures_are_part_of_one_step(kind):
    model = network()
    optimizer = kind(model.parameters(), lr=0.01)
    calls = []
    with nr.watch(model, optimizer, DATA, every=2) as watching:
        for inputs, targets in DATA:

            def closure(inputs=inputs, targets=targets):
                calls.append(1)
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(inputs), targets)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert steps(watching) == [0, 2, 4]
    assert len(calls) > 4 if kind is torch.optim.LBFGS else len(calls) == 4


def test_accumulated_gradients_are_one_step_and_stay():
    model = network()
    optimizer = sgd(model)
    with nr.watch(model, optimizer, DATA, every=1) as watching:
        for number, (inputs, targets) in enumerate(DATA, start=1):
            functional.cross_entropy(model(inputs), targets).backward()
            if number % 2:
                before = [it.grad.clone() for it in model.parameters()]
                watching.look()
                assert all(map(torch.equal, before, [it.grad for it in model.parameters()]))
            else:
                optimizer.step()
                optimizer.zero_grad()
    assert watching.step == 2


SINGLE = [(inputs.float(), targets) for inputs, targets in DATA]


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_gradient_scaler_skips_do_not_count(fused):
    model = network().float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    with nr.watch(model, optimizer, SINGLE, every=1) as watching:
        for number, (inputs, targets) in enumerate(SINGLE):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), targets)
            scaler.scale(loss * (torch.inf if number == 1 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert scaler.get_scale() == 8.0
    assert steps(watching) == [0, 1, 2, 3]


def test_autocast_trains_and_looks_are_in_the_weights_own_precision():
    model = network().float()
    optimizer = sgd(model)
    kinds = set()
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    with autocast, nr.watch(model, optimizer, SINGLE, every=2) as watching:
        for inputs, targets in SINGLE:
            optimizer.zero_grad()
            logits = model(inputs)
            functional.cross_entropy(logits, targets).backward()
            optimizer.step()
            kinds.add(logits.dtype)
    assert kinds == {torch.bfloat16}
    assert steps(watching) == [0, 2, 4]
    own = nr.vitals(model, SINGLE, exact=False)
    assert watching.history[-1].loss == own.loss
    for name, layer in own.layers.items():
        assert torch.equal(layer.signs.saliency, watching.history[-1].layers[name].signs.saliency)


def test_a_compiled_network_is_looked_at_inside():
    model = network()
    compiled = torch.compile(model, backend="eager")
    optimizer = sgd(model)
    with nr.watch(compiled, optimizer, DATA, every=2) as watching:
        epoch_of(compiled, optimizer)
    assert steps(watching) == [0, 2, 4]
    assert list(watching.history[0].layers) == ["conv", "fc1"]
    assert watching.history[-1].loss == nr.vitals(model, DATA, exact=False).loss


def test_losses_that_are_nan_are_an_event_and_training_goes_on():
    model = network()
    optimizer = sgd(model)
    before = state_of(model)
    with nr.watch(model, optimizer, DATA, every=1) as watching:
        epoch_of(model, optimizer, DATA[:1])
        with torch.no_grad():
            model.fc2.bias[0] = torch.nan
        epoch_of(model, optimizer, DATA[:2])
        model.load_state_dict(before)
        optimizer.state.clear()
        epoch_of(model, optimizer, DATA[:1])
    assert steps(watching) == [0, 1, 4]
    assert [event.step for event in watching.events] == [2, 3]
    assert all(
        event.what.startswith("not looked at: the loss is NaN or infinite")
        for event in watching.events
    )


@pytest.mark.parametrize("same_optimizer", [True, False])
def test_a_condensed_network_is_followed(same_optimizer):
    model = network()
    optimizer = sgd(model)
    with nr.watch(model, optimizer, DATA, every=2) as watching:
        epoch_of(model, optimizer)
        ranking = nr.rank(model, DATA, nr.WeightNorm(), progress=False)
        small = nr.condense(model, nr.plan(ranking, ratio=0.5), DATA, progress=False)
        if same_optimizer:
            carry_over(optimizer, model, small.model, small.cuts)
            watching.follow(small.model)
            later = optimizer
        else:
            later = sgd(small.model)
            watching.follow(small.model, later)
            assert hooks_of(optimizer) == 0
        epoch_of(small.model, later)
    assert hooks_of(later) == 0
    assert steps(watching) == [0, 2, 4, 6, 8]
    assert [len(it.layers["fc1"].reasons) for it in watching.history] == [10, 10, 10, 5, 5]
    assert [str(event.what) for event in watching.events] == ["another network: conv 3, fc1 5"]
    assert watching.history[-1].loss == nr.vitals(small.model, DATA, exact=False).loss


def test_what_cannot_be_followed_leaves_all_as_it_was():
    model = network()
    optimizer = sgd(model)
    with nr.watch(model, optimizer, DATA, every=4) as watching:
        for other in (None, optimizer):
            with pytest.raises(MethodError, match="holds no parameter of the model"):
                watching.follow(copy.deepcopy(model), other)
        epoch_of(model, optimizer)
    assert steps(watching) == [0, 4]
    assert watching.events == []
    assert watching.history[-1].loss == nr.vitals(model, DATA, exact=False).loss


def test_notes_are_kept_and_steps_go_on():
    model = network()
    optimizer = sgd(model)
    with nr.watch(model, optimizer, DATA, every=5, first_step=8) as watching:
        epoch_of(model, optimizer)
        watching.note("unit 3 of fc1 revived")
    assert steps(watching) == [8, 10, 12]
    assert [(event.step, event.what) for event in watching.events] == [
        (12, "unit 3 of fc1 revived")
    ]


def test_layers_thresholds_and_exact_looks_are_passed_on():
    model = network()
    with torch.no_grad():
        model.norm.bias[2] = -100
    optimizer = sgd(model)
    settings = {"layers": ["conv"], "exact_every": 1, "thresholds": nr.Thresholds(dead=0.999)}
    with nr.watch(model, optimizer, DATA, **settings) as watching:
        pass
    (found,) = watching.history
    assert list(found.layers) == ["conv"]
    assert 2 in found.dead["conv"]
    assert found.layers["conv"].reasons[2] == "saturated activation"
    assert "small effect" in found.layers["conv"].reasons


def test_settings_that_are_none_are_refused():
    model = network()
    optimizer = sgd(model)
    for name in ("every", "exact_every"):
        for value in (0, -1, 1.5, True, "2"):
            with pytest.raises(MethodError, match=f"{name}=.*: a whole number of 1 or more"):
                nr.watch(model, optimizer, DATA, **{name: value})
    with pytest.raises(MethodError, match="the optimizer holds no parameter of the model"):
        nr.watch(model, sgd(network()), DATA)
    with pytest.raises(MethodError, match=r"optimizer is a list, where a torch.optim.Optimizer"):
        nr.watch(model, [optimizer], DATA)
    with pytest.raises(UnitError, match="no layer 'fc9'"):
        nr.watch(model, optimizer, DATA, layers=["fc9"])
    with pytest.raises(ModelError, match="DataParallel"):
        nr.watch(nn.DataParallel(model), optimizer, DATA)
    assert hooks_of(optimizer) == 0


def test_units_behind_a_layernorm_get_exact_penalties_too():
    with seeded("normed"):
        model = nn.Sequential(
            *(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3))
        ).double()
        data = [(torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3)]
    layer = nr.vitals(model, data).layers["0"]
    inputs, targets = data[0]
    with torch.no_grad():
        given = model[0](inputs)
        whole = functional.cross_entropy(model(inputs), targets, reduction="none")
        for unit in range(5):
            replaced = given.clone()
            replaced[:, unit] = given[:, unit].mean()
            losses = functional.cross_entropy(model[1:](replaced), targets, reduction="none")
            changes = (losses - whole).abs()
            assert float(layer.penalties.mean[unit]) == pytest.approx(float(changes.mean()))
            assert float(layer.penalties.largest[unit]) == pytest.approx(float(changes.max()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning warns about itself
def test_the_page_on_watching_runs_as_it_stands(capsys):
    for name in ("pyarrow", "lightning.pytorch"):
        pytest.importorskip(name, reason=f"{name} is not installed, which the page needs")
    page = (Path(__file__).parents[2] / "docs" / "watching.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        exec(block, names)  # one after the other, as a reader does
    assert [vitals.step for vitals in names["watching"].history] == [0, 20, 24]
    before, after = names["revived"].losses
    assert after == pytest.approx(before, abs=1e-4)
    assert "units dead" in capsys.readouterr().out


@pytest.mark.slow
def test_watching_costs_little(mnist, tmp_path):
    """1,000 steps on MNIST between two looks, without setting up and the looks at both ends."""
    taken = {True: [], False: []}
    batches = mnist.train.inputs[:32_000].split(32), mnist.train.targets[:32_000].split(32)
    for number in range(6):
        model = nr.zoo.lenet(8, 16, 64, 25, seed=0)
        optimizer = sgd(model, lr=0.01)
        watching = nr.watch(
            model,
            optimizer,
            mnist.validation.first(1000),
            every=1000,
            writers=[nr.ParquetLog(tmp_path)],
        )
        watching.look()  # the first look imports and allocates
        is_watched = number % 2 == 0
        if is_watched:
            optimizer.register_step_post_hook(watching._after_step)
        started = time.process_time()
        epoch_of(model, optimizer, list(zip(*batches, strict=True)))
        taken[is_watched].append(time.process_time() - started)
        assert watching.step == (1000 if is_watched else 0)
    with_, without = (statistics.median(taken[key]) for key in (True, False))
    assert with_ < 1.08 * without  # a look's own time is 3 %; a busy machine adds
