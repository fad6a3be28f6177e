"""``neurank condense``: cut the units away that a ranking puts last."""

from pathlib import Path
from typing import Annotated, cast

import typer
from torch import nn

from neurank.cli import arguments
from neurank.cli.models import architecture, trained_model
from neurank.cli.output import document, say
from neurank.cli.sources import load_data
from neurank.cli.words import layer_names, number_or_per_layer, per_layer
from neurank.condense.condensed import Condensed
from neurank.condense.condensed import condense as carry_out
from neurank.condense.plan import Across
from neurank.condense.plan import plan as choose
from neurank.condense.retrain import retrain as fit_again
from neurank.data import Splits
from neurank.errors import RankingError
from neurank.files import Json
from neurank.observe.observer import model_digest
from neurank.observe.removal import check_removal
from neurank.ranking import Ranking
from neurank.text import aligned, percent
from neurank.training import error_rate


def condense(
    model: arguments.Model,
    data: arguments.Data,
    ranking: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="The ranking that 'neurank rank' wrote.", show_default=False
        ),
    ],
    out: arguments.Out,
    weights: arguments.Weights = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="conv1=5,conv2=7",
            help="How many of the best units to keep; layers not named stay whole.",
            show_default=False,
        ),
    ] = None,
    ratio: Annotated[
        str | None,
        typer.Option(
            metavar="0.5|conv1=0.5,fc1=0.3",
            help="The share of units to remove: of every layer ranked, or layer by layer.",
            show_default=False,
        ),
    ] = None,
    max_params: arguments.MaxParams = None,
    max_macs: arguments.MaxMacs = None,
    max_latency: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Budget: at most so long for a batch.", show_default=False
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="0.01",
            help="Budget: as small as the accuracy on the validation part falls by no more.",
            show_default=False,
        ),
    ] = None,
    across: Annotated[
        str,
        typer.Option(
            metavar="share|score|rank|'share per cost'|'score per cost'",
            help="How a budget compares scores of different layers.",
        ),
    ] = "share",
    min_width: Annotated[
        str, typer.Option(metavar="2|conv1=4", help="The least width of every layer.")
    ] = "1",
    multiple_of: Annotated[
        str, typer.Option(metavar="8|conv1=4", help="What widths are multiples of.")
    ] = "1",
    ignored: Annotated[
        str,
        typer.Option(metavar="conv1,fc2", help="Layers that stay whole.", show_default=False),
    ] = "",
    removal: arguments.Removal = "zero",
    border: Annotated[
        str,
        typer.Option(
            metavar="exact|folded",
            help="Constants in front of padding: exact everywhere, or in the middle only.",
        ),
    ] = "exact",
    retrain: Annotated[
        int, typer.Option(min=0, metavar="EPOCHS", help="Train the small network so long.")
    ] = 0,
    batch_size: arguments.BatchSize = 50,
    seed: arguments.Seed = 0,
    json: arguments.Json = False,
) -> None:
    """Build the smaller network that keeps what a ranking puts first, and prove it.

    The result is a new network whose outputs equal those of the whole one with the removed units
    switched off. Errors are measured on the test part.
    """
    arguments.check_out(out, weights, ranking)
    scores = Ranking.load(ranking)
    source = architecture(model)
    network = trained_model(source, weights)
    _check_same_network(scores, network, ranking)
    splits = load_data(data, batch_size=batch_size)
    plan = choose(
        scores,
        keep=None if keep is None else per_layer(keep, int, "--keep"),
        ratio=None if ratio is None else number_or_per_layer(ratio, float, "--ratio"),
        max_params=max_params,
        max_macs=max_macs,
        max_latency=max_latency,
        max_drop=max_drop,
        model=network,
        data=splits.validation,
        removal=check_removal(removal),
        across=cast("Across", across),  # checked there
        min_width=number_or_per_layer(min_width, int, "--min-width"),
        multiple_of=number_or_per_layer(multiple_of, int, "--multiple-of"),
        ignored=layer_names(ignored) or (),
    )
    errors = {"before": error_rate(network, splits.test)}
    small = carry_out(network, plan, splits.train, removal=removal, border=border)
    errors["condensed"] = error_rate(small.model, splits.test)
    if retrain:
        errors["retrained"] = _retrained(small.model, splits, retrain, batch_size, seed)
    small.save(out)
    if json:
        document({**condensed_document(small), "test_error": errors, "written": str(out)})
        return
    say(plan)
    say(f"\n{small}\n")
    say("\n".join(aligned([(f"test error, {when}", percent(e)) for when, e in errors.items()])))
    say(f"\nwrote {out}")
    say(f"in Python: neurank.load({str(out)!r}, {source.in_python}).model")
    if not retrain:
        say("next: the same command with --retrain 10 wins accuracy back")


def condensed_document(small: Condensed) -> dict[str, Json]:
    """Return what is known about a condensed network, for machines."""
    return {
        "plan": {layer: list(units) for layer, units in small.plan.keep.items()},
        "report": small.report.to_json(),
        "check": {
            "max_error": small.check.max_error,
            "tolerance": small.check.tolerance,
            "examples": small.check.examples,
        },
        "removal": small.origin.removal,
    }


def _check_same_network(ranking: Ranking, network: nn.Module, path: Path) -> None:
    digest = ranking.provenance.get("model")
    if digest is not None and digest != model_digest(network):
        raise RankingError(
            f"{path} ranks a network with other weights than this one: give the MODEL and "
            "--weights that it was made with, or rank this network"
        )


def _retrained(model: nn.Module, splits: Splits, epochs: int, batch_size: int, seed: int) -> float:
    fit_again(model, splits, epochs=epochs, batch_size=batch_size, seed=seed)
    return error_rate(model, splits.test)
