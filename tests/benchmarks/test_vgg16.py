"""What is computed from the measurements of VGG-16, on measurements whose ratios are known."""

import numpy as np
import pytest
import torch
from benchmarks.vgg16_page import vgg16 as part
from tests.cases import named, watch

from benchmarks import vgg16


@pytest.fixture
def found():
    """Two layers: one that gains 4 x 10, and one that gains 9 x 1."""
    ranked = {
        "way": "suffix", "seconds": 60.0, "coalitions": 4000, "units": 9, "mean stderr": 0.01,
        "largest stderr": 0.02, "mean data stderr": 0.03, "spread of scores": 0.05,
        "squared scores": 1e-4, "variance of a pass": 0.5,
    }  # fmt: skip

    def alike(product):
        return {"square of a picture's": product, "product of two pictures'": product,
                "its standard error": 1e-5}  # fmt: skip

    def cost(seconds):
        run = {"seconds": seconds, "coalitions": 50, "multiply-adds per second": 2e10}
        slow = {"seconds": 2 * seconds, "coalitions": 50, "multiply-adds per second": 1e10}
        return {"ways": {"additive": slow, "suffix": run}, "forward": 0.1}

    switch = {"seconds": 3.0, "k": 5, "common": 2, "chance": 0.1, "spearman": 0.5}
    halves = {"pictures": 100, "units": 9, "root mean square of z": 1.0, "within 1.96": 0.95}
    measured = {
        "ranking": {"pictures": 100, "passes": 2, "layers": {"one": ranked, "two": ranked}},
        "ranking threads": 1,
        "shared": {"pictures": 8, "permutations": 4,
                   "layers": {"one": alike(21e-4), "two": alike(46e-4)}},
        "costs": {"pictures": 10, "repetitions": 3,
                  "layers": {"one": cost(1.0), "two": cost(10.0)}},
        "halves": {"passes": 2, "layers": {"one": halves, "two": halves}},
        "switches": {"pictures": 100, "epochs": 5, "layers": {"one": switch, "two": switch}},
        "machine": {"matrix_rate": 4e10},
    }  # fmt: skip
    return measured | {"gains": vgg16.gains(measured)}


def test_the_gain_is_the_ratio_of_variances_times_the_ratio_of_costs(found):
    gains = found["gains"]
    assert gains["layers"]["one"] == pytest.approx(
        {"in variance": 4, "in cost": 10, "together": 40}
    )
    assert gains["layers"]["two"] == pytest.approx({"in variance": 9, "in cost": 1, "together": 9})
    assert gains["geometric mean"] == pytest.approx(360**0.5)


def test_the_page_says_what_was_measured_and_what_was_missed(found):
    text = "\n".join(part(found))
    assert "0.03 hours on one thread" in text
    assert "| one | 0.0021 ± 1e-05 | 4.0 | 10.0 | 40 |" in text
    assert "Geometric mean over the layers: 19 (goals 50 and 100: missed)" in text
    assert "| one | suffix | 20.0 | 50 % |" in text
    assert "| all | | 18 | 1.00 | 95.0 % |" in text


def test_shared_marginals_are_those_of_one_order_for_all():
    case = named("perceptron")
    watched = watch(case)
    units = watched.width("fc1")
    found = vgg16.shared_marginals(watched, "fc1", 3)
    for number in range(3):
        order = np.random.default_rng(number).permutation(units)
        at = 0
        for game in watched.games("fc1"):
            rows = torch.arange(game.examples)
            masks = torch.zeros(game.examples, units, dtype=torch.bool)
            before = game.values(rows, masks)
            for unit in order:
                masks[:, unit] = True
                now = game.values(rows, masks)
                wanted = (now - before).numpy()
                np.testing.assert_array_equal(found[number, at : at + game.examples, unit], wanted)
                before = now
            at += game.examples
