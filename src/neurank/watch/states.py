"""Which units are frozen, which are dead, and why: definitions 3.2.1 and 3.2.2 of the thesis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from neurank.errors import MethodError
from neurank.observe.vital_signs import Penalties, Sighting, Signs

CONSTANT = "constant output"
SATURATED = "saturated activation"
NO_FAN_OUT = "zero fan-out"
SMALL_EFFECT = "small effect"
NO_GRADIENT = "no gradient from above"


@dataclass(frozen=True)
class Thresholds:
    """How little counts as nothing.

    Attributes
    ----------
    frozen : the largest derivative of any example's loss by what the unit's layer gives, as a share
        of the mean L1 norm of the derivatives by the logits.
    dead : the largest change of any example's loss when the unit is replaced by its mean, in nats.
    constant : how far what a unit gives is spread, as a share of its largest value in size, or of
        the median of these in its layer, whichever is larger.
    fan_out : the L1 norm of outgoing weights, as a share of the layer's median.

    Raises
    ------
    MethodError
        If one is no number from 0 to below 1.

    Example
    -------
    >>> Thresholds(dead=0.01).constant
    1e-06
    """

    frozen: float = 1e-6
    dead: float = 1e-3
    constant: float = 1e-6
    fan_out: float = 1e-6

    def __post_init__(self) -> None:
        for field in fields(self):
            given = getattr(self, field.name)
            if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < 1:
                raise MethodError(
                    f"{field.name}={given!r}: a threshold is a number from 0 to below 1"
                )


@dataclass(frozen=True)
class LayerVitals:
    """One layer at one look.

    Attributes
    ----------
    signs : what was seen of its units.
    penalties : exact mean replacement penalties, None if they were not taken.
    frozen, dead : (units,) bool.
    reasons : for each unit why it is frozen or dead, "" for the others.
    """

    signs: Signs
    penalties: Penalties | None
    frozen: Tensor
    dead: Tensor
    reasons: tuple[str, ...]


def judged(
    signs: Signs, penalties: Penalties | None, signal: float, thresholds: Thresholds
) -> LayerVitals:
    """Say which units of a layer are frozen and dead.

    A unit that gives one value, whose values all become one behind its activation, or that nobody
    weighs in, changes nothing when its mean takes its place: it is dead, whatever else. Other units
    are dead where the exact penalties say so. A unit is frozen where no example has a gradient for
    it although there is one at the logits.
    """
    constant = _narrow(signs.given.low, signs.given.high, thresholds.constant)
    saturated = _narrow(signs.read.low, signs.read.high, thresholds.constant)
    usual = signs.fan_out_norm.nan_to_num().median()
    unread = signs.fan_out_norm <= thresholds.fan_out * usual  # NaN is not
    nothing = torch.zeros_like(constant)
    harmless = nothing if penalties is None else penalties.largest <= thresholds.dead
    frozen = (signs.gradient_peak <= thresholds.frozen * signal) & (signal > 0)
    dead = constant | saturated | unread | harmless
    marks = (
        (constant, CONSTANT),
        (saturated, SATURATED),
        (unread, NO_FAN_OUT),
        (harmless, SMALL_EFFECT),
        (frozen, NO_GRADIENT),
    )
    reasons = tuple(
        next((reason for mark, reason in marks if bool(mark[unit])), "")
        for unit in range(len(constant))
    )
    return LayerVitals(signs, penalties, frozen, dead, reasons)


def _narrow(low: Tensor, high: Tensor, share: float) -> Tensor:
    sizes = torch.maximum(low.abs(), high.abs())
    # The median, since one unit that explodes must not make all others look constant.
    return high - low <= share * torch.maximum(sizes, sizes.median())


@dataclass(frozen=True)
class Vitals:
    """The vital signs of a network's units at one time.

    Attributes
    ----------
    step : how many optimizer steps had been made.
    loss : mean cross-entropy on the data.
    layers : by name.
    refused : layers whose units cannot be watched, with the reason.

    Example
    -------
    >>> import neurank as nr
    >>> model = nr.zoo.digits_net(4, 4, 6, 4, seed=0)
    >>> with torch.no_grad():
    ...     _ = model.fc1.bias[2].fill_(-100)
    >>> vitals = nr.vitals(model, nr.data.load("digits").validation.first(50))
    >>> 2 in vitals.dead["fc1"], 2 in vitals.frozen["fc1"], vitals.layers["fc1"].reasons[2]
    (True, True, 'saturated activation')
    """

    step: int
    loss: float
    layers: Mapping[str, LayerVitals]
    refused: Mapping[str, str]

    @property
    def dead(self) -> dict[str, tuple[int, ...]]:
        """The dead units of each layer."""
        return {name: _places(layer.dead) for name, layer in self.layers.items()}

    @property
    def frozen(self) -> dict[str, tuple[int, ...]]:
        """The frozen units of each layer."""
        return {name: _places(layer.frozen) for name, layer in self.layers.items()}

    def to_frame(self, *, histograms: bool = False) -> pd.DataFrame:
        """Return one row per unit.

        Parameters
        ----------
        histograms : add what the unit gave and what was read of it on the first batch, as counts
            in equal parts between two ends.
        """
        rows: list[dict[str, Any]] = []
        for name, layer in self.layers.items():
            columns = _columns(layer, histograms=histograms)
            for unit, reason in enumerate(layer.reasons):
                row: dict[str, Any] = {"step": self.step, "layer": name, "unit": unit}
                row |= {column: values[unit] for column, values in columns.items()}
                rows.append(row | {"reason": reason})
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        """Count the units that are dead or frozen, layer by layer, with the reasons."""
        lines = [f"step {self.step}, loss {self.loss:.4f}"]
        for name, layer in self.layers.items():
            dead, frozen = int(layer.dead.sum()), int(layer.frozen.sum())
            lines.append(
                f"  {name}: {dead} of {len(layer.reasons)} units dead, {frozen} frozen"
                + _because(layer.reasons)
            )
        return "\n".join(lines)


def _because(reasons: Sequence[str]) -> str:
    counts = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons) if reason}
    named = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    return f" ({named})" if named else ""


def _places(marked: Tensor) -> tuple[int, ...]:
    return tuple(marked.nonzero()[:, 0].tolist())


def _columns(layer: LayerVitals, *, histograms: bool) -> dict[str, list[Any]]:
    signs, penalties = layer.signs, layer.penalties
    unknown = torch.full_like(signs.saliency, torch.nan)
    found = {
        "mean_replacement_saliency": signs.saliency,
        "mean_replacement_penalty": unknown if penalties is None else penalties.mean,
        "largest_penalty": unknown if penalties is None else penalties.largest,
        "gradient_norm": signs.gradient_norm,
        "gradient_peak": signs.gradient_peak,
        "weight_norm": signs.weight_norm,
        "fan_out_norm": signs.fan_out_norm,
        "given_low": signs.given.low,
        "given_high": signs.given.high,
        "read_low": signs.read.low,
        "read_high": signs.read.high,
        "frozen": layer.frozen,
        "dead": layer.dead,
    }
    if histograms:
        for name, spread in (("given", signs.given), ("read", signs.read)):
            found |= {f"{name}_counts": spread.counts, f"{name}_ends": spread.ends}
    return {name: values.tolist() for name, values in found.items()}


def vitals_of(
    sighting: Sighting,
    penalties: Mapping[str, Penalties],
    *,
    step: int,
    thresholds: Thresholds,
    refused: Mapping[str, str],
) -> Vitals:
    """Judge every layer of a sighting."""
    layers = {
        name: judged(signs, penalties.get(name), sighting.signal, thresholds)
        for name, signs in sighting.layers.items()
    }
    return Vitals(step, sighting.loss, layers, refused)
