"""Small networks of the well-known families, true in structure and tiny in size.

Each is an own definition of the operations and couplings that make its family hard to prune:
sums, concatenations, groups, gates, shared modules, reshapes. Weights are drawn, never loaded.
"""

from collections.abc import Iterable
from typing import Any

import pytest
from tests.architectures.architecture import Architecture
from tests.architectures.attention import ATTENTION
from tests.architectures.chains import CHAINS
from tests.architectures.dense import DENSE
from tests.architectures.maps import MAPS
from tests.architectures.mixers import MIXERS
from tests.architectures.mobile import MOBILE
from tests.architectures.modern import MODERN
from tests.architectures.odd import ODD
from tests.architectures.residual import RESIDUAL
from tests.architectures.sequences import SEQUENCES
from tests.architectures.swin import SWIN

ARCHITECTURES: tuple[Architecture, ...] = (
    *CHAINS,
    *RESIDUAL,
    *DENSE,
    *MOBILE,
    *MODERN,
    *MAPS,
    *ATTENTION,
    *SWIN,
    *MIXERS,
    *SEQUENCES,
    *ODD,
)
"""Every architecture."""

SLOW_TO_TRACE = {
    "resnet-bottleneck", "resnext-many-groups", "resnext-two-groups", "res2net", "inception-v3",
    "mobilenet-v3", "efficientnet", "vit-written-attention", "deit-mean", "gru",
}  # fmt: skip
"""Each has a sister that is quicker; all are in the slow tests."""


def slow_where_tracing_is(names: Iterable[str]) -> list[Any]:
    """Parameters for a test that traces each: those that take long are left to the slow tests."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_TO_TRACE else [])
        for name in names
    ]


def architecture(name: str) -> Architecture:
    """Look an architecture up by its name."""
    return next(one for one in ARCHITECTURES if one.name == name)


__all__ = [
    "ARCHITECTURES",
    "SLOW_TO_TRACE",
    "Architecture",
    "architecture",
    "slow_where_tracing_is",
]
