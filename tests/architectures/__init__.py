"""Small networks of the well-known families, true in structure and tiny in size.

Each is an own definition of the operations and couplings that make its family hard to prune:
sums, concatenations, groups, gates, shared modules, reshapes. Weights are drawn, never loaded.
"""

from tests.architectures.architecture import Architecture
from tests.architectures.chains import CHAINS
from tests.architectures.dense import DENSE
from tests.architectures.residual import RESIDUAL

ARCHITECTURES: tuple[Architecture, ...] = (*CHAINS, *RESIDUAL, *DENSE)
"""Every architecture."""


def architecture(name: str) -> Architecture:
    """Look an architecture up by its name."""
    return next(one for one in ARCHITECTURES if one.name == name)


__all__ = ["ARCHITECTURES", "Architecture", "architecture"]
