"""What a ranking method is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from neurank.files import Json
from neurank.observe.observer import Observer
from neurank.ranking import LayerRanking


@dataclass(frozen=True)
class Scored:
    """One layer's result and how it came about.

    Attributes
    ----------
    ranking : scores, standard errors, counts and status.
    record : what the provenance should say about this layer, such as the number of coalitions.
    """

    ranking: LayerRanking
    record: Mapping[str, Json] = field(default_factory=dict)


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass whose fields are the method's parameters."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def score(self, observer: Observer, layer: str) -> Scored:
        """Score every unit of one layer."""
        ...
