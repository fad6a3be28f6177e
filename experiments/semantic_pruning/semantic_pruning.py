"""The paper "Semantic Pruning for Single Class Interpretability" (2020), tried on trained networks.

    python experiments/semantic_pruning/semantic_pruning.py run --network squeezenet
    python experiments/semantic_pruning/semantic_pruning.py report

run
    Accumulate the responses of all convolutions to every class on held-out (imagenet20: training)
    pictures; prune the convolutions for each class by LWP and NWP and count what is recognised of
    other pictures: the paper's discrete settings and 25 ratios up to 0.6 on the class's own
    pictures, fewer ratios on pictures of all classes; find residual units; for cnn6 sample Shapley
    values by class too.
report
    Draw Figures 2 to 7 and put the paper's claims beside what was found, from what is there.

Every step is kept in --out when it is finished, and not done again. `report` writes beside this
file. --quick runs the whole path on few pictures, and leaves its results in --out.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from networks import NETWORKS, Network, first_of_each, portion_of
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from verdicts import report

import neurank as nr
from neurank.classes import DISCRETE, Curves, Setting, residual_pruning, selections, thetas
from neurank.condense.trials import watched
from neurank.data.splits import Split

STEPS = ("responses", "tenths", "residual", "shapley", "rest", "twentieths", "mean", "fine", "more")
"""In the order in which they are done; `responses` are needed for all others; `tenths`,
`twentieths` and `fine` are the ratios of `GRIDS` for the first portion of each class's pictures,
`more` all of them for the other portions."""
STATISTICS = ("sum", "mean")
SCOPES = ("layer", "network")
RESIDUAL_AT = (0.05, 0.25, 0.5)
"""The ratios of Figure 4."""
THRESHOLDS = (0.0, 0.5)
"""Shares of its input at which a unit counts as having none: to the letter, and half."""
GRIDS = {
    "tenths": tuple(it / 10 for it in range(1, 7)),
    "twentieths": tuple(it / 20 for it in range(1, 13, 2)),
    "fine": thetas()[1::2],
}
"""25 ratios up to 0.6 with the whole network; the paper's own, in steps of 0.1, are done first."""
MEAN_AT = (0.05, 0.1, 0.25, 0.33, 0.5)
"""Ratios of network-wise pruning by means per position."""


@dataclass(frozen=True)
class Size:
    """How many pictures of each class are used.

    Attributes
    ----------
    responses : for responses.
    own : to count recall on.
    portion : how many of those in one step, so that an interrupted run loses little.
    rest : of all classes, to count false positives on as well.
    rest_at : the ratios of that.
    residual : to look for residual units on.
    shapley : for Shapley values by class; 0 is none.
    """

    responses: int
    own: int
    portion: int
    rest: int
    rest_at: tuple[float, ...]
    residual: int
    shapley: int = 0


FEW = (0.025, 0.05, 0.1, 0.2, 0.4)
SIZES = {
    "squeezenet": Size(50, 50, 10, 10, (0.05, 0.1, 0.2, 0.3), 5),
    "vgg16": Size(500, 1000, 100, 30, FEW, 10),
    "cnn6": Size(500, 1000, 100, 30, FEW, 10, shapley=50),
    "resnet56": Size(500, 1000, 100, 30, FEW, 10),
}


def quick(size: Size) -> Size:
    """Return the size of a run that only tries the path."""
    return Size(5, 4, 2, 2, (0.1,), 2, shapley=min(2, size.shapley))


# --- the steps ---


def responses(model: nn.Module, data: Split) -> dict[str, Tensor]:
    """Accumulate responses, as sums and as means per example and place: (classes, units) each."""
    watching = watched(model, data, progress=False)
    convolutions = {name for name, it in model.named_modules() if isinstance(it, nn.Conv2d)}
    found = {}
    for statistic in STATISTICS:
        for layer in watching.space.hidden:
            if layer in convolutions:
                with torch.inference_mode():
                    scored = nr.ClassResponse(statistic=statistic).score(watching, layer)
                found[f"{statistic}/{layer}"] = scored.ranking.by_class.clone()
    return found


def ranking(found: dict[str, Tensor], statistic: str) -> nr.Ranking:
    """Make a ranking of kept responses; its scores are those of all classes together."""
    layers = {}
    for name, rows in found.items():
        kind, _, layer = name.partition("/")
        if kind == statistic:
            nothing = torch.zeros(rows.shape[1])
            counts = torch.zeros(rows.shape[1], dtype=torch.int64)
            layers[layer] = nr.LayerRanking(
                rows.nansum(dim=0), nothing, counts, status="computed", by_class=rows
            )
    return nr.Ranking(layers, {})


def swept(scopes: tuple[str, ...], ratios: tuple[float, ...]) -> list[Setting]:
    """Return the whole network, and each ratio of each scope."""
    return [Setting(scopes[0], 0.0), *(Setting(it, ratio) for it in scopes for ratio in ratios)]


def counts(found: Curves) -> list[dict[str, object]]:
    """Write curves down, class by class."""
    fields = ("hits", "gained", "lost", "parameters", "false_alarms", "auroc")
    return [
        {
            "label": label,
            "settings": [str(setting) for setting in found.settings],
            "pictures": int(found.pictures[row]),
            "others": None if found.others is None else int(found.others[row]),
            **{
                name: None if getattr(found, name) is None else getattr(found, name)[row].tolist()
                for name in fields
            },
        }
        for row, label in enumerate(found.labels)
    ]


def residual(model: nn.Module, data: Split, ranked: nr.Ranking) -> list[dict[str, object]]:
    """Find what goes of each layer directly and residually, class by class; network-wise."""
    labels = sorted(set(data.targets.tolist()))
    chosen = selections(ranked, labels, [Setting("network", ratio) for ratio in RESIDUAL_AT])
    return [
        {
            "label": one.selection.label,
            "theta": one.selection.setting.theta,
            "threshold": threshold,
            "layers": list(one.shares),
            "direct": [share[0] for share in one.shares.values()],
            "residual": [share[1] for share in one.shares.values()],
        }
        for threshold in THRESHOLDS
        for one in residual_pruning(model, data, chosen, threshold=threshold, progress=False)
    ]


def shapley(model: nn.Module, data: Split, layers: list[str]) -> dict[str, Tensor]:
    """Sample Shapley values of accuracy, whose rows by class are those of each class's recall."""
    ranked = nr.rank(model, data, nr.PermutationShapley(), layers=layers, progress=False)
    return {layer: ranked[layer].by_class.contiguous() for layer in layers}


# --- doing them ---


@dataclass(frozen=True)
class Kept:
    """A folder of finished steps."""

    folder: Path

    def numbers(self, name: str, compute: Callable[[], object]) -> object:
        """Return what a step found, from its file if it is there."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            started = time.perf_counter()
            draft = path.with_suffix(".draft")
            draft.write_text(json.dumps(compute()))
            draft.replace(path)
            print(self.folder.name, name, f"{time.perf_counter() - started:.0f} s", flush=True)
        return json.loads(path.read_text())

    def tensors(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors that a step found, from their file if it is there."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            started = time.perf_counter()
            draft = path.with_suffix(".draft")
            save_file(compute(), draft)
            draft.replace(path)
            print(self.folder.name, name, f"{time.perf_counter() - started:.0f} s", flush=True)
        return load_file(path)


def run(network: Network, size: Size, kept: Kept, steps: Sequence[str]) -> None:
    """Do the named steps of a network, as far as they are not done."""
    kept.folder.mkdir(parents=True, exist_ok=True)
    model = network.model()
    seen, test = network.data()
    kept.numbers("names", lambda: list(test.classes))
    found = kept.tensors(
        "responses", lambda: responses(model, first_of_each(seen, size.responses).rebatched(50))
    )
    by_sum, by_mean = (ranking(found, statistic) for statistic in STATISTICS)
    labels = sorted(set(test.targets.tolist()))
    swept_at = {name: swept(SCOPES, tuple(ratios)) for name, ratios in GRIDS.items()}
    swept_at["tenths"] += DISCRETE
    few = swept(("network",), MEAN_AT)

    def counted(data: Split, ranked: nr.Ranking, wanted: list[Setting], **how) -> object:
        return counts(nr.classes.curves(model, data, ranked, settings=wanted, **how))

    def portions(name: str, ranked: nr.Ranking, wanted: list[Setting], numbers: range) -> None:
        for number in numbers:
            for label in labels:
                part = portion_of(test, label, size.portion, number)
                kept.numbers(
                    f"{name}-{label}-{number}",
                    lambda part=part: counted(part, ranked, wanted, progress=False),
                )

    def own(name: str, first: int, end: int) -> None:
        portions(f"own-{name}", by_sum, swept_at[name], range(first, end))

    def shapley_values() -> None:
        if size.shapley:
            part = first_of_each(seen, size.shapley)
            for layer in by_sum:
                kept.tensors(f"shapley-{layer}", lambda layer=layer: shapley(model, part, [layer]))

    def rest() -> None:
        part = first_of_each(test, size.rest).rebatched(50)
        for scope in reversed(SCOPES):
            wanted = swept((scope,), size.rest_at)
            kept.numbers(
                f"rest-{scope}",
                lambda wanted=wanted: counted(part, by_sum, wanted, others=True, progress=False),
            )

    def residuals() -> None:
        part = first_of_each(test, size.residual).rebatched(size.residual)
        kept.numbers("residual", lambda: residual(model, part, by_sum))

    def more() -> None:
        for number in range(1, size.own // size.portion):
            for name in GRIDS:
                own(name, number, number + 1)

    known: dict[str, Callable[[], None]] = {
        **{name: lambda name=name: own(name, 0, 1) for name in GRIDS},
        "residual": residuals,
        "shapley": shapley_values,
        "rest": rest,
        "mean": lambda: portions("mean", by_mean, few, range(1)),
        "more": more,
    }
    for step in steps:
        if step != "responses":
            known[step]()


def main() -> None:
    """Run a network's steps, or report on all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--network", choices=tuple(NETWORKS), action="append", default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/semantic-pruning"))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--quick", action="store_true", help="the whole path on few pictures")
    arguments = parser.parse_args()
    out = arguments.out / "quick" if arguments.quick else arguments.out
    wanted = arguments.network or list(NETWORKS)
    if arguments.what == "run":
        for name in wanted:
            size = quick(SIZES[name]) if arguments.quick else SIZES[name]
            run(NETWORKS[name], size, Kept(out / name), arguments.steps)
        return
    report(out, out / "report" if arguments.quick else Path(__file__).parent, wanted)


if __name__ == "__main__":
    main()
