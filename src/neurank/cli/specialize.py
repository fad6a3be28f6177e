"""``neurank specialize``: cut a network for one class, or one for each of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import typer
from torch import nn

from neurank.classes.selection import Scope
from neurank.classes.specialist import Specialist
from neurank.classes.specialist import specialize as cut_out
from neurank.cli import arguments
from neurank.cli.condense import condensed_document
from neurank.cli.models import architecture, trained_model
from neurank.cli.output import document, say
from neurank.cli.sources import load_data
from neurank.cli.words import layer_names
from neurank.condense.measure import Times, interleaved
from neurank.condense.retrain import retrain as fit_again
from neurank.data import Splits
from neurank.errors import DataError, FileError
from neurank.files import Json
from neurank.rankers.registry import METHODS, method_class
from neurank.text import aligned, legible, percent
from neurank.training import Batches

TIMED_EXAMPLES, REPEATS = 64, 5
"""What forward passes are timed with, and how often."""


def specialize(
    model: arguments.Model,
    data: arguments.Data,
    classes: Annotated[
        list[str],
        typer.Option(
            "--class",
            metavar="NAME|all",
            help="The class, by its name or its label; may be given again, or 'all'.",
            show_default=False,
        ),
    ],
    weights: arguments.Weights = None,
    theta: Annotated[
        float | None,
        typer.Option(
            metavar="0.3",
            help="Semantic pruning: the share of units with the lowest responses that goes.",
            show_default=False,
        ),
    ] = None,
    scope: Annotated[
        str,
        typer.Option(
            metavar="layer|network", help="What --theta is a share of: each layer, or all units."
        ),
    ] = "layer",
    max_params: arguments.MaxParams = None,
    max_macs: arguments.MaxMacs = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="0.01",
            help="As small as F1 on the validation part allows; 0.01 if no rule is given.",
            show_default=False,
        ),
    ] = None,
    head: Annotated[
        bool,
        typer.Option(
            "--head", help="Fold in a head of two outputs, the rest and the class, fitted anew."
        ),
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(METHODS),
            help="How units are scored: class-response with --theta, else mean-replacement.",
            show_default=False,
        ),
    ] = None,
    removal: arguments.Removal = "zero",
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Which layers may lose units; all that can if not given.",
            show_default=False,
        ),
    ] = None,
    first: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Score and choose by so many validation examples only.",
            show_default=False,
        ),
    ] = None,
    retrain: Annotated[
        int, typer.Option(min=0, metavar="EPOCHS", help="Train each small network so long.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Where to write the network, a .safetensors file; of several classes a folder, "
            "which gets class-LABEL.safetensors for each.",
            show_default=False,
        ),
    ] = None,
    batch_size: arguments.BatchSize = 50,
    seed: arguments.Seed = 0,
    json: arguments.Json = False,
) -> None:
    """Cut a network for one class out of a many-class network.

    Units are scored and chosen on the validation part; how well the result tells the class from the
    rest is measured on the test part, beside the whole network.
    """
    network = trained_model(architecture(model), weights)
    splits = load_data(data, batch_size=batch_size)
    labels = _labels(classes, splits)
    paths = _paths(out, labels, weights)
    chosen = splits.validation if first is None else splits.validation.first(first)
    found = []
    for label in labels:
        made = cut_out(
            network,
            chosen,
            label,
            theta=theta,
            scope=cast("Scope", scope),  # checked there
            max_params=max_params,
            max_macs=max_macs,
            max_drop=max_drop,
            head=head,
            method=None if method is None else method_class(method)(),
            removal=removal,
            layers=layer_names(layers),
            test=splits.test,
            progress=not json,
        )
        row = _Row(made, splits, network, retrain, seed)
        if label in paths:
            made.save(paths[label])
        found.append(row)
    if json:
        document({"classes": [row.to_json(paths) for row in found]})
        return
    if len(found) == 1:
        say(f"{legible(found[0].name)}\n{found[0].specialist}\n")
    say("\n".join(aligned([_HEADINGS, *(row.cells() for row in found)])))
    for path in paths.values():
        say(f"wrote {path}")


_HEADINGS = (
    "class", "parameters", "", "multiply-adds", "", "time", "", "F1", "whole", "recall",
    "false positives", "AUROC",
)  # fmt: skip


class _Row:
    """A specialist, retrained if asked for, timed and measured on the test part."""

    def __init__(
        self, made: Specialist, splits: Splits, whole: nn.Module, epochs: int, seed: int
    ) -> None:
        self.specialist = made
        self.name = splits.classes[made.label]
        self.retrained = bool(epochs)
        self.quality = made.quality
        if epochs:
            fit_again(made.model, _Binary.of(made, splits), epochs=epochs, seed=seed)
            self.quality = made.measured(splits.test)
        inputs, _ = next(iter(splits.test.rebatched(TIMED_EXAMPLES)))
        self.times = interleaved({"whole": whole, "small": made.model}, inputs, REPEATS)

    def cells(self) -> tuple[str, ...]:
        """Return what the table says."""
        params, macs = self.specialist.report.parameters, self.specialist.report.multiply_adds
        times = self.times["whole"].median, self.times["small"].median
        found = self.quality
        return (
            legible(self.name),
            f"{params[1]:,}",
            percent(params[1] / params[0]),
            f"{macs[1]:,}",
            percent(macs[1] / macs[0]),
            f"{1e3 * times[1]:.3g} ms",
            percent(times[1] / times[0]),
            *map(percent, (found.f1, self.specialist.whole.f1, found.recall)),
            percent(found.false_positive_rate),
            percent(found.auroc),
        )

    def to_json(self, paths: dict[int, Path]) -> dict[str, Json]:
        """Return it for machines."""
        made = self.specialist
        return {
            "label": made.label,
            "name": self.name,
            "head": made.head is not None,
            "retrained": self.retrained,
            **condensed_document(made.condensed),
            "whole": made.whole.to_json(),
            "quality": self.quality.to_json(),
            "seconds": {name: _seconds(it) for name, it in self.times.items()},
            "written": str(paths[made.label]) if made.label in paths else None,
        }


@dataclass(frozen=True)
class _Binary:
    """The parts that a specialist is retrained on, labelled as it answers."""

    train: Batches
    validation: Batches

    @classmethod
    def of(cls, made: Specialist, splits: Splits) -> "_Binary":
        return cls(made.examples(splits.train), made.examples(splits.validation))


def _seconds(times: Times) -> dict[str, Json]:
    return {"batch_size": times.batch_size, "median": times.median, "repeats": times.repeats}


def _labels(wanted: Sequence[str], splits: Splits) -> tuple[int, ...]:
    """Read names or labels of classes, each once."""
    names = list(splits.classes)
    if list(wanted) == ["all"]:
        there = set(splits.validation.targets.tolist())
        return tuple(label for label in range(len(names)) if label in there)
    found = []
    for name in wanted:
        if name in names:
            found.append(names.index(name))
        elif name.isdecimal() and int(name) < len(names):
            found.append(int(name))
        else:
            shown = ", ".join(legible(it) for it in names[:20])
            raise DataError(
                f"there is no class {legible(name)!r} in {splits.name}: give one of {shown}"
                f"{' ...' if len(names) > 20 else ''}, a label from 0 to {len(names) - 1}, or 'all'"
            )
    return tuple(dict.fromkeys(found))


def _paths(out: Path | None, labels: Sequence[int], weights: Path | None) -> dict[int, Path]:
    """Say where each network goes, before any work; refuse what cannot be written."""
    if out is None:
        return {}
    if len(labels) == 1 and not out.is_dir():
        return {labels[0]: arguments.check_out(out, weights)}
    if not out.is_dir():
        raise FileError(f"--out {out} is no folder, which several classes need: make it first")
    paths = {label: out / f"class-{label}.safetensors" for label in labels}
    for path in paths.values():
        arguments.check_out(path, weights)
    return paths
