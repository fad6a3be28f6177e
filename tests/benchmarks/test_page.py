import doctest
import re

import pytest

from benchmarks import page

TARGET = 0.01


def curve(name, library, family, seconds, seeds=(0, 1, 2)):
    """Runs whose error is the target's after `seconds`, and half of it after four times as many."""
    points = [
        {
            "seed": seed,
            "coalitions": int(100 * share),
            "seconds": share * seconds * (1 + seed / 10),
            "rmse": TARGET / share**0.5,
        }
        for seed in seeds
        for share in (0.25, 1, 4)
    ]
    return {"name": name, "library": library, "family": family, "points": points}


@pytest.fixture
def found():
    """Measurements of which every ratio is known."""
    values = "given neurank's values"
    run = {"coalitions": 200, "seconds": 21.0, "own_seconds": 1.0, "off_by": 0.0}
    return {
        "machine": {"in_words": "a machine", "versions": {"Python": "3", "shapiq": "1"}},
        "pictures": 500,
        "units": 100,
        "target": TARGET,
        "seeds": 3,
        "error_rate": 0.01,
        "active": 16.0,
        "value_ends": [0.1, 0.99],
        "truth": {"kind": "exact", "stderr": 0.0, "coalitions": 10**9, "seconds": 60.0},
        "setup_of_values": 0.5,
        "start": 0.9,
        "step": 0.001,
        "batch_size": 250,
        "per_coalition": 0.1,
        "black_box_runs": [run],
        "curves": [
            curve("PermutationShapley", "neurank", "neurank", 1.0),
            curve("KernelSHAP", "shapiq", "black box", 5000.0),
            curve("permutation", "shapiq", "black box", 2000.0),
            curve("Sampling", "captum", "black box", 1500.0),
            curve("KernelSHAP", "shapiq", values, 4.5),
            curve("permutation", "shapiq", values, 9.5),
        ],
        "agreement": {"permutation": 1.0},
        "device": None,
    }


def flat(found):
    """The page's text without its line breaks."""
    return re.sub(r"\s+", " ", page.page({"against_peers": found}))


def test_the_fastest_of_shapiqs_estimators_is_held_against_the_goal(found):
    # Two of three seeds' times around the median differ by a tenth: 2,200 s over 1.1 s.
    text = flat(found)
    assert "On the black box: 2,000 (1,670 to 2,400) times permutation's time" in text
    assert "goal 1,000: reached" in text


def test_set_up_counts_on_both_sides_of_whole_calls_and_on_neither_of_sampling(found):
    text = flat(found)
    # KernelSHAP: 4.95 s and 0.5 s set-up against 1.1 s; and 4.95 s against 100 passes of 1 ms.
    assert "whole: 5.0 (" in text
    assert "sampling alone: 50 (" in text
    assert "goal 20: not reached" in text


def test_what_limits_the_ratio_follows_from_the_share_of_set_up(found):
    assert "(82 %) are set-up" in flat(found)
    assert "Set-up is what limits" in flat(found)
    assert "Sampling is what limits" in flat(found | {"start": 0.2})


def test_a_target_beyond_all_runs_is_marked(found):
    text = page.page({"against_peers": found | {"target": TARGET / 10}})
    rows = [line for line in text.splitlines() if line.startswith("| shapiq")]
    assert rows
    assert all("extrapolated" in row for row in rows)


def test_real_runs_are_held_against_their_prediction(found):
    # 1 s of its own and 200 coalitions at 0.1 s were predicted, and 21 s were measured.
    assert "come out 1.00 to 1.00 times" in flat(found)
    assert "come out 0.52 to 0.52 times" in flat(found | {"per_coalition": 0.05})


def test_a_sampled_truth_says_so(found):
    truth = found["truth"] | {"kind": "sampled", "stderr": 2e-5}
    assert "standard error of 2e-05" in flat(found | {"truth": truth})
    assert "The truth is exact" in flat(found)


def test_a_missing_device_is_named_and_a_present_one_has_its_memory(found):
    assert "no CUDA device" in flat(found)
    device = {"exact fc2": {"seconds": 0.5, "peak_bytes": 3 * 2**20}}
    assert "| exact fc2 | 500 ms | 3 MiB |" in flat(found | {"device": device})


def test_prose_is_broken_and_tables_are_not(found):
    lines = page.page({"against_peers": found}).splitlines()
    assert all(len(line) <= 100 for line in lines if not line.startswith(("|", "#", "!")))
    assert sum(line.startswith("| shapiq") for line in lines) == 4


def test_the_picture_is_small(found, tmp_path):
    path = tmp_path / "images" / "error.png"
    page.draw_error_against_time(found, path)
    assert 5_000 < path.stat().st_size < 60_000


def test_the_examples_hold():
    assert doctest.testmod(page).attempted > 0
    assert doctest.testmod(page).failed == 0
