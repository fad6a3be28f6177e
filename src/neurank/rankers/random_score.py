"""Random scores: what every other method must beat."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch

from neurank.observe.observer import Observer
from neurank.rankers.method import Scored
from neurank.ranking import LayerRanking


@dataclass(frozen=True)
class RandomScore:
    """Independent uniform scores in [0, 1), drawn from the ranking's seed and the layer's name.

    Example:
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(2, 3, 6, 4, seed=0)
    >>> data = nr.data.load("digits").validation.first(10)
    >>> once, again = (nr.rank(model, data, nr.RandomScore(), seed=1, progress=False) for _ in "ab")
    >>> bool((once["fc1"].scores == again["fc1"].scores).all())
    True
    """

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        entropy = [observer.seed, zlib.crc32(layer.encode())]
        draws = np.random.default_rng(np.random.SeedSequence(entropy)).random(observer.width(layer))
        scores = torch.from_numpy(draws)
        unknown = torch.full_like(scores, torch.nan)
        counts = torch.zeros(len(scores), dtype=torch.int64)
        return Scored(LayerRanking(scores, unknown, counts, "random", stderr_of="none"))
