"""MODEL: networks of the zoo and of the user, and the weights that fit them."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from neurank.cli.models import architecture, load_weights, save_weights
from neurank.errors import FileError, ModelError


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.last = nn.Linear(3, 3, bias=False)
        self.last.weight = self.first.weight


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return f"{path}:make"


def test_the_seed_draws_the_zoos_weights_and_leaves_the_generator():
    before = torch.get_rng_state()
    one, two = (architecture("digits_net", seed=3).factory() for _ in "ab")
    other = architecture("digits_net", seed=4).factory()
    assert torch.equal(one.fc1.weight, two.fc1.weight)
    assert not torch.equal(one.fc1.weight, other.fc1.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_draws_the_weights_of_the_users_network(tmp_path):
    spec = written(
        tmp_path, "n.py", "from torch import nn\ndef make():\n    return nn.Linear(2, 2)"
    )
    one, two = (architecture(spec, seed=3).factory() for _ in "ab")
    assert torch.equal(one.weight, two.weight)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def make():\n    return 3", "returned a int"),
        ("from torch import nn\nmake = nn.Linear(2, 2)", "no function 'make'"),
        ("def make(width):\n    return width", "called without arguments, failed with TypeError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("def make(:", "SyntaxError"),
    ],
)
def test_code_that_builds_no_network_is_refused(tmp_path, body, message):
    with pytest.raises(ModelError, match=message):
        architecture(written(tmp_path, "n.py", body)).factory()


def test_a_class_and_a_partial_are_factories(tmp_path):
    body = "from functools import partial\nfrom torch import nn\nmake = partial(nn.Linear, 2, 3)"
    assert architecture(written(tmp_path, "n.py", body)).factory().out_features == 3
    assert isinstance(architecture("torch.nn:ReLU").factory(), nn.ReLU)


@pytest.mark.parametrize("spec", ["lenet:", "lenet:5,7", "lenet:a,b,c,d", "lenet:5,7,45,20,3"])
def test_widths_that_are_not_four_numbers_are_refused(spec):
    with pytest.raises(ModelError, match="4 whole numbers"):
        architecture(spec)


def test_saved_weights_come_back(tmp_path):
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    save_weights(model, tmp_path / "w.safetensors", {"model": "linear"})
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(model.weight, other.weight)


def test_a_changed_byte_in_saved_weights_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(nn.Linear(2, 3), path, {})
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(FileError, match="SHA-256"):
        load_weights(nn.Linear(2, 3), path)


def test_one_name_of_tied_weights_is_enough_and_the_tie_stays(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"last.weight": torch.eye(3)}, path)
    model = Tied()
    load_weights(model, path)
    assert torch.equal(model.first.weight, torch.eye(3))
    assert model.first.weight is model.last.weight


def test_half_a_state_dict_changes_nothing(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"weight": torch.zeros(3, 2)}, path)
    model = nn.Linear(2, 3)
    with pytest.raises(ModelError, match="it lacks bias"):
        load_weights(model, path)
    save_file({"weight": torch.zeros(3, 2), "bias": torch.zeros(4)}, path)
    with pytest.raises(ModelError, match=r"bias is \(4,\) in the file and \(3,\) in the network"):
        load_weights(model, path)
    assert bool((model.weight != 0).any())


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError, match="cannot be read as safetensors"):
        load_weights(nn.Linear(2, 3), path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".PT", ".bin", ".ckpt", ".pkl"])
def test_a_pickle_is_never_opened(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(FileError, match="can run code"):
        load_weights(nn.Linear(2, 3), path)
