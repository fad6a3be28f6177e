"""The paper's main experiment: rank a LeNet two ways, see where they agree, condense it.

    python experiments/neuron_ranking/lenet_mnist.py --seeds 0 1 2 3 4 --out runs/lenet

Per training seed: a LeNet 10-20-100-25 on MNIST; exact Shapley values of conv1, conv2 and fc2 and
sampled ones of fc1 on the validation split; importance switches of all four layers on the training
split; then 5-7-45-20 by each ranking, by L1 norms, at random and from scratch, retrained by the
paper's recipe. The test split is used for the final errors alone. A seed that is done is not done
again.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from authors import data_folder

import neurank as nr

KEEP = {"conv1": 5, "conv2": 7, "fc1": 45, "fc2": 20}
TOP = {"conv1": 5, "conv2": 5, "fc1": 10, "fc2": 5}
SWITCH_PICTURES = 20_000


def rankings(model, splits, seed):
    """Rank by Shapley values and by switches, and by the two baselines."""
    validation = splits.validation.rebatched(500)
    small = validation.first(1000)
    parts = [
        nr.rank(model, validation, nr.ExactShapley(), layers=["conv1"], seed=seed),
        nr.rank(model, small, nr.ExactShapley(), layers=["conv2"], seed=seed),
        nr.rank(model, validation, nr.PermutationShapley(passes=20), layers=["fc1"], seed=seed),
        nr.rank(model, validation, nr.ExactShapley(), layers=["fc2"], seed=seed),
    ]
    shapley = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    train = splits.train.first(SWITCH_PICTURES)
    return {
        "shapley": shapley,
        "switch": nr.rank(model, train, nr.ImportanceSwitch(epochs=5), seed=seed),
        "l1": nr.rank(model, validation.first(500), nr.WeightNorm(1), seed=seed),
        "random": nr.rank(model, validation.first(500), nr.RandomScore(), seed=seed),
    }


def retrained(model, splits, epochs, seed):
    """Retrain by the paper's recipe and return the final test error in per cent."""
    nr.retrain(model, splits, epochs=epochs, seed=seed, progress=False)
    return 100 * nr.error_rate(model, splits.test)


def one_seed(splits, seed, epochs, folder):
    """Run the whole experiment for one training seed."""
    model = nr.zoo.lenet(10, 20, 100, 25, seed=seed)
    nr.fit(model, splits.train, splits.validation, epochs=epochs, seed=seed, progress=False)
    result = {"seed": seed, "error": 100 * nr.error_rate(model, splits.test), "condensed": {}}
    ranked = rankings(model, splits, seed)
    agreement = nr.compare(ranked["shapley"], ranked["switch"], k=TOP)
    result["agreement"] = json.loads(agreement.to_frame().to_json(orient="records"))
    result["table"] = str(agreement)
    for name, ranking in ranked.items():
        ranking.save(folder / f"{name}-{seed}.safetensors")
        plan = nr.plan(ranking, keep=KEEP)
        small = nr.condense(model, plan, splits.validation, progress=False)
        before = 100 * nr.error_rate(small.model, splits.test)
        after = retrained(small.model, splits, epochs, seed)
        result["condensed"][name] = {"removed": before, "retrained": after}
        result["report"] = str(small.report)
        print(f"seed {seed}: {name} {before:.2f} % after removal, {after:.2f} %", flush=True)
    scratch = nr.zoo.lenet(*KEEP.values(), seed=seed)
    result["condensed"]["scratch"] = {"retrained": retrained(scratch, splits, epochs, seed)}
    return result


def summary(results):
    """Mean and spread over the training seeds."""
    lines = [f"unpruned 10-20-100-25: {spread([r['error'] for r in results])} % test error"]
    for name in results[0]["condensed"]:
        after = [r["condensed"][name]["retrained"] for r in results]
        removed = [r["condensed"][name].get("removed") for r in results]
        before = "" if None in removed else f", {spread(removed)} % before retraining"
        lines.append(f"5-7-45-20 by {name}: {spread(after)} %{before}")
    return "\n".join(lines)


def spread(values):
    """Mean and standard deviation as text."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("runs/lenet-mnist"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    splits = nr.data.load(f"mnist:{data_folder() / 'mnist'}", batch_size=100)
    results = []
    for seed in arguments.seeds:
        done = arguments.out / f"seed-{seed}.json"
        if not done.exists():
            started = time.perf_counter()
            result = one_seed(splits, seed, arguments.epochs, arguments.out)
            result["minutes"] = (time.perf_counter() - started) / 60
            done.write_text(json.dumps(result, indent=1))
        results.append(json.loads(done.read_text()))
        print(results[-1]["table"], flush=True)
    print(results[-1]["report"])
    print(summary(results))


if __name__ == "__main__":
    main()
