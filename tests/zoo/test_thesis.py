import pytest
import torch
from torch import nn

from neurank.errors import ModelError
from neurank.units.space import unit_space
from neurank.units.trace import trace
from neurank.zoo import thesis_cnn


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("widths", "count"),
    [((8, 16, 64), 20_522), ((8, 16, 32), 11_978), ((8, 16, 256), 71_786), ((4, 7, 26), 4_019)],
)
def test_it_has_as_many_parameters_as_the_thesis_says(widths, count):
    c1, c2, f1 = widths
    by_hand = (25 * c1 + c1) + (25 * c1 * c2 + c2) + (16 * c2 * f1 + f1) + (f1 * 10 + 10)
    assert parameters(thesis_cnn(*widths)) == by_hand == count


def test_the_layers_are_those_of_the_appendix():
    grey, coloured = thesis_cnn(f1=32), thesis_cnn(pictures="cifar10")
    assert [str(getattr(grey, name)) for name in ("conv1", "conv2", "fc1", "fc2")] == [
        "Conv2d(1, 8, kernel_size=(5, 5), stride=(1, 1))",
        "Conv2d(8, 16, kernel_size=(5, 5), stride=(1, 1))",
        "Linear(in_features=256, out_features=32, bias=True)",
        "Linear(in_features=32, out_features=10, bias=True)",
    ]
    assert [str(getattr(coloured, name)) for name in ("conv1", "conv2", "fc1", "fc2")] == [
        "Conv2d(3, 8, kernel_size=(5, 5), stride=(1, 1))",
        "Conv2d(8, 16, kernel_size=(5, 5), stride=(1, 1))",
        "Linear(in_features=400, out_features=64, bias=True)",
        "Linear(in_features=64, out_features=10, bias=True)",
    ]
    assert coloured(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("name", "active"), [("relu", nn.ReLU()), ("tanh", nn.Tanh())])
@pytest.mark.parametrize("norm", ["none", "plain", "affine"])
def test_forward_is_as_stated(name, active, norm):
    model = thesis_cnn(3, 4, 6, activation=name, norm=norm, seed=1).double()
    with torch.no_grad():
        for entry in (*model.parameters(), *model.buffers()):
            if entry.is_floating_point():
                entry.add_(0.1)  # so that a norm is not the identity
    model.eval()
    written_out = nn.Sequential(
        *(model.conv1, nn.MaxPool2d(2), active, model.conv1_norm),
        *(model.conv2, nn.MaxPool2d(2), active, model.conv2_norm),
        *(nn.Flatten(), model.fc1, active, model.fc1_norm, model.fc2),
    )
    x = torch.randn(5, 1, 28, 28, dtype=torch.float64)
    assert torch.equal(model(x), written_out(x))


def test_norms():
    assert parameters(thesis_cnn(norm="plain")) == parameters(thesis_cnn())
    assert parameters(thesis_cnn(norm="affine")) == parameters(thesis_cnn()) + 2 * (8 + 16 + 64)


@pytest.mark.parametrize("norm", ["none", "affine"])
def test_its_units_are_found(norm):
    model = thesis_cnn(norm=norm, seed=0).eval()
    space = unit_space(trace(model, torch.zeros(2, 1, 28, 28)), model)
    widths = {layer.name: layer.width for layer in space.choose(None)}
    assert widths == {"conv1": 8, "conv2": 16, "fc1": 64}


def test_the_initialisation_is_torchs():
    bound = 1 / 256**0.5
    weight = thesis_cnn(f1=2_000, seed=0).fc1.weight.detach()
    assert bound * 0.99 < weight.abs().max() <= bound
    assert abs(float(weight.abs().mean()) - bound / 2) < bound / 100


def test_a_seed_draws_the_weights_and_leaves_the_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, other = thesis_cnn(seed=5), thesis_cnn(seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.fc1.weight, other.fc1.weight)
    assert not torch.equal(one.fc1.weight, thesis_cnn(seed=6).fc1.weight)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"f1": 0}, "f1=0 is not"),
        ({"activation": "gelu"}, "activation='gelu' is unknown: give one of 'relu', 'tanh'"),
        ({"pictures": "imagenet"}, "give one of 'mnist', 'cifar10'"),
        ({"norm": True}, "norm=True is unknown"),
    ],
)
def test_what_it_cannot_be_is_refused(wrong, message):
    with pytest.raises(ModelError, match=message):
        thesis_cnn(**wrong)
