"""Shapley values of a LeNet's units beside one full forward pass per coalition, in one run.

    python benchmarks/exact_shapley.py [--weights lenet.safetensors] [--repetitions 5]

Without weights a LeNet 10-20-100-25 is trained first. Pictures are MNIST's first training
pictures; model and data are in memory. The baseline is what a black-box estimator pays: the whole
network runs once per coalition on the same pictures, the layer's units zeroed by a hook; its time
for a power set is extrapolated from a measured sample of coalitions.
"""

import argparse
import math
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import neurank as nr
from neurank.observe.hooks import units_off

UNITS = {"conv1": 10, "conv2": 20, "fc1": 100, "fc2": 25}


def timed(function, repetitions):
    """Median seconds, and the last result; one call beforehand compiles and warms up."""
    function()
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), result


def baseline(model, inputs, layer, coalitions=8):
    """Seconds per coalition and picture of full forward passes with random coalitions off."""
    generator = torch.Generator().manual_seed(0)
    seconds = []
    with torch.inference_mode():
        for _ in range(coalitions + 1):
            off = torch.rand(1, UNITS[layer], generator=generator) < 0.5
            started = time.perf_counter()
            with units_off(model, layer, off.expand(len(inputs), -1)):
                model(inputs).argmax(dim=1)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]) / len(inputs)


def trained(data, weights):
    """Load or train the network."""
    model = nr.zoo.lenet(10, 20, 100, 25, seed=0)
    if weights:
        model.load_state_dict(load_file(weights))
    else:
        nr.fit(model, data.train, data.validation, epochs=6)
    return model.eval()


def report(layer, pictures, seconds, coalitions, per_coalition):
    """One line per layer: seconds, what the baseline would take, and their ratio."""
    naive = coalitions * per_coalition
    print(
        f"{layer:6} {pictures:6} pictures  {seconds:8.3f} s   {coalitions:.3g} coalitions"
        f"   one full forward each: {readable(naive)}   ratio {naive / seconds:,.0f}"
    )


def readable(seconds):
    """Seconds as the largest unit that fits."""
    for size, name in ((86400 * 365, "years"), (86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds > 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:.1f} s"


def speed(model, data, repetitions):
    """Print seconds and ratios for the four layers."""
    pictures = {"conv1": 10_000, "conv2": 1_000, "fc2": 10_000}
    per_coalition = {layer: baseline(model, data.first(2000).inputs, layer) for layer in UNITS}
    for layer, count in pictures.items():
        part = data.first(count)

        def exact(part=part, layer=layer):
            return nr.rank(model, part, nr.ExactShapley(), layers=[layer], progress=False)

        seconds, ranking = timed(exact, repetitions)
        report(layer, count, seconds, count * 2.0 ** UNITS[layer], per_coalition[layer])
        played = ranking.provenance["by_layer"][layer]["coalitions"]
        print(f"       of them played after null players dropped out: {played:.3g}")
    part = data.first(10_000)

    def sampled(passes):
        method = nr.PermutationShapley(passes=passes)
        return lambda: nr.rank(model, part, method, layers=["fc1"], progress=False)

    once, _ = timed(sampled(1), repetitions)
    many, _ = timed(sampled(21), repetitions)
    coalitions = 10_000 * (UNITS["fc1"] + 1)
    report("fc1", 10_000, (many - once) / 20, coalitions, per_coalition["fc1"])
    print(f"       per further pass; the first takes {once:.3f} s with checks, tracing and prefix")
    return per_coalition


def errors(model, data, seeds):
    """Print the error of sampled values against exact ones, and whether standard errors hold."""
    part = data.first(10_000)
    exact = nr.rank(model, part, nr.ExactShapley(), layers=["fc2"], progress=False)["fc2"].scores
    for passes in (1, 2):
        squares, promised = [], []
        for seed in range(seeds):
            method = nr.PermutationShapley(passes=passes)
            ranking = nr.rank(model, part, method, layers=["fc2"], seed=seed, progress=False)
            squares.append(float(((ranking["fc2"].scores - exact) ** 2).mean()))
            promised.append(float((ranking["fc2"].stderr ** 2).mean()))
        rmse, said = math.sqrt(statistics.mean(squares)), math.sqrt(statistics.mean(promised))
        kind = ranking["fc2"].stderr_of
        print(f"fc2, {passes} pass(es), {seeds} seeds: RMSE {rmse:.5f}, stderr ({kind}) {said:.5f}")
    shared = [shared_permutation(model, part, seed) for seed in range(3)]
    rmse = math.sqrt(statistics.mean(float(((scores - exact) ** 2).mean()) for scores in shared))
    print(f"fc2, one permutation shared by all pictures, 3 seeds: RMSE {rmse:.5f}")


def shared_permutation(model, part, seed):
    """Compute what a black-box estimator does in one pass: every picture takes the same order."""
    order = np.random.default_rng(seed).permutation(UNITS["fc2"])
    scores = torch.zeros(UNITS["fc2"], dtype=torch.float64)
    off = torch.ones(1, UNITS["fc2"], dtype=torch.bool)
    before = None
    with torch.inference_mode():
        for unit in (None, *order):
            if unit is not None:
                off[0, unit] = False
            with units_off(model, "fc2", off.expand(part.examples, -1)):
                value = float((model(part.inputs).argmax(dim=1) == part.targets).double().mean())
            if unit is not None:
                scores[unit] = value - before
            before = value
    return scores


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=50)
    arguments = parser.parse_args()
    data = nr.data.load(f"mnist:{os.environ['NEURANK_DATA']}/mnist", batch_size=1000)
    model = trained(data, arguments.weights)
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"test error {100 * nr.error_rate(model, data.test):.2f} %")
    speed(model, data.train, arguments.repetitions)
    errors(model, data.train, arguments.seeds)


if __name__ == "__main__":
    main()
