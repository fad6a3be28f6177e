"""What chapters 2 to 4 of the dead-units thesis claim, tried on MNIST and CIFAR-10.

    python experiments/dead_units/claims.py [--out runs/claims] [--quick] [--only mnist cifar10]

mnist
    The small CNN 8-16-256 with ReLU and with tanh, three seeds: SGD with learning rate 0.01,
    batches of 32, ten epochs of 50,000 pictures. Before training, early and after every epoch, on
    1,000 held-out pictures: saliencies of the 200 weights of conv1 and what pruning by them does to
    the loss; penalties, saliencies and norms of all units and what replacing a share of fc1 by its
    means does to the loss; which units are frozen.
cifar10
    The CNN 8-16-64 with ReLU and BatchNorm, with tanh, and with ReLU alone, three seeds, as above
    without BatchNorm's own parameters; unit 0 of conv1 and of conv2 are attacked by a learning rate
    that is multiplied ten times, once per ten steps, in runs of their own: several multipliers and
    several times. Fewer epochs than in the thesis.

Every run is kept in --out when it is finished and not done again. Results go to claims/ beside this
file; --quick runs the whole path on few pictures, and leaves its results in --out.
"""

import argparse
import json
import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from scipy.stats import spearmanr
from torch.nn import functional

import neurank as nr
from neurank.condense.verify import masked_logits
from neurank.observe.execution import runner
from neurank.observe.observer import observe
from neurank.observe.removal import off_constants
from neurank.watch.attack import attack
from neurank.weights import Hessian, LossChange, Magnitude, Random, Taylor1, Taylor2

HIDDEN = ("conv1", "conv2", "fc1")
NORMALISED = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
UNIT_SCORES = {
    "MRP": nr.MeanReplacementPenalty(),
    "MRS": nr.MeanReplacementSaliency(),
    "L1 norm": nr.WeightNorm(1),
    "squared L2 norm": nr.WeightNorm(2, power=2),
    "random": nr.RandomScore(),
}
WEIGHT_SCORES = {
    "loss change": LossChange(),
    "taylor1": Taylor1(),
    "taylor2": Taylor2(),
    "hessian": Hessian(),
    "magnitude": Magnitude(),
    "random": Random(),
}


@dataclass(frozen=True)
class Settings:
    """The size of the experiment.

    Attributes
    ----------
    seeds : how many runs of each kind.
    epochs : on MNIST, and on CIFAR-10.
    trained_on : pictures, MNIST's and CIFAR-10's.
    seen_on : held-out pictures that everything is measured on.
    early : steps of the first looks.
    lr, batch : of plain stochastic gradient descent.
    """

    seeds: int = 3
    epochs: tuple[int, int] = (10, 5)
    trained_on: tuple[int, int] = (50_000, 40_000)
    seen_on: int = 1_000
    early: tuple[int, ...] = (50, 500)
    lr: float = 0.01
    batch: int = 32


FULL = Settings()
QUICK = Settings(1, (1, 1), (640, 640), 50, (5,))


@dataclass(frozen=True)
class Attacked:
    """Whose learning rate is multiplied, by how much and from which step on; ten times in all."""

    layer: str
    multiplier: float
    start: int
    unit: int = 0


ATTACKS = {
    "relu, BatchNorm": (
        *(Attacked(layer, by, 50) for layer in ("conv1", "conv2") for by in (10, 100, 1000)),
        *(Attacked("conv1", 100, start) for start in (500, 2500)),
    ),
    "tanh": (
        *(Attacked("conv1", by, 2000) for by in (100, 1000)),
        *(Attacked("conv1", 1000, start) for start in (50, 4000)),
    ),
    "relu": tuple(
        Attacked(layer, 100, 2000, unit) for layer in ("conv1", "conv2") for unit in (0, 4)
    ),
}
KINDS = {
    "relu, BatchNorm": {"activation": "relu", "norm": "plain"},
    "tanh": {"activation": "tanh"},
    "relu": {"activation": "relu"},
}


def pictures(name, settings):
    """Return the pictures to train on and those to look at, normalised, as batches."""
    folder = os.environ.get("NEURANK_DATA")
    if not folder:
        raise SystemExit("NEURANK_DATA is not set: it names the folder with mnist/ and cifar10/")
    splits = nr.data.load(f"{name}:{folder}/{name}").normalized(*NORMALISED[name])
    count = settings.trained_on[name == "cifar10"]
    seen = splits.validation.first(settings.seen_on).rebatched(250)
    return splits.train.first(count), seen, splits.test


class Training:
    """Plain stochastic gradient descent, with something done after some steps."""

    def __init__(self, model, train, settings, seed):
        self.model, self.train, self.settings = model, train, settings
        self.optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr)
        self.draw = torch.Generator().manual_seed(seed)
        self.step = 0

    def run(self, epochs, then):
        """Train; call `then(step)` before, at the early steps and after every epoch."""
        then(0)
        for _ in range(epochs):
            order = torch.randperm(len(self.train.targets), generator=self.draw)
            for rows in order[: len(order) // self.settings.batch * self.settings.batch].split(
                self.settings.batch
            ):
                self.model.train()
                self.optimizer.zero_grad()
                logits = self.model(self.train.inputs[rows])
                functional.cross_entropy(logits, self.train.targets[rows]).backward()
                self.optimizer.step()
                self.step += 1
                if self.step in self.settings.early:
                    then(self.step)
            then(self.step)


# --- MNIST: weights and units along the training ---


class Looking:
    """A traced network, looked at again and again with the weights that it has then."""

    def __init__(self, model, seen):
        self.model, self.seen = model, seen
        self.watching = observe(
            model.eval(),
            seen,
            value=nr.NegativeLoss(),
            removal="pre-mean",
            seed=0,
            device=torch.device("cpu"),
            progress=False,
        )

    def now(self):
        """Return an observer of the weights as they are."""
        self.model.eval()
        live = runner(self.watching.space.graph, self.model, torch.device("cpu"))
        return replace(self.watching, runner=live, memo={})

    def loss_without(self, now, layer, units):
        """Return the mean loss with some units of a layer replaced by their means."""
        width = now.width(layer)
        rest = tuple(unit for unit in range(width) if unit not in set(units))
        plan = nr.Plan.from_keep({layer: rest}, {layer: width})
        off = off_constants("pre-mean", (now.space[layer],), now.runner, now.examples)
        losses = [
            functional.cross_entropy(
                masked_logits(plan, now.space, off, now.runner, inputs), targets, reduction="none"
            )
            for inputs, targets in self.seen
        ]
        return float(torch.cat(losses).mean())


def weights_of_conv1(model, seen, seed):
    """Prune weights of conv1 by each score, signed and in size; one row per score and share."""
    rows = []
    name = "conv1.weight"
    for by, method in WEIGHT_SCORES.items():
        scores = nr.weights.score(
            model.eval(), seen, method, parameters=[name], seed=seed, progress=False
        )
        signed = by not in {"magnitude", "random"}
        for form, it in (("signed", scores), ("absolute", scores.absolute()))[: 1 + signed]:
            for share in (0.01, 0.05, 0.8):
                masks = nr.weights.mask(it, share)
                alone = scores[name][~masks[name]].sum() if by == "loss change" else float("nan")
                rows.append(
                    {
                        "score": by,
                        "form": form if signed else "",
                        "share": share,
                        "change": nr.weights.loss_change(model, seen, masks),
                        "sum of single changes": float(alone),
                        "negative": float((scores[name] < 0).double().mean()),
                    }
                )
    return rows


def units_now(looking, seed):
    """Score all units, and replace shares of fc1 by their means."""
    now = replace(looking.now(), seed=seed)
    scores = {
        by: {layer: method.score(now, layer).ranking.scores for layer in HIDDEN}
        for by, method in UNIT_SCORES.items()
    }
    whole = looking.loss_without(now, "fc1", ())
    replaced = []
    for by, found in scores.items():
        order = found["fc1"].argsort().tolist()
        for share in SHARES:
            units = order[: int(share * len(order))]
            change = looking.loss_without(now, "fc1", units) - whole
            replaced.append({"score": by, "share": share, "change": change})
    vitals = nr.vitals(looking.model, looking.seen, exact=False)
    gradients = {layer: vitals.layers[layer].signs.gradient_norm for layer in HIDDEN}
    correlations = [
        {"layer": layer, "score": by, "rho": rank_correlation(values[layer], scores["MRP"][layer])}
        for by, values in {**scores, "output gradient": gradients}.items()
        if by != "MRP"
        for layer in HIDDEN
    ]
    return {
        "loss": vitals.loss,
        "replaced": replaced,
        "correlations": correlations,
        "frozen": {layer: list(units) for layer, units in vitals.frozen.items()},
        "dead": {layer: list(units) for layer, units in vitals.dead.items()},
    }


def rank_correlation(first, second):
    """Spearman's rho; NaN where all scores are equal."""
    if first.unique().numel() == 1 or second.unique().numel() == 1:
        return float("nan")
    return float(spearmanr(first.numpy(), second.numpy()).statistic)


def mnist_run(activation, seed, data, settings):
    """Train on MNIST and look on the way."""
    train, seen, test = data
    model = nr.zoo.thesis_cnn(8, 16, 256, activation=activation, seed=seed)
    looking = Looking(model, seen)
    looks = []

    def look(step):
        looks.append(
            {
                "step": step,
                **units_now(looking, seed),
                "weights": weights_of_conv1(model, seen, seed),
            }
        )
        print("mnist", activation, seed, step, round(looks[-1]["loss"], 4), flush=True)

    Training(model, train, settings, seed).run(settings.epochs[0], look)
    return {"looks": looks, "test error, %": 100 * nr.error_rate(model.eval(), test)}


# --- CIFAR-10: attacks ---


def cifar10_run(kind, seed, attacked, data, settings):
    """Train on CIFAR-10, attack or not, and look at conv1 and conv2 after every epoch."""
    train, seen, test = data
    model = nr.zoo.thesis_cnn(8, 16, 64, pictures="cifar10", seed=seed, **KINDS[kind])
    looking = Looking(model, seen)
    training = Training(model, train, settings, seed)
    looks = []

    def look(step):
        now = looking.now()
        layers = {}
        for layer in ("conv1", "conv2"):
            layers[layer] = {
                by: UNIT_SCORES[by].score(now, layer).ranking.scores.tolist()
                for by in ("MRP", "MRS", "L1 norm")
            }
        looks.append({"step": step, "layers": layers})

    beside = nullcontext()
    if attacked is not None:
        scale = settings.trained_on[1] / FULL.trained_on[1]
        beside = attack(
            training.optimizer,
            model,
            attacked.layer,
            attacked.unit,
            multiplier=attacked.multiplier,
            start=int(attacked.start * scale),
            repeats=10,
            interval=10 if scale == 1 else 1,
        )
    with beside:
        training.run(settings.epochs[1], look)
    error = 100 * nr.error_rate(model.eval(), test)
    print("cifar10", kind, seed, attacked, round(error, 2), flush=True)
    return {"looks": looks, "test error, %": error}


# --- all runs, and what they say ---


def done_once(path, compute):
    """Return what a run found, from its file if it is there."""
    if not path.exists():
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(compute()))
        draft.replace(path)
    return json.loads(path.read_text())


def all_runs(settings, out, only):
    """Do all runs that are not there; return them by kind."""
    found = {"mnist": {}, "cifar10": {}}
    if "mnist" in only:
        data = pictures("mnist", settings)
        for seed in range(settings.seeds):
            for activation in ("relu", "tanh"):
                path = out / f"mnist-{activation}-{seed}.json"
                run = partial(mnist_run, activation, seed, data, settings)
                found["mnist"][activation, seed] = done_once(path, run)
    if "cifar10" in only:
        data = pictures("cifar10", settings)
        for seed in range(settings.seeds):
            for kind, attacks in ATTACKS.items():
                for number, attacked in enumerate((None, *attacks)):
                    path = out / f"cifar10-{kind.replace(', ', '-')}-{seed}-{number}.json"
                    run = partial(cifar10_run, kind, seed, attacked, data, settings)
                    found["cifar10"][kind, seed, attacked] = done_once(path, run)
    return found


def tables(found):
    """Bring the runs into tables."""
    mnist = {"weights": [], "replaced": [], "correlations": [], "frozen": []}
    for (activation, seed), run in found["mnist"].items():
        before = {}
        for look in run["looks"]:
            where = {"activation": activation, "seed": seed, "step": look["step"]}
            for name in ("weights", "replaced", "correlations"):
                mnist[name] += [where | row for row in look[name]]
            for layer in HIDDEN:
                now = set(look["frozen"][layer])
                stayed = len(now & before.get(layer, set()))
                row = {"layer": layer, "frozen": len(now), "dead": len(look["dead"][layer])}
                mnist["frozen"].append(
                    where | row | {"frozen before": len(before.get(layer, ())), "stayed": stayed}
                )
                before[layer] = now
    attacks = []
    for (kind, seed, attacked), run in found["cifar10"].items():
        if attacked is None:
            continue
        original = found["cifar10"][kind, seed, None]
        row = {"kind": kind, "seed": seed, **asdict(attacked)}
        for name, it in (("before", original), ("attacked", run)):
            scores = it["looks"][-1]["layers"][attacked.layer]
            row |= {f"{by}, {name}": scores[by][attacked.unit] for by in ("MRP", "MRS", "L1 norm")}
            row[f"test error, {name}, %"] = it["test error, %"]
        attacks.append(row)
    frames = {name: pd.DataFrame(rows) for name, rows in mnist.items()}
    along = pd.DataFrame(along_cifar10(found["cifar10"]))
    return {**frames, "attacks": pd.DataFrame(attacks), "correlations_cifar10": along}


def along_cifar10(runs):
    """Correlate saliencies and norms with penalties, layer by layer and epoch by epoch."""
    for (kind, seed, attacked), run in runs.items():
        for look in run["looks"] if attacked is None else ():
            for layer, scores in look["layers"].items():
                tensors = {by: torch.tensor(values) for by, values in scores.items()}
                for by in ("MRS", "L1 norm"):
                    rho = rank_correlation(tensors[by], tensors["MRP"])
                    where = {"kind": kind, "seed": seed, "step": look["step"], "layer": layer}
                    yield {**where, "score": by, "rho": rho}


def claim(text, holds, figure):
    """Put down one claim: whether it holds, None if that is not a yes or no, and by what figure."""
    return {"claim": text, "holds": holds, "figure": figure}


def listed(numbers, digits=2):
    """Name numbers in ascending order."""
    return ", ".join(f"{name} {it:.{digits}f}" for name, it in numbers.sort_values().items())


def on_weights(weights):
    """Chapter 2: saliencies of the weights of conv1."""
    later = weights[weights.step > 0]
    exact = later[(later.score == "loss change") & (later.form == "signed") & (later.share == 0.05)]
    negative = exact.groupby("activation").negative
    yield claim(
        "about 35 % of conv1's weights have a negative loss change",
        bool((abs(negative.mean() - 0.35) <= 0.05).all()),
        ", ".join(
            f"{name} {100 * it.mean():.0f} % ({100 * it.min():.0f} to {100 * it.max():.0f})"
            for name, it in negative
        ),
    )
    many = later[later.share == 0.8]
    forms = many[many.form != ""].pivot_table(
        index=["activation", "seed", "step", "score"], columns="form", values="change"
    )
    for name, it in forms.groupby("activation"):
        better = float((it.absolute < it.signed).mean())
        yield claim(
            f"absolute scores prune conv1 better than signed ones at f = 0.8, {name}",
            better > 0.9,
            f"in {100 * better:.0f} % of {len(it)} comparisons; mean change of the loss "
            f"{it.absolute.mean():.2f} against {it.signed.mean():.2f}",
        )
    for name, it in many[(many.form != "signed") & (many.score != "random")].groupby("activation"):
        by = it.groupby("score").change
        peaks = by.max() - by.median()
        yield claim(
            f"magnitude is the most stable at f = 0.8, {name}",
            peaks.idxmin() == "magnitude",
            f"largest minus median change of the loss: {listed(peaks)}; "
            f"medians: {listed(by.median())}",
        )
    excess = exact.assign(excess=exact.change - exact["sum of single changes"])
    for name, it in excess.groupby("activation"):
        first, last = it.step.min(), it.step.max()
        early, late = (it[it.step == step].excess.mean() for step in (first, last))
        yield claim(
            f"dependency between weights grows during training, {name}",
            late > early,
            "10 of 200 weights pruned together change the loss by more than the sum of their "
            f"single changes: {early:.4f} more at step {first}, {late:.4f} at step {last}",
        )


def on_replacing(replaced):
    """Chapter 4: a share of fc1's units replaced by their means, in the second half of training."""
    later = replaced[replaced.step >= replaced.step.max() / 2]
    for name, part in later.groupby("activation"):
        at = part.groupby(["share", "score"]).change.mean().unstack()
        text = "; ".join(f"f = {share}: {listed(row, 4)}" for share, row in at.iterrows())
        norms = at[["L1 norm", "squared L2 norm"]].min(axis=1)
        ours = at[["MRP", "MRS"]]
        if name == "relu":
            holds = bool((ours.max(axis=1) < norms)[at.index >= 0.2].all())
            yield claim("MRP and MRS beat norms on fc1 with ReLU at f >= 0.2", holds, text)
            continue
        holds = bool((norms < ours.min(axis=1)).loc[[0.4, 0.5]].all())
        yield claim("with tanh the norms win on fc1 at f = 0.4 and 0.5", holds, text)
        last = at.drop(columns="random").loc[0.5].idxmax() == "MRS"
        yield claim("with tanh MRS comes last at f = 0.5", last, "see above")


def on_units(correlations, frozen, settings):
    """Chapter 3: what predicts penalties, and whether frozen units stay so."""
    rho = correlations[correlations.step > 0]
    for (name, layer), it in rho.groupby(["activation", "layer"]):
        by = it.groupby("score").rho.mean().drop("random")
        yield claim(
            f"gradients and norms predict MRP worse than MRS does, {layer}, {name}",
            by.idxmax() == "MRS",
            f"mean rank correlation with MRP: {listed(by)}",
        )
    for name, it in frozen[frozen.step > settings.early[-1]].groupby("activation"):
        before, stayed = int(it["frozen before"].sum()), int(it.stayed.sum())
        yield claim(
            f"a frozen unit stays frozen, {name}",
            stayed >= 0.95 * before if before else None,
            f"{stayed} of {before} are so at the next look" if before else "none was frozen",
        )


def on_attacks(attacks):
    """Chapter 3: penalties of attacked units, over those without the attack."""
    attacks = attacks.assign(ratio=attacks["MRP, attacked"] / attacks["MRP, before"])
    keys = ["layer", "unit", "multiplier", "start"]
    for kind, it in attacks.groupby("kind"):
        text = "MRP over that without attack, by seed: " + "; ".join(
            f"{layer} unit {unit}, x{by:g} from step {start}: "
            + ", ".join(f"{ratio:.2f}" for ratio in part.ratio)
            for (layer, unit, by, start), part in it.groupby(keys)
        )
        if kind == "relu":
            yield claim("a plain ReLU unit may get stronger or die", None, text)
            continue
        lower = float((it.ratio < 1).mean())
        yield claim(f"attacks lower MRP with {kind}", lower > 0.9, text)
        early = it[it.start == it.start.min() if kind != "tanh" else it.start == 2000]
        medians = early.groupby(["layer", "multiplier"]).ratio.median().unstack()
        falling = bool((medians.diff(axis=1).iloc[:, 1:] < 0).all(axis=None))
        text = "; ".join(
            f"{layer}: " + ", ".join(f"x{by:g} {ratio:.2f}" for by, ratio in row.dropna().items())
            for layer, row in medians.iterrows()
        )
        yield claim(
            f"the more the larger the multiplier, {kind}", falling, f"median ratios, {text}"
        )


def verdicts_of(made, settings):
    """Put down all claims."""
    lines = []
    if len(made["weights"]):
        lines += on_weights(made["weights"])
        lines += on_replacing(made["replaced"])
        lines += on_units(made["correlations"], made["frozen"], settings)
    if len(made["attacks"]):
        lines += on_attacks(made["attacks"])
    return pd.DataFrame(lines)


def as_markdown(verdicts):
    """Set claims, verdicts and figures side by side."""
    words = {True: "holds", False: "does not hold"}
    lines = ["| claim | here | figure |", "|---|---|---|"]
    lines += [
        f"| {row.claim} | {words.get(row.holds, 'see')} | {row.figure} |"
        for row in verdicts.itertuples()
    ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    parser.add_argument("--quick", action="store_true", help="the whole path on few pictures")
    parser.add_argument("--only", nargs="+", default=("mnist", "cifar10"))
    arguments = parser.parse_args()
    settings = QUICK if arguments.quick else FULL
    out = arguments.out / "quick" if arguments.quick else arguments.out
    out.mkdir(parents=True, exist_ok=True)
    made = tables(all_runs(settings, out, arguments.only))
    folder = out if arguments.quick else Path(__file__).with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in made.items():
        if len(frame):
            frame.round(5).to_csv(folder / f"{name}.csv", index=False)
    verdicts = verdicts_of(made, settings)
    verdicts.to_csv(folder / "claims.csv", index=False)
    text = as_markdown(verdicts)
    (folder / "claims.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
