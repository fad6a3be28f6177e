"""Pruning on a schedule while a small CNN learns MNIST: sections 2.2 and 4.2 of the thesis.

    python experiments/dead_units/pruning_schedule.py [--out runs/pruning-schedule] [--quick]
        [--stage units|masked|weights|goal|report]

Faithful runs, three seeds: the CNN 8-16-64 (20,522 parameters), SGD with learning rate 0.01,
batches of 32, ten epochs of the 60,000 pictures of the training file, weights of the last epoch.

units    Table 4.2: after epochs 2, 3, 4 and 5 a share of 0.1, 0.2, 0.4 and 0.6 of the units of each
         layer is gone, by mean replacement saliency on 1,000 random training pictures, with bias
         propagation, cut away at once. Beside it the same seed without pruning.
masked   The same with removed units masked, as in the thesis: what an epoch costs.
weights  Table 2.2: 0.2, 0.5, 0.8 and 0.9 of all weights, by magnitude, held at zero. Then, as in
         Figure 2.11, units of which few weights are left are cut away.
goal     Fewer parameters at 98.8 % and at 98.42 %, by training that is not the thesis': Adam along
         a cosine, altered pictures, the original's outputs as soft labels. Widths are chosen by
         10,000 held-out pictures that nothing is trained on.
report   Reads the test file, once, for all networks that are there, and writes the results beside
         this file, in pruning_schedule/.

Everything that is finished stays in --out and is not done again. --quick runs the whole path on few
pictures and leaves its results in --out.
"""

import argparse
import json
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

import neurank as nr
from neurank.watch.unit_pruning import UnitPruning

MEAN, STD = 0.1307, 0.3081
UNITS = {2: 0.1, 3: 0.2, 4: 0.4, 5: 0.6}
WEIGHTS = {2: 0.2, 3: 0.5, 4: 0.8, 5: 0.9}
HIDDEN = ("conv1", "conv2", "fc1")
PRINTED = {"parameters": 4_019, "accuracy, %": 98.42, "original accuracy, %": 98.8}


@dataclass(frozen=True)
class Settings:
    """What is done, and for how long.

    Attributes
    ----------
    pictures : of the training file; faithful runs take all of them.
    held_out : of these, at the end of the file: what widths of the goal are chosen by.
    seeds : of the faithful runs.
    epochs, lr, batch : of the faithful runs.
    ranked_on : random training pictures that units are ranked on.
    variants : how many altered copies of the pictures the goal's training has.
    teacher, student : epochs of the goal's large network, and of each that is made smaller.
    small : the goal's widths.
    """

    pictures: int = 60_000
    held_out: int = 10_000
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 10
    lr: float = 0.01
    batch: int = 32
    ranked_on: int = 1_000
    variants: int = 6
    teacher: int = 12
    student: int = 30
    small: tuple[tuple[int, int, int], ...] = (
        (4, 7, 26),
        (5, 9, 16),
        (4, 8, 12),
        (4, 7, 10),
        (3, 6, 8),
    )


FULL = Settings()
QUICK = Settings(
    2_000, 500, (0,), 6, variants=2, teacher=2, student=6, ranked_on=200, small=((4, 7, 26),)
)


def whole_file(settings):
    """Return the training file, normalised."""
    splits = nr.data.load(f"mnist:{Path(os.environ['NEURANK_DATA']) / 'mnist'}")
    inputs = torch.cat([splits.train.inputs, splits.validation.inputs])
    targets = torch.cat([splits.train.targets, splits.validation.targets])
    whole = replace(splits.train, inputs=inputs, targets=targets, name="mnist/train file")
    return whole.first(settings.pictures).normalized(MEAN, STD)


def test_file():
    folder = Path(os.environ["NEURANK_DATA"]) / "mnist"
    return nr.data.load(f"mnist:{folder}").test.normalized(MEAN, STD).rebatched(500)


def some(whole, settings, seed):
    """Return the random training pictures that units are ranked on."""
    draw = torch.Generator().manual_seed(1_000 + seed)
    rows = torch.randperm(whole.examples, generator=draw)[: settings.ranked_on]
    return whole.subset(rows).rebatched(500)


def one_epoch(model, optimizer, whole, settings, draw, after_step=None):
    """Go through the training file once; return the mean loss of each 50 steps."""
    losses, total = [], 0.0
    model.train()
    for step, rows in enumerate(
        torch.randperm(whole.examples, generator=draw).split(settings.batch), start=1
    ):
        loss = functional.cross_entropy(model(whole.inputs[rows]), whole.targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if after_step is not None:
            after_step()
        total += loss.item()
        if step % 50 == 0:
            losses.append(total / 50)
            total = 0.0
    model.eval()
    return losses


def sgd(model, settings):
    return torch.optim.SGD(model.parameters(), lr=settings.lr)


def keep(path, model, record):
    """Write what a finished run leaves: weights, then the record that says it is finished."""
    save_file(
        {name: it.contiguous().clone() for name, it in model.state_dict().items()},
        path.with_suffix(".safetensors"),
    )
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(record, indent=1) + "\n")
    draft.replace(path.with_suffix(".json"))


def record_of(path):
    return json.loads(path.with_suffix(".json").read_text())


def is_done(path):
    return path.with_suffix(".json").exists()


def widths(model):
    return [len(getattr(model, name).weight) for name in HIDDEN]


def loaded(path):
    """Return a network that `keep` wrote."""
    state = load_file(path.with_suffix(".safetensors"))
    model = nr.zoo.thesis_cnn(*(len(state[f"{name}.weight"]) for name in HIDDEN))
    model.load_state_dict(state)
    return model.eval()


def plain_run(path, whole, settings, seed):
    """Train without pruning."""
    model, draw = nr.zoo.thesis_cnn(seed=seed), torch.Generator().manual_seed(seed)
    optimizer = sgd(model, settings)
    losses, seconds = [], []
    for _ in range(settings.epochs):
        begun = time.process_time()
        losses += one_epoch(model, optimizer, whole, settings, draw)
        seconds.append(time.process_time() - begun)
    keep(path, model, {"losses": losses, "seconds": seconds})


def unit_run(path, whole, settings, seed):
    """Train with units cut away after epochs of the schedule."""
    model, draw = nr.zoo.thesis_cnn(seed=seed), torch.Generator().manual_seed(seed)
    optimizer = sgd(model, settings)
    pruning = UnitPruning(
        UNITS,
        method=nr.MeanReplacementSaliency(),
        data=some(whole, settings, seed),
        removal="mean",
    )
    losses, seconds, cutting = [], [], []
    for epoch in range(1, settings.epochs + 1):
        begun = time.process_time()
        losses += one_epoch(model, optimizer, whole, settings, draw)
        trained = time.process_time()
        model = pruning.after_epoch(epoch, model, optimizer)
        seconds.append(trained - begun)
        cutting.append(time.process_time() - trained)
    record = {
        "losses": losses,
        "seconds": seconds,
        "cutting seconds": cutting,
        "widths": widths(model),
        "kept": {layer: list(kept) for layer, kept in pruning.plan.keep.items()},
        "steps": [
            {
                "epoch": it.epoch,
                "widths": [after for _, after in it.pruned.widths.values()],
                "parameters": it.parameters,
                "loss before": it.pruned.losses[0],
                "loss after": it.pruned.losses[1],
            }
            for it in pruning.epochs
            if it.pruned is not None
        ],
    }
    keep(path, model, record)


def filled(model, condensed):
    """Put a condensed network's weights where they were in the whole network, zeros elsewhere.

    Also returns where that is, a mask for each parameter.
    """
    small, masks = dict(condensed.model.named_parameters()), {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            place = [torch.arange(size) for size in parameter.shape]
            for cut in condensed.cuts:
                if cut.tensor == name:
                    place[cut.axis] = torch.tensor(cut.keep)
            mask = torch.zeros_like(parameter)
            mask[torch.meshgrid(*place, indexing="ij")] = 1
            parameter.zero_()
            parameter[torch.meshgrid(*place, indexing="ij")] = small[name]
            masks[parameter] = mask
    return masks


def masked_run(path, whole, settings, seed):
    """Train as `unit_run` does, with the units that are gone held at zero in the whole network."""
    model, draw = nr.zoo.thesis_cnn(seed=seed), torch.Generator().manual_seed(seed)
    optimizer, data = sgd(model, settings), some(whole, settings, seed)
    original = {
        name: it.out_channels
        for name, it in model.named_children()
        if isinstance(it, torch.nn.Conv2d)
    }
    original["fc1"] = model.fc1.out_features
    plan, masks = None, {}

    def hold():
        with torch.no_grad():
            for parameter, mask in masks.items():
                parameter.mul_(mask)

    losses, seconds = [], []
    for epoch in range(1, settings.epochs + 1):
        begun = time.process_time()
        losses += one_epoch(model, optimizer, whole, settings, draw, hold)
        seconds.append(time.process_time() - begun)
        if epoch not in UNITS:
            continue
        small = model if plan is None else nr.condense(model, plan, data, progress=False).model
        ranking = nr.rank(small, data, nr.MeanReplacementSaliency(), progress=False)
        share = UNITS[epoch]
        left = {name: width - math.floor(share * width) for name, width in original.items()}
        later = nr.plan(ranking, keep=left)
        plan = later if plan is None else plan.then(later)
        masks = filled(model, nr.condense(model, plan, data, removal="mean", progress=False))
    record = {
        "losses": losses,
        "seconds": seconds,
        "kept": {layer: list(kept) for layer, kept in plan.keep.items()},
    }
    keep(path, model, record)


def units(out, whole, settings):
    for seed in settings.seeds:
        for name, run in (("units", unit_run), ("plain", plain_run)):
            path = out / f"{name}-{seed}"
            if not is_done(path):
                run(path, whole, settings, seed)
                print(f"{path.name} is done", flush=True)


def masked(out, whole, settings):
    for seed in settings.seeds[:1]:
        path = out / f"masked-{seed}"
        if not is_done(path):
            masked_run(path, whole, settings, seed)
            print(f"{path.name} is done", flush=True)


STAGES = {"units": units, "masked": masked}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/pruning-schedule"))
    parser.add_argument("--quick", action="store_true", help="the whole path on few pictures")
    parser.add_argument("--stage", choices=[*STAGES], help="only this one")
    arguments = parser.parse_args()
    settings = QUICK if arguments.quick else FULL
    out = arguments.out / "quick" if arguments.quick else arguments.out
    out.mkdir(parents=True, exist_ok=True)
    whole = whole_file(settings)
    for name, stage in STAGES.items():
        if arguments.stage in {None, name}:
            stage(out, whole, settings)


if __name__ == "__main__":
    main()
