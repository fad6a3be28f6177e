"""Running averages of noisy scores, as they come up along a training."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neurank.errors import RankingError
from neurank.files import Json
from neurank.ranking import LayerRanking, Ranking


class RunningRanking:
    """An exponential moving average of rankings of one network as it changes.

    After n rankings with scores s_1 ... s_n a unit has ``sum of w_t s_t / sum of w_t`` with
    ``w_t = decay^(n - t)``: the newest counts most, and the first are not drawn towards 0. Standard
    errors follow, the rankings taken to be independent; they are unknown where one of them is.

    Parameters
    ----------
    decay : how much of the weight of a ranking is left after the next one, from 0, which forgets
        all but the newest, to below 1.

    Attributes
    ----------
    count : how many rankings were added.

    Raises
    ------
    RankingError
        The decay is out of range.

    Example
    -------
    >>> running = RunningRanking(decay=0.5)
    >>> _ = running.add(Ranking.from_scores({"fc1": [0.0, 3.0]}))
    >>> running.add(Ranking.from_scores({"fc1": [3.0, 0.0]}))["fc1"].scores.tolist()
    [2.0, 1.0]
    """

    def __init__(self, decay: float = 0.9) -> None:
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise RankingError(f"decay={decay!r}: give a number from 0 to below 1")
        self.decay = decay
        self.count = 0
        self._weight = self._squares = 0.0
        self._scores: dict[str, Tensor] = {}
        self._variances: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._newest: Mapping[str, Json] = {}

    def add(self, ranking: Ranking) -> Ranking:
        """Take the newest ranking; return the average.

        Raises
        ------
        RankingError
            Layers or widths are not those of the rankings before, as after condensing (begin a new
            average then), or a layer's scores are undefined.
        """
        self._check(ranking)
        weight = self.decay * self._weight + 1
        for layer in ranking:
            new = ranking[layer]
            before = self._scores.get(layer, torch.zeros_like(new.scores))
            self._scores[layer] = (self.decay * self._weight * before + new.scores) / weight
            spread = self._variances.get(layer, torch.zeros_like(new.scores))
            old = (self.decay * self._weight) ** 2 * spread
            self._variances[layer] = (old + new.stderr**2) / weight**2
            self._counts[layer] = self._counts.get(layer, torch.zeros_like(new.counts)) + new.counts
        self._weight = weight
        self.count += 1
        self._newest = ranking.provenance
        return self.ranking

    @property
    def ranking(self) -> Ranking:
        """The average so far.

        Raises
        ------
        RankingError
            Nothing was added yet.
        """
        if not self.count:
            raise RankingError("no ranking was added yet: there is no average")
        layers = {
            layer: LayerRanking(
                scores, self._variances[layer].sqrt(), self._counts[layer], "computed"
            )
            for layer, scores in self._scores.items()
        }
        of: dict[str, Any] = {"decay": self.decay, "rankings": self.count, "newest": self._newest}
        return Ranking(layers, {"running_average": of, "model": self._newest.get("model")})

    def _check(self, ranking: Ranking) -> None:
        for layer in ranking:
            if ranking[layer].status == "undefined":
                raise RankingError(f"the scores of layer {layer!r} are undefined")
        if not self.count:
            return
        before = {layer: len(scores) for layer, scores in self._scores.items()}
        now = {layer: ranking[layer].units for layer in ranking}
        if before != now:
            raise RankingError(
                f"the ranking has units {now} and those before had {before}: begin a new "
                "RunningRanking where the network has become another"
            )
