"""Condensing trained networks: accuracy by ranker and budget, retraining, and time.

    python -m benchmarks.condensing [--resume] [--parts resnet20 resnet56 ...]

Needs the data and the trained weights that NEURANK_DATA names. Parts are kept in build/benchmarks/
as they are finished; `python -m benchmarks.condensing_page` writes docs/condensing.md of them.

resnet20, resnet56, squeezenet1_1
    Accuracy without retraining at 10, 20, 30 and 50 % fewer multiply-adds, for every ranker and
    for torch-pruning's own pruner, with removed units as zeros and as their means.
lenet
    LeNet on MNIST: after removal, after retraining, and the same size trained from scratch.
time of resnet20 ...
    Time at half the multiply-adds, ours and torch-pruning's, repeats interleaved.
coupling
    What torch-pruning ties together, beside what we do (benchmarks/coupling.py).
"""

import argparse
import copy
import csv
import json
import math
import os
import time
import warnings
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch_pruning
from benchmarks.coupling import compared
from benchmarks.lenet import RESULTS, mnist, trained
from benchmarks.machine import this_machine
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

import neurank as nr
from neurank.condense.condensed import carried_out
from neurank.condense.descent import descent
from neurank.condense.measure import file_size, interleaved, peak_memory
from neurank.condense.plan import Rules
from neurank.condense.unit_costs import costs_of
from neurank.observe.observer import observe

KEPT = RESULTS / "condensing.json"
FEWER = (0.1, 0.2, 0.3, 0.5)
"""Shares of the multiply-adds that go."""
LEAST = 0.1
"""The share of a layer's units that is never removed."""
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def folder():
    """Return the folder that NEURANK_DATA names."""
    named = os.environ.get("NEURANK_DATA")
    if not named:
        raise SystemExit("NEURANK_DATA is not set: it names the folder with cifar10/ and models/")
    return Path(named)


def residual(name, chosen_on, tested_on):
    """Return a trained residual network; pictures to rank on, and others to test on."""
    model = nr.zoo.by_name(name)().eval()
    model.load_state_dict(load_file(folder() / "models" / f"{name}_cifar10.safetensors"), False)
    splits = nr.data.load(f"cifar10:{folder() / 'cifar10'}", batch_size=50).normalized(*IMAGENET)
    return model, splits.validation.first(chosen_on), splits.test.first(tested_on)


def squeezenet():
    """Return the trained SqueezeNet; ImageNet pictures to rank on, and others to test on."""
    model = nr.zoo.squeezenet1_1().eval()
    model.load_state_dict(load_file(folder() / "models" / "squeezenet1_1_imagenet.safetensors"))
    return model, photographs("train", 17), photographs("val", 5)


def photographs(part, step):
    """Read every so-many-th photograph of each of the 20 classes."""
    home = folder() / "imagenet20"
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in IMAGENET)
    pictures, labels = [], []
    with (home / "classes.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            for file in sorted((home / part / row["wnid"]).iterdir())[::step]:
                pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB")))
                pictures.append((pixels.permute(2, 0, 1) / 255 - mean) / std)
                labels.append(int(row["imagenet_index"]))
    names = tuple(map(str, range(1000)))
    return nr.data.Split(torch.stack(pictures), torch.tensor(labels), part, 25, names)


NETWORKS = {
    "resnet20": lambda: residual("resnet20", 250, 1000),
    "resnet56": lambda: residual("resnet56", 100, 500),
    "squeezenet1_1": squeezenet,
}
SHAPLEY_PICTURES = {"resnet20": 100}
"""Pictures that permutations are drawn for; the larger networks' units take too long."""


def watched(model, data):
    """Observe a network without the entry point around it."""
    return observe(
        model,
        data,
        value=nr.Accuracy(),
        removal="zero",
        seed=0,
        device=torch.device("cpu"),
        progress=False,
    )


def methods(name):
    """List the rankers of ours."""
    found = {
        "RandomScore": nr.RandomScore(),
        "WeightNorm": nr.WeightNorm(),
        "Taylor": nr.Taylor(),
        "MeanReplacementSaliency": nr.MeanReplacementSaliency(),
    }
    if name in SHAPLEY_PICTURES:
        found["PermutationShapley"] = nr.PermutationShapley()
    return found


def ranked(method, seen):
    """Rank all hidden layers."""
    return nr.Ranking.from_scores(
        {layer: method.score(seen, layer).ranking.scores for layer in seen.space.hidden}
    )


ACROSS = ("share", "share per cost")
"""How scores of different layers are compared, see `neurank.plan`."""


def plans(ranking, seen, across, left_alone):
    """Remove units until each budget is met; share of the multiply-adds that goes to `Plan`."""
    rules = Rules(
        {layer: math.ceil(LEAST * ranking[layer].units) for layer in ranking}, 1, left_alone
    )
    coming = descent(ranking, seen.space, costs_of(seen.space, seen.model), rules, across)
    found = {}
    for fewer in FEWER:
        bounds = {COUNTED: (1 - fewer) * coming.whole[COUNTED]}
        for rungs in coming.down(coming.top, bounds):
            if coming.cost(rungs)[COUNTED] <= bounds[COUNTED]:
                found[fewer] = coming.plan(coming.up(rungs, bounds), {})
                break
    return found


COUNTED = "multiply_adds"


def accuracy(model, data):
    """Share of right answers."""
    right = 0
    with torch.inference_mode():
        for inputs, targets in data:
            right += int((model(inputs).argmax(dim=1) == targets).sum())
    return right / data.examples


def sweep(name, keep):
    """Condense one network by every ranker, and let torch-pruning prune it.

    `keep` is handed what is there so far after each.
    """
    model, chosen_on, tested_on = NETWORKS[name]()
    seen = watched(model, chosen_on)
    few = chosen_on.first(min(SHAPLEY_PICTURES.get(name, 1), chosen_on.examples))
    found = {
        "chosen on": chosen_on.examples,
        "tested on": tested_on.examples,
        "Shapley on": SHAPLEY_PICTURES.get(name),
        "whole": {
            "accuracy": accuracy(model, tested_on),
            "multiply-adds": multiply_adds_run(model, tested_on.inputs[:1]),
            "parameters": sum(weight.numel() for weight in model.parameters()),
        },
        "rows": [],
        "seconds": {},
        "chosen": {},
    }
    print(name, found["whole"], flush=True)
    for by, method in methods(name).items():
        started = time.perf_counter()
        watching = watched(model, few) if by == "PermutationShapley" else seen
        ranking = ranked(method, watching)
        found["seconds"][by] = time.perf_counter() - started
        found["chosen"][by], chosen = better(name, ranking, seen, chosen_on)
        for fewer, plan in chosen.items():
            for removal in ("zero", "mean"):
                small = carried_out(plan, seen, removal)
                row = point(by, removal, fewer, small.model, small.report, tested_on)
                found["rows"].append(row)
                print(row, flush=True)
        keep(found)
    for by, rows in pruned(model, name, chosen_on, tested_on, found["seconds"]):
        found["rows"] += rows
        print(by, rows, flush=True)
        keep(found)
    keep({**found, "complete": True})


def better(name, ranking, seen, chosen_on):
    """Compare layers, and leave the residual stream alone or not, as serves best at 30 %.

    What serves best is seen on the pictures ranked on, not on those tested on.
    """
    best = None
    for across in ACROSS:
        for left_alone in ((), ("conv1",)) if name.startswith("resnet") else ((),):
            found = plans(ranking, seen, across, left_alone)
            small = carried_out(found[0.3], seen, "zero").model
            right = accuracy(small, chosen_on)
            if best is None or right > best[0]:
                best = right, f"{across}, {'inner' if left_alone else 'all'} layers", found
    return best[1], best[2]


def point(by, removal, fewer, model, report, data):
    """Describe one condensed network."""
    return {
        "by": by,
        "removal": removal,
        "fewer": fewer,
        "accuracy": accuracy(model, data),
        "multiply-adds": report.multiply_adds[1],
        "parameters": report.parameters[1],
    }


PEERS = {
    "torch-pruning magnitude": torch_pruning.importance.MagnitudeImportance,
    "torch-pruning Taylor": torch_pruning.importance.TaylorImportance,
}


def pruned(model, name, chosen_on, tested_on, seconds):
    """Prune by torch-pruning's own criteria to the same budgets; yield label and rows."""
    for by, criterion in PEERS.items():
        for scope, ignored in scopes(model, name).items():
            label = f"{by}, {scope}" if scope else by
            started = time.perf_counter()
            smaller = torch_pruned(model, criterion(), ignored, chosen_on)
            seconds[label] = time.perf_counter() - started
            rows = [
                {
                    "by": label,
                    "removal": "zero",
                    "fewer": fewer,
                    "accuracy": accuracy(small, tested_on),
                    "multiply-adds": multiply_adds_run(small, tested_on.inputs[:1]),
                    "parameters": sum(weight.numel() for weight in small.parameters()),
                }
                for fewer, small in smaller.items()
            ]
            yield label, rows


def scopes(model, name):
    """Say by name which modules torch-pruning leaves alone.

    In the residual networks its dependency graph takes the padding of the shortcuts for an
    elementwise operation; with all layers it runs, but adds other channels than before. So it is
    given the inner layers of the blocks by themselves, too.
    """
    if not name.startswith("resnet"):
        return {"": ("classifier.1",)}
    streams = [it for it, _ in model.named_modules() if it.endswith("conv2")]
    return {"inner layers": ("conv1", "linear", *streams), "all layers": ("linear",)}


def torch_pruned(model, importance, ignored, chosen_on, steps=40):
    """Prune step by step with torch-pruning, and keep a copy where each budget is met."""
    small = copy.deepcopy(model)
    one = chosen_on.inputs[:1]
    whole = multiply_adds_run(small, one)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            small,
            one,
            importance=importance,
            global_pruning=True,
            pruning_ratio=0.9,
            max_pruning_ratio=1 - LEAST,
            iterative_steps=steps,
            ignored_layers=[small.get_submodule(it) for it in ignored],
        )
        found = {}
        for _ in range(steps):
            if isinstance(importance, torch_pruning.importance.TaylorImportance):
                sum_gradients(small, chosen_on)
            pruner.step()
            share = multiply_adds_run(small, one) / whole
            for fewer in FEWER:
                if fewer not in found and share <= 1 - fewer:
                    found[fewer] = copy.deepcopy(small)
            if len(found) == len(FEWER):
                break
    return found


def sum_gradients(model, data):
    """Leave the gradients of the loss on the pictures in the parameters."""
    model.zero_grad()
    for inputs, targets in data.first(min(100, data.examples)):
        functional.cross_entropy(model(inputs), targets).backward()


def multiply_adds_run(model, one):
    """Count multiply-adds of convolutions and linear layers by running one example."""
    counted = []

    def count(module, _, result):
        positions = result[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        counted.append(module.weight.numel() * positions)

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.inference_mode():
            model(one)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counted)


WIDTHS = {"conv1": 5, "conv2": 7, "fc1": 45, "fc2": 20}
EPOCHS, AFTERWARDS = 6, 2
RATE = 0.03
"""The learning rate after condensing, and of what is trained as briefly from scratch."""


def lenet():
    """Condense LeNet to the paper's widths; remove, retrain, and train the same size anew."""
    splits = mnist(batch_size=100)
    model = trained(splits)
    chosen_on = splits.validation.first(1000)
    found = {
        "whole": {"accuracy": accuracy(model, splits.test)},
        "chosen on": chosen_on.examples,
        "epochs": [EPOCHS, AFTERWARDS],
        "from scratch": {},
        "rows": [],
    }
    for epochs, rate in ((AFTERWARDS, RATE), (EPOCHS + AFTERWARDS, 0.1)):
        anew = nr.zoo.lenet(*WIDTHS.values(), seed=1)
        brief = {"epochs": epochs, "lr": rate, "batch_size": 50, "progress": False}
        nr.fit(anew, splits.train, splits.validation, **brief)
        found["from scratch"][str(epochs)] = accuracy(anew.eval(), splits.test)
    for by, method in {**methods("lenet"), "PermutationShapley": nr.PermutationShapley()}.items():
        ranking = nr.rank(model, chosen_on, method, progress=False)
        for removal in ("zero", "mean"):
            plan = nr.plan(ranking, keep=WIDTHS)
            small = nr.condense(model, plan, chosen_on, removal=removal, progress=False)
            removed = accuracy(small.model.eval(), splits.test)
            if removal == "mean":
                brief = {"epochs": AFTERWARDS, "lr": RATE, "batch_size": 50, "progress": False}
                nr.retrain(small.model, splits, **brief)
            row = {
                "by": by,
                "removal": removal,
                "removed": removed,
                "retrained": accuracy(small.model.eval(), splits.test)
                if removal == "mean"
                else None,
                "multiply-adds": small.report.multiply_adds[1],
                "parameters": small.report.parameters[1],
            }
            found["rows"].append(row)
            print(row, flush=True)
    return found


def latency(load, name, scope, large):
    """Time networks of half the multiply-adds, ours and torch-pruning's, and the whole one."""
    model, chosen_on, _ = load()
    seen = watched(model, chosen_on.first(4))
    rest = ("conv1",) if scope else ()
    ranking = ranked(nr.WeightNorm(), seen)
    plan = plans(ranking, seen, "share per cost", rest)[0.5]
    ours = carried_out(plan, seen, "zero")
    left_alone = ("classifier.6",) if name == "vgg16" else scopes(model, name)[scope]
    criterion = torch_pruning.importance.MagnitudeImportance()
    peer = torch_pruned(model, criterion, left_alone, chosen_on)[0.5].eval()
    whole, left = ours.report.multiply_adds
    alike = carried_out(of_its_widths(peer, ranking, rest), seen, "zero")
    counted = {
        "whole": whole,
        "neurank": left,
        "neurank, its widths": alike.report.multiply_adds[1],
        "torch-pruning": multiply_adds_run(peer, chosen_on.inputs[:1]),
    }
    models = {
        "whole": model,
        "neurank": ours.model,
        "neurank, its widths": alike.model,
        "torch-pruning": peer,
    }
    found = timed(models, chosen_on.inputs, (1, large))
    return {"multiply-adds": counted, **found}


def of_its_widths(peer, ranking, left_alone):
    """Plan for as many units of each layer as torch-pruning left."""
    widths = {layer: ranking[layer].units for layer in ranking if layer not in left_alone}
    keep = {
        layer: ranking.order(layer)[: len(peer.get_submodule(layer).weight)] for layer in widths
    }
    return nr.Plan.from_keep(keep, widths)


def timed(models, inputs, batch_sizes):
    """Time networks beside each other, in this process's own seconds; their files and memory."""
    return {
        "rewritten": {label: type(it).__name__ == "Rewritten" for label, it in models.items()},
        "multiply-adds": {label: multiply_adds_run(it, inputs[:1]) for label, it in models.items()},
        "file": {label: file_size(it) for label, it in models.items()},
        "memory": {label: memory(it, inputs[:1]) for label, it in models.items()},
        "by batch": {
            str(size): {
                label: asdict(times)
                for label, times in interleaved(
                    models, inputs[:size], repeats=11, clock=time.process_time
                ).items()
            }
            for size in batch_sizes
        },
    }


def memory(model, one):
    """Measure the most memory that one example takes."""
    with torch.inference_mode():
        return peak_memory(model, one)


def vgg16():
    """Return the trained VGG-16 and pictures."""
    stored = load_file(folder() / "models" / "vgg16_cifar10.safetensors")
    model = nr.zoo.vgg16().eval()
    model.load_state_dict(
        {name: it.float() if it.is_floating_point() else it for name, it in stored.items()}
    )
    splits = nr.data.load(f"cifar10:{folder() / 'cifar10'}", batch_size=50)
    splits = splits.normalized((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    return model, splits.validation.first(250), splits.test.first(1000)


TIMED = {
    "time of resnet20": (NETWORKS["resnet20"], "resnet20", "inner layers", 16),
    "time of squeezenet1_1": (squeezenet, "squeezenet1_1", "", 4),
    "time of vgg16": (vgg16, "vgg16", "", 8),
    "time of resnet56": (NETWORKS["resnet56"], "resnet56", "inner layers", 16),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    everything = ("coupling", "lenet", *TIMED, *NETWORKS)
    parser.add_argument("--parts", nargs="+", choices=everything, default=everything)
    parser.add_argument("--resume", action="store_true", help="leave out what is kept")
    options = parser.parse_args()
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        kept = read().get(part, {})
        if options.resume and kept and kept.get("complete", part not in NETWORKS):
            continue

        def keep(found, part=part):
            KEPT.write_text(json.dumps({**read(), part: found}, indent=1))

        if part in NETWORKS:
            sweep(part, keep)
        elif part in TIMED:
            keep(latency(*TIMED[part]))
        else:
            keep({"coupling": compared, "lenet": lenet}[part]())
        keep_machine()


def keep_machine():
    """Say what it was measured on."""
    machine = this_machine()
    said = asdict(machine) | {"in_words": machine.in_words}
    said["versions"]["torch-pruning"] = version("torch-pruning")
    KEPT.write_text(json.dumps({**read(), "machine": said}, indent=1))


def read():
    """Return what is kept so far."""
    return json.loads(KEPT.read_text()) if KEPT.is_file() else {}


if __name__ == "__main__":
    main()
