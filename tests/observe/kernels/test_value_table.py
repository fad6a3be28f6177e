"""Walsh coefficients against their definition, one coalition after another."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import hadamard

from neurank.observe.kernels import value_table
from neurank.observe.kernels.perceptron import pack
from neurank.observe.kernels.value_table import (
    add_at,
    add_spectra,
    add_table,
    values_of_spectrum,
    walsh,
)


@pytest.mark.parametrize("players", [0, 1, 2, 5])
def test_walsh_is_the_signed_sum(players):
    values = np.random.default_rng(players).normal(size=1 << players)
    found = values.copy()
    walsh(found)
    signs = [
        [(-1) ** (one & other).bit_count() for other in range(len(values))]
        for one in range(len(values))
    ]
    np.testing.assert_allclose(found, np.array(signs) @ values, atol=1e-12)


@pytest.mark.parametrize("bits", [13, 14, 15, 18])
def test_large_tables_are_transformed_alike(bits):
    spectrum = np.random.default_rng(0).integers(-9, 9, 1 << bits).astype(float)
    expected = spectrum.reshape(1 << (bits - 9), 1 << 9)
    expected = hadamard(1 << (bits - 9)) @ expected @ hadamard(1 << 9)
    np.testing.assert_array_equal(values_of_spectrum(spectrum.copy()), expected.ravel())


@pytest.mark.parametrize("players", [0, 1, 4, 11, 12])
def test_a_small_game_is_lifted_to_all_units(players):
    rng = np.random.default_rng(players)
    units, spectrum = 13, np.zeros(1 << 13)
    expected = np.zeros(1 << 13)
    everyone = np.arange(1 << units)
    for _ in range(2):
        chosen = np.sort(rng.choice(units, players, replace=False))
        values = rng.integers(0, 2, 1 << players).astype(float)
        within = sum((((everyone >> unit) & 1) << j for j, unit in enumerate(chosen)), 0 * everyone)
        expected += values[within]
        add_table(spectrum, chosen, values.copy())
    np.testing.assert_array_equal(values_of_spectrum(spectrum), expected)


def test_coefficients_are_added_where_they_belong():
    spectrum = np.ones(32)
    add_at(spectrum, np.array([1, 4]), np.array([10.0, 20.0, 30.0, 40.0]))
    expected = np.ones(32)
    expected[[0, 2, 16, 18]] += [10, 20, 30, 40]
    np.testing.assert_array_equal(spectrum, expected)


def drawn_game(seed, examples=6, units=13, features=4):
    """Whole numbers, so that every order of summation gives the same bits; many null players."""
    rng = np.random.default_rng(seed)
    contributions = rng.integers(-3, 4, (examples, units, features)).astype(float)
    active = rng.random((examples, units)) < np.linspace(0, 1, examples)[:, None]
    contributions[~active] = 0
    return SimpleNamespace(
        base=rng.integers(-3, 4, features).astype(float),
        contributions=contributions,
        active=active,
        targets=rng.integers(0, 3, examples),
        matrix=rng.integers(-2, 3, (3, features)).astype(float),
        bias=rng.integers(-2, 3, 3).astype(float),
    )


@pytest.mark.parametrize("room", [1, 5000, 1 << 22])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whole_tables_of_a_perceptron(dtype, room, monkeypatch):
    monkeypatch.setattr(value_table, "SHARED_ENTRIES", room)
    for seed in range(3):
        game = drawn_game(seed)
        windows = np.arange(4)[:, None]
        stages = [(True, game.matrix, game.bias)]
        head = pack(windows, stages, relu_at_end=False, dtype=np.dtype(dtype))
        spectrum = np.zeros(1 << 13)
        base, contributions = game.base.astype(dtype), game.contributions.astype(dtype)
        add_spectra(base, contributions, game.active, game.targets, head, spectrum)
        masks = (np.arange(1 << 13)[:, None] >> np.arange(13)) & 1
        expected = np.zeros(1 << 13)
        for row, target in enumerate(game.targets):
            sums = game.base + masks @ game.contributions[row]
            logits = np.maximum(sums, 0) @ game.matrix.T + game.bias
            expected += logits.argmax(axis=1) == target
        np.testing.assert_array_equal(values_of_spectrum(spectrum), expected)
