"""Condensed networks handed over: to `torch.export`, and to ONNX, where onnxruntime runs them."""

import io
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch
from tests.architectures import architecture
from tests.condense.nets import AuthorsLeNet, drawn
from torch import nn

import neurank as nr
from neurank.condense.export import exported, to_onnx
from neurank.condense.rewritten import Rewritten
from neurank.errors import CondenseError, FileError, ModelError
from neurank.units.space import unit_space
from neurank.units.trace import trace

QUICK = ("lenet", "squeezenet", "bottleneck-mlp")
SLOWER = (
    "vgg-bn",
    "resnet-basic",
    "resnet-zero-padded",
    "resnext-many-groups",
    "densenet",
    "mobilenet-v3",
    "shufflenet-v2",
    "convnext",
    "u-net",
    "vit-written-attention",
    "swin",
    "mlp-mixer",
    "text-cnn",
    "group-norm",
)
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWER)]


def condensed(name, removal="zero"):
    """Take every second unit away; the smaller network, and batches of four and three."""
    one = architecture(name)
    model, batches = one.model(torch.float32).eval(), one.batches(torch.float32)
    space = unit_space(trace(model, batches[0][0]), model)
    widths = {layer: space[layer].width for layer in space.hidden if not space[layer].is_output}
    plan = nr.Plan.from_keep({layer: range(0, width, 2) for layer, width in widths.items()}, widths)
    small = nr.condense(model, plan, batches, removal=removal, border="exact", progress=False)
    return small.model, [inputs for inputs, _ in batches]


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def answers(running, inputs):
    (found,) = running.run(["logits"], {"inputs": inputs.numpy()})
    return torch.from_numpy(found)


def apart(found, wanted):
    """The largest difference, relative to the largest logit."""
    assert found.shape == wanted.shape
    return float((found - wanted).detach().abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_onnxruntime_gives_the_same_at_any_batch_size(name, tmp_path):
    small, batches = condensed(name)
    to_onnx(small, batches[0].shape[1:], tmp_path / "small.onnx", dtype=batches[0].dtype)
    running = session(tmp_path / "small.onnx")
    for inputs in (*batches, batches[0][:1]):
        with torch.inference_mode():
            wanted = small.eval()(inputs)
        assert apart(answers(running, inputs), wanted) <= 1e-4


@pytest.mark.parametrize("name", ["lenet", "squeezenet", "convnext", "group-norm"])
def test_a_torch_export_round_trip_gives_the_same(name):
    small, batches = condensed(name)
    stored = io.BytesIO()
    torch.export.save(exported(small, batches[0]), stored)
    stored.seek(0)
    again = torch.export.load(stored).module()
    for inputs in (*batches, batches[0][:1]):
        with torch.inference_mode():
            wanted = small.eval()(inputs)
        assert apart(again(inputs), wanted) <= 1e-6


def test_layers_that_know_what_was_removed_can_be_handed_over(tmp_path):
    # constants before padding, and before a norm over units: torch's layers with one tensor more
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.GroupNorm(2, 8),
        nn.Conv2d(8, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    inputs = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    keep, widths = {"0": range(3), "2": (0, 2)}, {"0": 6, "2": 4}  # places in groups
    plan = nr.Plan.from_keep(keep, widths)
    data = [(inputs, torch.zeros(5, dtype=torch.long))]
    small = nr.condense(model, plan, data, removal="mean", progress=False).model
    assert {"Conv2dWithConstant", "GroupNormOfRest"} <= {
        type(it).__name__ for it in small.modules()
    }
    to_onnx(small, (2, 8, 8), tmp_path / "small.onnx")
    with torch.inference_mode():
        wanted = small.eval()(inputs)
    assert apart(answers(session(tmp_path / "small.onnx"), inputs), wanted) <= 1e-4


def small_lenet():
    model = drawn(AuthorsLeNet, dtype=torch.float32)
    plan = nr.Plan.from_keep({"c3": range(9)}, {"c3": 20})
    data = [(torch.rand(2, 1, 28, 28), torch.tensor([0, 1]))]
    return nr.condense(model, plan, data, progress=False).model


def test_it_comes_back_as_it_was_and_the_file_is_of_evaluation_mode(tmp_path):
    small = small_lenet().train()
    assert isinstance(small, Rewritten)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    to_onnx(small, (1, 28, 28), tmp_path / "small.onnx")
    assert all(module.training for module in small.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    inputs = torch.rand(6, 1, 28, 28)
    with torch.inference_mode():
        wanted = small.eval()(inputs)
    assert apart(answers(session(tmp_path / "small.onnx"), inputs), wanted) <= 1e-4


def test_the_file_is_whole_valid_and_names_no_file(tmp_path):
    to_onnx(small_lenet(), (1, 28, 28), tmp_path / "small.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["small.onnx"]
    made = onnx.load(tmp_path / "small.onnx")
    onnx.checker.check_model(made, full_check=True)
    (given,), (returned,) = made.graph.input, made.graph.output
    assert (given.name, returned.name) == ("inputs", "logits")
    for value in (given, returned):
        assert value.type.tensor_type.shape.dim[0].dim_param == "examples"
    assert b".py" not in (tmp_path / "small.onnx").read_bytes()


class Structured(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return {"hidden": x * 2, "logits": self.fc(x)}


def test_of_a_structured_output_the_logits_are_taken(tmp_path):
    model, inputs = Structured(), torch.rand(4, 3)
    to_onnx(model, (3,), tmp_path / "net.onnx")
    with torch.inference_mode():
        assert apart(answers(session(tmp_path / "net.onnx"), inputs), model.fc(inputs)) <= 1e-6


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_cannot_be_exported_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ModelError, match="Branching cannot be exported"):
        to_onnx(Branching(), (3,), path)
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileError, match="nowhere"):
        to_onnx(nn.Linear(3, 2), (3,), tmp_path / "nowhere" / "net.onnx")


def test_without_the_packages_the_message_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['onnxscript'] = None\n"
        "import torch; from torch import nn\n"
        "from neurank.condense.export import to_onnx\n"
        f"to_onnx(nn.Linear(3, 2), (3,), {str(tmp_path / 'net.onnx')!r})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert CondenseError.__name__ in run.stderr
    assert "pip install 'neurank[onnx]'" in run.stderr
