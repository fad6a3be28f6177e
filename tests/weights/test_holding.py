"""Masks in training: pruned weights are exactly zero after every step, whatever steps."""

import copy
import gc
import weakref

import pytest
import torch
from tests.cases import chain
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import _global_optimizer_post_hooks

import neurank as nr
from neurank import weights
from neurank.errors import MethodError

OPTIMIZERS = {
    "sgd": lambda them: torch.optim.SGD(them, lr=0.1),
    "momentum": lambda them: torch.optim.SGD(
        them, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
    "adam": lambda them: torch.optim.Adam(them, lr=0.01, weight_decay=0.1),
    "adamw": lambda them: torch.optim.AdamW(them, lr=0.01, amsgrad=True),
    "rmsprop": lambda them: torch.optim.RMSprop(them, lr=0.01, momentum=0.9),
    "adagrad": lambda them: torch.optim.Adagrad(them, lr=0.1),
    "lbfgs": lambda them: torch.optim.LBFGS(them, lr=0.1, max_iter=3),
}


def network(seed=0):
    torch.manual_seed(seed)
    return chain(fc=nn.Linear(4, 6), act=nn.ReLU(), out=nn.Linear(6, 3))


DATA = [(torch.randn(16, 4, generator=torch.Generator().manual_seed(5)), torch.arange(16) % 3)]


def masks_of(model, fraction=0.5, after=None):
    scores = weights.score(model, DATA, weights.Magnitude(), progress=False)
    return weights.mask(scores, fraction, after=after)


def step(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(model(DATA[0][0]), DATA[0][1])
        loss.backward()
        return loss

    optimizer.step(closure)


def pruned(model, masks):
    """All pruned weights, and all their gradients."""
    parameters = dict(model.named_parameters())
    found = torch.cat([parameters[name].detach()[~it] for name, it in masks.items()])
    slopes = [parameters[name].grad[~it] for name, it in masks.items()]
    return found, torch.cat(slopes)


@pytest.mark.parametrize("follow", [True, False], ids=["this optimizer", "any optimizer"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_stay_exactly_zero(name, follow):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(3):
        step(model, optimizer)  # momenta that point elsewhere
    masks = masks_of(model)
    before = model.fc.weight.detach().clone()
    with weights.hold(model, masks, optimizer if follow else None):
        for _ in range(4):
            step(model, optimizer)
            zeros, slopes = pruned(model, masks)
            assert not zeros.any()
            assert not slopes.any()
    kept = masks["fc.weight"]
    assert bool((model.fc.weight[kept] != before[kept]).any())  # the others train


def test_without_hooks_they_would_not_stay_zero():
    """The test above can fail: momentum alone moves them."""
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    step(model, optimizer)
    masks = masks_of(model)
    weights.hold(model, masks, optimizer).release()
    step(model, optimizer)
    zeros, slopes = pruned(model, masks)
    assert zeros.any()
    assert slopes.any()


def test_accumulated_gradients_are_masked_too():
    model = network()
    masks = masks_of(model)
    cross_entropy(model(DATA[0][0]), DATA[0][1]).backward()
    with weights.hold(model, masks):
        assert not pruned(model, masks)[1].any()  # one that was there
        for _ in range(2):
            cross_entropy(model(DATA[0][0]), DATA[0][1]).backward()
        assert not pruned(model, masks)[1].any()
        assert model.fc.weight.grad.any()


def test_training_is_that_of_a_network_without_those_weights():
    """Masked SGD is SGD on the weights that are left."""
    model = network().double()
    masks = masks_of(network())
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, targets = DATA[0][0].double(), DATA[0][1]
    with weights.hold(model, masks, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    parameters = {name: it.detach().clone() for name, it in twin.named_parameters()}
    for _ in range(3):
        leaves = {name: it.requires_grad_() for name, it in parameters.items()}
        masked = {name: it * masks[name] if name in masks else it for name, it in leaves.items()}
        loss = cross_entropy(torch.func.functional_call(twin, masked, (inputs,)), targets)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        pairs = zip(leaves.items(), slopes, strict=True)
        parameters = {name: (it - 0.1 * slope).detach() for (name, it), slope in pairs}
    for name, it in model.named_parameters():
        wanted = parameters[name] * masks[name] if name in masks else parameters[name]
        torch.testing.assert_close(it.detach(), wanted, rtol=0, atol=1e-14)


def test_nothing_is_left_behind():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    everywhere = len(_global_optimizer_post_hooks)
    keys, ids = list(model.state_dict()), [id(it) for it in model.parameters()]
    attributes = [sorted(vars(module)) for module in model.modules()]
    for follow in (optimizer, None):
        held = weights.hold(model, masks_of(model), follow)
        assert list(model.state_dict()) == keys
        assert [id(it) for it in model.parameters()] == ids
        held.release()
        held.release()
        assert held.released
        assert not optimizer._optimizer_step_post_hooks
        assert len(_global_optimizer_post_hooks) == everywhere
        assert all(not it._post_accumulate_grad_hooks for it in model.parameters())
        assert [sorted(vars(module)) for module in model.modules()] == attributes
    with pytest.raises(MethodError, match="have been released"):
        held.apply()
    gone = weakref.ref(held)
    del held
    gc.collect()
    assert gone() is None


def test_an_error_in_training_releases():
    model = network()
    with pytest.raises(KeyboardInterrupt), weights.hold(model, masks_of(model)) as held:
        raise KeyboardInterrupt
    assert held.released


def test_a_schedule_goes_on_from_what_is_pruned():
    """Table 2.2's way: the first masks are let go, the next hold all of them and more."""
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    masks = None
    for fraction in (0.2, 0.5, 0.8):
        masks = masks_of(model, fraction, after=masks)
        with weights.hold(model, masks, optimizer):
            for _ in range(2):
                step(model, optimizer)
        assert not pruned(model, masks)[0].any()
    assert int((model.fc.weight == 0).sum()) == int(0.8 * 24)


def test_frozen_parameters_and_gradients_of_other_copies():
    model = network()
    model.fc.weight.requires_grad_(requires_grad=False)
    masks = masks_of(model)
    with weights.hold(model, masks, torch.optim.SGD(model.out.parameters(), lr=0.1)) as held:
        assert int((model.fc.weight == 0).sum()) == 12
        other = copy.deepcopy(model)
        cross_entropy(other(DATA[0][0]), DATA[0][1]).backward()
        assert other.out.weight.grad[~masks["out.weight"]].any()  # a copy is not held
        model.load_state_dict(network(1).state_dict())
        assert bool((model.fc.weight != 0).all())
        held.apply()
        assert int((model.fc.weight == 0).sum()) == 12


def test_a_held_model_can_be_exported_and_condensed():
    """Its structure is what it was: parametrized weights would be others than those ranked."""
    model = network()
    with weights.hold(model, masks_of(model)):
        program = torch.export.export(model.eval(), (DATA[0][0],))
        assert list(program.state_dict) == list(model.state_dict())
        ranking = nr.rank(model, DATA, nr.WeightNorm(), progress=False)
        condensed = nr.condense(model, nr.plan(ranking, ratio=0.5), DATA)
        assert condensed.model.fc.out_features == 3


REFUSED = [
    (3, "optimizer=int is no torch optimizer"),
    (torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1), "does not hold 'fc.weight', 'out"),
]


@pytest.mark.parametrize(("optimizer", "reason"), REFUSED, ids=["a number", "another's"])
def test_optimizers_that_are_refused(optimizer, reason):
    model = network()
    before = model.fc.weight.detach().clone()
    with pytest.raises(MethodError, match=reason):
        weights.hold(model, masks_of(model), optimizer)
    assert torch.equal(model.fc.weight, before)
