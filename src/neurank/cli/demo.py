"""``neurank demo``: the whole of it on scikit-learn's digits, without a download."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated

import torch
import typer
from torch import nn

from neurank import data, zoo
from neurank.agreement import Agreement, compare
from neurank.cli import arguments
from neurank.cli.models import save_weights
from neurank.cli.output import command_line, document, heading, say
from neurank.condense.condensed import Condensed, condense
from neurank.condense.plan import plan
from neurank.condense.retrain import retrain
from neurank.data import Split, Splits
from neurank.files import Json
from neurank.observe.activations import layer_maps
from neurank.rankers.exact_shapley import ExactShapley
from neurank.rankers.importance_switch import ImportanceSwitch
from neurank.rankers.permutation_shapley import PermutationShapley
from neurank.rankers.random_score import RandomScore
from neurank.rankers.rank import rank
from neurank.ranking import Ranking
from neurank.report.documents import agreement_document
from neurank.report.plots import feature_maps, score_panels
from neurank.report.run_folder import RunFolder, numbered_run_folder, run_folder
from neurank.text import aligned, percent
from neurank.training import error_rate, fit

LAYERS = ("conv1", "conv2", "fc1", "fc2")
NAMES = ("Shapley values", "switches")
TOP = 5
EPOCHS, AGAIN, SWITCH_EPOCHS = 30, 10, 20
PASSES = 20
REMOVED = 0.5
RANDOM_DRAWS = 3
BATCH_SIZE = 50


@dataclass(frozen=True)
class Outcome:
    """What became of the network when it was condensed by one ranking.

    Attributes
    ----------
    small : the condensed network, retrained.
    condensed, retrained : its error on the test part before and after retraining.
    """

    small: Condensed
    condensed: float
    retrained: float


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A new or empty folder for the results; runs/demo-001 and so on if not given.",
            show_default=False,
        ),
    ] = None,
    seed: arguments.Seed = 0,
    json: arguments.Json = False,
) -> None:
    """Train, rank two ways, compare, condense and retrain a small network; under a minute.

    It needs no download: the digits come with scikit-learn.
    """
    folder = numbered_run_folder("demo") if out is None else run_folder(out)
    with _one_thread():
        _run(folder, seed, json)


def _run(folder: RunFolder, seed: int, json: bool) -> None:
    started = time.perf_counter()
    splits = data.load("digits", batch_size=BATCH_SIZE)

    say(heading("1. Train digits_net on 1,197 digits of 8 x 8 pixels"), quiet=json)
    model, error = _trained(splits, seed)
    say(f"test error {percent(error)}\n", quiet=json)

    say(heading("2. Rank its units two ways"), quiet=json)
    say("(the first ranking after installing compiles its loops, some 20 s)", quiet=json)
    shapley = _shapley(model, splits.validation, seed)
    say(f"{shapley}\n", quiet=json)
    switches = rank(model, splits.train, ImportanceSwitch(epochs=SWITCH_EPOCHS), seed=seed)
    say(f"{switches}\n", quiet=json)

    say(heading("3. See where the rankings agree"), quiet=json)
    agreement = compare(shapley, switches, k=TOP, names=NAMES)
    say(f"{agreement}\n", quiet=json)

    say(heading("4. Remove half of the units of each layer, by each ranking"), quiet=json)
    outcomes = _outcomes(model, {NAMES[0]: shapley, NAMES[1]: switches}, splits, seed)
    say(_before_and_after(outcomes, error), quiet=json)

    _save_pictures(folder, model, splits, (shapley, switches))
    _save_files(folder, model, shapley, switches, agreement, outcomes)
    summary = _summary(outcomes, agreement, error, seed, time.perf_counter() - started)
    folder.save_summary(summary)
    if json:
        document({**summary, "written": [str(path) for path in folder.files]})
    else:
        say(_closing(folder, summary))


def _trained(splits: Splits, seed: int) -> tuple[nn.Module, float]:
    model = zoo.digits_net(seed=seed)
    fit(model, splits.train, splits.validation, epochs=EPOCHS, seed=seed)
    return model, error_rate(model, splits.test)


def _shapley(model: nn.Module, examples: Split, seed: int) -> Ranking:
    """Rank exactly where that is quick, and by sampling in the widest layer."""
    exact = rank(model, examples, ExactShapley(), layers=["conv1", "conv2", "fc2"], seed=seed)
    sampled = rank(model, examples, PermutationShapley(PASSES), layers=["fc1"], seed=seed)
    return exact.merge(sampled).select(LAYERS)


def _outcomes(
    model: nn.Module, rankings: Mapping[str, Ranking], splits: Splits, seed: int
) -> dict[str, list[Outcome]]:
    """Condense and retrain by each ranking, and by some random ones for comparison."""
    outcomes = {
        name: [_condensed(model, ranking, splits, seed)] for name, ranking in rankings.items()
    }
    outcomes["random"] = [
        _condensed(model, rank(model, splits.validation, RandomScore(), seed=draw), splits, seed)
        for draw in range(seed, seed + RANDOM_DRAWS)
    ]
    return outcomes


def _condensed(model: nn.Module, ranking: Ranking, splits: Splits, seed: int) -> Outcome:
    small = condense(model, plan(ranking, ratio=REMOVED), splits.train)
    condensed = error_rate(small.model, splits.test)
    retrain(small.model, splits, epochs=AGAIN, seed=seed)
    return Outcome(small, condensed, error_rate(small.model, splits.test))


def _before_and_after(outcomes: Mapping[str, list[Outcome]], error: float) -> str:
    first = next(iter(outcomes.values()))[0].small
    costs = first.report
    rows: list[tuple[str, ...]] = [
        ("", "parameters", "multiply-adds", "test error", f"after {AGAIN} epochs more")
    ]
    whole, small = zip(costs.parameters, costs.multiply_adds, strict=True)
    rows.append(("whole network", *(f"{cost:,}" for cost in whole), percent(error), ""))
    for name, runs in outcomes.items():
        errors = (mean(run.condensed for run in runs), mean(run.retrained for run in runs))
        title = f"by {name}" + (f", mean of {len(runs)}" if len(runs) > 1 else "")
        rows.append((title, *(f"{cost:,}" for cost in small), *map(percent, errors)))
    return "\n".join([*aligned(rows), f"by {NAMES[0]}: {first.check}", ""])


def _save_pictures(
    folder: RunFolder, model: nn.Module, splits: Splits, rankings: tuple[Ranking, Ranking]
) -> None:
    folder.save_figure("scores", score_panels(*rankings, names=NAMES, k=TOP))
    labels = splits.validation.targets.tolist()
    digits = [labels.index(label) for label in range(0, len(splits.classes), 2)]
    pictures = splits.validation.subset(digits).inputs
    maps = layer_maps(model, "conv1", pictures)
    folder.save_figure("maps", feature_maps(maps, rankings[0], "conv1", pictures=pictures))


def _save_files(
    folder: RunFolder,
    model: nn.Module,
    shapley: Ranking,
    switches: Ranking,
    agreement: Agreement,
    outcomes: Mapping[str, list[Outcome]],
) -> None:
    save_weights(model, folder.file("weights.safetensors"), {"model": "digits_net"})
    folder.save_ranking("shapley", shapley)
    folder.save_ranking("switches", switches)
    folder.save_agreement(agreement)
    outcomes[NAMES[0]][0].small.save(folder.file("small.safetensors"))


def _summary(
    outcomes: Mapping[str, list[Outcome]],
    agreement: Agreement,
    error: float,
    seed: int,
    seconds: float,
) -> dict[str, Json]:
    report = next(iter(outcomes.values()))[0].small.report
    return {
        "model": "digits_net",
        "data": "digits",
        "seed": seed,
        "seconds": round(seconds, 1),
        "test_error": error,
        "report": report.to_json(),
        "agreement": agreement_document(agreement),
        "condensed": {
            name: [
                {
                    "test_error": run.condensed,
                    "retrained_test_error": run.retrained,
                    "max_error": run.small.check.max_error,
                    "kept": {layer: list(kept) for layer, kept in run.small.plan.keep.items()},
                }
                for run in runs
            ]
            for name, runs in outcomes.items()
        },
    }


def _closing(folder: RunFolder, summary: Mapping[str, Json]) -> str:
    about = {
        "agreement.csv": "step 3 as a table for other programs",
        "agreement.txt": "step 3 as above",
        "maps.png": "what the best and worst filters of conv1 make of some digits",
        "scores.png": "every unit's score, both ways",
        "shapley.safetensors": "the ranking by Shapley values",
        "small.safetensors": "the network condensed by them, retrained",
        "summary.json": "the figures above for other programs",
        "switches.safetensors": "the ranking by switches",
        "weights.safetensors": "the whole network",
    }
    files = aligned([(f"  {path.name}", about[path.name]) for path in folder.files])
    path = folder.path
    weights = ("--weights", path / "weights.safetensors")
    eights = path.parent / "eights.safetensors"
    one_class = ("--value", "recall:8", "--layers", "fc2", "--method", "exact", "--out", eights)
    commands = (
        ("rank", "digits_net", "digits", *weights, *one_class),
        ("compare", path / "shapley.safetensors", eights, "-k", 3),
    )
    return "\n".join(
        [
            f"wrote {path} in {summary['seconds']} s",
            *files,
            "",
            "next: which units of fc2 matter for recognising an 8?",
            *(f"  {command_line('neurank', *words)}" for words in commands),
            "in Python:",
            f"  neurank.load({str(path / 'small.safetensors')!r}, neurank.zoo.digits_net).model",
        ]
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: for a network this small, sharing the work costs more than it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
