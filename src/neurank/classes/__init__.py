"""One class at a time: what units answer to it, which it needs, and a network for it alone."""

from neurank.classes.curves import Curves, curves
from neurank.classes.grouping import Group, as_printed, groups
from neurank.classes.interference import (
    Overlap,
    Projection,
    agreement_by_class,
    jump_association,
    neighbours,
    overlap,
    projected,
    pruned_correlation,
    rank_correlation,
)
from neurank.classes.quality import Quality, interval, qualities, quality
from neurank.classes.residual import Residual, residual_pruning
from neurank.classes.selection import DISCRETE, Selection, Setting, select, selections, thetas
from neurank.classes.specialist import Specialist, specialize

__all__ = [
    "DISCRETE",
    "Curves",
    "Group",
    "Overlap",
    "Projection",
    "Quality",
    "Residual",
    "Selection",
    "Setting",
    "Specialist",
    "agreement_by_class",
    "as_printed",
    "curves",
    "groups",
    "interval",
    "jump_association",
    "neighbours",
    "overlap",
    "projected",
    "pruned_correlation",
    "qualities",
    "quality",
    "rank_correlation",
    "residual_pruning",
    "select",
    "selections",
    "specialize",
    "thetas",
]
