"""VGG-16 on CIFAR-10: every layer ranked, and what shared permutations would have cost.

    python -m benchmarks.vgg16 [--pictures 1500] [--passes 2] [--resume]

Needs the data and the trained weights that NEURANK_DATA names (cifar10/ and
models/vgg16_cifar10.safetensors). Pictures are the first of the 5,000 that the network was not
trained on. The parts are kept in build/benchmarks/ as they are finished:

shared
    The variance of permutations that all pictures share, from the chains of a few pictures.
costs
    One pass over a few pictures beside a full forward pass per coalition, in one run.
ranking
    All fifteen layers by PermutationShapley, with a journal: interrupted, it goes on with --resume.
halves
    Two independent rankings of fewer pictures; do they differ as their standard errors say?
switches
    All fifteen layers by ImportanceSwitch, and how far it agrees.
"""

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from benchmarks.lenet import RESULTS
from benchmarks.machine import this_machine
from safetensors.torch import load_file

import neurank as nr
from neurank.observe.leaps import leap
from neurank.observe.observer import SUFFIX, observe
from neurank.rankers.orders import own_coins

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PICTURES = 1000
"""The baseline's variance is that of a mean over so many pictures."""


def folder():
    """Return the folder that NEURANK_DATA names."""
    named = os.environ.get("NEURANK_DATA")
    if not named:
        raise SystemExit("NEURANK_DATA is not set: it names the folder with cifar10/ and models/")
    return Path(named)


def trained():
    """Return the trained network in float32."""
    stored = load_file(folder() / "models" / "vgg16_cifar10.safetensors")
    model = nr.zoo.vgg16().eval()
    model.load_state_dict(
        {name: it.float() if it.is_floating_point() else it for name, it in stored.items()}
    )
    return model


def held_out():
    """Return the 5,000 pictures that the network was not trained on."""
    splits = nr.data.load(f"cifar10:{folder() / 'cifar10'}", batch_size=200)
    return splits.normalized(MEAN, STD).validation


def watched(model, pictures, targets):
    """Observe a few pictures without the entry point around it."""
    return observe(
        model,
        [(pictures, targets)],
        value=nr.Accuracy(),
        removal="zero",
        seed=0,
        device=torch.device("cpu"),
        progress=False,
    )


def ranking(model, data, passes, kept):
    """Rank all layers; return what each took, and how sure it is."""
    method = nr.PermutationShapley(passes=passes)
    found = nr.rank(model, data, method, journal=kept.with_suffix(".journal"))
    found.save(kept.with_suffix(".safetensors"))
    return facts(found, data.examples, passes)


def facts(found, pictures, passes):
    """Sum a ranking up, layer by layer."""
    layers = {}
    for name, layer in found.layers.items():
        layers[name] = {
            **found.provenance["by_layer"][name],
            "units": layer.units,
            "mean stderr": float(layer.stderr.mean()),
            "largest stderr": float(layer.stderr.max()),
            "mean data stderr": float(layer.data_stderr.mean()),
            "spread of scores": float(layer.scores.std()),
            "squared scores": float((layer.scores**2 - layer.stderr**2).mean()),
            "variance of a pass": float((layer.stderr**2).mean()) * passes * pictures,
        }
    return {"pictures": pictures, "passes": passes, "layers": layers}


def halves(model, data, least, passes):
    """Compare two independent rankings unit by unit: z = difference / its standard error.

    A layer is ranked on as many pictures as it has units, but on `least` at the least: the units of
    a wide layer share the few changes of each chain.
    """
    return {
        "passes": passes,
        "layers": {
            name: half(model, data, name, least, passes) for name in layer_names(model, data)
        },
    }


def half(model, data, name, least, passes):
    """Rank one layer twice."""
    units = len(model.get_submodule(name).weight)
    pictures = data.first(max(least, units))
    method = nr.PermutationShapley(passes=passes)
    one, two = (nr.rank(model, pictures, method, layers=[name], seed=seed)[name] for seed in (1, 2))
    error = (one.stderr**2 + two.stderr**2).sqrt()
    z = ((one.scores - two.scores) / error)[error > 0]
    return {
        "pictures": pictures.examples,
        "units": len(z),
        "root mean square of z": float((z**2).mean().sqrt()),
        "within 1.96": float((z.abs() < 1.96).double().mean()),
    }


def shared(model, data, permutations):
    """Measure how alike the marginals of different pictures are in the same permutations."""
    seen = watched(model, data.inputs, data.targets)
    layers = {}
    for name in layer_names(model, data):
        marginals = shared_marginals(seen, name, permutations)
        count = marginals.shape[1]
        sums = marginals.sum(axis=1)
        pairs = (sums**2 - (marginals**2).sum(axis=1)) / (count * (count - 1))
        each = pairs.mean(axis=1)  # (permutations,)
        layers[name] = {
            "square of a picture's": float(np.abs(marginals).mean()),  # they are -1, 0 or 1
            "product of two pictures'": float(each.mean()),
            "its standard error": float(each.std(ddof=1) / np.sqrt(permutations)),
        }
        print(name, layers[name], flush=True)
    return {"pictures": data.examples, "permutations": permutations, "layers": layers}


def layer_names(model, data):
    """Return the fifteen layers."""
    return list(nr.rank(model, data.first(2), nr.RandomScore(), progress=False))


def shared_marginals(seen, layer, permutations):
    """Walk orders that all pictures share; (permutations, pictures, units).

    In leaps with coins of each picture's own: unbiased, and independent between pictures.
    """
    ways = seen.ways(layer)
    found = []
    for game in seen.games(layer, SUFFIX if SUFFIX in ways else None):
        walks = []
        for number in range(permutations):
            order = np.random.default_rng(number).permutation(game.units)
            walks.append(walked(game, restricted(order, game.active.numpy()), number))
        found.append(np.stack(walks))
    return np.concatenate(found, axis=1)


def restricted(order, active):
    """Leave out of one order for all what is no player of a picture's game."""
    orders = np.full(active.shape, -1)
    for row, players in enumerate(active):
        joining = order[players[order]]
        orders[row, : len(joining)] = joining
    return orders


def walked(game, orders, number):
    """Walk chains, in leaps where no compiled kernel makes whole ones cheap; what units add."""
    if game.compiled:
        return game.chain(orders)[0]
    rows = game.numbers.numpy()
    return leap(game, orders, lambda at, a, b: own_coins(9, number, rows[at], a, b)).marginals


def costs(model, data, repetitions=3):
    """Measure one pass of ours, and a full forward pass, on the same pictures in one run."""
    seen = watched(model, data.inputs, data.targets)
    method = nr.PermutationShapley()
    layers = {}
    for name in layer_names(model, data):
        ways = {way: [] for way in seen.ways(name)}
        for _ in range(repetitions):
            for way, runs in ways.items():
                runs.append(one_pass(seen, method, name, way))
        middle = {
            way: sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
            for way, runs in ways.items()
        }
        layers[name] = {"ways": middle, "forward": forward_seconds(model, data.inputs)}
        print(name, layers[name], flush=True)
    return {"pictures": data.examples, "repetitions": repetitions, "layers": layers}


def one_pass(seen, method, layer, way):
    """Run the prefix and one pass; seconds, and multiply-adds per second of the suffix."""
    started = time.perf_counter()
    work = coalitions = 0
    playing = 0.0
    for game in seen.games(layer, way):
        began = time.perf_counter()
        with torch.inference_mode():
            played = method.play(game, 0, 0)
        playing += time.perf_counter() - began
        coalitions += played.coalitions
        work += played.coalitions * game.runner.multiply_adds(game.split.suffix)
    return {
        "seconds": time.perf_counter() - started,
        "coalitions": coalitions,
        "multiply-adds per second": work / playing,
    }


def forward_seconds(model, pictures):
    """Seconds of a full forward pass per picture, at the best of some batch sizes."""
    best = float("inf")
    with torch.inference_mode():
        for size in (16, 32, 64):
            for _ in range(3):
                started = time.perf_counter()
                model(pictures[:size])
                best = min(best, (time.perf_counter() - started) / min(size, len(pictures)))
    return best


def switches(model, data, ranked, epochs=5):
    """Learn a switch on every layer; how many of the top tenth it shares with Shapley values."""
    found = nr.rank(model, data, nr.ImportanceSwitch(epochs=epochs))
    layers = {}
    for name in found:
        record = found.provenance["by_layer"][name]
        k = max(5, ranked[name].units // 10)
        agreed = nr.compare(ranked.select([name]), found.select([name]), k=k).layers[name]
        layers[name] = {
            "seconds": record["seconds"],
            "k": k,
            "common": len(agreed.common),
            "chance": float(agreed.chance),
            "spearman": float(agreed.spearman),
        }
        print(name, layers[name], flush=True)
    return {"pictures": data.examples, "epochs": epochs, "layers": layers}


def gains(measured):
    """Set what a layer costs beside shared permutations with full forward passes.

    Per layer: the variance of one pass over N pictures, shared against own; the seconds of one
    pass per picture; and the product of both ratios, which is the ratio of costs at equal RMSE.
    """
    found = {}
    for name, ours in measured["ranking"]["layers"].items():
        alike, cost = measured["shared"]["layers"][name], measured["costs"]["layers"][name]
        each, together = alike["square of a picture's"], alike["product of two pictures'"]
        variance = together + (each - together) / PICTURES - ours["squared scores"]
        seconds = min(way["seconds"] for way in cost["ways"].values())
        own = seconds / measured["costs"]["pictures"]
        full = (ours["units"] + 1) * cost["forward"]
        in_variance = max(variance, 0) / (ours["variance of a pass"] / PICTURES)
        found[name] = {
            "in variance": in_variance,
            "in cost": full / own,
            "together": in_variance * full / own,
        }
    product = np.prod([it["together"] for it in found.values()]) ** (1 / len(found))
    return {"layers": found, "geometric mean": float(product)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--few", type=int, default=64, help="pictures of the other parts")
    parser.add_argument("--permutations", type=int, default=24, help="shared ones")
    parser.add_argument("--resume", action="store_true", help="go on with what is kept")
    options = parser.parse_args()
    kept = RESULTS / "vgg16.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        for old in (kept, kept.with_suffix(".journal")):
            old.unlink(missing_ok=True)
    measured = json.loads(kept.read_text()) if kept.is_file() else {}
    model, data = trained(), held_out()
    few = data.first(options.few)
    scores = kept.with_suffix(".safetensors")
    parts = {
        "costs": lambda: costs(model, few),
        "shared": lambda: shared(model, few, options.permutations),
        "ranking": lambda: ranking(model, data.first(options.pictures), options.passes, kept),
        "halves": lambda: halves(model, data, 2 * options.few, options.passes),
        "switches": lambda: switches(model, data.first(4 * options.few), nr.Ranking.load(scores)),
    }
    for part, measure in parts.items():
        if part not in measured:
            measured[part] = measure()
            measured[f"{part} threads"] = torch.get_num_threads()
            kept.write_text(json.dumps(measured, indent=1))
    machine = this_machine()
    measured["machine"] = asdict(machine) | {"in_words": machine.in_words}
    measured["gains"] = gains(measured)
    kept.write_text(json.dumps(measured, indent=1))
    print(json.dumps(measured["gains"], indent=1))


if __name__ == "__main__":
    main()
