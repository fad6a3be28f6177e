"""Pruning on a schedule while a small CNN learns MNIST: sections 2.2 and 4.2 of the thesis.

    python experiments/dead_units/pruning_schedule.py [--out runs/pruning-schedule] [--quick]
        [--stage units|cost|weights|goal|masked|report]

Faithful runs, three seeds: the CNN 8-16-64 (20,522 parameters), SGD with learning rate 0.01,
batches of 32, ten epochs of the 60,000 pictures of the training file, weights of the last epoch.

units    Table 4.2: after epochs 2, 3, 4 and 5 a share of 0.1, 0.2, 0.4 and 0.6 of the units of each
         layer is gone, by mean replacement saliency on 1,000 random training pictures, with bias
         propagation, cut away at once. Beside it the same seed without pruning.
cost     What a training step costs with removed units cut away, and with them masked.
masked   The first seed again with removed units masked, as in the thesis: the same in the end.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

import neurank as nr
from neurank.watch.unit_pruning import UnitPruning
from neurank.watch.weight_pruning import WeightPruning
from neurank.weights import Magnitude

MEAN, STD = 0.1307, 0.3081
UNITS = {2: 0.1, 3: 0.2, 4: 0.4, 5: 0.6}
WEIGHTS = {2: 0.2, 3: 0.5, 4: 0.8, 5: 0.9}
SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
HIDDEN = ("conv1", "conv2", "fc1")
PRINTED = {"parameters": 4_019, "test accuracy, pruned and not, %": 98.42}


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
        (4, 7, 10),
        (4, 7, 9),
        (4, 6, 10),
        (4, 7, 8),
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
        method=nr.MeanReplacementSaliency(at="post"),
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
        ranking = nr.rank(small, data, nr.MeanReplacementSaliency(at="post"), progress=False)
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


def weights(out, whole, settings):
    for seed in settings.seeds:
        path = out / f"weights-{seed}"
        if not is_done(path):
            weight_run(path, whole, settings, seed)
            print(f"{path.name} is done", flush=True)


def masked(out, whole, settings):
    for seed in settings.seeds[:1]:
        path = out / f"masked-{seed}"
        if not is_done(path):
            masked_run(path, whole, settings, seed)
            print(f"{path.name} is done", flush=True)


def weight_run(path, whole, settings, seed):
    """Train with weights set to zero after epochs of the schedule, and held there."""
    model, draw = nr.zoo.thesis_cnn(seed=seed), torch.Generator().manual_seed(seed)
    optimizer = sgd(model, settings)
    losses, seconds = [], []
    data = some(whole, settings, seed)
    with WeightPruning(WEIGHTS, method=Magnitude(), data=data) as pruning:
        for epoch in range(1, settings.epochs + 1):
            begun = time.process_time()
            losses += one_epoch(model, optimizer, whole, settings, draw)
            seconds.append(time.process_time() - begun)
            pruning.after_epoch(epoch, model, optimizer)
    steps = [
        {
            "epoch": it.epoch,
            "sparsity": it.sparsity,
            "loss before": it.losses[0],
            "loss after": it.losses[1],
        }
        for it in pruning.epochs
        if it.losses is not None
    ]
    keep(path, model, {"losses": losses, "seconds": seconds, "steps": steps})


def nonzero_shares(model):
    """Return by layer the shares of the incoming and of the outgoing weights that are not 0."""
    readers = {"conv1": "conv2", "conv2": "fc1", "fc1": "fc2"}
    found = {}
    for name, reader in readers.items():
        rows = getattr(model, name).weight != 0
        columns = getattr(model, reader).weight != 0
        columns = columns.reshape(len(columns), len(rows), -1).movedim(1, 0)
        found[name] = tuple(it.flatten(1).double().mean(1) for it in (rows, columns))
    return found


def without_sparse_units(model, most, data, removal):
    """Cut away units of whose incoming or outgoing weights at most a share is not 0."""
    kept = {}
    for name, (incoming, outgoing) in nonzero_shares(model).items():
        least = torch.minimum(incoming, outgoing)
        stay = torch.nonzero(least > most)[:, 0].tolist()
        kept[name] = stay or [int(least.argmax())]  # nothing would pass through an empty layer
    original = {name: len(getattr(model, name).weight) for name in kept}
    plan = nr.Plan.from_keep(kept, original)
    if plan.widths_after == plan.widths:
        return model
    return nr.condense(model, plan, data, removal=removal, progress=False).model


def step_seconds(model, masks, whole, settings, rows):
    """Return the processor time of a training step, over those of the rows given."""
    optimizer = sgd(model, settings)
    model.train()
    begun = time.process_time()
    for some_rows in rows:
        loss = functional.cross_entropy(model(whole.inputs[some_rows]), whole.targets[some_rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for parameter, mask in masks.items():
                parameter.mul_(mask)
    return (time.process_time() - begun) / len(rows)


def cost(out, whole, settings, *, turns=9, steps=60):
    """Time steps of the network as it is after each removal, cut and masked, by turns."""
    path = out / "cost.json"
    if path.exists():
        return
    draw = torch.Generator().manual_seed(0)
    data, rows = some(whole, settings, 0), None
    found, left = [], (8, 16, 64)
    for epoch in range(1, settings.epochs + 1):
        if epoch == 1 or epoch - 1 in UNITS:  # what this epoch is trained with is new
            share = UNITS.get(epoch - 1, 0)
            left = tuple(width - math.floor(share * width) for width in (8, 16, 64))
            full, masks = nr.zoo.thesis_cnn(seed=0), {}
            small = full
            if epoch > 1:
                keep_first = {name: range(width) for name, width in zip(HIDDEN, left, strict=True)}
                plan = nr.Plan.from_keep(keep_first, dict(zip(HIDDEN, (8, 16, 64), strict=True)))
                condensed = nr.condense(full, plan, data, progress=False)
                small, masks = condensed.model, filled(full, condensed)
            seconds = {"cut": [], "masked": []}
            for _ in range(turns):
                rows = torch.randperm(whole.examples, generator=draw).split(settings.batch)[:steps]
                seconds["cut"].append(step_seconds(small, {}, whole, settings, rows))
                seconds["masked"].append(step_seconds(full, masks, whole, settings, rows))
        medians = {name: sorted(it)[turns // 2] for name, it in seconds.items()}
        found.append({"epoch": epoch, "widths": list(left)} | medians)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print("cost is done", flush=True)


def altered(inputs, seed):
    """Turn by up to 12 degrees, scale by up to 10 %, slant, and move by up to 2 pixels."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(reach):
        return (2 * torch.rand(len(inputs), generator=draw) - 1) * reach

    angle, scale, slant = uniform(12 * math.pi / 180), 1 + uniform(0.1), uniform(0.15)
    across, down = uniform(2 * 2 / 28), uniform(2 * 2 / 28)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos, slant - sin, across], 1), torch.stack([sin, cos, down], 1)]
    blank = (0 - MEAN) / STD
    made = []
    for part, turned in zip(inputs.split(2_000), torch.stack(rows, 1).split(2_000), strict=True):
        grid = functional.affine_grid(turned, part.shape, align_corners=False)
        moved = functional.grid_sample(part - blank, grid, align_corners=False)
        made.append((moved + blank).to(torch.float16))
    return torch.cat(made)


class Lessons:
    """Altered pictures, their labels, and what a large network says of them."""

    def __init__(self, whole, settings):
        train = whole.first(whole.examples - settings.held_out)
        self.targets = train.targets
        self.variants = [altered(train.inputs, it) for it in range(settings.variants)]
        self.ranked_on = some(train, settings, 0)
        self.held_out = whole.subset(slice(train.examples, None)).rebatched(500)
        self.soft = None

    @torch.inference_mode()
    def ask(self, teacher):
        """Keep the large network's outputs for every picture."""
        self.soft = [
            torch.cat([teacher(it.float()) for it in variant.split(1_000)])
            for variant in self.variants
        ]

    def loss(self, logits, targets, soft, *, share=0.7, heat=3.0):
        """Join the cross-entropy to the divergence from the large network's outputs."""
        hard = functional.cross_entropy(logits, targets)
        if soft is None:
            return hard
        divergence = functional.kl_div(
            functional.log_softmax(logits / heat, 1),
            functional.log_softmax(soft / heat, 1),
            reduction="batchmean",
            log_target=True,
        )
        return share * heat**2 * divergence + (1 - share) * hard

    def teach(self, model, epochs, pruning=None, *, lr=0.004, batch=128):
        """Train by Adam, its rate along a cosine; units go as `pruning` says. Return the result."""
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        draw = torch.Generator().manual_seed(0)
        steps = math.ceil(len(self.targets) / batch)
        for epoch in range(epochs):
            variant = epoch % len(self.variants)
            order = torch.randperm(len(self.targets), generator=draw)
            model.train()
            for step, rows in enumerate(order.split(batch)):
                done = epoch + step / steps
                falling = (1 + math.cos(math.pi * done / epochs)) / 2
                optimizer.param_groups[0]["lr"] = lr * min(1.0, done + 0.05) * falling
                logits = model(self.variants[variant][rows].float())
                soft = None if self.soft is None else self.soft[variant][rows]
                optimizer.zero_grad()
                self.loss(logits, self.targets[rows], soft).backward()
                optimizer.step()
            model.eval()
            if pruning is not None:
                model = pruning.after_epoch(epoch + 1, model, optimizer)
        return model


def gradual(small, epochs):
    """Let the units beyond given widths go in equal parts over the first fifth of the epochs."""
    rounds = max(1, epochs // 5)
    shares = [1 - wanted / had for wanted, had in zip(small, (8, 16, 64), strict=True)]
    return {
        epoch: {name: share * epoch / rounds for name, share in zip(HIDDEN, shares, strict=True)}
        for epoch in range(1, rounds + 1)
    }


def goal(out, whole, settings):
    begun = time.process_time()
    lessons = Lessons(whole, settings)
    path = out / "teacher"
    if not is_done(path):
        teacher = lessons.teach(nr.zoo.thesis_cnn(seed=0), settings.teacher)
        seconds = time.process_time() - begun
        error = nr.error_rate(teacher, lessons.held_out)
        keep(path, teacher, {"held-out error": error, "seconds": seconds})
        print(f"teacher: {error:.2%} held out, {seconds:.0f} s", flush=True)
    lessons.ask(loaded(path))
    for small in settings.small:
        path = out / f"goal-{'-'.join(map(str, small))}"
        if is_done(path):
            continue
        begun = time.process_time()
        pruning = UnitPruning(
            gradual(small, settings.student),
            method=nr.MeanReplacementSaliency(at="post"),
            data=lessons.ranked_on,
        )
        model = lessons.teach(loaded(out / "teacher"), settings.student, pruning)
        seconds = time.process_time() - begun
        error = nr.error_rate(model, lessons.held_out)
        keep(path, model, {"held-out error": error, "seconds": seconds, "widths": widths(model)})
        print(f"{path.name}: {error:.2%} held out, {seconds:.0f} s", flush=True)


def report(out, whole, settings, folder):
    """Read the test file and write what was found."""
    test = test_file()
    folder.mkdir(parents=True, exist_ok=True)

    def accuracy(model):
        return round(100 * (1 - nr.error_rate(model, test)), 2)

    faithful, cut = [], []
    for seed in settings.seeds:
        for name in ("plain", "units", "masked", "weights"):
            path = out / f"{name}-{seed}"
            if not is_done(path):
                continue
            model, record = loaded(path), record_of(path)
            nonzero = sum(int((it != 0).sum()) for it in model.parameters())
            seconds = record["seconds"]
            faithful.append(
                {
                    "run": name,
                    "seed": seed,
                    "widths": "-".join(map(str, widths(model))),
                    "parameters": sum(it.numel() for it in model.parameters()),
                    "nonzero": nonzero,
                    "test accuracy, %": accuracy(model),
                    "training loss, last 50 steps": round(record["losses"][-1], 4),
                    "process seconds per epoch, 6 to 10": round(sum(seconds[5:]) / 5, 2),
                    "process seconds": round(sum(seconds), 1),
                }
            )
            for share in SHARES if name == "weights" else ():
                row = {"seed": seed, "f_nz": share}
                for removal in ("mean", "zero"):
                    small = without_sparse_units(model, share, some(whole, settings, seed), removal)
                    row["widths"] = "-".join(map(str, widths(small)))
                    row["parameters"] = sum(it.numel() for it in small.parameters())
                    row[f"test accuracy, {removal}, %"] = accuracy(small)
                cut.append(row)
    small = []
    for path in sorted(out.glob("goal-*.json")) + sorted(out.glob("teacher.json")):
        model, record = loaded(path.with_suffix("")), record_of(path.with_suffix(""))
        small.append(
            {
                "network": path.stem,
                "parameters": sum(it.numel() for it in model.parameters()),
                "held-out accuracy, %": round(100 * (1 - record["held-out error"]), 2),
                "test accuracy, %": accuracy(model),
                "process seconds": round(record["seconds"]),
            }
        )
    tables = {"faithful": faithful, "sparse_units": cut, "goal": small}
    for name, rows in tables.items():
        if rows:
            frame = pd.DataFrame(rows)
            if name == "goal":
                frame = frame.sort_values("parameters", ascending=False)
            frame.to_csv(folder / f"{name}.csv", index=False)
            print(frame.to_string(index=False))
    steps = {
        path.stem: record_of(path.with_suffix(""))["steps"]
        for pattern in ("units-*.json", "weights-*.json")
        for path in sorted(out.glob(pattern))
    }
    seconds = json.loads((out / "cost.json").read_text()) if (out / "cost.json").exists() else []
    if seconds:
        table = pd.DataFrame(seconds)
        table["widths"] = ["-".join(map(str, it)) for it in table["widths"]]
        for name in ("cut", "masked"):
            table[name] = (1000 * table[name]).round(3)
        table = table.rename(columns={"cut": "cut, ms per step", "masked": "masked, ms per step"})
        table.to_csv(folder / "cost.csv", index=False)
        print(table.to_string(index=False))
    results = {
        "settings": asdict(settings),
        "printed": PRINTED,
        "goals, the smallest with so much held-out accuracy": goals(small),
        "removals": steps,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def goals(small):
    """Choose by held-out pictures: within the printed parameters, and the fewest."""
    found = {}
    for wanted in (98.8, 98.42):
        within = [it for it in small if it["held-out accuracy, %"] >= wanted]
        found[f"{wanted} %"] = min(within, key=lambda it: it["parameters"]) if within else None
    return found


STAGES = {"units": units, "cost": cost, "goal": goal, "weights": weights, "masked": masked}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/pruning-schedule"))
    parser.add_argument("--quick", action="store_true", help="the whole path on few pictures")
    parser.add_argument("--stage", choices=[*STAGES, "report"], help="only this one")
    arguments = parser.parse_args()
    settings = QUICK if arguments.quick else FULL
    out = arguments.out / "quick" if arguments.quick else arguments.out
    out.mkdir(parents=True, exist_ok=True)
    whole = whole_file(settings)
    for name, stage in STAGES.items():
        if arguments.stage in {None, name}:
            stage(out, whole, settings)
    if arguments.stage in {None, "report"}:
        folder = out if arguments.quick else Path(__file__).with_suffix("")
        report(out, whole, settings, folder)


if __name__ == "__main__":
    main()
