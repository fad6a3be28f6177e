"""Coalitions of one example at a time, and whole games as tables over the layer's coalitions."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurank.observe.additive import AdditiveGame
from neurank.observe.game import Game
from neurank.observe.kernels.coalitions import coalition_values
from neurank.observe.kernels.value_table import Spectrum, add_spectra, add_table


def values_of(game: Game, row: int, masks: Tensor) -> NDArray[np.float64]:
    """Compute the values of some coalitions of one example.

    Where the game is compiled, a kernel takes them side by side; where it is additive, the sums of
    a block of coalitions are one matrix product.

    Parameters
    ----------
    game : a batch's game.
    row : index of the example within the batch.
    masks : (coalitions, units) bool, True = on.

    Returns
    -------
    NDArray
        (coalitions,).
    """
    if isinstance(game, AdditiveGame) and game.head is not None:
        here = slice(row, row + 1)
        base, contributions = game.head.fold(game.base, game.contributions[here])
        arrays = (
            base.numpy(),
            contributions.numpy(),
            masks[None].numpy(),
            game.targets[here].numpy(),
        )
        values: NDArray[np.float64] = coalition_values(*arrays, game.head.perceptron)[0]
        return values
    members = masks.to(game.active.device)
    numbers = torch.arange(len(members), device=members.device)
    found = [_block(game, row, members[some]) for some in game.blocks(numbers)]
    return torch.cat(found).cpu().numpy()


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


def _block(game: Game, row: int, masks: Tensor) -> Tensor:
    rows = torch.full((len(masks),), row, device=masks.device)
    if not isinstance(game, AdditiveGame):
        return game.values(rows, masks)
    sums = masks.to(game.base.dtype) @ game.contributions[row].flatten(1)
    start = game.base + sums.reshape(len(masks), *game.base.shape)
    return game.evaluate(rows, game.finish(rows, start))
