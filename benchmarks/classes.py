"""What one class at a time costs: responses beside inference, sweeps beside masked networks.

    python -m benchmarks.classes [responses] [sweep] [--repeats 5]

Needs the data that NEURANK_DATA names, with models/ beside it. Seconds are those of the process
itself, medians of ratios; what is compared is timed by turns in one process. Nothing is written.

responses   all classes and layers, over one plain pass of the network over the same pictures in
            the same batches, in inference mode; the goal is at most 1.15. Then how far the sums
            are from a twin that hooks the modules and adds up class by class in float64.
sweep       25 values of θ for each class on VGG-16 and 1,000 pictures, layer by layer: the time of
            masked full forward passes of all pictures for each point (extrapolated from some of
            them, drawn evenly), over the time of `neurank.classes.curves`; for recall alone, all
            ten classes (goal at least 10), and with false positives on all pictures, two classes
            (goal at least 2).
"""

import argparse
import statistics
import time
from functools import partial

import torch
from benchmarks.condensing import photographs
from benchmarks.vgg16 import MEAN, STD, folder, trained
from safetensors.torch import load_file

import neurank as nr
from neurank.classes.selection import selections
from neurank.observe.responses import responses
from neurank.rankers.opening import watching

POINTS = 10
"""Masked networks that are run to know what 250 would take."""


def seconds(act):
    """Time something in this process's own seconds; return what it gives, too."""
    started = time.process_time()
    found = act()
    return time.process_time() - started, found


def vgg16():
    """Return the trained VGG-16, and its data."""
    return trained(), nr.data.load(f"cifar10:{folder() / 'cifar10'}").normalized(MEAN, STD)


def networks():
    """Yield trained networks and pictures for them."""
    model, splits = vgg16()
    yield "VGG-16, CIFAR-10", model, splits.validation.first(1000).rebatched(100)
    for name in ("resnet20", "resnet56"):
        model = nr.zoo.by_name(name)().eval()
        model.load_state_dict(load_file(folder() / "models" / f"{name}_cifar10.safetensors"), False)
        yield f"{name}, CIFAR-10", model, splits.test.first(1000).rebatched(100)
    model = nr.zoo.squeezenet1_1().eval()
    model.load_state_dict(load_file(folder() / "models" / "squeezenet1_1_imagenet.safetensors"))
    yield "SqueezeNet 1.1, ImageNet", model, photographs("val", 5)


def measure_responses(repeats):
    """Print ratios and differences for every network."""
    print("network                    at    responses / inference   from the twin")
    for name, model, data in networks():
        batches = list(data)
        for at in ("pre", "post"):
            with watching(
                model, batches, value=None, removal="zero", seed=0, device=None, progress=False
            ) as seen:
                ratios = [compared(model, batches, seen, at) for _ in range(repeats + 1)][1:]
            apart = from_twin(model, batches) if at == "pre" else ""
            print(f"{name:26} {at:5} {statistics.median(ratios):21.3f}   {apart}", flush=True)


def compared(model, batches, seen, at):
    """Return the time of all responses over that of one plain pass."""

    @torch.inference_mode()
    def plain():
        for inputs, _ in batches:
            model(inputs)

    def ours():
        space = seen.space
        return responses(space.hidden, seen.runner, space, seen.examples, at, seen.classes)

    return seconds(ours)[0] / seconds(plain)[0]


def from_twin(model, batches):
    """Compare with hooks: the largest difference in a layer, relative to its largest sum."""
    found = nr.rank(model, batches, nr.ClassResponse(), progress=False)
    targets = torch.cat([targets for _, targets in batches])
    worst = 0.0
    for layer in found:
        module = model.get_submodule(layer)
        kept = []
        hook = module.register_forward_hook(lambda _m, _x, y, kept=kept: kept.append(y.clone()))
        with torch.inference_mode():
            for inputs, _ in batches:
                model(inputs)
        hook.remove()
        sums = torch.cat([it.double().flatten(2).sum(2) if it.ndim > 2 else it.double()
                          for it in kept])  # fmt: skip
        if sums.shape[1] != found[layer].units or len(sums) != len(targets):
            continue  # tied to others: what it gives is a part of the sum
        for label in sorted(set(targets.tolist())):
            wanted = sums[targets == label].sum(dim=0)
            apart = (found[layer].by_class[label] - wanted).abs().max() / wanted.abs().max()
            worst = max(worst, float(apart))
    return f"{worst:.1e}"


def measure_sweep(repeats):
    """Print how much faster a sweep is than masked passes."""
    model, splits = vgg16()
    data = splits.test.first(1000).rebatched(100)
    ranking = nr.rank(model, splits.validation.first(1000), nr.ClassResponse(), progress=False)
    print("sweep of VGG-16, 25 points a class, 1,000 pictures")
    for others, labels, goal in ((False, range(10), 10), (True, (0, 5), 2)):
        settings = [nr.classes.Setting("layer", it) for it in nr.classes.thetas()]
        chosen = selections(ranking, labels, settings)
        some = chosen[:: len(chosen) // POINTS]
        ratios = []
        for _ in range(repeats):
            slow = sum(seconds(partial(masked, model, data, it))[0] for it in some)
            slow *= len(chosen) / len(some)
            sweep = partial(nr.classes.curves, model, data, ranking, labels=list(labels))
            fast, _ = seconds(partial(sweep, others=others, progress=False))
            ratios.append(slow / fast)
        what = "all pictures" if others else "own pictures"
        ratio = statistics.median(ratios)
        print(
            f"{what}, {len(labels)} classes: {ratio:.1f} times faster (goal {goal}); {fast:.0f} s"
        )


@torch.inference_mode()
def masked(model, data, selection):
    """Run the whole network with units switched off where they are computed and activated."""
    hooks = []
    layers = dict(model.named_modules())
    names = list(layers)
    for layer, kept in selection.kept.items():
        # Behind the ReLU that follows, 0 is what whoever reads the unit receives.
        after = next(
            layers[name]
            for name in names[names.index(layer) :]
            if isinstance(layers[name], torch.nn.ReLU)
        )
        mask = kept.to(torch.float32)
        hooks.append(
            after.register_forward_hook(
                lambda _m, _x, y, mask=mask: y * mask.reshape(1, -1, *[1] * (y.ndim - 2))
            )
        )
    for inputs, _ in data:
        model(inputs)
    for hook in hooks:
        hook.remove()


def main():
    """Measure what the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], "responses", "sweep"], default=[])
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    parts = given.parts or ["responses", "sweep"]
    if "responses" in parts:
        measure_responses(given.repeats)
    if "sweep" in parts:
        measure_sweep(min(given.repeats, 3))


if __name__ == "__main__":
    main()
