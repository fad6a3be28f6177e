"""Whole rankings, killed anywhere and resumed: nothing acknowledged is lost, no bit differs."""

import json
import os
import subprocess
import sys

import pytest
from tests.killed_runs import ONE_THREAD


def report_of(runs, folder):
    found = subprocess.run(
        [sys.executable, "-m", "tests.killed_runs", str(runs), str(folder)],
        env={**os.environ, **ONE_THREAD},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    print(found.stdout)  # shown by `pytest -s`
    return json.loads(found.stdout)


def assert_nothing_is_lost(report, runs):
    assert report["runs"] == report["identical"] >= runs
    assert report["kills"] >= runs
    assert report["acknowledged"] > 0
    assert report["reused"] >= report["acknowledged"]
    assert "lost" not in report
    assert "computed again" not in report


def test_killed_rankings_are_resumed_bit_for_bit(tmp_path):
    report = report_of(6, tmp_path)
    assert_nothing_is_lost(report, 6)


@pytest.mark.slow
def test_five_hundred_kills(tmp_path):
    report = report_of(500, tmp_path)
    assert_nothing_is_lost(report, 500)
    for moment in ("before", "half", "after"):
        assert report[f"{moment} a call"] == 3 + 2 * report["chunks"]
