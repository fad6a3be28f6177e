"""``neurank specialize``: one class or several, what it prints and writes, what it refuses."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import neurank as nr
from neurank.cli import app

RUN = CliRunner()


def neurank(*words, code=0):
    result = RUN.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    if code:
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.stderr
    return result


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    digits = nr.data.load("digits", batch_size=50)
    model = nr.zoo.digits_net(seed=0)
    nr.fit(model, digits.train, digits.validation, epochs=3, progress=False)
    path = tmp_path_factory.mktemp("specialize") / "w.safetensors"
    save_file(model.state_dict(), path)
    return path


def specialize(weights, *words, code=0):
    return neurank("specialize", "digits_net", "digits", "--weights", weights, *words, code=code)


def test_one_class_is_cut_out_and_written(weights, tmp_path):
    out = tmp_path / "three.safetensors"
    result = specialize(weights, "--class", "3", "--theta", "0.3", "--head", "--out", out, "--json")
    (found,) = json.loads(result.stdout)["classes"]
    model = nr.zoo.digits_net()
    loaded = nr.load(out, lambda: model)
    assert loaded.model.output.out_features == 2
    assert found["report"]["parameters"][1] == sum(it.numel() for it in loaded.model.parameters())
    test = nr.data.load("digits").test
    with torch.no_grad():
        called = loaded.model.eval()(test.inputs).argmax(dim=1) == 1
    own = test.targets == 3
    assert found["quality"]["hits"] == int((called & own).sum())
    assert found["quality"]["false_alarms"] == int((called & ~own).sum())
    assert found["quality"]["own"] == int(own.sum())
    assert found["seconds"]["small"]["median"] > 0


def test_several_classes_make_a_table_and_a_folder(weights, tmp_path):
    result = specialize(
        weights, "--class", "3", "--class", "7", "--max-params", 1500, "--retrain", 1, "--out",
        tmp_path,
    )  # fmt: skip
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["class", "parameters"]
    assert [line.split()[0] for line in lines[1:3]] == ["3", "7"]
    assert sorted(it.name for it in tmp_path.iterdir()) == [
        "class-3.safetensors", "class-7.safetensors",
    ]  # fmt: skip


def test_all_classes(weights):
    result = specialize(weights, "--class", "all", "--theta", "0.2", "--first", 100, "--json")
    assert [it["label"] for it in json.loads(result.stdout)["classes"]] == list(range(10))


def test_one_class_prints_what_it_was_and_is(weights):
    out = specialize(weights, "--class", "3", "--theta", "0.2").stdout
    assert "false positive rate" in out
    assert "condensed = masked" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--class", "cat"), "there is no class 'cat'"),
        (("--class", "12"), "there is no class '12'"),
        (("--class", "3", "--theta", "0.2", "--max-params", "900"), "one can hold"),
        (("--class", "3", "--theta", "0.99", "--scope", "network"), "leaves no unit"),
        (("--class", "3", "--method", "best"), "no method is called 'best'"),
        (("--class", "3", "--class", "4", "--out", "no/where"), "is no folder"),
        (("--class", "3", "--out", "three.pt"), "not a .safetensors file"),
        (("--class", "3", "--max-params", "3"), "cannot be met"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(weights, words, message):
    assert message in specialize(weights, *words, code=2).stderr
