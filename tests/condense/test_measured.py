"""Size, memory and time of networks: what is exact is compared with numbers done by hand."""

import pytest
import torch
from safetensors.torch import save_file
from tests.condense.nets import AuthorsLeNet, drawn
from torch import nn

import neurank as nr
from neurank.condense import measure
from neurank.condense.measure import Times, file_size, interleaved, measured, peak_memory
from neurank.condense.rewritten import Rewritten
from neurank.errors import DataError
from neurank.units.trace import trace


def chain():
    return nn.Sequential(nn.Linear(10, 400), nn.ReLU(), nn.Linear(400, 5))


def peak(model, inputs):
    with torch.inference_mode():
        return peak_memory(model.eval(), inputs)


def test_counts_are_those_done_by_hand():
    found = measured(chain(), torch.rand(3, 10), batch_sizes=(2,), repeats=2)
    assert found.parameters == 10 * 400 + 400 + 400 * 5 + 5
    assert found.multiply_adds == 10 * 400 + 400 * 5
    assert list(found.peak_memory) == list(found.times) == [2]
    assert found.times[2].batch_size == found.times[2].repeats == 2
    assert (found.device, found.threads) == ("cpu", torch.get_num_threads())


def test_memory_is_what_is_held_at_the_same_time():
    # the hidden units before and after the ReLU; their sum is more than what comes later
    assert peak(chain(), torch.rand(7, 10)) == 4 * 7 * 400 * 2
    # overwritten in place they are held once, and the outputs come on top
    saving = nn.Sequential(nn.Linear(10, 400), nn.ReLU(inplace=True), nn.Linear(400, 5))
    assert peak(saving, torch.rand(7, 10)) == 4 * 7 * (400 + 5)


def test_memory_grows_with_the_batch_and_counts_no_weights():
    found = measured(chain(), torch.rand(1, 10), batch_sizes=(1, 8), repeats=1)
    assert found.peak_memory[8] == 8 * found.peak_memory[1] == 4 * 8 * 800


def test_memory_of_a_condensed_network_is_less():
    model = drawn(AuthorsLeNet, dtype=torch.float32)
    plan = nr.Plan.from_keep({"c1": range(4), "c3": range(6)}, {"c1": 10, "c3": 20})
    data = [(torch.rand(2, 1, 28, 28), torch.tensor([0, 1]))]
    small = nr.condense(model, plan, data, progress=False)
    before, after = (measured(it, data[0][0], repeats=2) for it in (model, small.model))
    assert (before.multiply_adds, after.multiply_adds) == small.report.multiply_adds
    assert (before.parameters, after.parameters) == small.report.parameters
    assert after.file_size < before.file_size
    assert all(after.peak_memory[size] < before.peak_memory[size] for size in (1, 64))


def test_a_rewritten_network_lets_go_of_what_nobody_reads_again():
    model = nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(64, 64), nn.Tanh())))
    inputs = torch.rand(3, 64)
    rewritten = Rewritten(model.eval(), trace(model, inputs))
    assert peak(rewritten, inputs) == peak(model, inputs) == 4 * 3 * 64 * 2


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(50, 50, bias=False)
        self.other = nn.Linear(50, 50, bias=False)
        self.other.weight = self.one.weight


def test_the_file_is_as_large_as_the_one_on_the_disk(tmp_path):
    model = drawn(AuthorsLeNet, dtype=torch.float32)
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    assert file_size(model) == (tmp_path / "net.safetensors").stat().st_size
    assert 4 * 50 * 50 < file_size(Tied()) < 4 * 50 * 50 + 200


def test_the_network_comes_back_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = torch.rand(3, 4)
    generator = torch.get_rng_state()
    measured(model, inputs, batch_sizes=(3,), repeats=2)
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


class Recording(nn.Module):
    def __init__(self, label, calls):
        super().__init__()
        self.label, self.calls = label, calls

    def forward(self, x):
        self.calls.append((self.label, len(x), self.training, torch.is_grad_enabled()))
        return x


def test_repeats_are_interleaved_and_the_first_passes_do_not_count():
    calls = []
    models = {label: Recording(label, calls) for label in "ab"}
    found = interleaved(models, torch.rand(5, 2), repeats=4)
    assert [label for label, *_ in calls] == ["a", "b"] * (measure.WARM_UP + 4)
    assert {rest for _, *rest in map(tuple, calls) for rest in [tuple(rest)]} == {(5, False, False)}
    assert all((it.batch_size, it.repeats) == (5, 4) for it in found.values())


def test_times_are_those_of_the_clock():
    # what is slow by 1 s in warming up and then takes 3, 1, 2, 5 and 4 s
    clock = map(float, [0, 9, 0, 9, 0, 9, 0, 3, 0, 1, 0, 2, 0, 5, 0, 4])
    models = {"one": nn.ReLU()}
    found = interleaved(models, torch.rand(2, 3), repeats=5, clock=lambda: next(clock))["one"]
    assert found == Times(2, median=3.0, lower=2.0, upper=4.0, repeats=5)


def test_it_prints_and_goes_into_json():
    found = measured(chain(), torch.rand(3, 10), batch_sizes=(1, 2), repeats=1)
    text = str(found)
    assert "parameters" in text
    assert f"{found.file_size:,} bytes" in text
    assert "memory, 2 examples  6,400 bytes" in text
    document = found.to_json()
    assert document["peak_memory"] == {"1": 3200, "2": 6400}
    assert document["times"]["2"]["repeats"] == 1


def test_stages_are_measured_beside_each_other(monkeypatch):
    timed = []

    def noting(models, inputs, repeats):
        timed.append((list(models), len(inputs), repeats))
        return {name: Times(len(inputs), len(name), 0, 0, repeats) for name in models}

    data = [(torch.eye(3), torch.tensor([0, 1, 1])), (torch.eye(3), torch.tensor([0, 1, 0]))]
    models = {name: nn.Linear(3, 3, bias=False) for name in ("same", "moved")}
    with torch.no_grad():
        models["same"].weight.copy_(torch.eye(3))
        models["moved"].weight.copy_(torch.eye(3).roll(1, dims=0))
    monkeypatch.setattr(measure, "interleaved", noting)
    found = measure.stages(models, data, batch_sizes=(2,), repeats=7)
    assert timed[0] == (["same", "moved"], 2, 7)
    assert [it.name for it in found] == ["same", "moved"]
    assert [it.accuracy for it in found] == pytest.approx([4 / 6, 1 / 6])
    assert [it.measured.times[2].median for it in found] == [4, 5]
    with pytest.raises(DataError, match="no example"):
        measure.stages(models, [])


@pytest.mark.parametrize(
    ("examples", "sizes", "repeats", "reason"),
    [
        (0, (1,), 1, "there is no example"),
        (2, (1, 0), 1, "a batch size of 0"),
        (2, (1,), 0, "repeats of 0"),
    ],
)
def test_what_cannot_be_measured(examples, sizes, repeats, reason):
    with pytest.raises(DataError, match=reason):
        measured(chain(), torch.rand(examples, 10), batch_sizes=sizes, repeats=repeats)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_cuda_device():
    model = chain().cuda()
    found = measured(model, torch.rand(3, 10), batch_sizes=(64,), repeats=3)
    assert found.device.startswith("cuda")
    assert found.peak_memory[64] >= 4 * 64 * 400 * 2
    assert found.times[64].median > 0
