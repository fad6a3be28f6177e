"""Taps: what is seen there, along which way, and that the network computes what it did."""

from dataclasses import replace

import pytest
import torch
from tests.cases import named, watch
from torch.nn import functional

from neurank.errors import ModelError
from neurank.observe.taps import Identity, Tap, seen, tapped

NAMES = ("branch", "lenet, flatten", "in place", "batchnorm 1d")


def tapping(case, at, observer=None, layers=None):
    observer = observer or watch(case)
    layers = layers or observer.space.hidden
    return observer, tapped(observer.space, layers, observer.runner, observer.examples, at)


@pytest.mark.parametrize("at", ["pre", "post"])
@pytest.mark.parametrize("case", [named(name) for name in NAMES], ids=str)
def test_a_tapped_network_computes_what_it_did(case, at):
    observer, tapping_ = tapping(case, at)
    assert tapping_.taps
    for inputs, _ in observer.examples:
        (wanted,) = observer.runner.forward(inputs)
        (found,) = tapping_.runner.forward(inputs)
        assert torch.equal(found, wanted)


def test_there_is_one_tap_per_reader_and_one_per_producer():
    case = named("branch")
    _, behind = tapping(case, "pre", layers=["stem"])
    assert [(tap.layer, tap.name) for tap in behind.taps] == [("stem", "conv2d tapped")]
    _, before = tapping(case, "post", layers=["stem"])
    assert [tap.layer for tap in before.taps] == ["stem", "stem"]
    assert {tap.tensor for tap in before.taps} == {"relu"}
    assert len({tap.name for tap in before.taps}) == len({tap.key for tap in before.taps}) == 2


def test_gradients_flow_along_one_way_each():
    """Those along both ways of a branch add up to the gradient at the fork, each as by hand."""
    case = named("branch")
    observer, tapping_ = tapping(case, "post", layers=["stem"])
    model = case.model().eval()
    (piece, *_) = seen(tapping_, observer.examples, observer.memory)
    inputs, targets = case.batches()[0]
    fork = functional.relu(model.stem(inputs)).detach()
    wanted = {}
    for way in ("left", "right"):
        read = {it: fork.clone().requires_grad_(it == way) for it in ("left", "right")}
        both = functional.relu(model.left(read["left"])) + model.right(read["right"])
        functional.cross_entropy(model.out(both.flatten(1)), targets, reduction="sum").backward()
        wanted[f"weight {way}.weight"] = read[way].grad
    for tap in tapping_.taps:
        torch.testing.assert_close(piece.values[tap.name], fork)
        torch.testing.assert_close(piece.gradients[tap.name], wanted[tap.key])
    assert not torch.allclose(*wanted.values())


def test_losses_targets_and_other_results():
    case = named("lenet, flatten")
    observer, tapping_ = tapping(case, "pre")
    logits = observer.space.graph.output
    pieces = list(seen(tapping_, observer.examples, observer.memory, also=(logits,)))
    with torch.no_grad():
        for piece, (inputs, targets) in zip(pieces, case.batches(), strict=True):
            wanted = case.model().eval()(inputs)
            assert torch.equal(piece.targets, targets)
            torch.testing.assert_close(piece.others[logits], wanted)
            losses = functional.cross_entropy(wanted, targets, reduction="none")
            torch.testing.assert_close(piece.losses, losses)
            assert not piece.others[logits].requires_grad
            assert not any(it.requires_grad for it in piece.values.values())


def test_little_memory_makes_small_pieces_that_show_the_same():
    case = named("lenet, flatten")
    observer, tapping_ = tapping(case, "pre")
    whole = list(seen(tapping_, observer.examples, observer.memory))
    single = list(seen(tapping_, observer.examples, 1))
    assert [len(it.targets) for it in whole] == [5, 4, 3]
    assert [len(it.targets) for it in single] == [1] * 12
    for name in tapping_.names:
        one, other = (torch.cat([it.gradients[name] for it in all_]) for all_ in (whole, single))
        torch.testing.assert_close(one, other)


def test_tensors_of_inference_mode_can_be_used():
    case = named("perceptron")
    with torch.inference_mode():
        batches = [(inputs.clone(), targets) for inputs, targets in watch(case).examples]
        tensors = {name: it.clone() for name, it in watch(case).runner.tensors.items()}
    observer = watch(case)
    made = replace(
        observer,
        examples=replace(observer.examples, source=batches),
        runner=replace(observer.runner, tensors=tensors),
    )
    _, ordinary = tapping(case, "pre")
    _, others = tapping(case, "pre", made)
    for one, other in zip(
        seen(ordinary, observer.examples, 10**6), seen(others, made.examples, 10**6), strict=True
    ):
        for name in ordinary.names:
            assert torch.equal(one.gradients[name], other.gradients[name])


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_what_is_not_finite_is_refused(name):
    observer = watch(named("perceptron"))
    tensors = dict(observer.runner.tensors)
    tensors[f"fc3.{name}"] = tensors[f"fc3.{name}"].clone()
    tensors[f"fc3.{name}"].flatten()[0] = torch.inf
    _, tapping_ = tapping(
        None, "pre", replace(observer, runner=replace(observer.runner, tensors=tensors))
    )
    with pytest.raises(ModelError, match="is NaN or infinite: check the weights and the scale"):
        list(seen(tapping_, observer.examples, observer.memory))


TAP = Tap("a", "a tapped", "a", "a", 1, (0, 1), (0, 1))


def test_sums_by_example_whatever_the_axes():
    values = torch.arange(24.0).reshape(3, 2, 4)  # (examples, entries, places)
    wanted = values.sum(dim=2)
    assert torch.equal(TAP.by_example(values, 3), wanted)
    last = replace(TAP, axis=2)
    assert torch.equal(last.by_example(values.movedim(1, 2), 3), wanted)
    behind = replace(TAP, axis=0, batch=2)
    assert torch.equal(behind.by_example(values.permute(1, 2, 0), 3), wanted)
    flat = replace(TAP, axis=1)
    assert torch.equal(flat.by_example(wanted, 3), wanted)


def test_sums_by_example_where_windows_are_laid_beside_examples():
    values = torch.arange(24.0).reshape(3, 4, 2)  # (examples, windows, entries)
    wanted = values.sum(dim=1)
    assert torch.equal(TAP.by_example(values.reshape(12, 2), 3), wanted)
    inner = replace(TAP, inner=True)
    assert torch.equal(inner.by_example(values.transpose(0, 1).reshape(12, 2), 3), wanted)


def test_an_identity_is_a_result_of_its_own():
    value = torch.ones(2)
    made = Identity()(value)
    assert made.requires_grad
    assert not value.requires_grad
    again = Identity()(made)
    assert again is not made
    assert torch.equal(torch.autograd.grad(again.sum(), made)[0], torch.ones(2))
