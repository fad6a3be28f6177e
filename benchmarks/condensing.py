"""Condensing trained networks: accuracy by ranker and budget, retraining, and time.

    python -m benchmarks.condensing [--resume] [--parts resnet20 resnet56 ...]

Needs the data and the trained weights that NEURANK_DATA names. Parts are kept in build/benchmarks/
as they are finished, those on accuracy ranker by ranker; with --resume only what is missing is
measured. `python -m benchmarks.condensing_page` writes docs/condensing.md of them.

resnet20, resnet56, squeezenet1_1
    Accuracy without retraining at 10, 20, 30 and 50 % fewer multiply-adds, for every ranker and
    for torch-pruning's own pruner, with removed units as zeros and as their means.
lenet
    LeNet on MNIST: after removal, after retraining, and the same size trained from scratch.
time of resnet20 ...
    Time at half the multiply-adds, ours and torch-pruning's, repeats interleaved, and ours where
    torch-pruning's multiply-adds and its time are the budgets.
coupling
    What torch-pruning ties together, beside what we do (benchmarks/coupling.py).
"""

import argparse
import copy
import csv
import json
import math
import time
import warnings
from dataclasses import asdict, replace
from importlib.metadata import version
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
import torch_pruning
from benchmarks.coupling import compared
from benchmarks.lenet import RESULTS, mnist, trained
from benchmarks.machine import this_machine
from benchmarks.vgg16 import MEAN, STD, folder
from benchmarks.vgg16 import trained as trained_vgg16
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

import neurank as nr
from neurank.condense import trials
from neurank.condense.condensed import carried_out
from neurank.condense.descent import descent
from neurank.condense.measure import file_size, interleaved, peak_memory
from neurank.condense.plan import Rules
from neurank.condense.trials import watched
from neurank.condense.unit_costs import costs_of

KEPT = RESULTS / "condensing.json"
FEWER = (0.1, 0.2, 0.3, 0.5)
"""Shares of the multiply-adds that go."""
LEAST = 0.1
"""The share of a layer's units that is never removed."""
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    with (home / "classes.csv").open(encoding="utf-8") as lines:
        by_class = [
            [(file, int(row["imagenet_index"])) for file in files[::step]]
            for row in csv.DictReader(lines)
            for files in [sorted((home / part / row["wnid"]).iterdir())]
        ]
    # One of each class after the other, so that the first few are of all classes.
    files, labels = zip(*(it for turn in zip(*by_class, strict=True) for it in turn), strict=True)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in IMAGENET)
    pixels = [torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files]
    pictures = torch.stack([(it.permute(2, 0, 1) / 255 - mean) / std for it in pixels])
    names = tuple(map(str, range(1000)))
    return nr.data.Split(pictures, torch.tensor(labels), part, 25, names)


NETWORKS = {
    "resnet20": lambda: residual("resnet20", 250, 1000),
    "resnet56": lambda: residual("resnet56", 100, 500),
    "squeezenet1_1": squeezenet,
}
SHAPLEY_PICTURES = {"resnet20": 100, "resnet56": 20, "squeezenet1_1": 20}
"""Pictures that permutations are drawn for; the larger networks' units take long."""
SWITCH = nr.ImportanceSwitch(epochs=5)
SWITCH_BATCH = 10
"""Pictures for each step of a switch."""


METHODS = {
    "RandomScore": nr.RandomScore(),
    "WeightNorm": nr.WeightNorm(),
    "Taylor": nr.Taylor(),
    "MeanReplacementSaliency": nr.MeanReplacementSaliency(),
    "ImportanceSwitch": SWITCH,
    "PermutationShapley": nr.PermutationShapley(),
}
"""The rankers of ours."""


def looked_at(by, name, chosen_on):
    """Return the pictures that a ranker sees, of those to rank on, in batches as it needs them."""
    if by == "PermutationShapley":
        return chosen_on.first(SHAPLEY_PICTURES.get(name, chosen_on.examples))
    return replace(chosen_on, batch_size=SWITCH_BATCH) if by == "ImportanceSwitch" else chosen_on


def ranked(method, seen):
    """Rank all hidden layers."""
    scored = {layer: method.score(seen, layer).ranking for layer in seen.space.hidden}
    return nr.Ranking(scored, {"method": type(method).__name__})


def sampling_error(ranking):
    """Set standard errors beside how far the units of a layer lie apart, medians over layers.

    None where the ranker promises no error, or makes none.
    """
    layers = [ranking[layer] for layer in ranking]
    errors = [float(it.stderr.median()) for it in layers]
    if not np.nan_to_num(errors).any():
        return None
    apart = [float(it.scores.std()) for it in layers]
    return {"stderr": float(np.nanmedian(errors)), "apart": float(np.median(apart))}


ACROSS = ("share", "share per cost")
"""How scores of different layers are compared, see `neurank.plan`."""


def plans(ranking, seen, across, left_alone):
    """Remove units until each budget is met; share of the multiply-adds that goes to `Plan`."""
    rules = Rules(narrowest(ranking), 1, left_alone)
    coming = descent(ranking, seen.space, costs_of(seen.space, seen.model), rules, across)
    found = {}
    for fewer in FEWER:
        bounds = {COUNTED: (1 - fewer) * coming.whole[COUNTED]}
        for rungs in coming.down(coming.top, bounds):
            if coming.cost(rungs)[COUNTED] <= bounds[COUNTED]:
                found[fewer] = coming.plan(coming.up(rungs, bounds), {})
                break
    return found


def narrowest(ranking):
    """Return the least width of each layer."""
    return {layer: math.ceil(LEAST * ranking[layer].units) for layer in ranking}


COUNTED = "multiply_adds"


def accuracy(model, data):
    """Share of right answers."""
    right = 0
    with torch.inference_mode():
        for inputs, targets in data:
            right += int((model(inputs).argmax(dim=1) == targets).sum())
    return right / data.examples


def sweep(name, keep, kept):
    """Condense one network by every ranker, and let torch-pruning prune it.

    `kept` is what an earlier run left, whose rankers are not measured again; `keep` is handed what
    is there so far after each.
    """
    model, chosen_on, tested_on = NETWORKS[name]()
    found = opened(name, model, chosen_on, tested_on, kept)
    done = {row["by"] for row in found["rows"]}
    print(name, found["whole"], "measured before:", *sorted(done), flush=True)
    seen = watched(model, chosen_on, progress=False)
    for by, method in METHODS.items():
        if by in done:
            continue
        started = time.perf_counter()
        ranking = ranked(method, watched(model, looked_at(by, name, chosen_on), progress=False))
        found["seconds"][by] = time.perf_counter() - started
        found["errors"][by] = sampling_error(ranking)
        found["chosen"][by], chosen = better(name, ranking, seen, chosen_on)
        for fewer, plan in chosen.items():
            for removal in ("zero", "mean"):
                small = carried_out(plan, seen, removal)
                row = point(by, removal, fewer, small.model, small.report, tested_on)
                found["rows"].append(row)
                print(row, flush=True)
        keep(found)
    for by, rows in pruned(model, name, chosen_on, tested_on, found["seconds"], done):
        found["rows"] += rows
        print(by, rows, flush=True)
        keep(found)


def opened(name, model, chosen_on, tested_on, kept):
    """Describe the setting, with the rows that were kept of the same one."""
    setting = {"chosen on": chosen_on.examples, "tested on": tested_on.examples}
    same = all(kept.get(what) == number for what, number in setting.items())
    kept = kept if same else {}
    return {
        **setting,
        "Shapley on": SHAPLEY_PICTURES.get(name),
        "switch": {"epochs": SWITCH.epochs, "batch": SWITCH_BATCH, "rate": SWITCH.lr},
        "whole": kept.get("whole")
        or {
            "accuracy": accuracy(model, tested_on),
            "multiply-adds": multiply_adds_run(model, tested_on.inputs[:1]),
            "parameters": sum(weight.numel() for weight in model.parameters()),
        },
        "rows": kept.get("rows", []),
        **{what: kept.get(what, {}) for what in ("seconds", "errors", "chosen")},
    }


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


def pruned(model, name, chosen_on, tested_on, seconds, done):
    """Prune by torch-pruning's own criteria to the same budgets; yield label and rows.

    What is in `done` is left out.
    """
    for by, criterion in PEERS.items():
        for scope, ignored in scopes(model, name).items():
            label = f"{by}, {scope}" if scope else by
            if label in done:
                continue
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
        "switch epochs": SWITCH.epochs,
        "from scratch": {},
        "rows": [],
    }
    for epochs, rate in ((AFTERWARDS, RATE), (EPOCHS + AFTERWARDS, 0.1)):
        anew = nr.zoo.lenet(*WIDTHS.values(), seed=1)
        brief = {"epochs": epochs, "lr": rate, "batch_size": 50, "progress": False}
        nr.fit(anew, splits.train, splits.validation, **brief)
        found["from scratch"][str(epochs)] = accuracy(anew.eval(), splits.test)
    for by, method in METHODS.items():
        pictures = looked_at(by, "lenet", chosen_on)
        ranking = nr.rank(model, pictures, method, progress=False)
        for removal in ("zero", "mean"):
            plan = nr.plan(ranking, keep=WIDTHS)
            small = nr.condense(model, plan, chosen_on, removal=removal, progress=False)
            removed = accuracy(small.model.eval(), splits.test)
            brief = {"epochs": AFTERWARDS, "lr": RATE, "batch_size": 50, "progress": False}
            nr.retrain(small.model, splits, **brief)
            row = {
                "by": by,
                "removal": removal,
                "removed": removed,
                "retrained": accuracy(small.model.eval(), splits.test),
                "multiply-adds": small.report.multiply_adds[1],
                "parameters": small.report.parameters[1],
            }
            found["rows"].append(row)
            print(row, flush=True)
    return found


def latency(load, name, scope, large):
    """Time networks of half the multiply-adds, ours and torch-pruning's, and the whole one."""
    model, chosen_on, tested_on = load()
    seen = watched(model, chosen_on.first(4), progress=False)
    rest = ("conv1",) if scope else ()
    ranking = ranked(nr.WeightNorm(), seen)
    plan = plans(ranking, seen, "share per cost", rest)[0.5]
    left_alone = ("classifier.6",) if name == "vgg16" else scopes(model, name)[scope]
    criterion = torch_pruning.importance.MagnitudeImportance()
    peer = torch_pruned(model, criterion, left_alone, chosen_on)[0.5].eval()
    few = replace(chosen_on.first(large), batch_size=large)
    quick = within_both(ranking, model, few, rest, peer)
    models = {
        "whole": model,
        "neurank": carried_out(plan, seen, "zero").model,
        "neurank, both budgets": carried_out(quick, seen, "zero").model,
        "neurank, its widths": carried_out(of_its_widths(peer, ranking, rest), seen, "zero").model,
        "torch-pruning": peer,
    }
    print(name, quick.source["budget"], flush=True)
    return {
        "tested on": tested_on.examples,
        "accuracy": {label: accuracy(it, tested_on) for label, it in models.items()},
        "budgets": quick.source["budget"],
        BUDGETS_BATCH: large,
        **timed(models, chosen_on.inputs, (1, large)),
    }


def within_both(ranking, model, few, left_alone, peer):
    """Plan for no more multiply-adds than torch-pruning left, and no more time than they take.

    The time is measured as `neurank.plan` measures it, for the pictures given, but in seconds of
    this process, since what other processes take at times is longer than what is to be measured.
    """
    with patch.object(trials, "time", SimpleNamespace(perf_counter=time.process_time)):
        return nr.plan(
            ranking,
            max_macs=multiply_adds_run(peer, few.inputs[:1]),
            max_latency=trials.seconds_of(peer, few.inputs),
            model=model,
            data=few,
            across="share per cost",
            min_width=narrowest(ranking),
            ignored=left_alone,
            progress=False,
        )


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
    splits = nr.data.load(f"cifar10:{folder() / 'cifar10'}", batch_size=50)
    model, splits = trained_vgg16(), splits.normalized(MEAN, STD)
    return model, splits.validation.first(250), splits.test.first(1000)


BUDGETS_BATCH = "batch of the budgets"

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
        kept = read().get(part, {}) if options.resume else {}
        if part not in NETWORKS and kept and (part not in TIMED or "accuracy" in kept):
            continue  # times by themselves are of an earlier form

        def keep(found, part=part):
            write({**read(), part: found})

        if part in NETWORKS:
            sweep(part, keep, kept)
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
    write({**read(), "machine": said})


def write(found):
    """Keep what is there so far; whoever interrupts it leaves what was there before."""
    unfinished = KEPT.with_suffix(".part")
    unfinished.write_text(json.dumps(found, indent=1))
    unfinished.replace(KEPT)


def read():
    """Return what is kept so far."""
    return json.loads(KEPT.read_text()) if KEPT.is_file() else {}


if __name__ == "__main__":
    main()
