import io
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.cases import CASES, named
from tests.condense.nets import WithNumber, drawn, every_second, pictures
from torch import nn

from neurank.condense.condensed import condense
from neurank.condense.load import load
from neurank.condense.rewritten import Rewritten
from neurank.errors import CondenseError, FileError, ModelError
from neurank.observe.observer import model_digest
from neurank.training import fit
from neurank.units.trace import logits_of

PERCEPTRON = named("perceptron")
ZEROS = torch.zeros(4, dtype=torch.int64)
REMOVALS = ("zero", "mean", "parameters")


def outputs(model, inputs):
    with torch.no_grad():
        return logits_of(model.eval()(inputs))


def condensed(case, *layers, removal="zero"):
    model = case.model()
    return condense(model, every_second(model, *layers), case.batches(), removal=removal)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "small.safetensors"


@pytest.fixture
def saved(path):
    small = condensed(PERCEPTRON, "fc0", "fc1")
    small.save(path)
    return small


@pytest.mark.parametrize(
    ("name", "removal"),
    [
        ("perceptron", "mean"),
        ("without biases", "mean"),
        ("norm behind the activation", "zero"),
        ("norm behind the activation", "parameters"),
        ("lenet, width as a number", "mean"),
        ("branch", "zero"),
        ("mapping", "mean"),
    ],
)
def test_what_is_loaded_is_what_was_saved_bit_for_bit(name, removal, path):
    case = named(name)
    hidden = [layer for layer, readers in case.reads.items() if readers]
    small = condensed(case, *hidden, removal=removal)
    small.save(path)
    again = load(path, case.build)
    inputs = torch.cat([inputs for inputs, _ in case.batches()])
    assert torch.equal(outputs(again.model, inputs), outputs(small.model, inputs))
    assert again.plan == small.plan
    assert list(again.plan.keep) == list(small.plan.keep)
    assert (again.check, again.report, again.origin) == (small.check, small.report, small.origin)
    assert type(again.model) is type(small.model)
    assert set(again.model.state_dict()) == set(small.model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_types_and_frozen_parameters_come_back(dtype, path):
    model = drawn(WithNumber, dtype=dtype)
    model.fc1.requires_grad_(requires_grad=False)
    plan = every_second(model, "conv1", "fc1")
    small = condense(model, plan, pictures(5, 4, dtype=dtype), removal="mean")
    small.save(path)
    again = load(path, WithNumber).model
    assert isinstance(again, Rewritten)
    inputs = pictures(6, dtype=dtype)[0][0]
    assert torch.equal(outputs(again, inputs), outputs(small.model, inputs))
    frozen = {name for name, p in again.named_parameters() if not p.requires_grad}
    assert frozen == {"fc1.weight", "fc1.bias"}


def test_weights_trained_since_are_the_ones_saved(path):
    small = condensed(PERCEPTRON, "fc0")
    before = model_digest(small.model)
    fit(small.model, PERCEPTRON.batches(), PERCEPTRON.batches(), epochs=3, lr=0.02, final_lr=0.01)
    with torch.no_grad():
        small.model.fc0.weight += 0.5
    small.save(path)
    again = load(path, PERCEPTRON.build)
    assert model_digest(again.model) == model_digest(small.model) != before


def test_the_file_tells_what_was_kept_and_where_it_comes_from(saved, path):
    model = PERCEPTRON.model()
    again = load(path, PERCEPTRON.build)
    assert again.original_index("fc0", 2) == 4
    assert again.origin.parent == model_digest(model)
    assert again.origin.removal == "zero"
    assert again.origin.example_shape == (4,)
    assert dict(again.report.widths)["fc0"] == (5, 3)
    assert set(load_file(path)) == {f"state/{name}" for name in saved.model.state_dict()} | {
        "probe"
    }


def test_saving_leaves_the_network_as_it_is(saved, path):
    saved.model.train()
    chance, digest = torch.get_rng_state(), model_digest(saved.model)
    saved.save(path)
    load(path, PERCEPTRON.build)
    assert saved.model.training
    assert model_digest(saved.model) == digest
    assert torch.equal(torch.get_rng_state(), chance)


def with_layers(**changes):
    def build():
        model = PERCEPTRON.build()
        for name, module in changes.items():
            setattr(model, name, module)
        return model

    return build


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (with_layers(fc0=nn.Linear(4, 6), fc1=nn.Linear(6, 5)), "'fc0' has 6 units, where 5 were"),
        (with_layers(fc2=nn.Linear(5, 6), fc3=nn.Linear(6, 3)), "'fc2' has 6 units, where 4 were"),
        (with_layers(more=nn.Linear(3, 3)), "a layer 'more', which was not there"),
        (with_layers(fc1=nn.Linear(5, 5, bias=False)), r'"fc1.bias"'),
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), "no layer 'fc0'"),
        (lambda: nn.Linear(9, 3), "cannot be traced|no layer"),
        (with_layers(act0=nn.Tanh()), "other outputs"),
        (with_layers(act2=nn.Identity()), "other outputs"),
    ],
)
def test_a_factory_of_another_network_is_refused(factory, message, path):
    with pytest.raises(CondenseError, match=message):
        load(path, factory)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (PERCEPTRON.build, None),
        (with_layers(fc0=nn.Linear(4, 6), fc1=nn.Linear(6, 5)), "'fc0' has 6 units, where 5 were"),
        (with_layers(act2=nn.Identity()), "other outputs"),
    ],
)
def test_a_note_of_other_outputs_narrows_what_the_factory_builds(saved, path, build, message):
    """Here to a single one, whose weights are made up: only the note tells."""
    model = PERCEPTRON.model()
    layer = list(saved.report.widths)[-1]
    last = model.get_submodule(layer)
    setattr(model, layer, nn.Linear(last.in_features, 1).double())
    small = condense(model, every_second(model, "fc0"), [(torch.rand(4, 4).double(), ZEROS)])
    noted = replace(small, origin=replace(small.origin, outputs=1))
    noted.save(path)
    if message is not None:
        with pytest.raises(CondenseError, match=message):
            load(path, build)
        return
    again = load(path, build)
    inputs = torch.rand(3, 4, dtype=torch.float64)
    assert torch.equal(outputs(again.model, inputs), outputs(small.model, inputs))
    assert again.model.get_submodule(layer).out_features == 1


@pytest.mark.usefixtures("saved")
def test_a_factory_that_makes_no_module_is_refused(path):
    with pytest.raises(ModelError, match="returned a int"):
        load(path, lambda: 3)


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_changed_byte_is_refused(saved, path, at):
    assert saved
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match="refused"):
        load(path, PERCEPTRON.build)


def test_a_pickle_is_never_opened(path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("code of a file was run",))

    buffer = io.BytesIO()
    pickle.dump(Bomb(), buffer)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(FileError):
        load(path, PERCEPTRON.build)


def test_every_case_survives_the_file(path):
    """The probe's logits of a network are found again whatever its inputs look like."""
    for case in CASES[::6]:
        hidden = [layer for layer, readers in case.reads.items() if readers][:1]
        condensed(case, *hidden).save(path)
        assert load(path, case.build).plan.keep.keys() == set(hidden)
