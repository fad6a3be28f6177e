"""A network for each class of CIFAR-10, cut out of the trained VGG-16: with and without retraining.

    python experiments/semantic_pruning/specialists.py [--classes 0,3] [report]

Needs the data that NEURANK_DATA names, with models/ beside it. One core takes about six minutes a
class. What is finished lies in runs/specialists and is not computed again; `report` writes
specialists.md beside this file from what is there.

Units are scored by mean replacement saliency for the decision "is it the class" on 1,000 of the
5,000 held-out pictures. All choices, heads and thresholds are made on 2,000 of them; the 10,000
pictures of the test file are seen by nothing but the figures of the table.

without retraining   the smallest network whose F1 on these 2,000 is within one point of the whole
                     network's, found by `neurank.specialize` with a folded head.
retrained            at most a tenth of the parameters and 75 million of 314 million multiply-adds;
                     BatchNorm's statistics are estimated again, a head is fitted and folded in, and
                     the network is trained for four epochs of 9,000 pictures, the class's 4,500 and
                     as many others, drawn anew each time.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional
from torch.optim.swa_utils import update_bn

import neurank as nr
from neurank.condense.heads import fit_head, relabelled, with_head
from neurank.condense.measure import interleaved
from neurank.text import aligned

HERE = Path(__file__).parent
RUNS = Path("runs/specialists")
NORMAL = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SCORED, CHOSEN = 1_000, 2_000
MOST_PARAMETERS, MOST_MULTIPLY_ADDS = 0.1, 75_000_000
EPOCHS, BATCH, RATE = 4, 64, 1e-3


def loaded():
    """Return the trained VGG-16 and CIFAR-10."""
    folder = os.environ.get("NEURANK_DATA")
    if not folder:
        raise SystemExit("NEURANK_DATA is not set: it names the folder with cifar10/ and models/")
    model = nr.zoo.vgg16().eval()
    weights = load_file(Path(folder) / "models" / "vgg16_cifar10.safetensors")
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model, nr.data.load(f"cifar10:{folder}/cifar10").normalized(*NORMAL)


@torch.inference_mode()
def answers(model, data):
    """Return the logits for all examples, in evaluation mode."""
    model.eval()
    return torch.cat([model(inputs) for inputs, _ in data]).float()


def known(logits, targets, label, *, binary):
    """Return recall, precision and so on of the class."""
    own = (targets == label).long()
    found = nr.classes.quality(logits, own, 1) if binary else nr.classes.quality(
        logits, targets, label
    )  # fmt: skip
    return found.to_json()


def scores_for(model, data, label):
    """Score units for the decision whether it is the class."""
    head = fit_head(answers(model, data), data.targets, label)
    deciding = with_head(model, head, data.first(50))
    method = nr.MeanReplacementSaliency(at="post")
    found = nr.rank(deciding, relabelled(data, label), method, progress=False)
    return nr.Ranking(found.layers, {"method": "mean replacement", "one_against_rest": label})


def trained(model, split, label):
    """Train a network of two outputs on the class and as many others; in place."""
    own = (split.targets == label).nonzero()[:, 0]
    rest = (split.targets != label).nonzero()[:, 0]
    draw = torch.Generator().manual_seed(label)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-3)
    steps = EPOCHS * math.ceil(2 * len(own) / BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
    torch.manual_seed(label)
    model.train()
    for _ in range(EPOCHS):
        others = rest[torch.randperm(len(rest), generator=draw)[: len(own)]]
        rows = torch.cat([own, others])
        rows = rows[torch.randperm(len(rows), generator=draw)]
        for some in rows.split(BATCH):
            inputs = split.inputs[some]
            mirrored = torch.rand(len(some), generator=draw) < 0.5
            inputs = torch.where(mirrored[:, None, None, None], inputs.flip(3), inputs)
            with torch.autocast("cpu", torch.bfloat16):
                found = model(inputs.to(memory_format=torch.channels_last)).float()
            loss = functional.cross_entropy(found, (split.targets[some] == label).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return model.eval().to(memory_format=torch.contiguous_format)


def retrained(model, splits, scores, label):
    """Cut to the goal's size, bring statistics up to date, fold a head in, train."""
    chosen = splits.validation.first(CHOSEN)
    plan = nr.plan(
        scores,
        max_params=int(MOST_PARAMETERS * sum(it.numel() for it in model.parameters())),
        max_macs=MOST_MULTIPLY_ADDS,
        model=model,
        data=chosen,
        across="share per cost",
        multiple_of=8,
        progress=False,
    )
    small = nr.condense(model, plan, chosen.first(200), progress=False)
    draw = torch.Generator().manual_seed(0)
    some = splits.train.subset(torch.randperm(45_000, generator=draw)[:2_000])
    update_bn([inputs for inputs, _ in some], small.model)
    head = fit_head(answers(small.model, chosen), chosen.targets, label)
    binary = trained(with_head(small.model, head, chosen.first(50)), splits.train, label)
    # Where the class begins is chosen on pictures that it was not trained on.
    own = (chosen.targets == label).long()
    final = fit_head(answers(binary, chosen), own, 1)
    binary = with_head(binary, final, relabelled(chosen.first(50), label))
    return binary, small.report.multiply_adds[1], small.check.max_error


def one_class(model, splits, label, whole):
    """Make both networks of a class, and measure them."""
    started = time.perf_counter()
    test, chosen = splits.test, splits.validation.first(CHOSEN)
    scores = scores_for(model, splits.validation.first(SCORED), label)
    inputs = test.inputs[:64]
    found = {"label": label, "whole": known(whole, test.targets, label, binary=False)}
    binary, macs, error = retrained(model, splits, scores, label)
    times = interleaved({"whole": model, "small": binary}, inputs, 9, time.process_time)
    found["retrained"] = {
        "parameters": sum(it.numel() for it in binary.parameters()),
        "multiply_adds": macs,
        "time": times["small"].median / times["whole"].median,
        "quality": known(answers(binary, test), test.targets, label, binary=True),
        "check": error,
    }
    print(label, "retrained", found["retrained"], flush=True)
    made = nr.specialize(
        model, chosen, label, ranking=scores, head=True, max_drop=0.01,
        across="share per cost", progress=False,
    )  # fmt: skip
    times = interleaved({"whole": model, "small": made.model}, inputs, 9, time.process_time)
    found["untrained"] = {
        "parameters": made.report.parameters[1],
        "multiply_adds": made.report.multiply_adds[1],
        "time": times["small"].median / times["whole"].median,
        "quality": known(answers(made.model, test), test.targets, label, binary=True),
        "check": made.condensed.check.max_error,
    }
    found["seconds"] = time.perf_counter() - started
    return found


def report(names):
    """Write the table of what is finished."""
    found = [json.loads(it.read_text()) for it in sorted(RUNS.glob("class-*.json"))]
    whole = 15_253_578, 313_725_952
    rows = [
        ("class", "F1 whole", "without retraining: F1", "parameters", "multiply-adds", "time",
         "retrained: F1", "parameters", "multiply-adds", "time", "within a point", "AUROC"),
    ]  # fmt: skip
    for one in found:
        cells = [names[one["label"]], f"{100 * one['whole']['f1']:.1f} %"]
        for kind in ("untrained", "retrained"):
            it = one[kind]
            cells += [
                f"{100 * it['quality']['f1']:.1f} %",
                f"{100 * it['parameters'] / whole[0]:.1f} %",
                f"{100 * it['multiply_adds'] / whole[1]:.1f} %",
                f"{100 * it['time']:.0f} %",
            ]
        held = [
            "yes" if one[kind]["quality"]["f1"] >= one["whole"]["f1"] - 0.01 else "no"
            for kind in ("untrained", "retrained")
        ]
        areas = [f"{one[kind]['quality']['auroc']:.4f}" for kind in
                 ("whole", "untrained", "retrained") if "quality" in one[kind]]  # fmt: skip
        rows.append((*cells, " / ".join(held), " / ".join(areas)))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    (HERE / "specialists.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(aligned(rows)))


def main():
    """Make the networks that are not there yet, or the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["make", "report"], default="make")
    parser.add_argument("--classes", default=",".join(map(str, range(10))))
    given = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    if given.what == "make":
        model, splits = loaded()
        whole = None
        for label in map(int, given.classes.split(",")):
            path = RUNS / f"class-{label}.json"
            if not path.exists():
                whole = answers(model, splits.test) if whole is None else whole
                found = one_class(model, splits, label, whole)
                path.write_text(json.dumps(found, indent=1), encoding="utf-8")
                print(label, "untrained", found["untrained"], flush=True)
    report(nr.data.cifar10.CLASSES)


if __name__ == "__main__":
    main()
