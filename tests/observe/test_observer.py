import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.cases import CASES, Forward, chain, look, named, watch
from torch import nn
from torch.profiler import profile

import neurank as nr
from neurank.errors import DataError, ModelError, UnitError
from neurank.journal import open_journal
from neurank.observe import observer as observing
from neurank.observe.additive import AdditiveGame
from neurank.observe.game import SuffixGame
from neurank.observe.observer import (
    HookedObserver,
    TracedObserver,
    choose_layers,
    described,
    model_digest,
)

DATA = [(torch.randn(4, 4), torch.arange(4) % 3), (torch.randn(2, 4), torch.arange(2))]


def branching(net, x):
    """Cannot be traced; every example goes the same way."""
    if x.abs().sum() > 1e9:
        return net.out(net.fc(x))
    return net.out(torch.relu(net.fc(x)))


def untraceable(**modules):
    return Forward(branching, fc=nn.Linear(4, 5), out=nn.Linear(5, 3), **modules)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_width_and_weights_by_name(case):
    observer = watch(case)
    model = case.model()
    for layer in case.reads:
        weight = model.get_submodule(layer).weight
        assert observer.width(layer) == len(weight)
        (own,) = observer.weights(layer)
        assert torch.equal(own.weight, weight)
        assert own.units == tuple(range(len(weight)))
        assert not own.weight.requires_grad


def test_games_come_batch_by_batch_without_gradients():
    case = named("lenet, flatten")
    inside = []
    for game in watch(case).games("conv2"):
        inside.append(torch.is_inference_mode_enabled())
        assert game.units == 4
    assert inside == [True] * 3
    assert not torch.is_inference_mode_enabled()


def test_inference_mode_ends_where_a_game_is_broken_off():
    def broken():
        for _ in watch(named("lenet, flatten")).games("conv2"):
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert not torch.is_inference_mode_enabled()


def test_a_model_that_cannot_be_traced_is_watched_through_hooks():
    observer = look_at(untraceable())
    assert isinstance(observer, HookedObserver)
    assert dict(observer.widths) == {"fc": 5}
    assert observer.ways("fc") == ("full forward",)
    assert choose_layers(observer, None) == ("fc",)
    (own,) = observer.weights("fc")
    assert torch.equal(own.weight, observer.model.fc.weight)
    assert own.units == tuple(range(5))
    with pytest.raises(UnitError, match="no layer 'out' whose units can be switched off"):
        choose_layers(observer, ["out"])
    with pytest.raises(ModelError, match="switch on 'fc' needs the forward pass traced"):
        observer.switchboard("fc")


def look_at(model, removal="parameters"):
    from neurank.observe.observer import observe

    return observe(
        model.eval(), DATA, value=nr.Accuracy(), removal=removal, seed=0,
        device=torch.device("cpu"), progress=False,
    )  # fmt: skip


def test_hooks_find_layers_with_units_on_axis_1_and_weights_of_their_own():
    def forward(net, x):
        if x.abs().sum() > 1e9:
            return x
        x = net.tokens(x.reshape(-1, 2, 2)).flatten(1)
        x = net.twice(net.twice(x))
        x = net.tied(torch.relu(net.tie(x)))
        return net.out(torch.relu(net.fine(x)))

    model = Forward(
        forward, tokens=nn.Linear(2, 2), twice=nn.Linear(4, 4), tie=nn.Linear(4, 4),
        tied=nn.Linear(4, 4), fine=nn.Linear(4, 5), out=nn.Linear(5, 3), idle=nn.Linear(4, 4),
    )  # fmt: skip
    model.tied.weight = model.tie.weight
    assert dict(look_at(model).widths) == {"fine": 5}


def test_other_removals_need_the_trace():
    for removal in ("zero", "mean"):
        with pytest.raises(ModelError, match="rank with removal='parameters'"):
            look_at(untraceable(), removal)


def test_a_model_without_any_layer_of_ours_is_refused_with_the_reason_of_the_trace():
    model = Forward(lambda _, x: x if x.sum() > -1e9 else -x)
    with pytest.raises(ModelError, match="cannot be traced"):
        look_at(model)


def test_a_trace_that_is_not_the_model_is_refused():
    class Fickle(nn.Module):
        """Adds what a first call has left behind."""

        def __init__(self):
            super().__init__()
            self.fc, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            shift = 1.0 if torch.compiler.is_exporting() else 0.0
            return self.out(torch.relu(self.fc(x))) + shift

    with pytest.raises(ModelError, match="traced forward pass differs from the model"):
        look_at(Fickle())


def test_the_last_batch_is_compared_too():
    """Labels and layers are fine; the last batch alone takes another path."""

    def forward(net, x):
        if not torch.compiler.is_exporting() and x.abs().max() > 50:
            return net.out(net.fc(x))
        return net.out(torch.relu(net.fc(x)))

    model = Forward(forward, fc=nn.Linear(4, 5), out=nn.Linear(5, 3))
    data = [*DATA, (torch.full((2, 4), -100.0), torch.arange(2))]
    with pytest.raises(ModelError, match="traced forward pass differs from the model"):
        look(model, data)


def test_labels_beyond_the_outputs_are_refused():
    with pytest.raises(DataError, match=r"label 3, but the model has 3 outputs, classes 0 to 2"):
        look(nn.Linear(4, 3), [(torch.zeros(2, 4), torch.tensor([0, 3]))])


def test_the_digest_sees_every_weight_and_buffer():
    model = chain(fc=nn.Linear(2, 2), norm=nn.BatchNorm1d(2))
    before = model_digest(model)
    assert model_digest(model) == before
    with torch.no_grad():
        model.norm.running_mean[0] += 1
    assert model_digest(model) != before


def test_a_traced_model_is_watched_through_its_trace():
    assert isinstance(look_at(chain(fc=nn.Linear(4, 5), out=nn.Linear(5, 3))), TracedObserver)


# Ways, trials, chunks.


def heavy(monkeypatch):
    """Let every suffix be worth a trial."""
    monkeypatch.setattr(observing, "WORTH_A_TRIAL", 0)


def test_a_heavy_suffix_may_be_run_on_sums_or_on_masks(monkeypatch):
    observer = watch(named("skip"))
    assert observer.ways("up") == ("additive",)
    heavy(monkeypatch)
    assert observer.ways("up") == ("additive", "suffix")
    assert observer.ways("out") == ("outputs, closed form for exact values",)
    assert watch(named("perceptron")).ways("fc0") == ("additive, compiled",)
    assert watch(named("branch")).ways("stem") == ("suffix",)
    assert replace(observer, value=nr.Margin()).ways("out") == ("suffix",)


def test_every_way_gives_the_same_values():
    observer = watch(named("skip"), value=nr.Margin())
    additive, masked = (list(observer.games("up", way)) for way in ("additive", "suffix"))
    for one, other in zip(additive, masked, strict=True):
        assert type(one) is AdditiveGame
        assert type(other) is SuffixGame
        assert torch.equal(one.numbers, other.numbers)
        masks = torch.rand(one.examples, one.units) < 0.5
        rows = torch.arange(one.examples)
        found, wanted = one.values(rows, masks), other.values(rows, masks)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_a_trial_plays_twice_on_a_few_examples_that_count(monkeypatch):
    clock = iter([0.0, 7.0, 10.0, 12.5])
    monkeypatch.setattr(observing.time, "perf_counter", lambda: next(clock))
    games = []
    seconds = watch(named("skip")).trial("up", "suffix", games.append)
    assert seconds == 2.5  # the first time it warmed up
    monkeypatch.undo()
    assert watch(named("skip"), value=nr.Recall(1)).trial("up", "suffix", games.append) > 0
    assert [type(game) for game in games] == [SuffixGame] * 4
    assert all(0 < game.examples <= observing.TRIAL_EXAMPLES for game in games)


@pytest.fixture
def clocked(monkeypatch):
    """Trials that take the seconds told, by way."""
    seconds = {"additive": 2.0, "suffix": 1.0}
    heavy(monkeypatch)
    monkeypatch.setattr(TracedObserver, "trial", lambda _self, _layer, way, _attempt: seconds[way])
    return seconds


@pytest.mark.parametrize("fastest", ["additive", "suffix"])
def test_the_fastest_way_is_taken_and_named(clocked, fastest):
    clocked[fastest] = 0.5
    observer = watch(named("skip"))
    scored = nr.PermutationShapley(passes=2).score(observer, "up")
    assert scored.record["way"] == fastest


def test_a_resumed_run_keeps_the_way_that_was_chosen(clocked, tmp_path):
    method = nr.PermutationShapley(passes=2)
    ways = []
    for seconds in (1.0, 5.0):  # masks win first, and would lose later
        clocked["suffix"] = seconds
        with open_journal(tmp_path / "run.journal", {}) as journal:
            scored = method.score(watch(named("skip"), journal=journal), "up")
            ways.append(scored.record["way"])
    assert ways == ["suffix", "suffix"]
    assert method.score(watch(named("skip")), "up").record["way"] == "additive"


@pytest.mark.parametrize("case", CASES[::3], ids=str)
@pytest.mark.parametrize("memory", [1, 700, 5_000, 10**9])
def test_there_are_as_many_chunks_as_promised(case, memory):
    observer = watch(case, memory=memory)
    for layer in case.reads:
        games = list(observer.games(layer))
        assert len(games) == observer.chunks(layer)
        assert torch.cat([game.numbers for game in games]).tolist() == list(range(12))
        if memory == 1:
            assert len(games) == 12
        if memory == 10**9:
            assert len(games) == len(case.batches())


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_memory_does_not_change_the_scores(case):
    """Each example's score is the same; their sum, in other portions, is so but for rounding."""
    for layer in case.reads:
        one, two = (
            nr.PermutationShapley(passes=2, leaps=False)
            .score(watch(case, memory=memory), layer)
            .ranking
            for memory in (1, 10**9)
        )
        assert one == two  # counts of right answers: their sums are exact
        exact, wanted = (
            nr.ExactShapley().score(watch(case, memory=memory), layer).ranking.scores
            for memory in (1, 10**9)
        )
        torch.testing.assert_close(exact, wanted, rtol=0, atol=1e-15)


def peak_bytes(work):
    """The most memory that torch's tensors made in `work` held at once."""
    with profile(profile_memory=True) as profiled:
        work()
    events = profiled.profiler.kineto_results.events()
    changes = [it.nbytes() for it in events if it.name() == "[memory]"]
    return max(np.cumsum(changes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("way", ["additive", "suffix"])
def test_a_chunk_holds_no_more_than_the_memory_given(dtype, way):
    wide = nn.Linear(8, 64)
    model = chain(fc0=wide, act=nn.Tanh(), fc1=nn.Linear(64, 96), act1=nn.Tanh(),
                  out=nn.Linear(96, 3)).to(dtype)  # fmt: skip
    data = [(torch.randn(200, 8, dtype=dtype), torch.arange(200) % 3)]
    observer = look(model, data)
    memory = 4 * 2**20
    small = replace(observer, memory=memory)
    assert small.chunks("fc0") > 4

    def walk(game):
        orders = np.argsort(np.random.default_rng(0).random(game.active.shape), axis=1)
        game.walk(orders)(torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
        return {}

    def peak_of(observer):
        return peak_bytes(lambda: list(observer.gather("fc0", "walk", walk, way=way)))

    assert peak_of(small) <= memory
    if way == "additive":
        assert peak_of(observer) > memory


# What is kept in the journal.


def arrays_of(game):
    return {"numbers": game.numbers.double().numpy()}


def test_what_was_computed_is_recalled_with_its_seconds(tmp_path):
    with open_journal(tmp_path / "run.journal", {}) as journal:
        observer = watch(named("skip"), journal=journal)
        first = observer.once("key", lambda: {"x": np.array([1.0, np.nan])})
        again = observer.once("key", lambda: pytest.fail("was there"))
    np.testing.assert_array_equal(first.arrays["x"], again.arrays["x"])
    assert first.arrays.keys() == again.arrays.keys() == {"x"}
    assert first.seconds == again.seconds >= 0


def test_only_what_the_journal_lacks_is_computed(tmp_path):
    computed = []

    def compute(game):
        assert torch.is_inference_mode_enabled()
        computed.append(int(game.numbers[0]))
        return arrays_of(game)

    found = []
    for most in (2, 9, 9):
        with open_journal(tmp_path / "run.journal", {}) as journal:
            observer = watch(named("skip"), journal=journal)
            chunks = observer.gather("up", "numbers", compute)
            some = itertools.islice(chunks, most)
            found.append([chunk.arrays["numbers"].tolist() for chunk in some])
            chunks.close()
    assert computed == [0, 5, 9]
    assert found[1] == found[2] == [[0, 1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]]
    assert found[0] == found[1][:2]


def test_steps_and_layers_are_kept_apart(tmp_path):
    with open_journal(tmp_path / "run.journal", {}) as journal:
        observer = watch(named("lenet, flatten"), journal=journal)
        for layer, step in (("conv2", "a"), ("conv2", "b"), ("fc1", "a")):
            assert len(list(observer.gather(layer, step, arrays_of))) == 3
        assert len(journal.keys()) == 9


def test_modes_are_the_caller_s_between_chunks():
    chunks = watch(named("skip")).gather("up", "numbers", arrays_of)
    next(chunks)
    assert not torch.is_inference_mode_enabled()


def test_chunks_are_described_as_they_come():
    told = []
    observer = watch(named("skip"))
    described_chunks = observer.gather("up", "numbers", arrays_of, describe=lambda: told.append(1))
    for number, _ in enumerate(described_chunks):
        assert len(told) == number


def test_the_record_tells_models_apart_that_have_the_same_weights():
    torch.manual_seed(0)
    fc, out = nn.Linear(4, 5), nn.Linear(5, 3)

    def computation(forward, **modules):
        record = described(look_at(Forward(forward, fc=fc, out=out, **modules)))
        return record["model"], record["computation"]

    def with_relu(net, x):
        return net.out(torch.relu(net.fc(x)))

    first = computation(with_relu)
    assert computation(with_relu) == first
    others = [
        computation(lambda net, x: net.out(torch.tanh(net.fc(x)))),
        computation(lambda net, x: net.out(nn.functional.leaky_relu(net.fc(x), 0.1))),
        computation(lambda net, x: net.out(nn.functional.leaky_relu(net.fc(x), 0.2))),
        computation(lambda net, x: net.out(torch.relu(net.fc(x)) * torch.tensor([2.0] * 5))),
        computation(lambda net, x: net.out(torch.relu(net.fc(x)) * torch.tensor([3.0] * 5))),
    ]
    digests = {first, *others}
    assert len(digests) == 6
    assert {model for model, _ in digests} == {first[0]}


def test_the_record_tells_models_apart_that_cannot_be_traced():
    torch.manual_seed(0)
    one = untraceable()
    other = untraceable(idle=nn.ReLU())
    other.load_state_dict(one.state_dict())
    records = [described(look_at(model)) for model in (one, other)]
    assert records[0]["model"] == records[1]["model"]
    assert records[0]["computation"] != records[1]["computation"]
