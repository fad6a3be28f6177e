"""Shapley values of a LeNet's fc1: error against time, beside the estimators of other libraries.

    python -m benchmarks.against_peers [--weights lenet.safetensors] [--pictures 5000] [--seeds 3]

Same network, pictures, layer (100 units), value (accuracy) and removal (zero) for all:

- neurank: `PermutationShapley`, the whole call of `neurank.rank`;
- black box: the peers on a value function that runs the whole network once per coalition;
- given neurank's values: the peers on a value function made of neurank's own loops.

The truth is exact where the power sets of the pictures' active units can be walked, else a mean
over many passes with other seeds. Long runs on the black box are replayed: both value functions
give the same values, which is checked, so an estimator does the same with either; the coalitions
it asks for are charged what a full forward was measured to take. Results go to build/benchmarks;
`python -m benchmarks.page` makes docs/benchmarks.md of them.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from benchmarks.curves import Point, rmse, start_and_step
from benchmarks.lenet import RESULTS, UNITS, mnist, trained
from benchmarks.machine import this_machine
from benchmarks.peers import peers
from benchmarks.values import Counted, additive_split, fastest_full_forward, split_game

import neurank as nr
from neurank.modes import threads_as_torch

LAYER = "fc1"
TARGET = 0.002
PASSES = (1, 2, 4, 8, 16, 32)
OTHER_SEEDS = 10**6
"""The seed of a sampled truth, away from those compared with it."""
EXACT_LIMIT = 4e10
"""Power sets of so many coalitions in all are walked for the truth: some minutes."""
TRUTH_PASSES = 4000
BUDGETS = (1000, 2000, 4000, 8000, 16000)
SPECIAL_BUDGETS = {
    # Its arithmetic after the values takes ten times as long as the values, given neurank's.
    "SVARM": (4000, 8000, 12000),
    # One round over all units and sizes is 19,802 coalitions.
    "stratified": (4000, 19802, 39402),
}
BLACK_BOX_BUDGET = 202
"""Two permutations, both ends included: what is run for real on the black box."""


@dataclass(frozen=True)
class Truth:
    """The values that errors are measured against.

    Attributes
    ----------
    scores : (units,) float64.
    stderr : its root mean square standard error, 0 if exact.
    kind : "exact" or "sampled".
    coalitions, seconds : what it took.
    """

    scores: np.ndarray
    stderr: float
    kind: str
    coalitions: int
    seconds: float


@dataclass(frozen=True)
class Curve:
    """The runs of one estimator.

    Attributes
    ----------
    name, library : which.
    family : "neurank", "black box" or "given neurank's values".
    points : every run; on the black box, replayed.
    """

    name: str
    library: str
    family: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class BlackBoxRun:
    """One run on the black box, and its replay with neurank's values.

    Attributes
    ----------
    seconds, own_seconds : in all, and without the values, taken from the replay.
    seconds_per_coalition : of the value function.
    coalitions : how many it asked for.
    off_by : largest difference of a score between run and replay.
    """

    name: str
    seconds: float
    own_seconds: float
    seconds_per_coalition: float
    coalitions: int
    off_by: float


def timed(function):
    """Seconds and result."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def rank(model, part, method, seed):
    """Rank the layer and nothing else, quietly."""
    return nr.rank(model, part, method, layers=[LAYER], seed=seed, progress=False)


def find_truth(model, part, game):
    """Walk the power sets, or sample many passes where they are too large."""
    is_exact = game.exact_coalitions <= EXACT_LIMIT
    method = nr.ExactShapley() if is_exact else nr.PermutationShapley(passes=TRUTH_PASSES)
    seconds, ranking = timed(lambda: rank(model, part, method, OTHER_SEEDS))
    scored = ranking[LAYER]
    return Truth(
        scores=scored.scores.numpy(),
        stderr=float((scored.stderr**2).mean().sqrt()),
        kind=scored.status,
        coalitions=ranking.provenance["by_layer"][LAYER]["coalitions"],
        seconds=seconds,
    )


def own_curve(model, part, truth, seeds, passes=PASSES):
    """Run neurank's sampling with every number of passes and seed."""
    points = []
    for seed in range(seeds):
        for count in passes:
            method = nr.PermutationShapley(passes=count)
            seconds, ranking = timed(lambda: rank(model, part, method, seed))  # noqa: B023
            error = rmse(ranking[LAYER].scores.numpy(), truth.scores)
            points.append(Point(seed, count, seconds, error))
    return Curve("PermutationShapley", "neurank", "neurank", tuple(points))


def run(peer, value, budget, seed, units):
    """Run a peer once: its scores, seconds in all, and the counted value function."""
    counted = Counted(value)
    seconds, scores = timed(lambda: peer.estimate(counted, units, budget, seed))
    return scores, seconds, counted


def peer_curves(peer, value, truth, seeds, budgets, per_coalition):
    """Run a peer with neurank's values, and replay it on the black box."""
    given, replayed, estimates = [], [], []
    for seed in range(seeds):
        for budget in budgets:
            scores, seconds, counted = run(peer, value, budget, seed, len(truth.scores))
            error = rmse(scores, truth.scores)
            own = seconds - counted.seconds
            charged = own + counted.coalitions * per_coalition
            given.append(Point(seed, counted.coalitions, seconds, error))
            replayed.append(Point(seed, counted.coalitions, charged, error))
        estimates.append(scores)
    curves = (
        Curve(peer.name, peer.library, "given neurank's values", tuple(given)),
        Curve(peer.name, peer.library, "black box", tuple(replayed)),
    )
    return curves, np.array(estimates)


def black_box_run(peer, black_box, value, budget, units):
    """Run a peer for real on the black box, and the same with neurank's values."""
    scores, seconds, counted = run(peer, black_box, budget, 0, units)
    again, quick_seconds, quick = run(peer, value, budget, 0, units)
    per_coalition = counted.seconds / counted.coalitions
    own = quick_seconds - quick.seconds
    off_by = float(np.abs(scores - again).max())
    return BlackBoxRun(peer.name, seconds, own, per_coalition, counted.coalitions, off_by)


def agreement(estimates, truth):
    """Distance of the seeds' mean from the truth, in units of what their spread makes expected.

    The root mean square over the units of mean minus truth, over that of its standard error: near
    1 for an unbiased estimator and a right truth.
    """
    distance = rmse(estimates.mean(axis=0), truth.scores)
    expected = np.sqrt((estimates.var(axis=0, ddof=1) / len(estimates)).mean())
    return float(distance / expected)


def on_device(model, data):
    """Time exact values of fc2 on a CUDA device, with the peak memory; None without one."""
    if not torch.cuda.is_available():
        return None
    results = {}
    for layer, method in (("fc2", nr.ExactShapley()), (LAYER, nr.PermutationShapley(passes=16))):

        def ranked(layer=layer, method=method):
            result = nr.rank(model, data, method, layers=[layer], device="cuda", progress=False)
            torch.cuda.synchronize()
            return result

        ranked()
        torch.cuda.reset_peak_memory_stats()
        seconds, _ = timed(ranked)
        peak = torch.cuda.max_memory_allocated()
        name = f"{type(method).__name__}, {layer}, {data.examples:,} pictures"
        results[name] = {"seconds": seconds, "peak_bytes": peak}
    return results


def say(text):
    """Print at once."""
    print(text, flush=True)


def measure(model, data, pictures, seeds, budget_share=1.0):
    """Measure everything and return it as one dictionary fit for JSON."""
    part = data.validation.first(pictures).rebatched(200)
    machine = this_machine()
    say(machine.in_words)
    units = UNITS[LAYER]
    listed = peers(units)
    split_game(model, part.first(200), LAYER)  # compiles and warms up
    setup_seconds, game = timed(lambda: split_game(model, part, LAYER))
    value = additive_split(game)
    value(np.eye(units, dtype=bool))
    truth = find_truth(model, part, game)
    say(f"truth: {truth.kind}, {truth.coalitions:.3g} coalitions, {truth.seconds:.0f} s")
    rank(model, part.first(200), nr.PermutationShapley(), 0)
    own = own_curve(model, part, truth, max(seeds, 5))
    start, step = start_and_step(
        [point.coalitions for point in own.points], [point.seconds for point in own.points]
    )
    say(f"neurank: {start:.2f} s set-up, {1000 * step:.1f} ms per pass")
    black_box, batch_size = fastest_full_forward(model, part, LAYER, units)
    runs = []
    for peer in listed:
        runs.append(black_box_run(peer, black_box, value, BLACK_BOX_BUDGET, units))
        say(f"black box, {peer.name}: {runs[-1].seconds:.1f} s, off by {runs[-1].off_by:.1g}")
    per_coalition = statistics.median(one.seconds_per_coalition for one in runs)
    curves, agreements = [own], {}
    for peer in listed:
        budgets = SPECIAL_BUDGETS.get(peer.name, BUDGETS)
        budgets = [max(BLACK_BOX_BUDGET, int(budget * budget_share)) for budget in budgets]
        found, estimates = peer_curves(peer, value, truth, seeds, budgets, per_coalition)
        curves.extend(found)
        agreements[peer.name] = agreement(estimates, truth)
        last = found[0].points[-1]
        say(f"{peer.name}: RMSE {last.rmse:.5f} after {last.seconds:.1f} s with neurank's values")
    return {
        "machine": asdict(machine) | {"in_words": machine.in_words},
        "pictures": pictures,
        "units": units,
        "target": TARGET,
        "seeds": seeds,
        "error_rate": nr.error_rate(model, data.test),
        "active": float(game.active.sum(dim=1).double().mean()),
        "value_ends": value(np.stack([np.zeros(units, bool), np.ones(units, bool)])).tolist(),
        "truth": {key: fact for key, fact in asdict(truth).items() if key != "scores"},
        "setup_of_values": setup_seconds,
        "start": start,
        "step": step,
        "batch_size": batch_size,
        "per_coalition": per_coalition,
        "black_box_runs": [asdict(one) for one in runs],
        "curves": [asdict(curve) for curve in curves],
        "agreement": agreements,
        "device": on_device(model, data.train.first(10_000)),
    }


def main():
    """Measure and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="of a LeNet 10-20-100-25; trained if missing")
    parser.add_argument("--pictures", type=int, default=5000, help="of MNIST's validation part")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions of every peer")
    parser.add_argument("--budgets", type=float, default=1.0, help="share of the usual budgets")
    arguments = parser.parse_args()
    data = mnist()
    model = trained(data, arguments.weights)
    started = time.perf_counter()
    with threads_as_torch():
        found = measure(model, data, arguments.pictures, arguments.seeds, arguments.budgets)
    found["seconds"] = time.perf_counter() - started
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "against_peers.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    say(f"done in {found['seconds']:.0f} s")


if __name__ == "__main__":
    main()
