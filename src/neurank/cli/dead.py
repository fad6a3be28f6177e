"""``neurank dead``: which units of a trained network do nothing, or learn nothing, and why."""

from collections.abc import Mapping
from typing import Annotated

import typer

from neurank.cli import arguments
from neurank.cli.models import architecture, trained_model
from neurank.cli.output import document, heading, say
from neurank.cli.sources import load_data, part
from neurank.cli.words import layer_names
from neurank.files import Json
from neurank.text import aligned
from neurank.watch.states import LayerVitals, Thresholds, Vitals
from neurank.watch.watching import vitals as look

SHOWN = 12
"""Units of one kind that are named in a line."""


def dead(
    model: arguments.Model,
    data: arguments.Data,
    weights: arguments.Weights = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Which layers, by their dotted names; all that have units if not given.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="train|validation", help="The part of the data to look at.")
    ] = "validation",
    first: Annotated[int, typer.Option(min=1, help="Use only so many examples of it.")] = 1000,
    below: Annotated[
        float,
        typer.Option(
            metavar="NATS",
            help="A unit is dead if no example's loss changes by more than this when the unit is "
            "replaced by its mean.",
        ),
    ] = Thresholds.dead,
    batch_size: arguments.BatchSize = 200,
    json: arguments.Json = False,
) -> None:
    """Find dead and frozen units of a trained network, with the reasons.

    A dead unit can be replaced by its mean and no example's loss changes; a frozen one has no
    gradient on any example. Reasons: constant output, saturated activation, zero fan-out, small
    effect.
    """
    network = trained_model(architecture(model), weights)
    examples = part(load_data(data, batch_size=batch_size), split)
    found = look(
        network,
        examples.first(min(first, examples.examples)),
        layers=layer_names(layers),
        thresholds=Thresholds(dead=below),
        progress=not json,
    )
    if json:
        document(vitals_document(found))
        return
    say(heading(f"{sum(map(len, found.dead.values()))} dead units"))
    say("\n".join(aligned([_line(name, layer) for name, layer in found.layers.items()])))
    for name, layer in found.layers.items():
        for reason, units in _by_reason(layer).items():
            say(f"{name}: {reason}: {_listed(units)}")
    for name, reason in found.refused.items():
        say(f"{name}: not looked at: {reason}")


def _line(name: str, layer: LayerVitals) -> tuple[str, str, str]:
    count = len(layer.reasons)
    return name, f"{int(layer.dead.sum())} of {count} dead", f"{int(layer.frozen.sum())} frozen"


def _by_reason(layer: LayerVitals) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for unit, reason in enumerate(layer.reasons):
        if reason:
            found.setdefault(reason, []).append(unit)
    return found


def _listed(units: list[int]) -> str:
    more = len(units) - SHOWN
    named = ", ".join(map(str, units[:SHOWN]))
    return f"{named} and {more} more" if more > 0 else named


def vitals_document(found: Vitals) -> dict[str, Json]:
    """Return what was found, for machines."""
    return {
        "loss": found.loss,
        "layers": {name: _layer_document(layer) for name, layer in found.layers.items()},
        "refused": dict(found.refused),
    }


def _layer_document(layer: LayerVitals) -> Mapping[str, Json]:
    assert layer.penalties is not None  # they are always taken here
    return {
        "units": len(layer.reasons),
        "dead": layer.dead.nonzero()[:, 0].tolist(),
        "frozen": layer.frozen.nonzero()[:, 0].tolist(),
        "reasons": {str(unit): reason for unit, reason in enumerate(layer.reasons) if reason},
        "mean_replacement_penalty": layer.penalties.mean.tolist(),
        "mean_replacement_saliency": layer.signs.saliency.tolist(),
    }
