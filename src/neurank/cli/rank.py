"""``neurank rank``: score the units of a trained network."""

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from neurank.cli import arguments
from neurank.cli.method_options import make_method, with_method_options
from neurank.cli.models import architecture, trained_model
from neurank.cli.output import command_line, document, say
from neurank.cli.sources import check_class, load_data, part
from neurank.cli.words import layer_names, memory, value
from neurank.errors import FileError
from neurank.journal import chunks_in
from neurank.rankers.importance_switch import ImportanceSwitch
from neurank.rankers.rank import rank as rank_units
from neurank.rankers.registry import METHODS
from neurank.ranking import Ranking
from neurank.report.documents import ranking_document
from neurank.text import legible


@with_method_options
def rank(
    model: arguments.Model,
    data: arguments.Data,
    out: arguments.Out,
    weights: arguments.Weights = None,
    method: Annotated[
        str, typer.Option(metavar="|".join(METHODS), help="How units are scored.")
    ] = "permutation",
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Which layers, by their dotted names; all with units that can be switched off if "
            "not given.",
            show_default=False,
        ),
    ] = None,
    value_: Annotated[
        str,
        typer.Option(
            "--value",
            metavar="accuracy|recall:3|loss|margin",
            help="What a coalition of units is worth on an example.",
        ),
    ] = "accuracy",
    removal: arguments.Removal = "zero",
    split: Annotated[
        str | None,
        typer.Option(
            metavar="train|validation",
            help="The part of the data to score on: validation; for --method switch, train.",
            show_default=False,
        ),
    ] = None,
    first: Annotated[
        int | None,
        typer.Option(min=1, help="Use only so many examples of it.", show_default=False),
    ] = None,
    batch_size: arguments.BatchSize = 200,
    seed: arguments.Seed = 0,
    max_memory: Annotated[
        str,
        typer.Option(metavar="500M|2G", help="Memory for the examples that are in work at once."),
    ] = "1G",
    precision: Annotated[
        str,
        typer.Option(
            metavar="own|bfloat16",
            help="What the convolutions below a layer are computed in; the result says how many "
            "decisions bfloat16 changes.",
        ),
    ] = "own",
    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where finished chunks are kept, so that an interrupted run can go on; the name "
            "of OUT with .journal if not given, and then removed when all is done.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that the journal is of.")
    ] = False,
    json: arguments.Json = False,
    **options: Any,
) -> None:
    """Score every unit of a trained network: higher is more important.

    Ctrl-C keeps what is finished and prints the command that goes on with the rest.
    """
    arguments.check_out(out, weights)
    kept = out.with_suffix(".journal") if journal is None else journal
    _check_journal(kept, resume=resume)
    chosen = make_method(method, options)
    worth = value(value_)
    network = trained_model(architecture(model), weights)
    splits = load_data(data, batch_size=batch_size)
    check_class(worth, splits)
    examples = part(splits, split or _usual_split(chosen))
    try:
        ranking = rank_units(
            network,
            examples if first is None else examples.first(first),
            chosen,
            layers=layer_names(layers),
            value=worth,
            removal=cast(Any, removal),  # checked where it is used
            seed=seed,
            max_memory=memory(max_memory),
            precision=cast(Any, precision),  # checked where it is used
            journal=kept,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_go_on(kept)) from None
    ranking.save(out)
    if journal is None:
        for done in (kept, kept.with_name(f"{kept.name}.lock")):
            done.unlink(missing_ok=True)
    if json:
        document({**ranking_document(ranking), "written": str(out)})
        return
    say(ranking)
    say(_left_out(ranking) + _how_far(ranking), end="")
    say(f"wrote {out}")
    say(f"next: {_next(model, data, weights, out)}")


def _check_journal(kept: Path, *, resume: bool) -> None:
    finished = chunks_in(kept)
    if resume and not finished:
        raise FileError(
            f"--resume: no journal {kept} has anything finished to go on with: leave --resume out"
        )
    if finished and not resume:
        raise FileError(
            f"{kept} holds {finished} finished chunks of a run that was interrupted: add --resume "
            "to go on with it, or delete it"
        )
    if not resume:
        kept.unlink(missing_ok=True)  # a journal of nothing, perhaps of other arguments


def _how_to_go_on(kept: Path) -> str:
    """Return the command that goes on with the run, on one line."""
    finished = chunks_in(kept)
    if not finished:
        return "interrupted before anything was finished"
    words = [word for word in sys.argv[1:] if word != "--resume"]
    return (
        f"interrupted; {finished} finished chunks are kept in {kept}. Go on with: "
        f"{command_line('neurank', *words, '--resume')}"
    )


def _how_far(ranking: Ranking) -> str:
    """Say what was reused, and where a rule ended the sampling."""
    lines = []
    journal = ranking.provenance.get("journal")
    if isinstance(journal, dict) and journal["reused"]:
        lines.append(f"resumed: {journal['reused']} of {journal['chunks']} chunks were finished")
    layers = ranking.provenance["by_layer"]
    assert isinstance(layers, dict)
    for name, record in layers.items():
        if isinstance(record, dict) and "stopped" in record:
            lines.append(
                f"{legible(name)}: {record['repetitions']} repetitions of {record['examples']:,} "
                f"examples, {record['stopped']}"
            )
    return "".join(f"{line}\n" for line in lines)


def _usual_split(method: object) -> str:
    """Choose training data for a switch, which is learnt, and validation data for the others."""
    return "train" if isinstance(method, ImportanceSwitch) else "validation"


def _left_out(ranking: Ranking) -> str:
    refused = ranking.provenance.get("refused_layers")
    if not isinstance(refused, dict):
        return ""
    return "".join(
        f"not ranked: {legible(name)}: {legible(str(reason), 300)}\n"
        for name, reason in refused.items()
    )


def _next(model: str, data: str, weights: Path | None, out: Path) -> str:
    given = () if weights is None else ("--weights", weights)
    cut = ("--ranking", out, "--ratio", 0.5, "--out", "small.safetensors")
    return command_line("neurank", "condense", model, data, *given, *cut)
