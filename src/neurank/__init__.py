"""Which units of a trained PyTorch network matter, and the smallest network that keeps them."""

__version__ = "0.1.0"

from neurank import classes, data, errors, weights, zoo
from neurank.agreement import Agreement, compare
from neurank.classes.specialist import Specialist, specialize
from neurank.combination import combine
from neurank.condense.condensed import Condensed, condense
from neurank.condense.load import load
from neurank.condense.plan import Plan, plan
from neurank.condense.retrain import retrain
from neurank.condense.rounds import plan_in_rounds
from neurank.condense.search import Smallest, smallest
from neurank.observe.value import Accuracy, Margin, NegativeLoss, Recall
from neurank.rankers.class_response import ClassResponse
from neurank.rankers.exact_shapley import ExactShapley
from neurank.rankers.importance_switch import ImportanceSwitch
from neurank.rankers.mean_replacement import MeanReplacementPenalty
from neurank.rankers.nonzero_weights import NonzeroWeights
from neurank.rankers.pair_shapley import PairShapley
from neurank.rankers.permutation_shapley import PermutationShapley
from neurank.rankers.random_score import RandomScore
from neurank.rankers.rank import rank
from neurank.rankers.saliency import MeanReplacementSaliency, Taylor
from neurank.rankers.stopping import Seconds, StderrBelow, TopCertain
from neurank.rankers.truncated_shapley import TruncatedShapley
from neurank.rankers.two_stage_shapley import TwoStageShapley
from neurank.rankers.value_table import ValueTable, value_table
from neurank.rankers.weight_norm import WeightNorm
from neurank.ranking import LayerRanking, Ranking
from neurank.running import RunningRanking
from neurank.training import error_rate, fit
from neurank.watch.attack import attack
from neurank.watch.logs import ParquetLog, TensorBoardLog
from neurank.watch.revive import revive
from neurank.watch.states import Thresholds, Vitals
from neurank.watch.unit_pruning import UnitPruning
from neurank.watch.watching import Watching, vitals, watch
from neurank.watch.weight_pruning import WeightPruning

__all__ = [
    "Accuracy",
    "Agreement",
    "ClassResponse",
    "Condensed",
    "ExactShapley",
    "ImportanceSwitch",
    "LayerRanking",
    "Margin",
    "MeanReplacementPenalty",
    "MeanReplacementSaliency",
    "NegativeLoss",
    "NonzeroWeights",
    "PairShapley",
    "ParquetLog",
    "PermutationShapley",
    "Plan",
    "RandomScore",
    "Ranking",
    "Recall",
    "RunningRanking",
    "Seconds",
    "Smallest",
    "Specialist",
    "StderrBelow",
    "Taylor",
    "TensorBoardLog",
    "Thresholds",
    "TopCertain",
    "TruncatedShapley",
    "TwoStageShapley",
    "UnitPruning",
    "ValueTable",
    "Vitals",
    "Watching",
    "WeightNorm",
    "WeightPruning",
    "attack",
    "classes",
    "combine",
    "compare",
    "condense",
    "data",
    "error_rate",
    "errors",
    "fit",
    "load",
    "plan",
    "plan_in_rounds",
    "rank",
    "retrain",
    "revive",
    "smallest",
    "specialize",
    "value_table",
    "vitals",
    "watch",
    "weights",
    "zoo",
]
