"""The project around the code: pinned versions, and data that may not go missing unnoticed."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def declared():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = [Requirement(line) for group in groups for line in group]
    return [one for one in requirements if one.name != PROJECT["name"]]


def pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(one.name): one.specifier for one in requirements}


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_what_is_needed_is_pinned_within_its_range(requirement):
    (pin,) = pinned()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin.version)


def test_pins_are_exact_and_fit_every_build():
    for (pin,) in pinned().values():
        assert pin.operator == "=="
        assert Version(pin.version).local is None


# Each is one test in a process of its own, with an environment of its own.
NEEDS_MNIST = "def test_needs_mnist(mnist):\n    assert mnist.test.examples\n"


def outcome(tmp_path, **environment):
    """Run a test that needs MNIST beside a copy of the shared fixtures; give pytest's output."""
    (tmp_path / "conftest.py").write_bytes((ROOT / "tests" / "conftest.py").read_bytes())
    (tmp_path / "test_one.py").write_text(NEEDS_MNIST, encoding="utf-8")
    inherited = {
        name: value for name, value in os.environ.items() if name not in {"CI", "NEURANK_DATA"}
    }
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", str(tmp_path)]
    run = subprocess.run(
        command,
        env=inherited | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return run.returncode, run.stdout


@pytest.mark.parametrize(
    ("folder", "reason"), [("", "does not name"), ("/no/such", "is no folder"), (".", "mnist is")]
)
def test_missing_data_skip_with_the_reason_but_fail_in_ci(tmp_path, folder, reason):
    code, output = outcome(tmp_path, NEURANK_DATA=folder)
    assert (code, "1 skipped" in output) == (0, True)
    assert reason in output
    code, output = outcome(tmp_path, NEURANK_DATA=folder, CI="true")
    assert (code, "1 error" in output) == (1, True)
    assert reason in output
