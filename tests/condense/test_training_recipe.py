"""The code in docs/training.md runs as it stands, on fewer digits."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import neurank as nr

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
RECIPE, AVERAGE, NAMES, LIGHTNING, RESUMED = BLOCKS


def run(names, *blocks):
    for block in blocks:
        exec(compile(block, "docs/training.md", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def few_digits(tmp_path, monkeypatch):
    """Let the page's code find few digits, and write into a folder of its own."""
    splits = nr.data.load("digits", batch_size=50)
    few = dataclasses.replace(
        splits, train=splits.train.first(400), validation=splits.validation.first(60)
    )
    monkeypatch.setattr(nr.data, "load", lambda _name, **_settings: few)
    monkeypatch.chdir(tmp_path)


def test_the_recipe_condenses_twice_and_trains_on(capsys):
    names = run({}, RECIPE)
    model, optimizer = names["model"], names["optimizer"]
    before = {name: width for name, (width, _) in names["condensed"].report.widths.items()}
    assert model.fc1.out_features < before["fc1"] < nr.zoo.digits_net(seed=0).fc1.out_features
    held = optimizer.param_groups[0]["params"]
    assert [id(parameter) for parameter in held] == [id(each) for each in model.parameters()]
    assert {float(optimizer.state[each]["step"]) for each in held} == {12.0 * 8}
    assert nr.error_rate(model, names["splits"].validation) < 0.2
    assert "parameters" in capsys.readouterr().out


def test_averages_are_condensed():
    names = run({}, RECIPE, AVERAGE, NAMES)
    small, average = names["condensed"].model, names["average"]
    average.update_parameters(small)
    shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
    assert {name: t.shape for name, t in average.module.state_dict().items()} == shapes
    assert {name: t.shape for name, t in names["small"].items()} == {
        f"module.{name}": shape for name, shape in shapes.items()
    }
    assert len(average.module.fc1.weight) < len(names["model"].fc1.weight)


@pytest.mark.filterwarnings("ignore")  # Lightning's own: few workers, few batches, its logger
def test_lightning_condenses_and_goes_on_from_a_checkpoint():
    pytest.importorskip(
        "lightning.pytorch", reason="Lightning is not installed: pip install 'neurank[lightning]'"
    )
    names = run({}, RECIPE.partition("for epoch")[0], LIGHTNING)
    first = {name: tensor.clone() for name, tensor in names["digits"].state_dict().items()}
    widths = {name: after for name, (_, after) in names["condensing"].done[8].report.widths.items()}
    assert len(names["digits"].net.fc1.weight) == widths["fc1"]
    run(names, RESUMED)
    again = names["again"].state_dict()
    assert {name: t.shape for name, t in again.items()} == {n: t.shape for n, t in first.items()}
    assert not any(torch.equal(again[name], tensor) for name, tensor in first.items())
