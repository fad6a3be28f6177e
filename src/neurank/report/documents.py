"""Results as plain JSON documents, for machines."""

import math
from collections.abc import Iterable, Mapping

from torch import Tensor

from neurank.agreement import Agreement
from neurank.files import Json
from neurank.ranking import LayerRanking, Ranking


def plain(value: object) -> Json:
    """Return `value` in JSON's own types; NaN and infinity, which JSON lacks, become None.

    Examples
    --------
    >>> from pathlib import Path
    >>> plain({"rho": float("nan"), "top": (3, 1), "file": Path("a.png")})
    {'rho': None, 'top': [3, 1], 'file': 'a.png'}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def ranking_document(ranking: Ranking) -> dict[str, Json]:
    """Return the scores of every layer, best units first in ``order``, and where they come from.

    Examples
    --------
    >>> ranking_document(Ranking.from_scores({"fc": [1, 3]}))["layers"]["fc"]["order"]
    [1, 0]
    """
    return {
        "method": ranking.method,
        "layers": {name: _layer(layer) for name, layer in ranking.layers.items()},
        "provenance": plain(ranking.provenance),
    }


def agreement_document(agreement: Agreement) -> dict[str, Json]:
    """Return the overlap and the correlations of every compared layer.

    Examples
    --------
    >>> from neurank.agreement import compare
    >>> one = Ranking.from_scores({"fc": [1, 3, 2]})
    >>> agreement_document(compare(one, one, k=2))["layers"]["fc"]["common"]
    [1, 2]
    """
    return {
        "names": list(agreement.names),
        "layers": {
            name: {
                "units": layer.units,
                "k": layer.k,
                "top_a": list(layer.top_a),
                "top_b": list(layer.top_b),
                "common": list(layer.common),
                "overlap": layer.overlap,
                "chance": plain(layer.chance),
                "spearman": plain(layer.spearman),
                "kendall": plain(layer.kendall),
            }
            for name, layer in agreement.layers.items()
        },
        "only_in_a": list(agreement.only_in_a),
        "only_in_b": list(agreement.only_in_b),
    }


def _layer(layer: LayerRanking) -> dict[str, Json]:
    def optional(tensor: Tensor | None) -> Json:
        return None if tensor is None else plain(tensor.tolist())

    return {
        "status": layer.status,
        "order": None if layer.status == "undefined" else list(layer.order()),
        "scores": plain(layer.scores.tolist()),
        "stderr": plain(layer.stderr.tolist()),
        "stderr_of": layer.stderr_of,
        "data_stderr": optional(layer.data_stderr),
        "counts": layer.counts.tolist(),
        "by_class": optional(layer.by_class),
        "by_class_stderr": optional(layer.by_class_stderr),
    }
