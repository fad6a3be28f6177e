import numpy as np
import pytest
import torch
from benchmarks.values import (
    FEWEST_LANES,
    LANES,
    Counted,
    additive_split,
    full_forward,
    split_game,
)
from torch.nn import functional

import neurank as nr

UNITS = 10


@pytest.fixture(scope="module")
def model(digits):
    net = nr.zoo.digits_net(2, 3, UNITS, 7, seed=1)
    nr.fit(net, digits.train, digits.validation, epochs=3, batch_size=50, progress=False)
    return net.eval()


@pytest.fixture(scope="module")
def part(digits):
    return digits.validation.first(90).rebatched(40)


@pytest.fixture(scope="module")
def masks():
    drawn = np.random.default_rng(0).random((LANES + 9, UNITS)) < 0.6
    drawn[0], drawn[1] = False, True
    return drawn


@pytest.fixture(scope="module")
def fast(model, part):
    return additive_split(split_game(model, part, "fc1"))


def accuracy(model, part, mask):
    """The forward pass written out, fc1's units multiplied by the mask."""
    with torch.no_grad():
        x = functional.relu(model.conv1(part.inputs))
        x = functional.max_pool2d(functional.relu(model.conv2(x)), 2)
        x = functional.relu(model.fc1(x.flatten(1))) * torch.from_numpy(mask)
        logits = model.output(functional.relu(model.fc2(x)))
    return float((logits.argmax(dim=1) == part.targets).double().mean())


def test_both_value_functions_are_the_accuracy_with_units_off(model, part, masks, fast):
    expected = [accuracy(model, part, mask) for mask in masks]
    assert len(set(expected)) > 5
    for batch_size in (7, 90):
        slow = full_forward(model, part, "fc1", batch_size)
        assert slow(masks).tolist() == pytest.approx(expected, abs=1e-12)
    assert fast(masks).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("count", [1, FEWEST_LANES - 1, FEWEST_LANES, LANES, LANES + 1])
def test_values_do_not_depend_on_how_many_are_asked_for_at_once(masks, fast, count):
    assert fast(masks[:count]).tolist() == pytest.approx(fast(masks)[:count].tolist(), abs=1e-12)


def test_the_joined_game_has_all_pictures_in_order(model, part):
    game = split_game(model, part, "fc1")
    assert torch.equal(game.targets, part.targets)
    assert game.numbers.tolist() == list(range(part.examples))


def test_coalitions_are_counted(masks):
    counted = Counted(lambda some: some.sum(axis=1) / UNITS)
    assert counted(masks[1])[0] == 1.0
    assert counted(masks[:5]).shape == (5,)
    assert counted.coalitions == 6
    assert counted.seconds > 0
