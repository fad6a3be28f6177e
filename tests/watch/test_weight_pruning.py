"""Weights go on a schedule and stay zero."""

import pytest
import torch
from tests.watch.nets import DATA, epoch_of, network, same, state_of

from neurank.errors import MethodError
from neurank.watch.losses import mean_loss
from neurank.watch.weight_pruning import WeightPruning
from neurank.weights import Magnitude, Masks, Taylor1, hold, mask, score

SHARES = {1: 0.25, 2: 0.5}


def momentum(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def pruning(shares=None, **settings):
    return WeightPruning(shares or SHARES, **({"method": Magnitude(), "data": DATA} | settings))


def trained(watched, model, optimizer, epochs):
    for epoch in epochs:
        epoch_of(model, optimizer)
        watched.after_epoch(epoch, model, optimizer)


def zeros(model):
    return sum(int((it == 0).sum()) for it in model.parameters() if it.ndim > 1)


def test_training_goes_on_as_in_a_loop_by_hand():
    model, twin = network(), network()
    with pruning() as watched:
        trained(watched, model, momentum(model), (1, 2, 3))
        assert zeros(model) == watched.masks.pruned == (54 + 960 + 30) // 2
    optimizer, losses, masks, held = momentum(twin), [], None, None
    for epoch in (1, 2, 3):
        epoch_of(twin, optimizer)
        if epoch in SHARES:
            losses.append(mean_loss(twin, DATA))
            scores = score(twin, DATA, Magnitude(), progress=False)
            masks = mask(scores, SHARES[epoch], "network", after=masks)
            if held is not None:
                held.release()
            held = hold(twin, masks, optimizer)
            losses.append(mean_loss(twin, DATA))
    held.release()
    assert same(state_of(model), state_of(twin))
    assert [loss for it in watched.epochs for loss in it.losses or ()] == losses
    assert [it.sparsity for it in watched.epochs] == [0.25, 0.5, 0.5]
    assert list(watched.to_frame()["sparsity"]) == [0.25, 0.5, 0.5]


def test_nothing_is_held_after_release():
    model = network()
    optimizer = momentum(model)
    watched = pruning({1: 0.5})
    trained(watched, model, optimizer, (1, 2))
    watched.release()
    watched.release()
    epoch_of(model, optimizer)
    assert zeros(model) < 50


def test_a_second_run_goes_on_from_masks(tmp_path):
    model = network()
    first = pruning()
    trained(first, model, momentum(model), (1,))
    first.masks.save(tmp_path / "masks.safetensors")
    first.release()
    with pruning() as second:
        optimizer = momentum(model)
        second.resume(model, Masks.load(tmp_path / "masks.safetensors"), optimizer)
        epoch_of(model, optimizer)
        assert zeros(model) == first.masks.pruned
        second.after_epoch(2, model, optimizer)
        gone = [~first.masks[name] & second.masks[name] for name in first.masks]
        assert not any(bool(it.any()) for it in gone)


@pytest.mark.parametrize("signed", [False, True])
def test_scores_count_by_size_or_as_they_are(signed):
    model = network()
    scores = score(model, DATA, Taylor1(), progress=False)
    wanted = mask(scores if signed else scores.absolute(), 0.5, "layer")
    with pruning({1: 0.5}, method=Taylor1(), within="layer", signed=signed) as watched:
        watched.after_epoch(1, model, None)
    assert same(dict(watched.masks), dict(wanted))


def test_parameters_can_be_chosen():
    model = network()
    with pruning({1: 0.5}, parameters=["fc1.weight"]) as watched:
        watched.after_epoch(1, model, momentum(model))
    assert list(watched.masks) == ["fc1.weight"]


def test_bad_calls_are_refused():
    with pytest.raises(MethodError, match="choose layers with parameters="):
        pruning({1: {"fc1": 0.5}})
    watched, model = pruning(), network()
    with watched:
        watched.after_epoch(2, model)
        with pytest.raises(MethodError, match="epoch 1 comes after epoch 2"):
            watched.after_epoch(1, model)
