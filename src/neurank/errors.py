"""Every error that neurank raises on purpose.

The tree::

    NeurankError
    ├── DataError        the data cannot be used: empty, unlabelled, not repeatable, out of range
    ├── ModelError       the model cannot be used: not repeatable, NaN, an output that is no tensor
    │   └── UnitError    a layer or its units cannot be addressed, switched off or removed
    ├── MethodError      a method's own arguments are wrong, or it would cost too much
    ├── RankingError     two rankings do not belong together, or a ranking lacks what is asked of it
    ├── PlanError        a plan that cannot be carried out: every unit of a layer removed, index 99
    ├── CondenseError    the condensed network is not what was promised
    └── FileError        a file is damaged, foreign, of another format version, or cannot be written

All of them are `ValueError` too, so a caller who catches only that is served. Each message names
the value, the reason and the remedy.
"""


class NeurankError(ValueError):
    """The root: catch this to catch every error that neurank raises on purpose."""


class DataError(NeurankError):
    """The data cannot be used: empty, unlabelled, not repeatable, out of range."""


class ModelError(NeurankError):
    """The model cannot be used: not repeatable, NaN, an output that is not a tensor."""


class UnitError(ModelError):
    """A layer or its units cannot be addressed, switched off or removed."""


class MethodError(NeurankError):
    """A method's own arguments are wrong, or it would cost too much."""


class RankingError(NeurankError):
    """Two rankings do not belong together, or a ranking lacks what is asked of it."""


class PlanError(NeurankError):
    """A plan that cannot be carried out."""


class CondenseError(NeurankError):
    """The condensed network is not what was promised."""


class FileError(NeurankError):
    """A file is damaged, foreign, of another format version, or cannot be written."""
