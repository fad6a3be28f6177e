"""What mean replacement costs: saliencies beside one forward and backward pass, penalties exactly.

    python -m benchmarks.mean_replacement [--repeats 5]

Needs the data that NEURANK_DATA names. 1,000 held-out pictures in batches of 250; networks are
trained for one epoch on 10,000 pictures first. Seconds are those of the process itself, medians of
repeats that are interleaved in one process. For each network:

saliency    all layers in one forward and one backward pass, over a plain forward and backward pass
            of the network with gradients of all weights; the goal is at most 1.5.
penalty     the exact penalty of every unit, against one forward pass of the whole network for each
            unit; the goal is at least 10 times faster.
"""

import argparse
import os
import statistics
import time
from dataclasses import replace

import torch
from torch.nn import functional

import neurank as nr
from neurank.rankers.opening import watching

PENALTY = nr.MeanReplacementPenalty()
NETWORKS = {
    "thesis, MNIST 8-16-32, ReLU": ("mnist", lambda: nr.zoo.thesis_cnn(8, 16, 32, seed=0)),
    "thesis, MNIST 8-16-32, tanh": (
        "mnist",
        lambda: nr.zoo.thesis_cnn(8, 16, 32, activation="tanh", seed=0),
    ),
    "thesis, MNIST 8-16-256, ReLU": ("mnist", lambda: nr.zoo.thesis_cnn(8, 16, 256, seed=0)),
    "thesis, CIFAR-10 8-16-64, ReLU": (
        "cifar10",
        lambda: nr.zoo.thesis_cnn(8, 16, 64, pictures="cifar10", seed=0),
    ),
    "thesis, CIFAR-10 8-16-64, tanh": (
        "cifar10",
        lambda: nr.zoo.thesis_cnn(8, 16, 64, pictures="cifar10", activation="tanh", seed=0),
    ),
    "LeNet, MNIST 10-20-100-25": ("mnist", lambda: nr.zoo.lenet(10, 20, 100, 25, seed=0)),
}


def seconds(act):
    """Time something in this process's own seconds."""
    started = time.process_time()
    act()
    return time.process_time() - started


def measured(model, batches, repeats):
    """Return median seconds: plain, saliency, forward, penalty; and the number of units."""

    def plain():
        for inputs, targets in batches:
            functional.cross_entropy(model(inputs), targets).backward()
            model.zero_grad()

    @torch.inference_mode()
    def forward():
        for inputs, _ in batches:
            model(inputs)

    found = {"plain": [], "saliency": [], "forward": [], "penalty": []}
    with watching(
        model, batches, value=None, removal="zero", seed=0, device=None, progress=False
    ) as seen:

        def penalties():
            fresh = replace(seen, memo={})
            for layer in seen.space.hidden:
                PENALTY.score(fresh, layer)

        for _ in range(repeats + 1):
            found["plain"].append(seconds(plain))
            found["saliency"].append(seconds(lambda: replace(seen, memo={}).slopes("pre-mean")))
            found["forward"].append(seconds(forward))
            found["penalty"].append(seconds(penalties))
        units = sum(seen.width(layer) for layer in seen.space.hidden)
    # The first of each warms up.
    return {name: statistics.median(times[1:]) for name, times in found.items()}, units


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    folder = os.environ.get("NEURANK_DATA")
    if not folder:
        raise SystemExit("NEURANK_DATA is not set: it names the folder with mnist/ and cifar10/")
    splits = {name: nr.data.load(f"{name}:{folder}/{name}") for name in ("mnist", "cifar10")}
    print("network                          units  saliency / plain pass  forwards / penalties")
    for name, (data, build) in NETWORKS.items():
        model = build()
        train, validation = splits[data].train.first(10_000), splits[data].validation
        nr.fit(model, train, validation.first(500), epochs=1, progress=False)
        batches = list(validation.first(1_000).rebatched(250))
        times, units = measured(model.eval(), batches, repeats)
        saliency = times["saliency"] / times["plain"]
        penalty = units * times["forward"] / times["penalty"]
        print(f"{name:32} {units:5}  {saliency:21.2f}  {penalty:20.1f}", flush=True)


if __name__ == "__main__":
    main()
