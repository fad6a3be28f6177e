"""Do intervals cover what they claim? Counted over drawn games whose values are known."""

from dataclasses import replace

import pytest
import torch
from tests.rankers.games import LAYERS, drawn_game, exact, on

import neurank as nr

METHODS = {
    "plain": nr.PermutationShapley(passes=8),
    "two passes": nr.PermutationShapley(passes=2),
    "antithetic": nr.PermutationShapley(passes=8, antithetic=True),
    "stratified": nr.PermutationShapley(passes=8, strata=4),
    "pairs": nr.PairShapley(pairs=8),
    "both": nr.PermutationShapley(passes=16, antithetic=True, strata=2),
}
FEW, MANY = 60, 1000


def covered(layer, wanted):
    """Of the units whose score is not known for certain: whether the interval holds it."""
    low, high = layer.interval(0.95)
    return ((low <= wanted) & (wanted <= high))[layer.stderr > 0]


def share_covered(method, games):
    hits = [
        covered(method.score(game, layer).ranking, exact(game, layer))
        for game in map(drawn_game, range(games))
        for layer in LAYERS
    ]
    return float(torch.cat(hits).double().mean())


def share_of_populations_covered(games, samples=4, population=2000, examples=300):
    """One pass over examples drawn from a finite population whose mean is known."""
    hits = []
    for seed in range(games):
        everyone = drawn_game(seed, population)
        ((inputs, targets),) = everyone.examples
        wanted = {layer: exact(everyone, layer) for layer in LAYERS}
        draw = torch.Generator().manual_seed(seed)
        for sample in range(samples):
            some = torch.randint(population, (examples,), generator=draw)
            game = replace(on(everyone, inputs[some], targets[some]), seed=samples * seed + sample)
            for layer in LAYERS:
                found = nr.PermutationShapley().score(game, layer).ranking
                assert found.stderr_of == "total"
                hits.append(covered(found, wanted[layer]))
    return float(torch.cat(hits).double().mean())


@pytest.mark.parametrize("name", ["plain", "two passes", "antithetic", "stratified", "pairs"])
def test_intervals_cover(name):
    share = share_covered(METHODS[name], FEW)
    assert 0.93 <= share <= 0.97, share


def test_intervals_of_one_pass_cover_the_mean_of_the_population():
    share = share_of_populations_covered(FEW // 3)
    assert 0.93 <= share <= 0.97, share


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_intervals_cover_over_1000_games(name):
    share = share_covered(METHODS[name], MANY)
    print(f"{name}: {share:.4f}")
    assert 0.93 <= share <= 0.97, share


@pytest.mark.slow
def test_intervals_of_one_pass_cover_the_mean_of_the_population_over_1000_samples():
    share = share_of_populations_covered(MANY // 4)
    print(f"population: {share:.4f}")
    assert 0.93 <= share <= 0.97, share
