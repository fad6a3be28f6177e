"""``neurank condense``: cut the units away that a ranking puts last."""

from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from neurank.cli import arguments
from neurank.cli.models import architecture, trained_model
from neurank.cli.output import document, percent, say
from neurank.cli.sources import load_data
from neurank.cli.words import number_or_per_layer, per_layer
from neurank.condense.condensed import Condensed
from neurank.condense.condensed import condense as carry_out
from neurank.condense.plan import Plan
from neurank.condense.plan import plan as choose
from neurank.condense.retrain import retrain as fit_again
from neurank.data import Splits
from neurank.errors import PlanError, RankingError
from neurank.files import Json
from neurank.observe.observer import model_digest
from neurank.ranking import Ranking
from neurank.text import aligned
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
    removal: arguments.Removal = "zero",
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
    plan = _plan(scores, keep, ratio)
    source = architecture(model)
    network = trained_model(source, weights)
    _check_same_network(scores, network, ranking)
    splits = load_data(data, batch_size=batch_size)
    errors = {"before": error_rate(network, splits.test)}
    small = carry_out(network, plan, splits.train, removal=removal)
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


def _plan(ranking: Ranking, keep: str | None, ratio: str | None) -> Plan:
    if (keep is None) == (ratio is None):
        raise PlanError("give one of --keep conv1=5,conv2=7 and --ratio 0.5, and not both")
    if keep is not None:
        return choose(ranking, keep=per_layer(keep, int, "--keep"))
    assert ratio is not None
    return choose(ranking, ratio=number_or_per_layer(ratio, float, "--ratio"))


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
