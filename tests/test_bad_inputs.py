"""What users bring that they should not, and models that must come back as they were.

What is refused is refused with the value, the reason and the remedy, before long work starts.
"""

import random
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from tests.cases import CASES, Forward, chain, conv, named
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

import neurank as nr
from neurank.errors import (
    DataError,
    FileError,
    MethodError,
    ModelError,
    NeurankError,
    UnitError,
)
from neurank.journal import Journal, open_journal
from neurank.observe import observer as observing
from neurank.rankers import rank as ranking_module

METHODS = (
    nr.ExactShapley(),
    nr.PermutationShapley(passes=2),
    nr.ImportanceSwitch(epochs=1),
    nr.WeightNorm(),
    nr.RandomScore(),
)
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batches(*sizes, features=4, dtype=torch.float32):
    draw = generator()
    return [
        (torch.randn(size, features, generator=draw).to(dtype), torch.arange(size) % 3)
        for size in sizes
    ]


DATA = batches(6, 4)


def network(hidden=5, scale=1):
    torch.manual_seed(0)
    model = chain(fc=nn.Linear(4, hidden), act=nn.ReLU(), out=nn.Linear(hidden, 3))
    with torch.no_grad():
        model.fc.weight *= scale
    return model


def rank(model, data=DATA, method=METHODS[0], **options):
    return nr.rank(model, data, method, progress=False, **options)


@contextmanager
def refused(error, reason):
    """Refused in time, as one of ours and as a ValueError; others' load does not count."""
    started = time.process_time()
    with pytest.raises(error, match=reason) as refusal:
        yield refusal
    assert isinstance(refusal.value, NeurankError)
    assert isinstance(refusal.value, ValueError)
    assert time.process_time() - started < 10


# The model comes back bit for bit.


def snapshot(model):
    """Everything about a model, and about the process, that scoring might disturb."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "tensors": [
            (name, id(tensor), tensor.data_ptr(), tensor.requires_grad,
             tensor.grad is None, tensor.detach().clone().numpy().tobytes())
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        ],
        "versions": [parameter._version for parameter in model.parameters()],
        "flags": [module.training for module in model.modules()],
        "hooks": [list(getattr(m, kind).items()) for m in model.modules() for kind in hooks],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": np.random.get_state()[1].tobytes(),  # noqa: NPY002 (the global one is meant)
        "python": random.getstate(),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
                  torch.get_default_dtype(), torch.get_num_threads()),
    }  # fmt: skip


def furnished():
    """A network with all that can be disturbed."""
    torch.manual_seed(1)
    model = chain(
        conv1=conv(1, 4), norm=nn.BatchNorm2d(4), act=nn.ReLU(inplace=True), conv2=conv(4, 3),
        drop=nn.Dropout2d(0.5), flat=nn.Flatten(), norm2=nn.BatchNorm1d(27), act2=nn.ReLU(),
        out=nn.Linear(27, 3),
    )  # fmt: skip
    model.norm.eval()
    model.conv1.bias.requires_grad_(requires_grad=False)
    model.out(torch.randn(2, 27)).sum().backward()
    model.conv2.register_forward_hook(lambda *_: None)
    model.act.register_forward_pre_hook(lambda *_: None)
    model.register_full_backward_hook(lambda *_: None)
    return model


PICTURES = [(torch.randn(5, 1, 5, 5, generator=generator(s)), torch.arange(5) % 3) for s in (1, 2)]


@every_method
@pytest.mark.parametrize("removal", ["zero", "mean", "parameters"])
def test_the_model_is_as_it_was(method, removal):
    model = furnished()
    before = snapshot(model)
    ranking = rank(model, PICTURES, method, removal=removal)
    after = snapshot(model)
    for what, value in before.items():
        assert after[what] == value, what
    assert list(ranking) == ["conv1", "conv2"]


@every_method
@pytest.mark.parametrize("case", CASES[1::4], ids=str)
def test_every_fourth_network_is_as_it_was(case, method):
    model, data = case.model(), case.batches()
    before = snapshot(model)
    inputs = [inputs.clone() for inputs, _ in data]
    rank(model, data, method)
    assert snapshot(model) == before
    for (now, _), then in zip(data, inputs, strict=True):
        assert torch.equal(now, then)


@every_method
def test_the_model_is_as_it_was_after_a_failure(method):
    """The loader breaks down in the middle of the work."""

    class Breaking:
        passes = 0

        def __iter__(self):
            self.passes += 1
            yield PICTURES[0]
            if self.passes > 5:  # the checks at the door are over
                raise OSError("the disk went away")
            yield PICTURES[1]

    model = furnished()
    before = snapshot(model)
    if isinstance(method, nr.WeightNorm | nr.RandomScore):
        rank(model, Breaking(), method)  # reads the data at the door only
    else:
        with pytest.raises(OSError, match="the disk went away"):
            rank(model, Breaking(), method)
    assert snapshot(model) == before


@pytest.mark.parametrize("removal", ["zero", "parameters"])
def test_an_exception_in_forward_goes_through_and_leaves_nothing(removal):
    model = furnished()
    calls = []

    def fail_at_the_fifth(*_):
        calls.append(1)
        if len(calls) == 5:
            raise KeyError("lookup")

    model.conv2.register_forward_hook(fail_at_the_fifth)
    before = snapshot(model)
    with pytest.raises((KeyError, ModelError)):
        rank(model, PICTURES, removal=removal)
    assert snapshot(model) == before


def test_an_exception_under_our_hooks_takes_them_away():
    """A model that cannot be traced is run whole, with hooks, until it fails."""
    calls = []

    def forward(net, x):
        calls.append(1)
        if x.abs().sum() > 1e9 or len(calls) == 12:
            raise KeyError("lookup")
        return net.out(torch.relu(net.fc(x)))

    model = Forward(forward, fc=nn.Linear(4, 5), out=nn.Linear(5, 3)).train()
    model.fc.register_forward_hook(lambda *_: None)
    before = snapshot(model)
    with pytest.raises(KeyError, match="lookup"):
        rank(model, removal="parameters")
    assert snapshot(model) == before
    assert len(calls) == 12


def test_a_model_in_training_is_scored_in_evaluation():
    torch.manual_seed(2)
    model = chain(fc=nn.Linear(4, 5), norm=nn.BatchNorm1d(5), act=nn.ReLU(), drop=nn.Dropout(0.9),
                  out=nn.Linear(5, 3))  # fmt: skip
    trained, evaluated = rank(model.train()), rank(model.eval())
    assert trained.layers == evaluated.layers


def test_buffers_that_forward_changes_come_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            self.last = self.last + 1
            return self.net(x)

    model = Counting()
    before = snapshot(model)
    rank(model)
    assert snapshot(model) == before


def test_a_forward_pass_that_overwrites_its_input_leaves_the_user_s_data_alone():
    model = Forward(
        lambda net, x: net.out(torch.relu(net.fc(x.relu_()))),
        fc=nn.Linear(4, 5), out=nn.Linear(5, 3),
    )  # fmt: skip
    data = batches(6, 4)
    rank(model, data)
    for (inputs, _), (untouched, _) in zip(data, DATA, strict=True):
        assert torch.equal(inputs, untouched)


def test_the_user_can_train_on_after_a_refusal():
    model = network(hidden=60)
    with refused(MethodError, "PermutationShapley"):
        rank(chain(fc=nn.Linear(4, 60), act=nn.Tanh(), out=nn.Linear(60, 3)))
    functional.cross_entropy(model(DATA[0][0]), DATA[0][1]).backward()
    assert model.fc.weight.grad is not None


# NaN and infinity.


@every_method
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_bad_numbers_in_the_data_name_the_batch(method, bad, batch):
    data = batches(4, 4, 4)
    data[batch - 1][0][2, 1] = bad
    with refused(DataError, f"batch {batch} has inputs that are NaN or infinite"):
        rank(network(), data, method)


@every_method
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["fc.weight", "fc.bias", "out.weight", "out.bias"])
def test_bad_numbers_in_the_weights_name_the_parameter(method, bad, name):
    model = network()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[1] = bad
    with refused(ModelError, f"the parameter '{name}' holds NaN or infinite values"):
        rank(model, DATA, method)


def test_bad_numbers_in_the_statistics_of_a_norm():
    model = chain(fc=nn.Linear(4, 5), norm=nn.BatchNorm1d(5), act=nn.ReLU(), out=nn.Linear(5, 3))
    model.norm.running_mean[2] = torch.nan
    with refused(ModelError, "outputs are NaN or infinite on the first batch"):
        rank(model)


def test_overflow_in_a_later_batch_names_the_layer_and_where():
    data = batches(4, 4, 4)
    data[1][0][0] = 3e38
    with refused(ModelError, r"units of layer 'fc' are NaN or infinite on the examples from 4 on"):
        rank(network(scale=100), data)


@every_method
def test_overflow_in_the_last_batch_is_no_fault_of_the_trace(method):
    data = batches(4, 4)
    data[1][0][0] = 3e38
    with refused(ModelError, "outputs are NaN or infinite on the last batch"):
        rank(network(scale=100), data, method)


def test_a_value_that_is_nan_names_the_layer_and_the_examples():
    def broken(outputs, targets):
        return torch.where(outputs.sum(dim=1) == 0, torch.nan, targets.double())

    model = network()
    with torch.no_grad():
        model.out.bias.zero_()  # with no unit on, all outputs are 0
    reason = r"value .*broken is NaN or infinite with units of layer 'fc' off, on the batch from"
    for method in METHODS[:2]:
        with refused(ModelError, reason):
            rank(model, DATA, method, value=broken)


# Data.


@every_method
def test_no_data(method):
    loader = DataLoader(TensorDataset(*DATA[0]), batch_size=50, drop_last=True)
    for data in ([], loader):
        with refused(DataError, "gives no batch at all"):
            rank(network(), data, method)


@every_method
def test_no_labels_or_impossible_ones(method):
    inputs, targets = DATA[0]
    with refused(DataError, "pair \\(inputs, targets\\) is needed"):
        rank(network(), [inputs], method)
    with refused(DataError, "has the label -1"):
        rank(network(), [(inputs, targets - 1)], method)
    with refused(DataError, r"the label 3, but the model has 3 outputs"):
        rank(network(), [(inputs, targets + 1)], method)


@every_method
def test_one_class_only(method):
    data = [(inputs, torch.zeros_like(targets)) for inputs, targets in DATA]
    ranking = rank(network(), data, method)
    assert ranking["fc"].scores.isfinite().all()


@pytest.mark.parametrize("method", METHODS[:2], ids=["exact", "permutation"])
def test_a_class_without_examples_is_undefined_and_never_0(method):
    data = [(inputs, targets % 2) for inputs, targets in DATA]
    entry = rank(network(), data, method, value=nr.Recall(2))["fc"]
    assert entry.status == "undefined"
    assert entry.scores.isnan().all()
    assert (entry.counts == 0).all()


@pytest.mark.parametrize("method", METHODS[:2], ids=["exact", "permutation"])
def test_a_class_that_is_missing_from_some_batches_only(method):
    inputs, targets = torch.cat([DATA[0][0], DATA[1][0]]), torch.tensor([0] * 6 + [1] * 4)
    parted = [(inputs[:6], targets[:6]), (inputs[6:], targets[6:])]
    whole = [(inputs, targets)]
    one, other = (
        rank(network(), data, method, value=nr.Recall(1))["fc"] for data in (parted, whole)
    )
    assert one.counts.tolist() == other.counts.tolist()
    torch.testing.assert_close(one.scores, other.scores, atol=1e-12, rtol=0)


@every_method
def test_a_loader_of_unknown_length(method):
    class Stream:
        def __iter__(self):
            yield from DATA

    streamed, listed = (rank(network(), data, method, seed=1) for data in (Stream(), DATA))
    assert streamed.layers == listed.layers


def dataset():
    return TensorDataset(torch.randn(40, 4, generator=generator()), torch.arange(40) % 3)


def test_a_shuffled_loader_an_augmented_one_and_a_generator():
    class Noisy(TensorDataset):
        def __getitem__(self, index):
            inputs, target = super().__getitem__(index)
            return inputs + torch.rand(()), target

    for data in (
        DataLoader(dataset(), batch_size=8, shuffle=True),
        DataLoader(Noisy(*dataset().tensors), batch_size=8),
        (batch for batch in DATA),
    ):
        with refused(DataError, r"not the same at every pass.*shuffle=False.*list\(loader\)"):
            rank(network(), data)


def test_the_remedy_for_a_shuffled_loader_works():
    rank(network(), list(DataLoader(dataset(), batch_size=8, shuffle=True)))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_ordinary_loader_leaves_the_generator_alone(workers):
    model = network()
    before = torch.get_rng_state()
    rank(model, DataLoader(dataset(), batch_size=8, num_workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


class Hanging(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index >= 4:
            time.sleep(3)
        return torch.zeros(4), 0


def test_a_loader_with_a_timeout_that_hangs_stops_with_its_own_message():
    model = network()
    before = snapshot(model)
    started = time.perf_counter()
    with pytest.raises(RuntimeError, match="DataLoader timed out after 1 seconds"):
        rank(model, DataLoader(Hanging(), batch_size=4, num_workers=1, timeout=1))
    assert time.perf_counter() - started < 30
    assert snapshot(model) == before


# Models.


@every_method
def test_always_on_dropout(method):
    model = Forward(
        lambda net, x: net.out(functional.dropout(torch.relu(net.fc(x)), 0.5, training=True)),
        fc=nn.Linear(4, 20), out=nn.Linear(20, 3),
    )  # fmt: skip
    with refused(ModelError, "two different outputs for the same inputs.*dropout"):
        rank(model, DATA, method)


@every_method
def test_answers_that_hang_on_the_batch(method):
    norm = nn.BatchNorm1d(5, track_running_stats=False)
    model = chain(fc=nn.Linear(4, 5), norm=norm, act=nn.ReLU(), out=nn.Linear(5, 3))
    with refused(ModelError, r"changes with the other examples.*track_running_stats=True"):
        rank(model, DATA, method)


@pytest.mark.parametrize("removal", ["zero", "parameters"])
def test_a_batch_size_held_as_a_number(removal):
    model = Forward(
        lambda net, x: net.out(torch.relu(net.fc(x)).view(6, 5)),
        fc=nn.Linear(4, 5), out=nn.Linear(5, 3),
    )  # fmt: skip
    with refused(ModelError, r"hold the batch size as a number.*x.view\(x.size\(0\), ...\)"):
        rank(model, DATA[:1], removal=removal)


def branching(net, x):
    if x.abs().max() > 1e6:
        raise OverflowError
    return net.out(torch.relu(net.fc(x)))


def test_a_branch_on_the_data_is_refused_unless_the_module_itself_is_run():
    model = Forward(branching, fc=nn.Linear(4, 5), out=nn.Linear(5, 3))
    plain = chain(fc=model.fc, act=nn.ReLU(), out=model.out)
    for removal in ("zero", "mean"):
        with refused(ModelError, r"cannot be traced.*rank with removal='parameters'"):
            rank(model, removal=removal)
    for method in METHODS[:2]:
        found, wanted = (rank(it, DATA, method, removal="parameters") for it in (model, plain))
        assert list(found) == ["fc"]
        assert found.provenance["by_layer"]["fc"]["way"] == "full forward"
    found, wanted = (rank(it, removal="parameters")["fc"] for it in (model, plain))
    torch.testing.assert_close(found.scores, wanted.scores, atol=1e-12, rtol=0)


def test_a_switch_on_a_model_that_cannot_be_traced_is_refused():
    model = Forward(branching, fc=nn.Linear(4, 5), out=nn.Linear(5, 3))
    with refused(ModelError, "switch on 'fc' needs the forward pass traced"):
        rank(model, DATA, nr.ImportanceSwitch(epochs=1), removal="parameters")


@every_method
def test_in_place_activations(method):
    torch.manual_seed(3)
    inplace, plain = (
        chain(conv1=conv(1, 3), act=nn.ReLU(inplace=flag), conv2=conv(3, 2), act2=nn.ReLU(flag),
              flat=nn.Flatten(), out=nn.Linear(18, 3))
        for flag in (True, False)
    )  # fmt: skip
    plain.load_state_dict(inplace.state_dict())
    one, other = (rank(model, PICTURES, method) for model in (inplace, plain))
    assert one.layers == other.layers


def tied():
    model = chain(one=nn.Linear(4, 4), act=nn.ReLU(), two=nn.Linear(4, 4), act2=nn.ReLU(),
                  three=nn.Linear(4, 5), act3=nn.ReLU(), out=nn.Linear(5, 3))  # fmt: skip
    model.two.weight = model.one.weight
    return model


@every_method
def test_tied_weights_are_left_out_and_refused_by_name(method):
    ranking = rank(tied(), DATA, method)
    assert list(ranking) == ["three"]
    assert "shared" in ranking.provenance["refused_layers"]["one"]
    with refused(UnitError, "layer 'two' cannot be switched off: its weight is shared"):
        rank(tied(), DATA, method, layers=["two"])


@every_method
def test_a_module_called_twice_is_left_out_and_refused_by_name(method):
    model = Forward(
        lambda net, x: net.out(torch.relu(net.fc(torch.relu(net.twice(torch.relu(net.twice(x))))))),
        twice=nn.Linear(4, 4), fc=nn.Linear(4, 5), out=nn.Linear(5, 3),
    )  # fmt: skip
    assert list(rank(model, DATA, method)) == ["fc"]
    with refused(UnitError, "layer 'twice' cannot be switched off.*used more than once"):
        rank(model, DATA, method, layers=["twice"])


@every_method
def test_a_layer_that_never_runs(method):
    model = Forward(
        lambda net, x: net.out(torch.relu(net.fc(x))),
        fc=nn.Linear(4, 5), idle=nn.Linear(9, 9), out=nn.Linear(5, 3),
    )  # fmt: skip
    assert list(rank(model, DATA, method)) == ["fc"]
    with refused(UnitError, "no layer 'idle': layers with units are fc, out"):
        rank(model, DATA, method, layers=["idle"])


@every_method
def test_outputs_that_are_mappings_and_tuples(method):
    def as_(pack):
        torch.manual_seed(4)
        return Forward(
            lambda net, x: pack(net.out(torch.relu(net.fc(x)))),
            fc=nn.Linear(4, 5), out=nn.Linear(5, 3),
        )  # fmt: skip

    plain = rank(as_(lambda logits: logits), DATA, method).layers
    for pack in (
        lambda logits: {"logits": logits},
        lambda logits: {"loss": None, "logits": logits, "all": (logits, logits)},
        lambda logits: (logits,),
    ):
        assert rank(as_(pack), DATA, method).layers == plain
    for pack in (lambda logits: (logits, logits), lambda logits: {"y": logits}):
        with refused(ModelError, "the logits cannot be told: return a tensor"):
            rank(as_(pack), DATA, method)
    with refused(ModelError, r"logits of shape \(6, classes\) are needed"):
        rank(as_(lambda logits: logits[:, None]), DATA, method)
    with refused(ModelError, "returns float"):
        rank(as_(lambda _: 0.5), DATA, method)


@every_method
def test_frozen_parameters(method):
    model = network()
    free = rank(model, DATA, method)
    model.requires_grad_(requires_grad=False)
    assert rank(model, DATA, method).layers == free.layers
    assert not any(parameter.requires_grad for parameter in model.parameters())


@every_method
def test_wrapped_models_are_refused_with_what_to_pass_instead(method):
    model = network()
    for wrapped, inner in (
        (nn.DataParallel(model), "module"),
        (torch.compile(model, backend="eager"), "_orig_mod"),
        (chain(part=torch.compile(model, backend="eager")), "_orig_mod"),
    ):
        with refused(ModelError, rf"pass the network itself, which is the wrapper's \.{inner}"):
            rank(wrapped, DATA, method)


def test_a_model_that_compiles_itself_in_place_is_ranked_as_it_is():
    model = network()
    plain = rank(model)
    model.compile(backend="eager")
    assert rank(model).layers == plain.layers


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["linear pair", "norm before the activation"])
def test_half_precision(method, dtype, name):
    case = named(name)
    ranking = rank(case.model(dtype), case.batches(dtype), method)
    assert all(entry.scores.isfinite().all() for entry in ranking.layers.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_agrees_roughly_with_single(dtype):
    case = named("linear pair")
    half, single = (
        rank(case.model(kind), case.batches(kind), value=nr.NegativeLoss())["fc0"].scores
        for kind in (dtype, torch.float32)
    )
    torch.testing.assert_close(half, single, atol=0.05, rtol=0.05)


@every_method
def test_a_model_without_layers(method):
    with refused(UnitError, "no hidden layer.*a convolution or a linear layer"):
        rank(chain(flat=nn.Flatten()), batches(6, features=3), method)


# Arguments.


@every_method
def test_layers_by_name(method):
    with refused(UnitError, r"layers='fc' is one name: write layers=\['fc'\]"):
        rank(network(), DATA, method, layers="fc")
    with refused(UnitError, "no layer 'conv9': layers with units are fc, out"):
        rank(network(), DATA, method, layers=["conv9"])
    with refused(UnitError, "named twice"):
        rank(network(), DATA, method, layers=["fc", "fc"])
    with refused(UnitError, r"layers=\[\] names no layer"):
        rank(network(), DATA, method, layers=[])


@pytest.mark.parametrize("method", [type(method) for method in METHODS])
def test_a_method_is_an_instance(method):
    with refused(MethodError, "is not a ranking method: pass an instance"):
        rank(network(), DATA, method)


def test_exact_values_that_are_out_of_reach_are_refused_in_seconds():
    model = chain(fc=nn.Linear(4, 64), act=nn.Sigmoid(), out=nn.Linear(64, 3))
    reason = r"about 1\.8e\+20 coalitions.*64 of 64 units.*PermutationShapley\(\)"
    with refused(MethodError, reason):
        rank(model, batches(6, 4))
    assert rank(model, DATA, nr.PermutationShapley())["fc"].status == "sampled"


def test_equal_scores_are_ordered_by_unit_index():
    model = network()
    with torch.no_grad():
        model.fc.weight[1:4] = model.fc.weight[1]
    assert rank(model, DATA, nr.WeightNorm()).order("fc").index(1) + 1 == rank(
        model, DATA, nr.WeightNorm()
    ).order("fc").index(2)
    with torch.no_grad():
        model.out.weight.zero_()
    assert rank(model).order("fc") == (0, 1, 2, 3, 4)


# A run that is broken off, and its journal.

LONG = (
    nr.ExactShapley(),
    nr.PermutationShapley(passes=2),
    nr.PermutationShapley(passes=8, stop=nr.StderrBelow(0.05)),
    nr.PermutationShapley(passes=8, stop=nr.TopCertain(1)),
    nr.ImportanceSwitch(epochs=2),
)


@dataclass
class Breaking:
    """A journal that notes what it takes, and at its `most`-th chunk is interrupted."""

    journal: Journal
    most: int
    taken: list[str]
    after: bool

    @property
    def reused(self):
        return self.journal.reused

    def get(self, key):
        return self.journal.get(key)

    def keys(self):
        return self.journal.keys()

    def append(self, key, arrays):
        if self.after:
            self.journal.append(key, arrays)
        if len(self.taken) == self.most:
            raise KeyboardInterrupt
        if not self.after:
            self.journal.append(key, arrays)
        self.taken.append(key)


@pytest.fixture
def traced_once(monkeypatch):
    """The model of a test is always the same: trace it once."""
    monkeypatch.setattr(observing, "trace", cache(observing.trace))


@pytest.fixture
def broken_off(monkeypatch):
    """Rank with a journal, interrupted after `most` chunks; give the ranking or None, and them."""

    def run(model, data, method, path, *, most=10**9, after=False, **options):
        taken = []

        @contextmanager
        def opened(path, fingerprint):
            with open_journal(path, fingerprint) as journal:
                yield Breaking(journal, most, taken, after)

        with monkeypatch.context() as patch:
            patch.setattr(ranking_module, "open_journal", opened)
            try:
                ranking = rank(model, data, method, journal=path, **options)
            except KeyboardInterrupt:
                return None, taken
        return ranking, taken

    return run


def timeless(ranking):
    """What a ranking says, but for how long it took and what was reused."""
    record = {name: it for name, it in ranking.provenance.items() if name != "journal"}
    by_layer = {
        layer: {name: it for name, it in notes.items() if name != "seconds"}
        for layer, notes in record.pop("by_layer").items()
    }
    return dict(ranking.layers), record, by_layer


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("after", [False, True], ids=["before the append", "after it"])
@pytest.mark.parametrize("method", LONG, ids=repr)
def test_a_run_that_is_broken_off_is_resumed_bit_for_bit(broken_off, tmp_path, method, after):
    model = furnished()
    before = snapshot(model)
    whole, chunks = broken_off(model, PICTURES, method, tmp_path / "whole", max_memory=5_000)
    assert whole.provenance["journal"] == {"chunks": len(chunks), "reused": 0}
    plain = rank(model, PICTURES, method, max_memory=5_000)
    assert timeless(plain) == timeless(whole)
    for most in sorted({0, len(chunks) // 2}):
        path = tmp_path / str(most)
        interrupted = broken_off(
            model, PICTURES, method, path, most=most, after=after, max_memory=5_000
        )
        assert interrupted == (None, chunks[:most])
        kept = most + after
        found, rest = broken_off(model, PICTURES, method, path, max_memory=5_000)
        assert rest == chunks[kept:]  # nothing is computed again
        assert found.provenance["journal"] == {"chunks": len(chunks), "reused": kept}
        assert timeless(found) == timeless(whole)
        again, nothing = broken_off(model, PICTURES, method, path, max_memory=5_000)
        assert nothing == []
        assert timeless(again) == timeless(whole)
    after_all = snapshot(model)
    for what, value in before.items():
        assert after_all[what] == value, what


@pytest.mark.parametrize("method", LONG[:3], ids=repr)
def test_an_interrupt_between_chunks_leaves_no_mode_behind(monkeypatch, tmp_path, method):
    from neurank.rankers.moments import Tally

    def interrupted(*_):
        raise KeyboardInterrupt

    model = furnished()
    before = snapshot(model)
    monkeypatch.setattr(Tally, "__add__", interrupted)
    with pytest.raises(KeyboardInterrupt) as held:
        rank(model, PICTURES, method, journal=tmp_path / "run.journal")
    after = snapshot(model)  # while the traceback still holds every frame
    for what, value in before.items():
        assert after[what] == value, what
    assert held.type is KeyboardInterrupt


@pytest.mark.usefixtures("traced_once")
def test_an_interrupt_in_the_value_leaves_a_journal_that_can_be_used(tmp_path):
    calls = []
    limits = [30]

    def worth(outputs, targets):
        calls.append(1)
        if len(calls) == limits[0]:
            raise KeyboardInterrupt
        return nr.Margin()(outputs, targets)

    def run(**options):
        return rank(
            model, PICTURES, nr.PermutationShapley(), value=worth, max_memory=5_000, **options
        )

    model = furnished()
    with pytest.raises(KeyboardInterrupt):
        run(journal=tmp_path / "run.journal")
    limits[0] = None
    found, wanted = run(journal=tmp_path / "run.journal"), run()
    assert found.provenance["journal"]["reused"] > 0
    assert timeless(found) == timeless(wanted)


def with_tanh(model):
    model.act = nn.Tanh()


def with_another_weight(model):
    with torch.no_grad():
        model.out.weight[0, 0] += 1e-6


def with_another_pixel(data):
    data[1][0][0, 0] += 1e-6


def with_another_label(data):
    data[1][1][0] = (data[1][1][0] + 1) % 3


def recut(data):
    whole = [torch.cat(parts) for parts in zip(*data, strict=True)]
    data[:] = list(zip(*(part.split([5, 5]) for part in whole), strict=True))


@pytest.mark.parametrize(
    ("field", "change", "options"),
    [
        (r"model is", lambda model, _: with_another_weight(model), {}),
        (r"computation is", lambda model, _: with_tanh(model), {}),
        (r"data\.digest is", lambda _, data: with_another_pixel(data), {}),
        (r"data\.digest is", lambda _, data: with_another_label(data), {}),
        (r"data\.batch_size is 6 in the journal and 5 now", lambda _, data: recut(data), {}),
        (r"data\.examples is 10 in the journal and 6 now", lambda _, data: data.pop(), {}),
        (r"value is \"Accuracy\(\)\" in the journal and \"Margin\(\)\" now", None,
         {"value": nr.Margin()}),
        (r"removal is \"zero\" in the journal and \"mean\" now", None, {"removal": "mean"}),
        (r"method\.name is", None, {"method": nr.ExactShapley()}),
        (r"method\.parameters\.passes is 2 in the journal and 4 now", None,
         {"method": nr.PermutationShapley(passes=4)}),
        (r"method\.parameters\.stop is null", None,
         {"method": nr.PermutationShapley(passes=2, stop=nr.StderrBelow(1))}),
        (r"seed is 0 in the journal and 1 now", None, {"seed": 1}),
        (r"layers", None, {"layers": ["fc", "out"]}),
        (r"max_memory is \d+ in the journal and 1000 now", None, {"max_memory": 1000}),
    ],
)  # fmt: skip
def test_the_journal_of_another_run_is_refused_by_field(tmp_path, field, change, options):
    path = tmp_path / "run.journal"
    rank(network(), batches(6, 4), nr.PermutationShapley(passes=2), journal=path)
    before = path.read_bytes()
    model, data = network(), batches(6, 4)
    if change is not None:
        change(model, data)
    given = {"method": nr.PermutationShapley(passes=2), **options}
    with refused(FileError, rf"belongs to another run: (.*; )?{field}"):
        rank(model, data, journal=path, **given)
    assert path.read_bytes() == before


@pytest.mark.usefixtures("traced_once")
def test_the_journal_of_another_version_or_number_of_threads_is_refused(tmp_path, monkeypatch):
    path, model = tmp_path / "run.journal", network()
    rank(model, journal=path)
    with monkeypatch.context() as patch:
        others = {**ranking_module.versions(), "neurank": "0.0.1"}
        patch.setattr(ranking_module, "versions", lambda: others)
        with refused(FileError, r'versions\.neurank is ".*" in the journal and "0.0.1" now'):
            rank(model, journal=path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 99)
        patch.setattr(torch, "set_num_threads", lambda _: None)
        with refused(FileError, r"threads is \d+ in the journal and 99 now"):
            rank(model, journal=path)
    assert rank(model, journal=path).provenance["journal"]["reused"] > 0


@pytest.mark.parametrize("max_memory", [0, -1, True, 1.5, "1G", None])
def test_memory_is_a_positive_whole_number_of_bytes(max_memory):
    with refused(MethodError, r"max_memory=.*a positive whole number of bytes"):
        rank(network(), max_memory=max_memory)


def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    with refused(FileError, r"is no journal"):
        rank(network(), journal=path)
    assert path.read_text() == "years of work"
