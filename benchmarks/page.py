"""Write docs/benchmarks.md and its picture from what the benchmarks measured.

    python -m benchmarks.page [--docs docs]

Every figure on the page comes from build/benchmarks/; none is typed. A benchmark's part of the
page is a function from its measurements to lines of Markdown, listed in `PARTS`.
"""

import argparse
import json
import textwrap
from pathlib import Path

from benchmarks.curves import Point, Spread, ratio, spread, times_to
from benchmarks.lenet import RESULTS
from benchmarks.vgg16_page import vgg16
from matplotlib.figure import Figure

DOCS = Path(__file__).parent.parent / "docs"
PICTURE = Path("images") / "error_against_time.png"
GOALS = {"black box": 1000, "given neurank's values": 20}
COLOURS = {"neurank": "#d1495b", "given neurank's values": "#2e7d6b", "black box": "#33415c"}
MARKERS = {
    "PermutationShapley": "*",
    "shared permutations": "o",
    "permutation": "s",
    "KernelSHAP": "^",
    "SVARM": "v",
    "stratified": "D",
    "Owen": "P",
    "ShapleyValueSampling": "X",
}


def in_time(seconds):
    """Say seconds in the unit that suits them, with three digits.

    >>> in_time(0.0123), in_time(1.5), in_time(600), in_time(36000)
    ('12.3 ms', '1.50 s', '10.0 min', '10.0 h')
    """
    for size, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{_three_digits(seconds / size)} {name}"
    return f"{_three_digits(1000 * seconds)} ms" if seconds < 1 else f"{_three_digits(seconds)} s"


def times(number):
    """Say a ratio with two or more digits.

    >>> times(7.04), times(345.6), times(12345.6)
    ('7.0', '346', '12,300')
    """
    if number < 10:
        return f"{number:.1f}"
    if number < 1000:
        return f"{number:.0f}"
    return f"{float(f'{number:.3g}'):,.0f}"


def _three_digits(number):
    return f"{number:#.3g}".rstrip(".")


def _range(numbers, say):
    return f"{say(numbers.median)} ({say(numbers.lowest)} to {say(numbers.highest)})"


def _points(curve):
    return [Point(**point) for point in curve["points"]]


def _seconds_to(curve, target):
    """Give the seeds' times to the target, and how the worst founded of them was found."""
    reached = times_to(_points(curve), target)
    kinds = {one.how for one in reached}
    how = next(how for how in ("extrapolated", "measured", "first") if how in kinds)
    return how, spread([one.seconds for one in reached])


def against_peers(found):
    """Describe the LeNet's fc1: what was measured, the tables, what limits the ratios."""
    own, *others = found["curves"]
    _, whole = _seconds_to(own, found["target"])
    return [
        "## LeNet fc1 against the peers",
        "",
        *_setting(found),
        "",
        f"![Error against time]({PICTURE.as_posix()})",
        "",
        *_own_table(found, own),
        "",
        *_table(found, others, whole, "black box"),
        "",
        *_table(found, others, whole, "given neurank's values"),
        "",
        *_limits(found, whole),
        "",
        *_checks(found),
        "",
        *_device(found),
    ]


def _setting(found):
    truth = found["truth"]
    error = found["error_rate"]
    start, end = found["value_ends"]
    if truth["kind"] == "exact":
        reference = (
            f"The truth is exact: the power sets of each picture's active units, "
            f"{truth['coalitions']:.3g} coalitions in {in_time(truth['seconds'])}."
        )
    else:
        reference = (
            f"Exact values are out of reach; the truth is neurank's own mean over "
            f"{truth['coalitions']:.3g} coalitions with other seeds, with a standard error of "
            f"{truth['stderr']:.2g}."
        )
    return [
        f"The LeNet 10-20-100-25 (test error {100 * error:.2f} %), the {found['units']} units of "
        f"fc1, {found['pictures']:,} pictures of MNIST's validation part, accuracy as the value "
        f"({start:.4f} with no unit, {end:.4f} with all), removal `zero`. Of the units "
        f"{found['active']:.1f} are active per picture. {reference} The error is the root mean "
        f"square over the units of estimate minus truth, RMSE; the question is how long it takes "
        f"to {found['target']}. Each peer ran with {found['seeds']} seeds; tables give the median "
        "and, in brackets, lowest and highest.",
    ]


def _own_table(found, own):
    lines = [
        "### neurank",
        "",
        "Whole calls of `neurank.rank`: tracing, checks of model and data, one prefix run, and the "
        f"passes. By least squares, seconds = {in_time(found['start'])} + passes × "
        f"{in_time(found['step'])}.",
        "",
        "| passes | seconds | RMSE |",
        "|---:|---:|---:|",
    ]
    points = _points(own)
    for passes in sorted({point.coalitions for point in points}):
        some = [point for point in points if point.coalitions == passes]
        seconds = spread([point.seconds for point in some])
        errors = spread([point.rmse for point in some])
        lines.append(
            f"| {passes} | {_range(seconds, in_time)} | {_range(errors, lambda e: f'{e:.5f}')} |"
        )
    return lines


def _table(found, curves, whole, family):
    """Tell for every peer of a family how long it takes, and how much longer than neurank."""
    black_box = family == "black box"
    if black_box:
        head = [
            "### The peers on the black box",
            "",
            "The whole network runs once per coalition, in batches of "
            f"{found['batch_size']} pictures, the fastest of those tried: "
            f"{in_time(found['per_coalition'])} per coalition. Runs of two permutations are real; "
            "longer ones are replayed, see the checks below.",
        ]
    else:
        head = [
            "### The peers given neurank's values",
            "",
            "The same estimators, but what a coalition is worth comes from neurank's compiled "
            f"loops. Getting there (tracing, checks, prefix) takes "
            f"{in_time(found['setup_of_values'])} and is counted on both sides in the column "
            "“whole”; “sampling alone” leaves it out on both.",
        ]
    columns = "| estimator | coalitions | how | seconds | whole, ratio |"
    rule = "|---|---:|---|---:|---:|"
    lines = [*head, "", columns, rule]
    if not black_box:
        lines[-2:] = [columns + " sampling alone, ratio |", rule + "---:|"]
    for curve in curves:
        if curve["family"] != family:
            continue
        how, alone = _seconds_to(curve, found["target"])
        counted = _coalitions_to(curve, found["target"])
        added = 0.0 if black_box else found["setup_of_values"]
        both = Spread(alone.median + added, alone.lowest + added, alone.highest + added)
        cells = [
            f"{curve['library']}: {curve['name']}",
            f"{counted:,.0f}",
            how,
            _range(both, in_time),
            _range(ratio(both, whole), times),
        ]
        if not black_box:
            cells.append(_range(ratio(alone, _sampling(found)), times))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _sampling(found):
    """Give the seconds of neurank's passes alone, to the target: whole passes."""
    points = _points(found["curves"][0])
    passes = [
        min(
            (point.coalitions for point in points if point.seed == seed and _fits(point, found)),
            default=max(point.coalitions for point in points),
        )
        for seed in sorted({point.seed for point in points})
    ]
    return spread([count * found["step"] for count in passes])


def _fits(point, found):
    return point.rmse <= found["target"]


def _coalitions_to(curve, target):
    """Give the median number of coalitions to the target, found as the times are."""
    points = [
        Point(point.seed, point.coalitions, float(point.coalitions), point.rmse)
        for point in _points(curve)
    ]
    return spread([one.seconds for one in times_to(points, target)]).median


def best(found, family):
    """Give the name of shapiq's fastest estimator in a family, and its times."""
    all_times = {
        curve["name"]: _seconds_to(curve, found["target"])[1]
        for curve in found["curves"]
        if curve["library"] == "shapiq" and curve["family"] == family
    }
    name = min(all_times, key=lambda each: all_times[each].median)
    return name, all_times[name]


def _limits(found, whole):
    """Compare shapiq's best with the goals and name what limits neurank."""
    lines = ["### Against shapiq's best", ""]
    name, seconds = best(found, "black box")
    lines.append(_verdict("On the black box", name, ratio(seconds, whole), GOALS["black box"]))
    name, alone = best(found, "given neurank's values")
    added = found["setup_of_values"]
    both = Spread(alone.median + added, alone.lowest + added, alone.highest + added)
    goal = GOALS["given neurank's values"]
    lines.append(_verdict("Given neurank's values, whole", name, ratio(both, whole), goal))
    sampling = ratio(alone, _sampling(found))
    lines.append(_verdict("Given neurank's values, sampling alone", name, sampling, goal))
    share = min(found["start"] / whole.median, 1)
    lines += [
        "",
        f"Of neurank's {in_time(whole.median)} to the target, {in_time(found['start'])} "
        f"({100 * share:.0f} %) are set-up: tracing, checks of model and data, and one run of the "
        f"network up to the layer. {'Set-up' if share > 0.5 else 'Sampling'} is what limits the "
        "ratio of whole calls.",
    ]
    return lines


def _verdict(where, name, ratios, goal):
    outcome = "reached" if ratios.median >= goal else "not reached"
    return f"- {where}: {_range(ratios, times)} times {name}'s time; goal {goal:,}: {outcome}."


def _checks(found):
    runs = found["black_box_runs"]
    coalitions = sum(one["coalitions"] for one in runs)
    quotients = [
        (one["own_seconds"] + one["coalitions"] * found["per_coalition"]) / one["seconds"]
        for one in runs
    ]
    off_by = max(one["off_by"] for one in runs)
    agreeing = ", ".join(f"{name} {value:.2f}" for name, value in found["agreement"].items())
    return [
        "### Checks",
        "",
        f"- Every peer ran for real on the black box, {coalitions:,} coalitions in all, and again "
        f"with neurank's values: the scores differ by at most {off_by:.2g}. So a long run on the "
        "black box is replayed: the estimator runs with neurank's values, and each coalition is "
        "charged what a full forward took (the median of the real runs). Predicted so, the real "
        f"runs' times come out {min(quotients):.2f} to {max(quotients):.2f} times the measured.",
        "- “extrapolated” means that no run was good enough, and the last one was prolonged by the "
        "law that the error falls as one over the root of time, which is kind to a biased "
        "estimator; “measured” that the target lies between two runs; “first” that the cheapest "
        "run was already better.",
        "- Distance of the seeds' mean from the truth at the largest budget, as a multiple of what "
        f"the seeds' spread makes expected (1 if unbiased): {agreeing}. Owen sampling is biased by "
        "its number of anchor points, SVARM and stratified sampling by sizes not yet drawn.",
    ]


def _device(found):
    if found["device"] is None:
        return ["There was no CUDA device: exact fc2 on one, and its peak memory, not measured."]
    lines = ["### On the CUDA device", "", "| work | seconds | peak memory |", "|---|---:|---:|"]
    for name, fact in found["device"].items():
        peak = f"{fact['peak_bytes'] / 2**20:,.0f} MiB"
        lines.append(f"| {name} | {in_time(fact['seconds'])} | {peak} |")
    return lines


def draw_error_against_time(found, path):
    """Draw every run as a point, RMSE against seconds, one line per estimator and family."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for curve in found["curves"]:
        points = _points(curve)
        steps = sorted({point.coalitions for point in points})
        middle = [_middle(points, step) for step in steps]
        colour, marker = COLOURS[curve["family"]], MARKERS.get(curve["name"], ".")
        axes.plot(*zip(*middle, strict=True), color=colour, linewidth=0.8)
        axes.scatter(
            [point.seconds for point in points],
            [point.rmse for point in points],
            s=70 if curve["family"] == "neurank" else 16,
            color=colour,
            marker=marker,
            linewidths=0,
            label=curve["name"] if curve["family"] != "given neurank's values" else None,
        )
    for family, colour in COLOURS.items():
        axes.plot([], [], color=colour, linewidth=3, label=family)
    axes.axhline(found["target"], color="grey", linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel="RMSE over the units")
    axes.set_title(f"LeNet fc1, {found['pictures']:,} pictures", fontsize=10)
    axes.legend(fontsize=7, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})


def _middle(points, step):
    some = [point for point in points if point.coalitions == step]
    return (
        spread([point.seconds for point in some]).median,
        spread([point.rmse for point in some]).median,
    )


PARTS = {"against_peers": against_peers, "vgg16": vgg16}
"""Measurements by the name of their file, in the order of the page, and what describes them."""


def page(measured):
    """Put the page together from measurements by name."""
    machines = {name: found["machine"]["in_words"] for name, found in measured.items()}
    versions = next(iter(measured.values()))["machine"]["versions"]
    lines = [
        "# Benchmarks",
        "",
        "`make bench` measures the LeNet and `make bench-vgg16` the VGG-16, and both write this "
        "page: every figure on it is measured by the code in `benchmarks/`. They need the folder "
        "that `NEURANK_DATA` names, with `mnist/`, `cifar10/` and `models/` in it. The LeNet is "
        "trained the first time.",
        "",
        *(f"- Machine: {words}." for words in sorted(set(machines.values()))),
        f"- Versions: {', '.join(f'{name} {number}' for name, number in versions.items())}.",
    ]
    for name, found in measured.items():
        lines += ["", *PARTS[name](found)]
    return "\n".join(_wrapped(line) for line in lines).rstrip() + "\n"


def _wrapped(line):
    """Break prose at 100 characters; tables and pictures stay as they are."""
    if line.startswith(("|", "#", "!")):
        return line
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, 100, subsequent_indent=indent, break_on_hyphens=False)


def main():
    """Write the page and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, default=DOCS)
    arguments = parser.parse_args()
    files = {name: RESULTS / f"{name}.json" for name in PARTS}
    measured = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in files.items()
        if path.is_file()
    }
    if not measured:
        raise SystemExit(f"nothing is measured yet in {RESULTS}: run `make bench`")
    text = page(measured)
    if "against_peers" in measured:
        draw_error_against_time(measured["against_peers"], arguments.docs / PICTURE)
    (arguments.docs / "benchmarks.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
