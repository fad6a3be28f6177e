import pytest
import torch
from torch import nn

from neurank.errors import ModelError
from neurank.zoo import digits_net, lenet


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("widths", "count"), [((5, 7, 45, 20), 7_227), ((10, 20, 100, 25), 40_165)]
)
def test_lenet_has_as_many_parameters_as_its_widths_say(widths, count):
    c1, c2, f1, f2 = widths
    by_hand = (25 * c1 + c1) + (25 * c1 * c2 + c2) + (16 * c2 * f1 + f1)
    by_hand += (f1 * f2 + f2) + (f2 * 10 + 10)
    assert parameters(lenet(*widths)) == by_hand == count


def test_lenet_is_the_papers_forward():
    model = lenet(3, 4, 6, 5, seed=1)
    written_out = nn.Sequential(
        *(model.conv1, nn.ReLU(), nn.MaxPool2d(2)),
        *(model.conv2, nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), model.fc1, nn.ReLU(), model.fc2, nn.ReLU(), model.output),
    )
    x = torch.randn(7, 1, 28, 28)
    assert torch.equal(model(x), written_out(x))
    assert model.conv1.kernel_size == model.conv2.kernel_size == (5, 5)
    assert model.conv1.padding == model.conv2.padding == (0, 0)


def test_digits_net_is_its_stated_forward():
    model = digits_net(seed=1)
    written_out = nn.Sequential(
        *(model.conv1, nn.ReLU(), model.conv2, nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), model.fc1, nn.ReLU(), model.fc2, nn.ReLU(), model.output),
    )
    x = torch.randn(7, 1, 8, 8)
    assert torch.equal(model(x), written_out(x))


@pytest.mark.parametrize("build", [lenet, digits_net])
def test_layers_have_the_names_that_plans_use(build):
    names = [name for name, _ in build().named_children()]
    assert names == ["conv1", "conv2", "fc1", "fc2", "output"]


@pytest.mark.parametrize("build", [lenet, digits_net])
def test_widths_and_classes(build):
    model = build(2, 3, 4, 5, classes=6)
    layers = dict(model.named_children())
    widths = [layer.weight.shape[0] for layer in layers.values()]
    assert widths == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("build", [lenet, digits_net])
def test_a_seed_decides_the_weights_and_leaves_the_generator_alone(build):
    before = torch.get_rng_state()
    one, same, other = build(seed=3), build(seed=3), build(seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.fc1.weight, same.fc1.weight)
    assert not torch.equal(one.fc1.weight, other.fc1.weight)


def test_without_a_seed_torchs_generator_decides():
    torch.manual_seed(3)
    one, other = lenet(), lenet()
    torch.manual_seed(3)
    assert torch.equal(one.conv1.weight, lenet().conv1.weight)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)


@pytest.mark.parametrize("width", [0, -1, 2.0, True, "8"])
@pytest.mark.parametrize("name", ["c1", "c2", "f1", "f2", "classes"])
def test_widths_that_are_none(name, width):
    with pytest.raises(ModelError, match=f"{name}={width!r} is not a whole number"):
        lenet(**{name: width})
