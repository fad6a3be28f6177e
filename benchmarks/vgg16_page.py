"""The part of docs/benchmarks.md on VGG-16: every figure from what benchmarks/vgg16.py measured."""

GOALS = {"geometric mean": 50, "hoped for": 100, "rate": 0.5}


def vgg16(found):
    """Describe the rankings of VGG-16, what they cost, and whether their errors are right."""
    return [
        "## VGG-16 on CIFAR-10, all fifteen layers",
        "",
        *_setting(found),
        "",
        *_ranked(found),
        "",
        *_gains(found),
        "",
        *_rates(found),
        "",
        *_halves(found),
        "",
        *_switches(found),
    ]


def _setting(found):
    ranked = found["ranking"]
    layers = ranked["layers"].values()
    hours = sum(layer["seconds"] for layer in layers) / 3600
    threads = "one thread" if found["ranking threads"] == 1 else "two threads"
    return [
        "The trained network of 15,253,578 parameters, pictures that it was not trained on, "
        f"accuracy as the value, removal `zero`. {ranked['passes']} passes of permutations of each "
        f"picture's own over {ranked['pictures']:,} pictures took {hours:.2f} hours on {threads} "
        "of the machine, other work going on beside it. `python -m benchmarks.vgg16` measures all "
        "this, with a journal: interrupted, it goes on with `--resume`.",
    ]


def _ranked(found):
    lines = [
        "| layer | units | way | seconds | coalitions per picture and pass | standard error, mean "
        "| largest | of the data, mean | spread of scores |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    ranked = found["ranking"]
    for name, layer in ranked["layers"].items():
        each = layer["coalitions"] / ranked["pictures"] / ranked["passes"]
        lines.append(
            f"| {name} | {layer['units']} | {layer['way']} | {layer['seconds']:.0f} | {each:.1f} "
            f"| {layer['mean stderr']:.2g} | {layer['largest stderr']:.2g} "
            f"| {layer['mean data stderr']:.2g} | {layer['spread of scores']:.2g} |"
        )
    return lines


def _gains(found):
    shared, costs = found["shared"], found["costs"]
    mean = found["gains"]["geometric mean"]
    reached = [name for name in ("geometric mean", "hoped for") if mean >= GOALS[name]]
    words = "reached" if len(reached) == 2 else "the lesser one reached" if reached else "missed"
    lines = [
        "### Cost at equal error, beside shared permutations and full forward passes",
        "",
        "The peer draws one permutation for all pictures and runs the whole network once per "
        "coalition. Both errors are those at 1,000 pictures. The variance of shared permutations "
        f"comes from {shared['permutations']} of them on {shared['pictures']} pictures: the mean "
        "product of two pictures' marginals, which does not fall with the number of pictures; its "
        f"standard error is given. The cost is measured on {costs['pictures']} pictures, both "
        f"sides in one run, medians of {costs['repetitions']}. The last column is the product of "
        "both ratios: how many times longer the peer takes to the same RMSE.",
        "",
        "| layer | product of marginals | variance, ratio | cost, ratio | together |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, gain in found["gains"]["layers"].items():
        alike = shared["layers"][name]
        lines.append(
            f"| {name} | {alike[PRODUCT]:.2g} ± {alike['its standard error']:.1g} "
            f"| {gain['in variance']:.1f} | {gain['in cost']:.1f} | {gain['together']:.0f} |"
        )
    lines += [
        "",
        f"Geometric mean over the layers: {mean:.0f} (goals {GOALS['geometric mean']} and "
        f"{GOALS['hoped for']}: {words}).",
        "",
        "Where it comes from: permutations of their own let the pictures' errors cancel (the ratio "
        "of variances); walking in leaps evaluates a fraction of each chain's coalitions, the more "
        "units the smaller; and what lies above a layer is not run again, which matters most in "
        "late layers and least in the first.",
    ]
    return lines


PRODUCT = "product of two pictures'"


def _rates(found):
    rate = found["machine"]["matrix_rate"]
    lines = [
        "### Rates",
        "",
        f"The machine multiplies float32 matrices at {rate / 1e9:.0f} GMAC/s. Multiply-adds of the "
        "convolutions and linear layers below a layer, per second of the passes:",
        "",
        "| layer | way | GMAC/s | of the matrix rate |",
        "|---|---|---:|---:|",
    ]
    for name, cost in found["costs"]["layers"].items():
        for way, run in cost["ways"].items():
            speed = run["multiply-adds per second"]
            lines.append(f"| {name} | {way} | {speed / 1e9:.1f} | {100 * speed / rate:.0f} % |")
    return [
        *lines,
        "",
        "In the last two layers little is left to multiply, and their time is that of the sums.",
    ]


def _halves(found):
    halves = found["halves"]
    lines = [
        "### Are the standard errors right?",
        "",
        f"Two rankings of {halves['passes']} passes each, with different seeds. z is a unit's "
        "difference over its standard error: its root mean square "
        "should be near 1, and 95 % of all |z| below 1.96; of units that hardly ever change the "
        "standard error is a floor, and z smaller.",
        "",
        "| layer | pictures | units | root mean square of z | below 1.96 |",
        "|---|---:|---:|---:|---:|",
    ]
    total = inside = squares = 0.0
    for name, layer in halves["layers"].items():
        mean_square = layer["root mean square of z"]
        share = 100 * layer["within 1.96"]
        lines.append(
            f"| {name} | {layer['pictures']} | {layer['units']} | {mean_square:.2f} "
            f"| {share:.1f} % |"
        )
        total += layer["units"]
        inside += layer["units"] * layer["within 1.96"]
        squares += layer["units"] * mean_square**2
    lines.append(
        f"| all | | {total:,.0f} | {(squares / total) ** 0.5:.2f} | {100 * inside / total:.1f} % |"
    )
    return lines


def _switches(found):
    switches = found["switches"]
    lines = [
        "### Importance switches on the same layers",
        "",
        f"{switches['epochs']} epochs over {switches['pictures']} pictures, only what lies below "
        "the layer run per step; top units in common with the Shapley values above.",
        "",
        "| layer | seconds | common | by chance | Spearman |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in found["ranking"]["layers"]:  # in the order of the network
        layer = switches["layers"][name]
        lines.append(
            f"| {name} | {layer['seconds']:.0f} | {layer['common']} of {layer['k']} "
            f"| p = {layer['chance']:.2g} | {layer['spearman']:.2f} |"
        )
    return lines
