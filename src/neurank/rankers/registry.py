"""The ranking methods by the names that the command line gives them."""

from collections.abc import Mapping
from types import MappingProxyType

from neurank.errors import MethodError
from neurank.rankers.class_response import ClassResponse
from neurank.rankers.exact_shapley import ExactShapley
from neurank.rankers.importance_switch import ImportanceSwitch
from neurank.rankers.mean_replacement import MeanReplacementPenalty
from neurank.rankers.method import Method
from neurank.rankers.nonzero_weights import NonzeroWeights
from neurank.rankers.pair_shapley import PairShapley
from neurank.rankers.permutation_shapley import PermutationShapley
from neurank.rankers.random_score import RandomScore
from neurank.rankers.saliency import MeanReplacementSaliency, Taylor
from neurank.rankers.truncated_shapley import TruncatedShapley
from neurank.rankers.two_stage_shapley import TwoStageShapley
from neurank.rankers.weight_norm import WeightNorm

METHODS: Mapping[str, type[Method]] = MappingProxyType(
    {
        "exact": ExactShapley,
        "permutation": PermutationShapley,
        "pair": PairShapley,
        "truncated": TruncatedShapley,
        "two-stage": TwoStageShapley,
        "switch": ImportanceSwitch,
        "taylor": Taylor,
        "mean-replacement": MeanReplacementSaliency,
        "mean-replacement-penalty": MeanReplacementPenalty,
        "class-response": ClassResponse,
        "weight-norm": WeightNorm,
        "nonzero-weights": NonzeroWeights,
        "random": RandomScore,
    }
)
"""Every method, a frozen dataclass whose fields are its options."""


def method_class(name: str) -> type[Method]:
    """Find the method called `name`.

    Raises
    ------
    MethodError
        There is none of that name.

    Examples
    --------
    >>> method_class("weight-norm") is WeightNorm
    True
    """
    if name not in METHODS:
        raise MethodError(f"no method is called {name!r}: give one of {', '.join(METHODS)}")
    return METHODS[name]
