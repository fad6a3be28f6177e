"""``neurank dead``: what it prints, what it writes for machines, what it refuses."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import neurank as nr
from neurank.cli import app
from neurank.cli.dead import SHOWN

NET = "digits_net:3,4,20,6"
RUN = CliRunner()


def neurank(*words, code=0):
    result = RUN.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network with units killed in three ways."""
    model = nr.zoo.digits_net(3, 4, 20, 6, seed=0)
    with torch.no_grad():
        model.fc1.bias[:14] = -100
        model.fc2.weight[2] = 0
        model.conv2.weight[:, 1] = 0
    path = tmp_path_factory.mktemp("dead") / "w.safetensors"
    save_file(model.state_dict(), path)
    return path, model


@pytest.fixture(scope="module")
def found(weights):
    path, _ = weights
    return neurank("dead", NET, "digits", "--weights", path, "--first", 80, "--json").stdout


def looked(model):
    return nr.vitals(model, nr.data.load("digits", batch_size=200).validation.first(80))


def test_killed_units_are_listed_with_the_reason(weights):
    path, model = weights
    out = neurank("dead", NET, "digits", "--weights", path, "--first", 80, "--layers",
                  "fc1,fc2").stdout  # fmt: skip
    wanted = looked(model)
    dead = {name: len(wanted.dead[name]) for name in ("fc1", "fc2")}
    saturated = wanted.layers["fc1"].reasons.count("saturated activation")
    assert saturated >= 14
    lines = out.splitlines()
    assert lines[0] == f"{sum(dead.values())} dead units"
    for name, units in (("fc1", 20), ("fc2", 6)):
        frozen = len(wanted.frozen[name])
        words = f"{name} {dead[name]} of {units} dead {frozen} frozen".split()
        assert words in [line.split() for line in lines]
    named = ", ".join(map(str, range(SHOWN)))
    assert f"fc1: saturated activation: {named} and {saturated - SHOWN} more" in lines
    assert "fc2: constant output: 2" in lines
    assert "conv" not in out


def test_machines_get_the_same(weights, found):
    _, model = weights
    document = json.loads(found)
    wanted = looked(model)
    assert document["loss"] == pytest.approx(wanted.loss)
    assert list(document["layers"]) == ["conv1", "conv2", "fc1", "fc2"]
    for name, layer in document["layers"].items():
        assert layer["units"] == len(wanted.layers[name].reasons)
        assert layer["dead"] == list(wanted.dead[name])
        assert layer["frozen"] == list(wanted.frozen[name])
        assert set(layer["reasons"]) == {str(unit) for unit in {*layer["dead"], *layer["frozen"]}}
        assert layer["mean_replacement_penalty"] == pytest.approx(
            wanted.layers[name].penalties.mean.tolist()
        )
        assert layer["mean_replacement_saliency"] == pytest.approx(
            wanted.layers[name].signs.saliency.tolist()
        )
    assert set(range(14)) <= set(document["layers"]["fc1"]["dead"])
    assert document["layers"]["conv1"]["reasons"]["1"] == "zero fan-out"
    assert document["layers"]["fc2"]["reasons"]["2"] == "constant output"
    assert document["refused"] == {}


def test_the_threshold_and_the_part_of_the_data_can_be_chosen(weights, found):
    path, _ = weights
    more = neurank("dead", NET, "digits", "--weights", path, "--first", 80, "--json", "--below",
                   "0.9", "--split", "train").stdout  # fmt: skip
    few, many = (
        sum(len(layer["dead"]) for layer in json.loads(out)["layers"].values())
        for out in (found, more)
    )
    assert many > few
    assert json.loads(more)["loss"] != json.loads(found)["loss"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--layers", "fc9"), "fc9"),
        (("--layers", "output"), "output"),
        (("--below", "1.5"), "a threshold is a number from 0 to below 1"),
        (("--split", "tests"), "tests"),
    ],
)
def test_what_cannot_be_done_is_one_line(weights, words, message):
    path, _ = weights
    result = neurank("dead", NET, "digits", "--weights", path, "--first", 20, *words, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("neurank: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
