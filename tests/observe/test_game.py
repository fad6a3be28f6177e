"""All ways to turn coalitions into logits agree: sums, suffix, hooks, a changed model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cases import CASES, drawn, look, named, watch
from tests.oracles.game import Oracle

import neurank as nr
from neurank.errors import MethodError, ModelError
from neurank.observe.additive import AdditiveGame
from neurank.observe.game import FullGame, SuffixGame
from neurank.observe.outputs import OutputGame
from neurank.rankers.exact_shapley import shapley_of_table
from neurank.rankers.orders import own_orders
from neurank.units.split import suffix_split

DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5}


def every_mask(units):
    return torch.tensor([[bool(c >> j & 1) for j in range(units)] for c in range(2**units)])


def every_pair(examples, units):
    """Every example with every coalition."""
    masks = every_mask(units)
    rows = torch.arange(examples).repeat_interleave(len(masks))
    return rows, masks.repeat(examples, 1)


def by_suffix(game, inputs):
    """The same game, by masks alone."""
    split = suffix_split(game.runner.graph, game.split.layer)
    side = {name: game.runner.forward(inputs, name)[0] for name in split.side}
    names = ("layer", "numbers", "value", "targets", "runner", "on", "off", "read_shape")
    common = {name: getattr(game, name) for name in names}
    active = (game.on != game.off).any(dim=2)
    return SuffixGame(split=split, side=side, active=active, **common)


def in_full(game, model, inputs):
    names = ("layer", "numbers", "value", "targets", "active")
    return FullGame(model=model, inputs=inputs, **{name: getattr(game, name) for name in names})


def close(found, wanted, dtype):
    scale = float(wanted.abs().max()) or 1.0
    return float((found - wanted).abs().max()) / scale <= DTYPES[dtype]


@pytest.mark.parametrize("removal", ["zero", "mean", "parameters"])
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, torch.float64) for case in CASES),
        *((case, torch.float32) for case in CASES[::4]),  # each is traced anew
    ],
    ids=str,
)
def test_logits_agree(case, removal, dtype):
    batches = case.batches(dtype)
    observer = watch(case, dtype, removal=removal)
    for layer, readers in case.reads.items():
        oracle = Oracle(case.model(dtype), batches, layer, readers, removal)
        for (inputs, _), game in zip(batches, observer.games(layer), strict=True):
            rows, masks = every_pair(game.examples, game.units)
            found = game.logits(rows, masks)
            first = int(game.numbers[0])
            wanted = torch.empty_like(found)
            for at, (row, mask) in enumerate(zip(rows.tolist(), masks.tolist(), strict=True)):
                on = {unit for unit, here in enumerate(mask) if here}
                wanted[at] = oracle.ran_logits(on)[first + row]
            assert close(found, wanted, dtype), layer
            assert close(by_suffix(game, inputs).logits(rows, masks), wanted, dtype), layer
            if removal == "parameters":
                full = in_full(game, observer.model, inputs).logits(rows, masks)
                assert close(full, wanted, dtype), layer


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_coalitions_of_every_example_are_worth_what_each_is(case):
    for layer in case.reads:
        for game in watch(case, value=nr.Margin()).games(layer):
            masks = every_mask(game.units)[torch.randperm(2**game.units)[:9]]
            grid = masks.expand(game.examples, *masks.shape)
            found = game.values_by_example(grid)
            rows = torch.arange(game.examples).repeat_interleave(len(masks))
            wanted = game.values(rows, masks.repeat(game.examples, 1))
            torch.testing.assert_close(found.flatten(), wanted, rtol=1e-9, atol=1e-12)
            assert game.values_by_example(grid[:, :0]).shape == (game.examples, 0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_null_players_change_nothing_and_nothing_else_is_one(case):
    batches = case.batches()
    for layer in case.reads:
        for game in watch(case).games(layer):
            rows = torch.arange(game.examples)
            everything = game.logits(rows, torch.ones_like(game.active))
            actives = game.logits(rows, game.active)
            assert close(actives, everything, torch.float64)
            if isinstance(game, AdditiveGame):
                alone = game.contributions.flatten(2).abs().amax(dim=2)
                assert torch.equal(game.active, alone > 0)
    assert len(batches) == 3


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_loops_agree_with_plain_torch(case):
    for layer in case.reads:
        for game in watch(case).games(layer):
            if not game.compiled:
                continue
            plain = generic(game)
            expected, ends = powers(plain)
            shapley, found_ends = game.exact()
            np.testing.assert_allclose(shapley, expected, atol=1e-12)
            np.testing.assert_array_equal(found_ends, ends)
            orders = own_orders(0, 0, game.numbers.numpy(), game.active.numpy())
            for found, wanted in zip(game.chain(orders), plain.chain(orders), strict=True):
                np.testing.assert_array_equal(found, wanted)


def generic(game):
    """The game without its compiled way."""
    if isinstance(game, AdditiveGame):
        return replace(game, head=None)
    names = SuffixGame.__dataclass_fields__
    return SuffixGame(**{name: getattr(game, name) for name in names})


def powers(game):
    """Shapley values and ends from the whole table of each example."""
    shapley = np.zeros((game.examples, game.units))
    ends = np.zeros((game.examples, 2))
    for row in range(game.examples):
        values = torch.cat(list(game.power_set(row))).numpy()
        shapley[row, game.active[row].numpy()] = shapley_of_table(values)
        ends[row] = values[[0, -1]]
    return shapley, ends


@pytest.mark.parametrize("name", ["lenet, flatten", "skip", "branch", "sigmoid"])
def test_power_sets_list_coalitions_in_binary_order(name):
    case = named(name)
    for layer in case.reads:
        for game in watch(case, value=nr.Margin()).games(layer):
            for row in range(game.examples):
                active = torch.nonzero(game.active[row])[:, 0]
                masks = torch.zeros(2 ** len(active), game.units, dtype=torch.bool)
                masks[:, active] = every_mask(len(active)).reshape(len(masks), -1)
                rows = torch.full((len(masks),), row)
                found = torch.cat(list(game.power_set(row)))
                torch.testing.assert_close(found, game.values(rows, masks), atol=1e-10, rtol=0)


def test_power_sets_come_in_blocks_that_fit(monkeypatch):
    monkeypatch.setattr("neurank.observe.game.BLOCK_BYTES", 64)
    for name in ("perceptron", "skip"):
        case = named(name)
        layer = next(iter(case.reads))
        for game in watch(case).games(layer):
            assert game.low_bits == 2
            for row in range(game.examples):
                blocks = list(game.power_set(row))
                players = int(game.active[row].sum())
                assert len(blocks) == 2 ** max(0, players - 2)
                monkeypatch.undo()
                whole = torch.cat(list(game.power_set(row)))
                monkeypatch.setattr("neurank.observe.game.BLOCK_BYTES", 64)
                assert torch.equal(torch.cat(blocks), whole)


def test_where_values_are_random_tables_scores_follow_the_table():
    """A value that knows nothing but the coalition: each mask gives its own logits."""
    case = named("linear pair")
    game = next(watch(case, value=nr.Margin()).games("fc0"))
    rows, masks = every_pair(game.examples, game.units)
    values = game.values(rows, masks).reshape(game.examples, -1)
    for row in range(game.examples):
        if game.active[row].all():
            found = torch.cat(list(game.power_set(row)))
            torch.testing.assert_close(found, values[row], atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["perceptron", "skip", "branch", "sigmoid"])
def test_chains_are_marginals_of_growing_coalitions(name):
    case = named(name)
    for layer in case.reads:
        for game in watch(case, value=nr.NegativeLoss()).games(layer):
            orders = own_orders(4, 1, game.numbers.numpy(), game.active.numpy())
            marginals, ends = game.chain(orders)
            for row in range(game.examples):
                mask = torch.zeros(1, game.units, dtype=torch.bool)
                worth = [float(game.values(torch.tensor([row]), mask))]
                for unit in orders[row][orders[row] >= 0]:
                    mask[0, unit] = True
                    worth.append(float(game.values(torch.tensor([row]), mask)))
                    assert marginals[row, unit] == pytest.approx(worth[-1] - worth[-2], abs=1e-10)
                assert (marginals[row][~game.active[row].numpy()] == 0).all()
                np.testing.assert_allclose(ends[row], [worth[0], worth[-1]], atol=1e-10)


def test_the_ways_that_networks_go():
    """Which path each layer takes, so that a fast one is not lost unnoticed."""
    expected = {
        ("linear pair", "fc0"): "additive, compiled",
        ("lenet, flatten", "conv1"): "additive, compiled",
        ("lenet, width as a number", "conv2"): "additive, compiled",
        ("lenet, batch size asked", "fc1"): "additive, compiled",
        ("dropout", "fc0"): "additive, compiled",
        ("log softmax", "fc0"): "additive, compiled",
        ("batchnorm between linear maps", "fc0"): "additive, compiled",
        ("norm behind the activation", "conv1"): "additive, compiled",
        ("sigmoid", "fc0"): "additive",
        ("skip", "up"): "additive",
        ("depthwise consumer", "conv1"): "suffix",
        ("branch", "stem"): "suffix",
    }
    for (name, layer), way in expected.items():
        assert watch(named(name)).ways(layer) == (way,)
        (other,) = watch(named(name), value=nr.Margin()).ways(layer)
        assert "compiled" not in other


def test_outputs_have_a_game_of_their_own():
    observer = watch(named("linear pair"))
    assert isinstance(next(observer.games("fc1")), OutputGame)
    plain = next(replace(observer, value=nr.Margin()).games("fc1"))
    assert type(plain) is SuffixGame


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from(["zero", "mean", "parameters"]))
def test_drawn_networks_agree_too(seed, removal):
    case = drawn(seed)
    observer = look(case.model(), case.batches(), removal=removal)
    for layer, readers in case.reads.items():
        oracle = Oracle(case.model(), case.batches(), layer, readers, removal)
        for game in observer.games(layer):
            rows, masks = every_pair(game.examples, game.units)
            numbers = game.numbers[rows].tolist()
            wanted = torch.stack([
                oracle.ran_logits({u for u, here in enumerate(mask) if here})[number]
                for number, mask in zip(numbers, masks.tolist(), strict=True)
            ])  # fmt: skip
            assert close(game.logits(rows, masks), wanted, torch.float64)


def test_numbers_are_places_in_the_data_and_leave_out_what_does_not_count():
    case = named("perceptron")
    targets = torch.cat([targets for _, targets in case.batches()])
    games = list(watch(case, value=nr.Recall(1)).games("fc0"))
    found = torch.cat([game.numbers for game in games])
    assert found.tolist() == torch.nonzero(targets == 1)[:, 0].tolist()
    assert all((game.targets == 1).all() for game in games)


def test_nan_in_a_coalition_is_named():
    case = named("sigmoid")
    game = list(watch(case).games("fc0"))[1]
    broken = replace(game, base=game.base * torch.nan)
    with pytest.raises(ModelError, match=r"units of layer 'fc0' off, on the batch from example 5"):
        broken.values(torch.tensor([0]), torch.ones(1, 5, dtype=torch.bool))


def test_a_value_that_averages_by_itself_is_refused():
    game = next(watch(named("sigmoid"), value=lambda outputs, _: outputs.mean()).games("fc0"))
    with pytest.raises(MethodError, match="do not average inside it"):
        game.values(torch.tensor([0]), torch.ones(1, 5, dtype=torch.bool))
