import numpy as np
import pytest
import torch
from tests.cases import CASES, watch

import neurank as nr
from neurank.observe.game import Game
from neurank.observe.kernels.value_table import values_of_spectrum
from neurank.observe.tables import add_games


def all_masks(units):
    return torch.from_numpy((np.arange(1 << units)[:, None] >> np.arange(units)) & 1 == 1)


@pytest.mark.parametrize("value", [nr.Accuracy(), nr.Margin()], ids=repr)
@pytest.mark.parametrize("case", CASES[1::4], ids=str)
def test_values_and_tables_of_each_example_are_those_of_the_masks(case, value):
    for layer in case.reads:
        for game in watch(case, value=value).games(layer):
            masks = all_masks(game.units)
            for row in range(game.examples):
                rows = torch.full((len(masks),), row)
                expected = Game.values(game, rows, masks).numpy()
                found = game.values_of(row, masks)
                np.testing.assert_allclose(found, expected, atol=1e-12)
                spectrum = np.zeros(len(masks))
                add_games(game, np.array([row]), spectrum)
                found = values_of_spectrum(spectrum)
                np.testing.assert_allclose(found, expected, atol=1e-12)


def test_games_add_up_and_none_is_none():
    game = next(iter(watch(CASES[1]).games("fc0")))
    together, apart = np.zeros(32), np.zeros(32)
    add_games(game, np.array([0, 3]), together)
    add_games(game, np.array([3]), apart)
    add_games(game, np.array([], np.int64), apart)
    add_games(game, np.array([0]), apart)
    np.testing.assert_array_equal(together, apart)
    assert together.any()


def test_blocks_do_not_matter(monkeypatch):
    game = next(iter(watch(CASES[1], value=nr.Margin()).games("fc0")))
    expected = game.values_of(2, all_masks(5))
    monkeypatch.setattr("neurank.observe.game.BLOCK_BYTES", 4 * 5 * 3)
    np.testing.assert_allclose(game.values_of(2, all_masks(5)), expected, atol=1e-12)
