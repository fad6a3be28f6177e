"""Which units of a trained PyTorch network matter, and the smallest network that keeps them."""

__version__ = "0.1.0"

from neurank import data, zoo
from neurank.agreement import Agreement, compare
from neurank.observe.value import Accuracy, Margin, NegativeLoss, Recall
from neurank.rankers.exact_shapley import ExactShapley
from neurank.rankers.permutation_shapley import PermutationShapley
from neurank.rankers.random_score import RandomScore
from neurank.rankers.rank import rank
from neurank.rankers.weight_norm import WeightNorm
from neurank.ranking import LayerRanking, Ranking

__all__ = [
    "Accuracy",
    "Agreement",
    "ExactShapley",
    "LayerRanking",
    "Margin",
    "NegativeLoss",
    "PermutationShapley",
    "RandomScore",
    "Ranking",
    "Recall",
    "WeightNorm",
    "compare",
    "data",
    "rank",
    "zoo",
]
