"""Write docs/condensing.md and its pictures from what benchmarks/condensing.py measured.

python -m benchmarks.condensing_page
"""

import json
import math
from collections import defaultdict
from pathlib import Path

from benchmarks.condensing import BUDGETS_BATCH, KEPT, NETWORKS
from benchmarks.coupling import ELSE, EXPLAINED, FAILS, NO_GROUP, SAME
from matplotlib.figure import Figure

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
DRAWN = {
    "RandomScore": ("#888888", ":"),
    "WeightNorm": ("#33415c", "-"),
    "Taylor": ("#edae49", "-"),
    "MeanReplacementSaliency": ("#66a182", "-"),
    "ImportanceSwitch": ("#8d6a9f", "-"),
    "PermutationShapley": ("#d1495b", "-"),
    "torch-pruning magnitude": ("#33415c", "--"),
    "torch-pruning Taylor": ("#edae49", "--"),
}
"""Colour and line of each ranker, in the order of tables; alike criteria have like colours."""


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
        "that were ranked on; where they serve alike it is `share` and all layers. At least a "
        "tenth of each layer stays. torch-pruning prunes in up to 40 steps with its own criteria, "
        "all layers ranked together, and is shown where it first "
        "meets the budget, which may be beyond it (at so many %); of residual networks it is given "
        "the inner layers of the blocks, too, "
        "since it ties the channels of a zero-padded shortcut without their shift. `mean`: what a "
        "removed unit gave on average stays, as a constant; the kernels of one channel that hold "
        "it in front of padding are not counted among the multiply-adds. In the pictures "
        "torch-pruning's curves, broken lines, are of inner layers where blocks are residual, and "
        "the same on both sides: it knows no means.",
    ]


def sweep(name, found):
    """Give one network's table and curves."""
    setting = DATA[name].format(chosen=f"{found['chosen on']:,}", tested=f"{found['tested on']:,}")
    whole = found["whole"]
    missing = [it for it in DRAWN if it not in {ranker(row) for row in found["rows"]}]
    budgets = sorted({row["fewer"] for row in found["rows"]})
    lines = [
        f"### {NAMES[name]}",
        "",
        f"{setting}{few_looked_at(found)}. The whole network: {100 * whole['accuracy']:.1f} %, "
        f"{whole['multiply-adds']:,} multiply-adds, {whole['parameters']:,} parameters."
        + (f" Not measured so far: {', '.join(missing)}." if missing else ""),
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


def few_looked_at(found):
    """Say what the rankers saw that do not see all pictures, or see them in steps."""
    said = ""
    rankers = {row["by"] for row in found["rows"]}
    if "ImportanceSwitch" in rankers:
        switch = found["switch"]
        steps = switch["epochs"] * math.ceil(found["chosen on"] / switch["batch"])
        said += (
            f"; ImportanceSwitch for {switch['epochs']} epochs, {steps} steps with "
            f"{switch['batch']} pictures each, for every layer"
        )
    if "PermutationShapley" in rankers:
        said += f"; PermutationShapley with one pass over {found['Shapley on']} of them"
        error = found.get("errors", {}).get("PermutationShapley")
        if error:
            said += (
                f" (standard error of a unit's value {error['stderr']:.4f}, standard deviation of "
                f"the values of a layer's units {error['apart']:.4f}, medians over layers)"
            )
    return said


def in_order(rows):
    """Sort rows by ranker, in whatever order they were measured."""
    return sorted(rows, key=lambda row: list(DRAWN).index(ranker(row)))


def ranker(row):
    """Name the ranker or criterion of a row, without the layers that it was given."""
    return row["by"].partition(",")[0]


def grouped(rows):
    """Group rows: (ranker, removal) to budget to (accuracy, multiply-adds left)."""
    found = {}
    for row in in_order(rows):
        points = found.setdefault((row["by"], row["removal"]), {})
        points[row["fewer"]] = row["accuracy"], row["multiply-adds"]
    return found


def curves(found, removal):
    """Return the curves of one network: ours by one removal, torch-pruning's of inner layers."""
    whole = found["whole"]["multiply-adds"]
    chosen = {}
    for row in in_order(found["rows"]):
        ours = not row["by"].startswith("torch-pruning")
        if "all layers" in row["by"] or (ours and row["removal"] != removal):
            continue
        point = (1 - row["multiply-adds"] / whole, row["accuracy"])
        chosen.setdefault(ranker(row), []).append(point)
    return chosen


def picture(name, found):
    """Draw the curves of one network, removed units as zeros on the left, as means on the right."""
    figure = Figure(figsize=(8.4, 3.9), dpi=110)
    figure.set_layout_engine("constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, removal in zip(both, ("zero", "mean"), strict=True):
        accuracy_curves(curves(found, removal), found["whole"]["accuracy"], ax=axes)
        for line in axes.lines:
            colour, dashes = DRAWN[line.get_label()]
            line.set(color=colour, linestyle=dashes)
        axes.get_legend().remove()
        axes.set_title(f"removed units are: {removal}", fontsize=9)
    both[1].set_ylabel("")
    figure.suptitle(f"{NAMES[name]}, not retrained", fontsize=10)
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  fontsize=8, frameon=False)  # fmt: skip
    return figure


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
        + " epochs. ImportanceSwitch was trained for "
        f"{found['switch epochs']} epochs. One run each, all accuracies on the same test pictures; "
        "differences below 0.1 points say nothing.",
        "",
        "| ranked by | removed units are | after removal | after retraining |",
        "|---|---|---:|---:|",
    ]
    for row in found["rows"]:
        removed, retrained = (f"{100 * row[it]:.2f} %" for it in ("removed", "retrained"))
        lines.append(f"| {row['by']} | {row['removal']} | {removed} | {retrained} |")
    return lines


def times(found):
    """Set multiply-adds beside time, and beside the accuracy that is left."""
    pictures = ", ".join(
        f"{NAMES[name]} {it['tested on']:,}" for name, it in found.items() if "accuracy" in it
    )
    lines = [
        "## Do fewer multiply-adds take less time?",
        "",
        "Half the multiply-adds by norms of weights, ours and torch-pruning's (its inner layers, "
        "where blocks are residual), removed units as zeros; one thread, repeats of all networks "
        "interleaved in one process, medians with quartiles. `both budgets`: `neurank.plan` with "
        "`max_macs`, as many as torch-pruning left, and `max_latency`, what its network took for "
        "the larger batch. `its widths`: as many units of each layer as torch-pruning left. "
        "Seconds are those of the process itself, since other work ran beside it. Ratios are to "
        "the whole network: below the ratio of multiply-adds nothing can be expected. Accuracy is "
        f"without retraining, on test pictures: {pictures}; where its cell is empty, neither it "
        "nor the plan with both budgets was measured.",
        "",
        "| network | batch | which | multiply-adds | ratio | milliseconds | ratio | accuracy "
        "| file, bytes | memory of one example, bytes |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    slower = []
    for name, it in found.items():
        for size, by in it["by batch"].items():
            whole = by["whole"]["median"]
            for label, spent in by.items():
                counted = it["multiply-adds"]
                rewritten = " (rewritten)" if it["rewritten"][label] else ""
                right = f"{100 * it['accuracy'][label]:.1f} %" if "accuracy" in it else ""
                lines.append(
                    f"| {NAMES[name]} | {size} | {label}{rewritten} | {counted[label]:,} "
                    f"| {counted[label] / counted['whole']:.2f} | {1e3 * spent['median']:.2f} "
                    f"({1e3 * spent['lower']:.2f} to {1e3 * spent['upper']:.2f}) "
                    f"| {spent['median'] / whole:.2f} | {right} "
                    f"| {it['file'][label]:,} | {it['memory'][label]:,} |"
                )
            ratios = [
                f"{label.partition(', ')[2]} {by[label]['median'] / peer:.2f}".strip()
                for peer in [by["torch-pruning"]["median"]]
                for label in by
                if label.startswith("neurank")
            ]
            slower.append(f"{NAMES[name]} at batch {size}: {', '.join(ratios)}")
    return [
        *lines,
        "",
        f"Our time over torch-pruning's: {'; '.join(slower)}.",
        "",
        "Equal multiply-adds are not equal time: pooling and activations of large maps take time "
        "and no multiply-adds. Where a criterion removes nearly all channels of the first layers, "
        "as torch-pruning's magnitudes do in SqueezeNet, time falls "
        "further. At torch-pruning's own widths the shapes are the same.",
        "",
        *within_both(found),
    ]


def within_both(found):
    """Say what the plans with two budgets took."""
    said = []
    for name, it in found.items():
        if "budgets" not in it:
            continue
        counted, budgets = it["multiply-adds"], it["budgets"]
        left = counted["neurank, both budgets"]
        _, seconds = budgets["latency"]["seconds"]
        said.append(
            f"{NAMES[name]}, allowed {budgets['max_macs']:,} multiply-adds and "
            f"{1e3 * budgets['max_latency']:.1f} ms for {it[BUDGETS_BATCH]} pictures, came to "
            f"{left:,} multiply-adds, {100 * left / counted['whole']:.0f} % of the whole, and "
            f"{1e3 * seconds:.1f} ms"
        )
    return said and [
        f"With both budgets: {'; '.join(said)}. These are the planner's own measurements, in "
        "seconds of the process, too. Once the multiply-adds are within their "
        "budget the planner goes on removing what is worth least for the multiply-adds it saves, "
        "until the time holds; it has no measure of the time that a single unit takes, so where "
        "the time goes elsewhere than the multiply-adds, many more of these go than the time "
        "asks for.",
    ]


def main():
    found = json.loads(KEPT.read_text())
    images = DOCS / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        if name in found:
            picture(name, found[name]).savefig(images / f"condensing_{name}.png")
    (DOCS / "condensing.md").write_text("\n".join(page(found)).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
