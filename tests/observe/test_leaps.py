from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from tests.cases import PICTURE, Case, chain, conv, look, perceptron
from torch import nn

import neurank as nr
from neurank.observe import leaps
from neurank.observe.leaps import leap
from neurank.rankers.orders import own_coins, own_orders

LONG = (
    Case("perceptron", lambda: perceptron(4, 40, 6, 3, act=nn.Tanh), (4,), {"fc0": ("fc1",)}),
    Case(
        "convolution",
        lambda: chain(
            conv1=conv(1, 30), act=nn.Tanh(), conv2=conv(30, 3), act2=nn.Tanh(), flat=nn.Flatten(),
            out=nn.Linear(27, 3),
        ),
        PICTURE,
        {"conv1": ("conv2",)},
    ),
    Case(
        "suffix alone",
        lambda: chain(
            conv1=conv(1, 24), act=nn.Sigmoid(), conv2=conv(24, 24, groups=24), act2=nn.ReLU(),
            flat=nn.Flatten(), out=nn.Linear(216, 3),
        ),
        PICTURE,
        {"conv1": ("conv2",)},
    ),
)  # fmt: skip


@dataclass
class Written:
    """A game whose chains are written down: the margin of the target at every place."""

    margins: np.ndarray  # (examples, places)
    target: int = 0
    seen: list = field(default_factory=list)

    def __post_init__(self):
        self.targets = torch.full((len(self.margins),), self.target)
        self.active = torch.ones(len(self.margins), self.margins.shape[1] - 1, dtype=torch.bool)

    def walk(self, orders):
        assert orders.shape == self.active.shape

        def logits(rows, places):
            self.seen += list(zip(rows.tolist(), places.tolist(), strict=True))
            own = torch.from_numpy(self.margins)[rows, places]
            columns = [torch.zeros_like(own)] * 2
            columns[self.target] = own
            return torch.stack(columns, dim=1)

        return logits

    def blocks(self, rows):
        return torch.split(rows, 1000)

    def evaluate(self, rows, logits):
        return nr.Accuracy()(logits, self.targets[rows])

    def values(self):
        return (self.margins >= 0 if self.target == 0 else self.margins > 0).astype(float)


def in_turn(examples, players, units):
    """Everyone joins in the order of the numbers."""
    orders = np.full((examples, units), -1)
    orders[:, :players] = np.arange(players)
    return orders


def coins(seed, repetition=0):
    return lambda rows, starts, ends: own_coins(seed, repetition, rows, starts, ends)


def wandering(players, seed, whole=False):
    """A chain that keeps to one side of 0 for long and crosses it now and then by surprise."""
    draw = np.random.default_rng(seed)
    crossings = draw.random(players + 1) < 0.06
    lapses = draw.random(players + 1) < 0.15
    side = np.where((np.cumsum(crossings) + lapses) % 2, 1, -1)
    margins = side * draw.uniform(1, 5, players + 1)
    return margins.round() * (draw.random(players + 1) < 0.9) if whole else margins


def many(margins, copies, target=0, seed=0):
    """Walk copies of one chain, each with coins of its own."""
    game = Written(np.tile(margins, (copies, 1)), target)
    players = len(margins) - 1
    found = leap(game, in_turn(copies, players, players), coins(seed))
    return game, found


@pytest.fixture
def reckless(monkeypatch):
    """Skip much more than usual: what is expected does not depend on how often one looks."""
    monkeypatch.setattr(leaps, "EAGERNESS", 0.3)


@pytest.mark.usefixtures("reckless")
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("players", [20, 33, 64])
def test_the_mean_over_coins_is_the_whole_chain(players, whole, target):
    copies, chains, misses = 4000, 6, []
    for seed in range(chains):
        game, found = many(wandering(players, seed, whole), copies, target, seed)
        wanted = np.diff(game.values()[0])
        errors = found.marginals.std(axis=0) / np.sqrt(copies)
        sure = errors == 0
        np.testing.assert_array_equal(found.marginals.mean(axis=0)[sure], wanted[sure])
        misses += list((found.marginals.mean(axis=0) - wanted)[~sure] / errors[~sure])
        assert found.coalitions < copies * (players + 1)
    assert len(misses) > chains
    assert np.abs(misses).max() < 4.5


def game_of(case):
    (layer,) = case.reads
    (game,) = look(case.model(), case.batches(sizes=(24,))).games(layer)
    assert not game.compiled
    return game


@pytest.mark.usefixtures("reckless")
@pytest.mark.parametrize("case", LONG, ids=str)
def test_the_mean_over_coins_is_the_whole_chain_of_a_network(case):
    with torch.inference_mode():
        game = game_of(case)
        numbers = game.numbers.numpy()
        orders = own_orders(3, 0, numbers, game.active.numpy())
        wanted, ends = game.chain(orders)
        whole = (orders >= 0).sum() + len(orders)
        draws = []
        for draw in range(60):
            found = leap(
                game, orders, lambda rows, *at, d=draw: own_coins(1, d, numbers[rows], *at)
            )
            np.testing.assert_array_equal(found.ends, ends)
            assert found.coalitions < whole
            draws.append(found.marginals)
    sums = np.sum(draws, axis=1)  # (draws, units)
    errors = sums.std(axis=0) / np.sqrt(len(draws))
    assert (errors > 0).any()
    assert (np.abs(sums.mean(axis=0) - wanted.sum(axis=0)) <= 4.5 * errors + 1e-10).all()


@pytest.mark.parametrize("whole", [False, True])
def test_efficient_in_every_sample(whole):
    for seed in range(30):
        game, found = many(wandering(50, seed, whole), 40, seed % 2, seed)
        values = game.values()
        np.testing.assert_array_equal(found.ends, values[:, [0, -1]])
        gains = found.ends[:, 1] - found.ends[:, 0]
        np.testing.assert_allclose(found.marginals.sum(axis=1), gains, atol=1e-10)


def test_no_place_is_looked_at_twice_and_every_look_is_recorded():
    for seed in range(30):
        game, found = many(wandering(50, seed), 40, seed=seed)
        assert len(set(game.seen)) == len(game.seen) == found.coalitions


def test_calm_chains_cost_little_and_steep_ones_are_walked_where_they_turn():
    calm = 50 + np.linspace(0, 1, 65)
    _, found = many(calm, 500)
    assert found.coalitions < 0.5 * 65 * 500
    assert found.coalitions > 9 * 500  # some stretches are looked into all the same
    assert (found.marginals == 0).all()
    steep = np.linspace(-50, 50, 65) + 0.1
    game, found = many(steep, 500)
    np.testing.assert_array_equal(found.marginals, np.diff(game.values(), axis=1))
    assert found.coalitions < 0.5 * 65 * 500


@pytest.mark.parametrize("place", [20, 21, 300])
def test_what_changes_by_surprise_is_found_now_and_then_and_counts_for_more(place):
    margins = np.full(65 if place < 64 else 513, 5.0)
    margins[place] = -5  # the walker sees no sign of it but by looking
    _, found = many(margins, 20_000)
    seen = found.marginals[:, place - 1]
    assert set(np.sign(seen)) == {0, -1}
    assert 3 < np.abs(seen).max() <= leaps.HEAVIEST
    assert seen.mean() == pytest.approx(-1, abs=5 * seen.std() / np.sqrt(20_000))


def test_same_coins_same_bits():
    margins = np.stack([wandering(40, seed) for seed in range(50)])
    orders = in_turn(50, 40, 40)
    one, same, other = (leap(Written(margins), orders, coins(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.marginals, same.marginals)
    assert one.coalitions == same.coalitions
    assert (one.marginals != other.marginals).any()


@pytest.mark.parametrize("players", range(9))
def test_a_short_chain_is_walked_whole_and_those_who_do_not_join_get_nothing(players):
    margins = np.stack([wandering(9, seed) for seed in range(20)])
    game = Written(margins)
    found = leap(game, in_turn(20, players, 9), coins(0))
    wanted = np.zeros((20, 9))
    wanted[:, :players] = np.diff(game.values()[:, : players + 1], axis=1)
    np.testing.assert_array_equal(found.marginals, wanted)
    np.testing.assert_array_equal(found.ends, game.values()[:, [0, players]])
    assert found.coalitions == 20 * (players + 1)


def test_chains_of_different_lengths_side_by_side():
    draw = np.random.default_rng(0)
    margins = np.stack([wandering(30, seed) for seed in range(31)])
    orders = np.full((31, 30), -1)
    for row in range(31):
        orders[row, :row] = draw.permutation(30)[:row]
    together = leap(Written(margins), orders, coins(2))
    for row in range(31):
        alone = leap(
            Written(margins[[row]]),
            orders[[row]],
            lambda rows, starts, ends, row=row: own_coins(2, 0, rows + row, starts, ends),
        )
        np.testing.assert_array_equal(alone.marginals[0], together.marginals[row])
        np.testing.assert_array_equal(alone.ends[0], together.ends[row])
        idle = np.setdiff1d(np.arange(30), orders[row])
        assert (together.marginals[row, idle] == 0).all()


def test_nobody_to_join_is_no_reason_to_run_anything_but_the_start():
    game = Written(np.array([[1.0, 2.0], [-1.0, 2.0]]))
    found = leap(game, np.full((2, 1), -1), coins(0))
    assert found.ends.tolist() == [[1, 1], [0, 0]]
    assert found.coalitions == 2
    assert sorted(game.seen) == [(0, 0), (1, 0)]


def test_a_chain_of_nothing_but_ties_is_looked_into_everywhere():
    _, found = many(np.zeros(41), 30, target=1)
    assert found.coalitions == 30 * 41
    assert (found.marginals == 0).all()
