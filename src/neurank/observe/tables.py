"""Whole games as tables over the layer's coalitions."""

import numpy as np
import torch
from numpy.typing import NDArray

from neurank.observe.additive import AdditiveGame
from neurank.observe.game import Game
from neurank.observe.kernels.value_table import Spectrum, add_spectra, add_table


def add_games(game: Game, rows: NDArray[np.int64], spectrum: Spectrum) -> None:
    """Add the Walsh coefficients of the games of some examples, see `kernels.value_table`.

    Parameters
    ----------
    game : a batch's game.
    rows : indices into the batch.
    spectrum : (2^units,) is added to.
    """
    active = game.active.cpu().numpy()
    if isinstance(game, AdditiveGame) and game.head is not None:
        base, contributions = game.head.fold(game.base, game.contributions[rows])
        arrays = base.numpy(), contributions.numpy(), active[rows], game.targets[rows].numpy()
        add_spectra(*arrays, game.head.perceptron, spectrum)
        return
    for row in rows.tolist():
        values = torch.cat(list(game.power_set(row))).cpu().numpy()
        add_table(spectrum, np.flatnonzero(active[row]), values)
