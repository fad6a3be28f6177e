"""Scores of single weights beside one forward pass per weight, and beside one training step.

    python -m benchmarks.weights [--weights lenet.safetensors] [--pictures 1000] [--sample 24]

Needs NEURANK_DATA. The LeNet 10-20-100-25 is trained once and kept in build/benchmarks/. Seconds
are the process's own (CPU time of one thread), so what else the machine does counts little.
"""

import argparse
import statistics
import time
from copy import deepcopy

import torch
from torch.nn import functional

from benchmarks import lenet
from neurank import weights
from neurank.observe.weight_loss import watching_loss

LAYER = "fc1.weight"
METHODS = (
    weights.Magnitude(),
    weights.Taylor1(),
    weights.Hessian(),
    weights.Taylor2(),
    weights.LossChange(),
)


def timed(function, repetitions):
    """Median CPU seconds, and the last result; one call beforehand warms up."""
    function()
    seconds = []
    for _ in range(repetitions):
        started = time.process_time()
        result = function()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds), result


def mean_loss(model, batches):
    with torch.no_grad():
        total = sum(
            functional.cross_entropy(model(inputs).double(), targets, reduction="sum")
            for inputs, targets in batches
        )
    return float(total) / sum(len(targets) for _, targets in batches)


def one_forward_each(model, batches, sample):
    """Seconds per weight of setting it to 0 and running the network, and the changes found."""
    model = deepcopy(model)
    weight = model.get_parameter(LAYER).data.view(-1)
    places = torch.linspace(0, len(weight) - 1, sample).long().tolist()
    before = mean_loss(model, batches)
    seconds, changes = [], []
    for place in places:
        started = time.process_time()
        kept = float(weight[place])
        weight[place] = 0
        changes.append(mean_loss(model, batches) - before)
        weight[place] = kept
        seconds.append(time.process_time() - started)
    return statistics.median(seconds), places, torch.tensor(changes, dtype=torch.float64)


def against_forwards(model, data, sample, repetitions):
    """Print what all weights of a layer take, ours and one forward pass each."""
    exact = [(inputs.double(), targets) for inputs, targets in data]

    def ours():
        return weights.score(model, data, weights.LossChange(), parameters=[LAYER], progress=False)

    seconds, scores = timed(ours, repetitions)
    found = scores[LAYER].reshape(-1)
    pictures = sum(len(targets) for _, targets in data)
    print(f"{LAYER}: {len(found):,} weights on {pictures:,} pictures, {scores.provenance['ways']}")
    print(f"  ours, in float64, with all checks and tracing      {seconds:10.2f} s")
    double = deepcopy(model).double()
    for name, network, batches in (("float32", model, data), ("float64", double, exact)):
        each, places, changes = one_forward_each(network, batches, sample)
        naive = each * len(found)
        error = float((found[places] - changes).abs().max())
        print(
            f"  one forward pass each, {name}, from {sample} of them {naive:10.0f} s"
            f"   ratio {naive / seconds:6,.0f}   largest difference {error:.1e}"
        )


def against_a_step(model, data, repetitions):
    """Print what every method takes for all weights, beside one forward and backward pass."""

    def step():
        for inputs, targets in data:
            model.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
        model.zero_grad()

    own, _ = timed(step, repetitions)
    with watching_loss(
        model, data, parameters=None, loss=None, device=None, progress=False
    ) as watched:
        moves = {name: -weight.double() for name, weight in watched.weights.items()}
        count = sum(it.numel() for it in moves.values())
        print(f"all {count:,} weights; one forward and backward pass takes {own * 1000:.1f} ms")
        for method in METHODS:
            times = 1 if isinstance(method, weights.LossChange) else repetitions
            seconds, _ = timed(lambda it=method: it.score(watched, moves, 0), times)
            name = type(method).__name__
            print(f"  {name:11} {seconds * 1000:12.2f} ms  {seconds / own:10.2f} passes")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--weights", help="a .safetensors file of a LeNet 10-20-100-25")
    parser.add_argument("--pictures", type=int, default=1000, help="of MNIST's validation split")
    parser.add_argument("--sample", type=int, default=24, help="weights that get a forward pass")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    splits = lenet.mnist()
    model = lenet.trained(splits, arguments.weights)
    data = list(splits.validation.first(arguments.pictures))
    against_forwards(model, data, arguments.sample, arguments.repetitions)
    against_a_step(model, data, arguments.repetitions)


if __name__ == "__main__":
    main()
