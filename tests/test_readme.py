"""The README's code runs as it stands."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from neurank.cli import app
from neurank.rankers.registry import METHODS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_quickstart_runs_and_is_short(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, further, budgets, dead, one_class = blocks("python")
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    assert (tmp_path / "small.safetensors").is_file()
    assert names["again"].fc1.out_features == 16
    assert "ImportanceSwitch" in capsys.readouterr().out
    exec(compile(further, "README.md", "exec"), names)
    assert names["ranking"].provenance["journal"]["reused"] == 0
    assert names["table"].shapley().shape == (16,)
    exec(compile(budgets, "README.md", "exec"), names)
    assert names["small"].report.parameters[1] < names["small"].report.parameters[0]
    assert len(names["found"].attempts) <= 4
    capsys.readouterr()
    exec(compile(dead, "README.md", "exec"), names)
    assert "units dead" in capsys.readouterr().out
    assert names["masks"].sparsity == pytest.approx(0.5, abs=0.01)
    exec(compile(one_class, "README.md", "exec"), names)
    assert names["three"].report.parameters[1] <= 2500
    assert "false positive rate" in capsys.readouterr().out


def test_the_steps_on_the_command_line_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (steps,) = [block for block in blocks("sh") if "neurank train" in block]
    for line in steps.strip().splitlines():
        program, *words = shlex.split(line)
        assert program == "neurank"
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "small.safetensors").is_file()


@pytest.mark.parametrize(("name", "method"), METHODS.items())
def test_every_method_is_in_the_table(name, method):
    assert f"| `{method.__name__}` | `{name}` |" in README
