"""A network for each class of CIFAR-10, cut out of the trained VGG-16: with and without retraining.

    python experiments/semantic_pruning/specialists.py known
    python experiments/semantic_pruning/specialists.py whole [--classes 0,3]
    python experiments/semantic_pruning/specialists.py shared --condensed FILE [--classes 0,3]
    python experiments/semantic_pruning/specialists.py trained --condensed FILE --logits FILE
    python experiments/semantic_pruning/specialists.py report

Needs the data that NEURANK_DATA names, with models/ beside it. One core takes two to three minutes
a class for each part. What is finished lies in runs/specialists and is not computed again; `report`
writes specialists.md beside this file from what is there.

Units are scored by mean replacement saliency for the decision "is it the class" on 1,000 of the
5,000 held-out pictures. All choices, heads and thresholds are made on 2,000 of them, those of
`shared` on all 5,000; the 10,000 pictures of the test file are seen by nothing but the figures of
the table. F1 may fall one point below that of the whole network; half a point for `shared`, because
the F1 of 500 pictures of a class is known to some one and a half.

known    How well the whole network knows each class.
whole    without retraining: the smallest network that holds on these 2,000, found by
         `neurank.specialize` with a folded head.
shared   FILE is the network of ten classes that experiments/neuron_ranking/vgg16_cifar10.py
         condenses and retrains (its row "ours"), once for all classes. The smallest specialist of
         it that holds, without more training.
trained  One of it with at most 27 million multiply-adds, trained briefly: BatchNorm's statistics
         are estimated again, a head is fitted and folded in, and three epochs of 9,000 pictures
         follow, the class's 4,500 and as many others, drawn anew; labels are part the data's, part
         the whole network's answers, which that experiment keeps in logits.safetensors.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from networks import CIFAR, NETWORKS, folder
from safetensors.torch import load_file
from torch.nn import functional
from torch.optim.swa_utils import update_bn

import neurank as nr
from neurank.condense.heads import fit_head, relabelled, with_head
from neurank.condense.measure import interleaved
from neurank.data.cifar10 import CLASSES
from neurank.text import aligned

HERE = Path(__file__).parent
RUNS = Path("runs/specialists")
SCORED, CHOSEN = 1_000, 2_000
MOST_MULTIPLY_ADDS = 27_000_000
EPOCHS, BATCH, RATE = 3, 64, 3e-4
HEAT, SOFT = 2.0, 0.7
"""The whole network's answers are smoothed so, and count so much beside the labels."""


def loaded():
    """Return the trained VGG-16 and CIFAR-10."""
    return NETWORKS["vgg16"].model(), nr.data.load(f"cifar10:{folder()}/cifar10").normalized(*CIFAR)


def narrow(path):
    """Return the condensed network of ten classes, whose widths its weights tell."""
    weights = {name: it for name, it in load_file(path).items() if not name.startswith("momentum.")}
    names = sorted(
        (name for name, it in weights.items() if name.endswith(".weight") and it.ndim > 1),
        key=lambda name: (name.startswith("classifier"), int(name.split(".")[1])),
    )
    model = nr.zoo.vgg16(*(len(weights[name]) for name in names[:-1])).eval()
    own = model.state_dict()
    model.load_state_dict({name: weights[name] for name in own})
    return model


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


def trained(model, split, label, soft):
    """Train a network of two outputs on the class and as many others; in place.

    `soft` is for each picture how sure the whole network is that it is the class.
    """
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
            wanted = (split.targets[some] == label).float()
            wanted = SOFT * soft[some] + (1 - SOFT) * wanted
            loss = functional.cross_entropy(found, torch.stack([1 - wanted, wanted], dim=1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return model.eval().to(memory_format=torch.contiguous_format)


def retrained(model, splits, scores, label, soft):
    """Cut further, bring statistics up to date, fold a head in, train."""
    chosen = splits.validation.first(CHOSEN)
    plan = nr.plan(
        scores,
        max_macs=MOST_MULTIPLY_ADDS,
        model=model,
        data=chosen,
        across="share per cost",
        multiple_of=4,
        progress=False,
    )
    small = nr.condense(model, plan, chosen.first(200), progress=False)
    draw = torch.Generator().manual_seed(0)
    some = splits.train.subset(torch.randperm(45_000, generator=draw)[:2_000])
    update_bn([inputs for inputs, _ in some], small.model)
    head = fit_head(answers(small.model, chosen), chosen.targets, label)
    binary = with_head(small.model, head, chosen.first(50))
    binary = trained(binary, splits.train, label, soft)
    # Where the class begins is chosen on pictures that it was not trained on.
    own = (chosen.targets == label).long()
    final = fit_head(answers(binary, chosen), own, 1)
    binary = with_head(binary, final, relabelled(chosen.first(50), label))
    return binary, small.report.multiply_adds[1], small.check.max_error


def entry(model, small, macs, error, test, label):
    """Say what a specialist costs, beside the whole network, and what it is worth."""
    times = interleaved({"whole": model, "small": small}, test.inputs[:64], 9, time.process_time)
    return {
        "parameters": sum(it.numel() for it in small.parameters()),
        "multiply_adds": macs,
        "time": times["small"].median / times["whole"].median,
        "quality": known(answers(small, test), test.targets, label, binary=True),
        "check": error,
    }


def of_whole(model, splits, label, before):
    """Cut a specialist out of the whole network, without retraining."""
    chosen = splits.validation.first(CHOSEN)
    scores = scores_for(model, splits.validation.first(SCORED), label)
    made = nr.specialize(
        model, chosen, label, ranking=scores, head=True, max_drop=0.01,
        across="share per cost", progress=False,
    )  # fmt: skip
    macs, error = made.report.multiply_adds[1], made.condensed.check.max_error
    return {
        "whole": known(before["test"], splits.test.targets, label, binary=False),
        "untrained": entry(model, made.model, macs, error, splits.test, label),
    }


def of_shared(model, splits, label, before, condensed):
    """Cut specialists out of the condensed network of ten classes."""
    chosen = splits.validation
    least = nr.classes.quality(before["held out"], chosen.targets, label).f1 - 0.005
    own = nr.classes.quality(answers(condensed, chosen), chosen.targets, label).f1
    scores = scores_for(condensed, splits.validation.first(SCORED), label)
    made = nr.specialize(
        condensed, chosen, label, ranking=scores, head=True, max_drop=max(own - least, 0.0),
        across="share per cost", progress=False,
    )  # fmt: skip
    macs, error = made.report.multiply_adds[1], made.condensed.check.max_error
    return {"cut": entry(model, made.model, macs, error, splits.test, label)}


def of_trained(model, splits, label, before, condensed):
    """Cut further than holds, and train briefly."""
    scores = scores_for(condensed, splits.validation.first(SCORED), label)
    teacher = fit_head(before["chosen"], splits.validation.first(CHOSEN).targets, label)
    soft = torch.softmax(teacher(before["train"]) / HEAT, dim=1)[:, 1].float()
    binary, macs, error = retrained(condensed, splits, scores, label, soft)
    return {"trained": entry(model, binary, macs, error, splits.test, label)}


KINDS = {
    "untrained": "of the whole network, untrained",
    "cut": "of the condensed one",
    "trained": "of it, trained briefly",
}


def report():
    """Write the table of what is finished."""
    classes = {}
    for path in sorted(RUNS.glob("*.json")):
        label = int(path.stem.rpartition("-")[2])
        classes.setdefault(label, {}).update(json.loads(path.read_text(encoding="utf-8")))
    whole = 15_253_578, 313_725_952
    rows = [("class", "F1 of the whole network")]
    for words in KINDS.values():
        rows[0] += (f"{words}: F1", "AUROC", "parameters", "multiply-adds", "time")
    for label, one in sorted(classes.items()):
        before = one["whole"]["f1"]
        cells = [CLASSES[label], f"{100 * before:.1f} %"]
        for kind in KINDS:
            it = one.get(kind)
            if it is None:
                cells += [""] * 5
                continue
            f1 = it["quality"]["f1"]
            cells += [
                f"{100 * f1:.1f} %" + (" (holds)" if f1 >= before - 0.01 else ""),
                f"{it['quality']['auroc']:.4f}",
                f"{100 * it['parameters'] / whole[0]:.2f} %",
                f"{100 * it['multiply_adds'] / whole[1]:.1f} %",
                f"{100 * it['time']:.0f} %",
            ]
        rows.append(tuple(cells))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    (HERE / "specialists.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(aligned(rows)))


def main():
    """Make the networks that are not there yet, or the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["known", "whole", "shared", "trained", "report"])
    parser.add_argument("--condensed", type=Path, help="the condensed network of ten classes")
    parser.add_argument("--logits", type=Path, help="the whole network's answers, for training")
    parser.add_argument("--classes", default=",".join(map(str, range(10))))
    given = parser.parse_args()
    if given.what == "report":
        report()
        return
    if given.what in {"shared", "trained"} and given.condensed is None:
        parser.error(f"{given.what} needs --condensed FILE")
    RUNS.mkdir(parents=True, exist_ok=True)
    model, splits = loaded()
    if given.what == "known":
        found = answers(model, splits.test)
        for label in range(len(CLASSES)):
            whole = {"whole": known(found, splits.test.targets, label, binary=False)}
            (RUNS / f"known-{label}.json").write_text(json.dumps(whole), encoding="utf-8")
        return
    before = {"held out": answers(model, splits.validation)}
    before["chosen"] = before["held out"][:CHOSEN]
    if given.what == "whole":
        before["test"] = answers(model, splits.test)
    if given.what == "trained":
        before["train"] = load_file(given.logits)["logits"].float()
    for label in map(int, given.classes.split(",")):
        path = RUNS / f"{given.what}-{label}.json"
        if path.exists():
            continue
        started = time.perf_counter()
        if given.what == "whole":
            found = of_whole(model, splits, label, before)
        else:
            make = of_shared if given.what == "shared" else of_trained
            found = make(model, splits, label, before, narrow(given.condensed))
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(label, f"{time.perf_counter() - started:.0f} s", found, flush=True)


if __name__ == "__main__":
    main()
