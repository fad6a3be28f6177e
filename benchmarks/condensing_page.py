"""Write docs/condensing.md and its pictures from what benchmarks/condensing.py measured.

python -m benchmarks.condensing_page
"""

import json
from collections import defaultdict
from pathlib import Path

from benchmarks.condensing import KEPT, NETWORKS
from benchmarks.coupling import ELSE, EXPLAINED, FAILS, NO_GROUP, SAME

from neurank.report.condensation import accuracy_curves

DOCS = Path(__file__).parent.parent / "docs"
NAMES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56", "squeezenet1_1": "SqueezeNet 1.1",
         "vgg16": "VGG-16"}  # fmt: skip
DATA = {
    "resnet20": "CIFAR-10. Ranked on rows 45,000 on of the training file, {chosen} of them, which "
    "the published weights were probably trained on; tested on the first {tested} test pictures",
    "squeezenet1_1": "ImageNet, 20 classes of its 1,000. Ranked on {chosen} training photographs; "
    "tested on {tested} validation photographs, every fifth, among all 1,000 classes",
}
DATA["resnet56"] = DATA["resnet20"]


def page(found):
    """Return the page's lines from what was measured."""
    lines = [
        "# Condensing: what is tied, what is left, and what it takes",
        "",
        "Written by `python -m benchmarks.condensing_page` from what `make bench-condensing` "
        "measured. 1 multiply-add (MAC) = 2 FLOPs; convolutions and linear layers count.",
        "",
    ]
    if "coupling" in found:
        lines += [*coupling(found["coupling"]), ""]
    swept = [name for name in NETWORKS if name in found]
    if swept:
        lines += [*preface(), ""]
    for name in swept:
        lines += [*sweep(name, found[name]), ""]
    if "lenet" in found:
        lines += [*lenet(found["lenet"]), ""]
    timed = {name: found[f"time of {name}"] for name in NAMES if f"time of {name}" in found}
    if timed:
        lines += [*times(timed), ""]
    machine = found.get("machine")
    if machine:
        versions = ", ".join(f"{name} {it}" for name, it in machine["versions"].items())
        lines += ["## Machine", "", f"{machine['in_words']}. Other work ran beside it. {versions}."]
    return lines


def coupling(found):
    """Say what torch-pruning's graph ties beside ours."""
    units = sum(it["units"] for it in found.values())
    verdicts = defaultdict(int)
    for it in found.values():
        for verdict, count in it["verdicts"].items():
            verdicts[verdict.partition(":")[0]] += count
    same = [name for name, it in found.items() if set(it["verdicts"]) == {SAME}]
    others = [name for name in found if name not in same]
    lines = [
        "## What is tied: torch-pruning as the judge",
        "",
        f"For each of {units:,} units of {len(found)} small architectures: the elements of all "
        "parameters and running statistics that go with it here, and those in the group that "
        "torch-pruning's `DependencyGraph` gives for the same rows of the same layer. Where these "
        "differ, torch-pruning's group is carried out, one for each layer and kind of difference.",
        "",
        "| outcome | units |",
        "|---|---:|",
        f"| the same elements | {verdicts[SAME]:,} |",
        f"| torch-pruning's network does not run | {verdicts[FAILS]:,} |",
        "| it runs, but computes something else than the network with these elements at zero "
        f"| {verdicts[ELSE]:,} |",
        f"| torch-pruning gives no group, with an error | {verdicts[NO_GROUP]:,} |",
        "",
        f"All groups are the same in {len(same)} architectures: {', '.join(same)}.",
        "",
        "A network that does not run may do so because its Python holds a width as a number, which "
        "torch-pruning leaves to its user; here the forward pass is rewritten then.",
        "",
        "| the others | units | same | does not run | something else | no group | "
        "what it is about |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name in others:
        counts = defaultdict(int)
        for verdict, count in found[name]["verdicts"].items():
            counts[verdict.partition(":")[0]] += count
        lines.append(
            f"| {name} | {found[name]['units']} | {counts[SAME]} | {counts[FAILS]} "
            f"| {counts[ELSE]} | {counts[NO_GROUP]} | {EXPLAINED.get(name, '')} |"
        )
    return lines


def preface():
    """Say how budgets were met."""
    return [
        "## Accuracy without retraining",
        "",
        "Units go one after another, whatever their layer, until the budget holds. How scores of "
        'different layers are compared (`"share"` or `"share per cost"`, see `neurank.plan`), and '
        "whether the residual stream is left alone, is what serves best at 30 % on the pictures "
        "that were ranked on. At least a tenth of each layer stays. torch-pruning prunes in up to "
        "40 steps with its own criteria, all layers ranked together, and is shown where it first "
        "meets the budget, which may be beyond it (at so many %); of residual networks it is given "
        "the inner layers of the blocks, too, "
        "since it ties the channels of a zero-padded shortcut without their shift. `mean`: what a "
        "removed unit gave on average stays, as a constant; the kernels of one channel that hold "
        "it in front of padding are not counted among the multiply-adds.",
    ]


def sweep(name, found):
    """Give one network's table and curves."""
    setting = DATA[name].format(chosen=f"{found['chosen on']:,}", tested=f"{found['tested on']:,}")
    shapley = found.get("Shapley on")
    some = f"; PermutationShapley with one pass over {shapley} of them" if shapley else ""
    whole = found["whole"]
    budgets = sorted({row["fewer"] for row in found["rows"]})
    lines = [
        f"### {NAMES[name]}",
        "",
        f"{setting}{some}. The whole network: {100 * whole['accuracy']:.1f} %, "
        f"{whole['multiply-adds']:,} multiply-adds, {whole['parameters']:,} parameters.",
        "",
        f"![accuracy over multiply-adds of {NAMES[name]}](images/condensing_{name}.png)",
        "",
        "| ranked by | removed units are | "
        + " | ".join(f"{100 * it:.0f} % fewer" for it in budgets)
        + " | compared by |",
        "|---|---|" + "---:|" * len(budgets) + "---|",
    ]
    best = {
        fewer: max(row["accuracy"] for row in found["rows"] if row["fewer"] == fewer)
        for fewer in budgets
    }
    for (by, removal), points in grouped(found["rows"]).items():
        cells = []
        for fewer in budgets:
            right, left = points.get(fewer, (None, 0))
            shown = "" if right is None else f"{100 * right:.1f} %"
            shown = f"**{shown}**" if right == best[fewer] else shown
            gone = 1 - left / whole["multiply-adds"]
            far = right is not None and gone - fewer > 0.01
            cells.append(f"{shown} (at {100 * gone:.0f})" if far else shown)
        chosen = found["chosen"].get(by, "")
        lines.append(f"| {by} | {removal} | {' | '.join(cells)} | {chosen} |")
    return lines


def grouped(rows):
    """Group rows: (ranker, removal) to budget to (accuracy, multiply-adds left)."""
    found = {}
    for row in rows:
        points = found.setdefault((row["by"], row["removal"]), {})
        points[row["fewer"]] = row["accuracy"], row["multiply-adds"]
    return found


def curves(found):
    """Return the curves of one network: of ours those by means, of torch-pruning's the inner."""
    whole = found["whole"]["multiply-adds"]
    chosen = {}
    for row in found["rows"]:
        ours = not row["by"].startswith("torch-pruning")
        if (ours and row["removal"] == "mean") or (not ours and "all layers" not in row["by"]):
            label = f"{row['by']}, means" if ours else row["by"]
            point = (1 - row["multiply-adds"] / whole, row["accuracy"])
            chosen.setdefault(label, []).append(point)
    return chosen


def lenet(found):
    """Say what retraining brings, beside the same size from scratch."""
    first, more = found["epochs"]
    scratch = {int(epochs): right for epochs, right in found["from scratch"].items()}
    lines = [
        "## After retraining: LeNet on MNIST",
        "",
        f"LeNet 10-20-100-25, trained for {first} epochs: "
        f"{100 * found['whole']['accuracy']:.2f} % of the 10,000 test pictures. Condensed to the "
        f"paper's 5-7-45-20 by {found['chosen on']:,} validation pictures, then retrained for "
        f"{more} epoch{'s' * (more > 1)}. A network of that size trained from scratch: "
        + ", ".join(f"{100 * right:.2f} % after {it}" for it, right in sorted(scratch.items()))
        + " epochs. One run each; differences below 0.1 points say nothing.",
        "",
        "| ranked by | removed units are | after removal | after retraining |",
        "|---|---|---:|---:|",
    ]
    for row in found["rows"]:
        again = "" if row["retrained"] is None else f"{100 * row['retrained']:.2f} %"
        lines.append(f"| {row['by']} | {row['removal']} | {100 * row['removed']:.2f} % | {again} |")
    return lines


def times(found):
    """Set multiply-adds beside time."""
    lines = [
        "## Do fewer multiply-adds take less time?",
        "",
        "Half the multiply-adds by norms of weights, ours and torch-pruning's (its inner layers, "
        "where blocks are residual); one thread, repeats of all networks interleaved in one "
        "process, medians with quartiles. `its widths`: as many units of each layer as "
        "torch-pruning left. Seconds are those of the process itself, since other "
        "work ran beside it. Ratios are to the whole network: below the ratio of multiply-adds "
        "nothing can be expected.",
        "",
        "| network | batch | which | multiply-adds | ratio | milliseconds | ratio | file, bytes "
        "| memory of one example, bytes |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    slower = []
    for name, it in found.items():
        for size, by in it["by batch"].items():
            whole = by["whole"]["median"]
            for label, spent in by.items():
                counted = it["multiply-adds"]
                rewritten = " (rewritten)" if it["rewritten"][label] else ""
                lines.append(
                    f"| {NAMES[name]} | {size} | {label}{rewritten} | {counted[label]:,} "
                    f"| {counted[label] / counted['whole']:.2f} | {1e3 * spent['median']:.2f} "
                    f"({1e3 * spent['lower']:.2f} to {1e3 * spent['upper']:.2f}) "
                    f"| {spent['median'] / whole:.2f} | {it['file'][label]:,} "
                    f"| {it['memory'][label]:,} |"
                )
            ratios = [
                by[label]["median"] / by["torch-pruning"]["median"]
                for label in ("neurank", "neurank, its widths")
                if label in by
            ]
            said = ", at its widths ".join(f"{ratio:.2f}" for ratio in ratios)
            slower.append(f"{NAMES[name]} at batch {size}: {said}")
    return [
        *lines,
        "",
        f"Our time over torch-pruning's: {'; '.join(slower)}.",
        "",
        "Equal multiply-adds are not equal time: pooling and activations of large maps take time "
        "and no multiply-adds. Where a criterion removes nearly all channels of the first layers, "
        "as torch-pruning's magnitudes do in SqueezeNet, time falls "
        "further. At torch-pruning's own widths the shapes are the same.",
    ]


def main():
    found = json.loads(KEPT.read_text())
    images = DOCS / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        if name in found:
            axes = accuracy_curves(curves(found[name]), found[name]["whole"]["accuracy"])
            axes.set_title(f"{NAMES[name]}, not retrained", fontsize=10)
            axes.figure.savefig(images / f"condensing_{name}.png")
    (DOCS / "condensing.md").write_text("\n".join(page(found)).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
