"""VGG-16 on CIFAR-10 condensed to a budget and retrained, beside the paper's two architectures.

    python experiments/neuron_ranking/vgg16_cifar10.py [--out runs/vgg16-cifar10] [--quick]

All fifteen layers of the trained network are ranked by Shapley values on held-out pictures. Three
networks are cut from it by that ranking: ours, whose widths follow from the scores and a budget
(`affordable`), and the paper's two rows of Table 2. Each is retrained on the rows that the original
was trained on, with the original's logits as soft labels. The test file is used for the errors
before and after retraining alone; no epoch and no setting is chosen by it.

Everything that is finished stays in --out, training after every epoch, and is not done again. The
results go to vgg16_cifar10/ beside this file. --quick runs the whole path on few pictures, and
leaves its results in --out.
"""

import argparse
import copy
import csv
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from authors import data_folder
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.optimize import curve_fit
from torch import Tensor, nn
from torch.nn import functional

import neurank as nr
from neurank.zoo.vgg import CONVOLUTIONS, POOLED

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SIDE = 32
CLASSES = 10
OUTPUT = "classifier.6"
WIDE = 512
TRIED = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""So many of the best units of a layer are tried alone."""
PAPER = {
    "paper's second": (39, 39, 63, 48, 55, 98, 97, 52, 62, 22, 42, 47, 47, 42, 62),
    "paper's first": (34, 34, 68, 68, 75, 106, 101, 92, 102, 92, 92, 67, 67, 62, 62),
}
PRINTED = {"paper's second": 9.1, "paper's first": 8.6}
"""The test errors in the paper's Table 2, in per cent."""


@dataclass(frozen=True)
class Budget:
    """What a condensed network may cost."""

    parameters: int = 400_000
    multiply_adds: int = 35_000_000


@dataclass(frozen=True)
class Recipe:
    """How a condensed network is retrained.

    Attributes
    ----------
    stages : side of the pictures, and epochs; the sides below 32 go without the last pooling.
    batch : pictures per step.
    peak, warmup : the learning rate rises to `peak` over that share of the steps, then falls to 0
        on a straight line.
    weight_decay : of stochastic gradient descent with Nesterov momentum 0.9.
    temperature, soft : the loss is `soft` times temperature² KL to the original's softened
        outputs, and 1 - `soft` times the cross-entropy.
    """

    stages: tuple[tuple[int, int], ...]
    batch: int = 128
    peak: float = 0.1
    warmup: float = 0.15
    weight_decay: float = 5e-4
    temperature: float = 2.0
    soft: float = 0.7

    @property
    def sides(self) -> tuple[int, ...]:
        """The side of the pictures in each epoch."""
        return tuple(side for side, epochs in self.stages for _ in range(epochs))


@dataclass(frozen=True)
class Settings:
    """The size of the experiment.

    Attributes
    ----------
    recipes : how each network is retrained.
    budget : what ours may cost.
    ranked_on, ranked_wide_on : held-out pictures, the first ones, for layers below 512 units and
        from 512 on, whose single units change less.
    passes : permutations per picture.
    tried_on : held-out pictures, the last ones, that the widths of ours are chosen by.
    trained_on : training pictures.
    watched_on : held-out pictures that the error is printed for after each epoch.
    measured_on : held-out and test pictures that the final errors are measured on; None is all.
    seed : of the ranking and of the training.
    """

    recipes: dict[str, Recipe]
    budget: Budget = Budget()
    ranked_on: int = 200
    ranked_wide_on: int = 600
    passes: int = 2
    tried_on: int = 500
    trained_on: int = 45_000
    watched_on: int = 2_000
    measured_on: int | None = None
    seed: int = 0


FULL = Settings(
    {
        "ours": Recipe(((16, 6), (24, 10), (32, 28))),
        "paper's first": Recipe(((16, 6), (24, 10), (32, 12))),
        "paper's second": Recipe(((16, 4), (24, 4), (32, 6))),
    }
)
QUICK = Settings(
    {name: Recipe(((16, 1), (32, 1))) for name in FULL.recipes},
    ranked_on=2,
    ranked_wide_on=3,
    passes=1,
    tried_on=20,
    trained_on=512,
    watched_on=100,
    measured_on=200,
)


def trained(folder):
    """Return the trained network in float32."""
    stored = load_file(folder / "models" / "vgg16_cifar10.safetensors")
    model = nr.zoo.vgg16().eval()
    model.load_state_dict(
        {name: it.float() if it.is_floating_point() else it for name, it in stored.items()}
    )
    return model


# --- which units stay ---


def ranked(model, validation, settings, out):
    """Rank all layers on the first held-out pictures, the wide ones on more of them."""
    wide = {True: [], False: []}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and name != OUTPUT:
            wide[len(module.weight) >= WIDE].append(name)
    parts = (("narrow", False, settings.ranked_on), ("wide", True, settings.ranked_wide_on))
    for part, is_wide, examples in parts:
        kept = out / f"ranking-{part}.safetensors"
        if not kept.exists():
            nr.rank(
                model,
                validation.first(examples),
                nr.PermutationShapley(passes=settings.passes),
                layers=wide[is_wide],
                seed=settings.seed,
                precision="bfloat16",
                journal=out / f"ranking-{part}.journal",
            ).save(kept)
    narrow, rest = (nr.Ranking.load(out / f"ranking-{part}.safetensors") for part, *_ in parts)
    return narrow.merge(rest)


def tried(model, ranking, pictures, out):
    """Measure what the best units of one layer do alone, for several widths of each layer.

    Returns the accuracy for every layer and width, while all other layers are whole.
    """
    kept = out / "tried.json"
    if not kept.exists():
        kept.write_text(json.dumps(accuracies_alone(model, ranking, pictures), indent=1))
    return json.loads(kept.read_text())


@torch.inference_mode()
def accuracies_alone(model, ranking, pictures):
    """Run the network from every layer on, with its best units only."""
    steps = [*named(model.features, "features"), ("", nn.Flatten())]
    steps += named(model.classifier, "classifier")
    modules = [it for _, it in steps]
    before = pictures.inputs
    found = {}
    with torch.autocast("cpu", torch.bfloat16):
        for place, (name, module) in enumerate(steps):
            if name in ranking:
                relu = next(at for at in range(place, len(steps)) if is_relu(modules[at]))
                units = through(modules[place : relu + 1], before)
                order = torch.tensor(ranking.order(name))
                found[name] = {}
                for width in (it for it in TRIED if it <= len(order) // 2):
                    some = torch.zeros_like(units)
                    some[:, order[:width]] = units[:, order[:width]]
                    right = through(modules[relu + 1 :], some).argmax(1) == pictures.targets
                    found[name][width] = float(right.double().mean())
            before = module(before.clone())
        found["all"] = float((before.argmax(1) == pictures.targets).double().mean())
    return found


def named(modules, name):
    """List modules with the names that the network has them under."""
    return [(f"{name}.{number}", module) for number, module in enumerate(modules)]


def is_relu(module):
    """Tell whether a module is a ReLU."""
    return isinstance(module, nn.ReLU)


def through(modules, inputs):
    """Run modules one after the other, leaving the inputs as they were."""
    outputs = inputs.clone()
    for module in modules:
        outputs = module(outputs)
    return outputs


@dataclass(frozen=True)
class Need:
    """How much of a layer is needed: its best w units alone do 1 / (1 + (half / w)^power).

    That is the share of the whole layer's accuracy above chance.

    Attributes
    ----------
    half : so many units do half.
    power : how steeply it rises there.
    """

    half: float
    power: float

    def lost(self, width: float) -> float:
        """Return minus the logarithm of the share; a convex function of the width."""
        return math.log1p((self.half / width) ** self.power)


def needs(accuracies):
    """Fit every layer's `Need` to the accuracies of its best units, by least squares."""
    chance = 1 / CLASSES

    def share(width, half, power):
        return 1 / (1 + (half / width) ** power)

    found = {}
    for name, by_width in accuracies.items():
        if name == "all":
            continue
        widths = [float(width) for width in by_width]
        shares = [(it - chance) / (accuracies["all"] - chance) for it in by_width.values()]
        fitted, _ = curve_fit(share, widths, shares, p0=(40, 2), bounds=((1, 0.5), (512, 10)))
        found[name] = Need(*map(float, fitted))
    return found


def costs(widths: Sequence[int]) -> tuple[int, int]:
    """Count the parameters, BatchNorm's among them, and multiply-adds of a VGG-16 of 15 widths."""
    parameters = multiply_adds = 0
    side = SIDE
    for place, (before, width) in enumerate(pairwise((3, *widths, CLASSES))):
        convolution = place < len(CONVOLUTIONS)
        weights = before * width * (9 if convolution else 1)
        parameters += weights + width * (3 if convolution else 1)
        multiply_adds += weights * (side**2 if convolution else 1)
        side //= 2 if place in POOLED else 1
    return parameters, multiply_adds


def without_batchnorm(widths: Sequence[int]) -> int:
    """Count the parameters as the paper's comparison does, without BatchNorm's."""
    return costs(widths)[0] - 2 * sum(widths[: len(CONVOLUTIONS)])


def affordable(needed, widths, budget):
    """Choose the widths: let the unit go that is worth least for what it costs, again and again.

    The layers are in series, so what is lost is taken as the sum over the layers of `Need.lost`.
    In each step one unit goes from the layer where that adds the least for the budget it saves, at
    the widths left, until the parameters are paid. What the multiply-adds count beside the
    parameters, a weight from 0 to 1, is bisected for until both budgets are spent.

    Returns
    -------
    The widths, and the weight of the multiply-adds.
    """
    low, high = 0.0, 1.0
    found = thinned(needed, widths, budget, high)
    for _ in range(10):
        middle = (low + high) / 2
        attempt = thinned(needed, widths, budget, middle)
        if costs(attempt)[1] > budget.multiply_adds:
            low = middle
        else:
            found, high = attempt, middle
    if costs(found)[1] > budget.multiply_adds:
        raise SystemExit(f"{found} still takes {costs(found)[1]:,} MACs: allow fewer parameters")
    return found, high


def thinned(needed, widths, budget, weight):
    """Take units away until the parameters are paid; `weight` is that of the multiply-adds."""
    left = [*widths]
    layers = list(needed.values())

    def loss_for_saving(place):
        fewer = [*left]
        fewer[place] -= 1
        parameters, multiply_adds = (
            now - then for now, then in zip(costs(left), costs(fewer), strict=True)
        )
        saving = (1 - weight) * parameters / budget.parameters
        saving += weight * multiply_adds / budget.multiply_adds
        return (layers[place].lost(fewer[place]) - layers[place].lost(left[place])) / saving

    while costs(left)[0] > budget.parameters:
        places = [place for place, width in enumerate(left) if width > 1]
        left[min(places, key=loss_for_saving)] -= 1
    return tuple(left)


# --- what they are trained on ---


@dataclass(frozen=True)
class Pictures:
    """Training pictures of one side.

    Attributes
    ----------
    windows : the pictures with a reflected margin, at every shift,
        (pictures, 3, shifts, shifts, side, side) uint8, without a copy.
    targets : labels, (pictures,).
    soft : the original's logits, (pictures, classes).
    """

    windows: Tensor
    targets: Tensor
    soft: Tensor

    def batches(self, size, epoch, seed):
        """Yield whole batches of shifted pictures, every second picture mirrored, then the others.

        A picture is mirrored in every second epoch, so that both views come equally often.
        """
        chance = torch.Generator().manual_seed(1_000 * seed + epoch)
        order = torch.randperm(len(self.targets), generator=chance)
        shifts = self.windows.shape[2]
        for rows in order[: len(order) // size * size].split(size):
            down, right = torch.randint(shifts, (2, size), generator=chance)
            pictures = normalized(self.windows[rows, :, down, right])
            mirrored = ((rows + epoch) % 2 == 0)[:, None, None, None]
            yield (
                torch.where(mirrored, pictures.flip(3), pictures),
                self.targets[rows],
                self.soft[rows],
            )


def normalized(pixels):
    """Turn pixels, uint8, into the network's inputs."""
    mean, std = (torch.tensor(it).reshape(1, 3, 1, 1) for it in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def pictures_of(train, soft, side):
    """Scale the training pictures to a side, with a margin of an eighth for shifts."""
    margin = side // 8
    pieces = []
    for inputs, _ in train:
        scaled = (
            inputs
            if side == SIDE
            else functional.interpolate(inputs, size=(side, side), mode="bilinear", antialias=True)
        )
        wide = functional.pad(scaled, (margin,) * 4, mode="reflect")
        pieces.append((wide * 255).round().to(torch.uint8))
    windows = torch.cat(pieces).unfold(2, side, 1).unfold(3, side, 1)
    return Pictures(windows, train.targets, soft)


def soft_labels(model, train, out):
    """Compute the original's logits, the mean of a picture's and its mirror image's."""
    kept = out / "logits.safetensors"
    if not kept.exists():
        fast = copy.deepcopy(model).to(memory_format=torch.channels_last)
        pieces = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for inputs, _ in train.normalized(MEAN, STD).rebatched(125):
                both = [
                    fast(it.to(memory_format=torch.channels_last))
                    for it in (inputs, inputs.flip(3))
                ]
                pieces.append(sum(both).float() / 2)
        save_file({"logits": torch.cat(pieces)}, kept)
    return load_file(kept)["logits"]


# --- how they are trained ---


def logits_of(model, inputs):
    """Run the network; pictures below the full side have nothing left for the last pooling."""
    features = model.features if inputs.shape[-1] == SIDE else model.features[:-1]
    return model.classifier(features(inputs).flatten(1))


def rate(recipe, progress):
    """Return the learning rate when a share `progress` of the steps is done."""
    rising, falling = progress / recipe.warmup, (1 - progress) / (1 - recipe.warmup)
    return recipe.peak * min(rising, falling)


def loss_of(logits, targets, soft, recipe):
    """Return the mean loss of a batch: part the labels', part the original's outputs'."""
    heat = recipe.temperature
    divergence = functional.kl_div(
        functional.log_softmax(logits / heat, 1),
        functional.log_softmax(soft / heat, 1),
        reduction="batchmean",
        log_target=True,
    )
    hard = functional.cross_entropy(logits, targets)
    return recipe.soft * heat**2 * divergence + (1 - recipe.soft) * hard


def train_epoch(model, optimizer, pictures, recipe, epoch, seed):
    """Go through the pictures once; return the mean loss."""
    model.train()
    losses = []
    steps = len(pictures.targets) // recipe.batch
    for step, (inputs, targets, soft) in enumerate(pictures.batches(recipe.batch, epoch, seed)):
        progress = (epoch + (step + 0.5) / steps) / len(recipe.sides)
        optimizer.param_groups[0]["lr"] = rate(recipe, progress)
        with torch.autocast("cpu", torch.bfloat16):
            logits = logits_of(model, inputs.to(memory_format=torch.channels_last))
        loss = loss_of(logits.float(), targets, soft, recipe)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return statistics.mean(losses)


def retrained(model, train, soft, watched, recipe, kept, seed):
    """Retrain in place, from the last finished epoch on; return one row per epoch.

    The weights are those of the last epoch: none is chosen. Dropout is off, since a network of a
    fortieth of the size is short of units, not of noise.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    rows = resumed(model, optimizer, kept)
    pictures = None
    for epoch, side in list(enumerate(recipe.sides))[len(rows) :]:
        if pictures is None or pictures.windows.shape[-1] != side:
            pictures = pictures_of(train, soft, side)
        started = time.perf_counter()
        loss = train_epoch(model, optimizer, pictures, recipe, epoch, seed)
        seconds = time.perf_counter() - started
        # At a lower side the network is trained for other inputs than it will be measured on.
        error = 100 * nr.error_rate(model, watched) if side == SIDE else None
        rows.append({"epoch": epoch + 1, "side": side, "loss": loss, "error": error})
        rows[-1]["seconds"] = seconds
        save(model, optimizer, rows, kept)
        print(kept.stem, rows[-1], flush=True)
    return rows


def save(model, optimizer, rows, kept):
    """Write the state after an epoch, replacing that of the epoch before in one step."""
    momentum = {
        f"momentum.{name}": optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in model.named_parameters()
    }
    draft = kept.with_suffix(".draft")
    tensors = {name: it.contiguous() for name, it in {**model.state_dict(), **momentum}.items()}
    save_file(tensors, draft, {"rows": json.dumps(rows)})
    draft.replace(kept)


def resumed(model, optimizer, kept):
    """Bring back the state after the last finished epoch; return the rows up to it."""
    if not kept.exists():
        return []
    tensors = load_file(kept)
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    for name, parameter in model.named_parameters():
        optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{name}"]
    with safe_open(kept, "pt") as file:
        return json.loads(file.metadata()["rows"])


# --- the experiment ---


def errors(model, parts):
    """Measure the errors on all held-out pictures and on the test file, in per cent."""
    return {name: 100 * nr.error_rate(model, part) for name, part in parts.items()}


def one_network(name, widths, model, ranking, splits, soft, settings, out):
    """Condense to the widths and retrain; return what it costs and its errors."""
    started = time.perf_counter()
    recipe = settings.recipes[name]
    normal = splits.normalized(MEAN, STD)
    plan = nr.plan(ranking, keep=dict(zip(ranking, widths, strict=True)))
    small = nr.condense(model, plan, normal.validation.first(100), progress=False)
    parameters, multiply_adds = (
        after for _, after in (small.report.parameters, small.report.multiply_adds)
    )
    if (parameters, multiply_adds) != costs(widths):
        raise SystemExit(f"{costs(widths)} counted, {parameters, multiply_adds} reported")
    parts = measured_parts(normal, settings)
    before = errors(small.model, parts)
    print(
        f"{name}: {widths}, {parameters:,} parameters, {multiply_adds:,} MACs, {before}", flush=True
    )
    watched = normal.validation.first(settings.watched_on)
    rows = retrained(
        small.model,
        splits.train,
        soft,
        watched,
        recipe,
        out / f"{name.replace(' ', '-')}.safetensors",
        settings.seed,
    )
    return {
        "widths": list(widths),
        "parameters": parameters,
        "parameters without BatchNorm": without_batchnorm(widths),
        "multiply_adds": multiply_adds,
        "before": before,
        "after": errors(small.model, parts),
        "recipe": asdict(recipe),
        "minutes": (time.perf_counter() - started) / 60,
        "epochs": rows,
    }


def original_errors(model, normal, settings, out):
    """Measure the errors of the network before condensing, once."""
    kept = out / "original.json"
    if not kept.exists():
        kept.write_text(json.dumps(errors(model, measured_parts(normal, settings))))
    return json.loads(kept.read_text())


def ranking_facts(ranking):
    """Sum up how every layer was ranked, and how sure its scores are."""
    return [
        {
            "layer": layer,
            "method": part["method"],
            "pictures": part["data"]["examples"],
            "spread of scores": float(ranking[layer].scores.std()),
            "mean stderr": float(ranking[layer].stderr.mean()),
        }
        for part in ranking.provenance["parts"]
        for layer in part["layers"]
    ]


def measured_parts(normal, settings):
    """Return the held-out pictures and the test file, or the first of each."""
    parts = {"validation": normal.validation, "test": normal.test}
    count = settings.measured_on
    return {name: part.first(count) if count else part for name, part in parts.items()}


def table(results):
    """Set the networks side by side, in Markdown."""
    lines = [
        "| network | parameters (without BatchNorm's) | MACs | error before retraining, % "
        "| after, % | held-out after, % | epochs | printed, % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    first = results["original"]
    lines.append(
        f"| VGG-16 | {first['parameters']:,} ({first['parameters without BatchNorm']:,}) "
        f"| {first['multiply_adds'] / 1e6:.1f} M | {first['errors']['test']:.2f} | "
        f"| {first['errors']['validation']:.2f} | | |"
    )
    for name, it in results["networks"].items():
        lines.append(
            f"| {name} | {it['parameters']:,} ({it['parameters without BatchNorm']:,}) "
            f"| {it['multiply_adds'] / 1e6:.1f} M | {it['before']['test']:.2f} "
            f"| {it['after']['test']:.2f} | {it['after']['validation']:.2f} "
            f"| {len(it['epochs'])} | {PRINTED.get(name, '')} |"
        )
    return "\n".join(lines)


def write(results, folder):
    """Write the results, and every epoch as a line of a table of its own, to four places."""
    folder.mkdir(parents=True, exist_ok=True)
    results = json.loads(json.dumps(results), parse_float=lambda digits: round(float(digits), 4))
    networks = results["networks"]
    epochs = [{"network": name, **row} for name, it in networks.items() for row in it["epochs"]]
    with (folder / "epochs.csv").open("w", newline="") as file:
        columns = ("network", "epoch", "side", "loss", "error", "seconds")
        lines = csv.DictWriter(file, columns, lineterminator="\n")
        lines.writeheader()
        lines.writerows(epochs)
    brief = {name: {**it, "epochs": len(it["epochs"])} for name, it in networks.items()}
    text = json.dumps({**results, "networks": brief}, indent=1)
    (folder / "results.json").write_text(text + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/vgg16-cifar10"))
    parser.add_argument("--only", nargs="+", default=list(FULL.recipes), choices=FULL.recipes)
    parser.add_argument("--quick", action="store_true", help="the whole path on few pictures")
    arguments = parser.parse_args()
    settings = QUICK if arguments.quick else FULL
    out = arguments.out / "quick" if arguments.quick else arguments.out
    out.mkdir(parents=True, exist_ok=True)
    folder = data_folder()
    model = trained(folder)
    splits = nr.data.load(f"cifar10:{folder / 'cifar10'}", batch_size=200)
    splits = replace(splits, train=splits.train.first(settings.trained_on))
    normal = splits.normalized(MEAN, STD)
    ranking = ranked(model, normal.validation, settings, out)
    original = tuple(ranking[layer].units for layer in ranking)
    last = slice(normal.validation.examples - settings.tried_on, None)
    needed = needs(tried(model, ranking, normal.validation.subset(last), out))
    widths, weight = affordable(needed, original, settings.budget)
    architectures = {"ours": widths, **PAPER}
    print("ours:", widths, costs(widths), flush=True)
    soft = soft_labels(model, splits.train, out)
    results = {
        "original": {
            "parameters": costs(original)[0],
            "parameters without BatchNorm": without_batchnorm(original),
            "multiply_adds": costs(original)[1],
            "errors": original_errors(model, normal, settings, out),
        },
        "budget": asdict(settings.budget) | {"weight of multiply-adds": weight},
        "needed": {layer: asdict(it) for layer, it in needed.items()},
        "ranking": ranking_facts(ranking),
        "networks": {},
    }
    for name in arguments.only:
        done = out / f"{name.replace(' ', '-')}.json"
        if not done.exists():
            it = one_network(name, architectures[name], model, ranking, splits, soft, settings, out)
            done.write_text(json.dumps(it))
        results["networks"][name] = json.loads(done.read_text())
        write(results, out if arguments.quick else Path(__file__).with_suffix(""))
    print(table(results))


if __name__ == "__main__":
    main()
