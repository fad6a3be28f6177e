from dataclasses import replace

import pytest
import torch
from torch import nn

from neurank.condense.costs import Report
from neurank.condense.plan import Plan
from neurank.condense.saved import Origin, Saved
from neurank.condense.verify import Check
from neurank.errors import FileError
from neurank.files import read_tensors, write_tensors

KIND = "condensed network"
SAVED = Saved(
    state=nn.Linear(2, 2).state_dict(),
    probe=torch.ones(1, 2),
    frozen=("bias",),
    plan=Plan({"z": (0,), "a": (1,)}, {"z": 2, "a": 2}, {"method": "given"}),
    check=Check(1e-7, 1e-5, 10, 0.5),
    report=Report((9, 4), (8, 3), {"z": (2, 1), "a": (2, 1)}),
    origin=Origin("digest", "Net", "mean", "data", (1, 2), "float32", ("a.bias",), True),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "saved.safetensors"


def test_everything_comes_back(path):
    SAVED.write(path)
    again = Saved.read(path)
    for name in ("frozen", "plan", "check", "report", "origin"):
        assert getattr(again, name) == getattr(SAVED, name)
    assert again.plan.source == {"method": "given"}
    assert list(again.plan.keep) == ["z", "a"]
    assert torch.equal(again.probe, SAVED.probe)
    assert again.state.keys() == SAVED.state.keys()
    for name, tensor in SAVED.state.items():
        assert torch.equal(again.state[name], tensor)


def test_equal_content_gives_equal_bytes(path, tmp_path):
    SAVED.write(path)
    Saved.read(path).write(tmp_path / "other.safetensors")
    assert (tmp_path / "other.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("plan", {}),
        ("plan", {"layers": [{"name": "a", "units": 2, "keep": []}]}),
        ("check", {"max_error": 1}),
        ("report", None),
        ("origin", {}),
        ("frozen", None),
        ("removal", "off"),
        ("example_dtype", "load"),
        ("example_dtype", "nothing"),
        ("outputs", 0),
        ("outputs", 2.0),
        ("outputs", "2"),
        ("outputs", True),
    ],
)
def test_metadata_of_something_else_is_refused(path, part, value):
    """A sealed file may still have been written by somebody with other ideas."""
    SAVED.write(path)
    tensors, metadata = read_tensors(path, kind=KIND)
    if part in metadata["origin"]:
        metadata["origin"][part] = value
    else:
        metadata[part] = value
    write_tensors(path, tensors, metadata, kind=KIND)
    with pytest.raises(FileError, match="no condensed network"):
        Saved.read(path)


@pytest.mark.parametrize("outputs", [None, 2])
def test_the_number_of_outputs_comes_back(path, outputs):
    replace(SAVED, origin=replace(SAVED.origin, outputs=outputs)).write(path)
    assert Saved.read(path).origin.outputs == outputs


def test_a_file_from_before_heads_tells_no_number_of_outputs(path):
    SAVED.write(path)
    tensors, metadata = read_tensors(path, kind=KIND)
    del metadata["origin"]["outputs"]
    write_tensors(path, tensors, metadata, kind=KIND)
    assert Saved.read(path).origin == SAVED.origin


def test_a_file_of_another_kind_is_refused(path):
    write_tensors(path, {}, {}, kind="ranking")
    with pytest.raises(FileError, match="not a 'condensed network'"):
        Saved.read(path)


def test_a_file_without_its_probe_is_refused(path):
    SAVED.write(path)
    tensors, metadata = read_tensors(path, kind=KIND)
    del tensors["probe"]
    write_tensors(path, tensors, metadata, kind=KIND)
    with pytest.raises(FileError, match="probe"):
        Saved.read(path)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int64", "uint8"])
def test_made_up_examples_are_always_the_same(dtype):
    origin = replace(SAVED.origin, example_shape=(3, 4), example_dtype=dtype)
    examples = origin.examples(2)
    assert examples.shape == (2, 3, 4)
    assert examples.dtype == getattr(torch, dtype)
    assert torch.equal(examples, origin.examples(2))
    assert bool(((examples >= 0) & (examples <= 1)).all())
    if examples.is_floating_point():
        assert len(examples.unique()) > 20
