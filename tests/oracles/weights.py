"""Slow twins of the scores of single weights, close to chapter 2 of the dead-units thesis.

Everything is done on a copy of the model, by plain PyTorch.
"""

import warnings
from copy import deepcopy

import torch
from tests.oracles.game import logits_of
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel


def cross_entropy(outputs, targets):
    return functional.cross_entropy(outputs.double(), targets, reduction="none")


def mean_loss(model, batches, loss=cross_entropy):
    """The mean over all examples, whatever the batches; differentiable."""
    total = sum(loss(logits_of(model(inputs)), targets).sum() for inputs, targets in batches)
    return total / sum(len(targets) for _, targets in batches)


def copied(model):
    return deepcopy(model).eval().requires_grad_()


def loss_changes(model, batches, moves, loss=cross_entropy):
    """One forward pass over all data for every weight that moves."""
    model = copied(model)
    parameters = dict(model.named_parameters())
    found = {}
    with torch.no_grad():
        before = mean_loss(model, batches, loss)
        for name, move in moves.items():
            flat = parameters[name].data.view(-1)
            changes = torch.zeros(len(flat), dtype=torch.float64)
            for index in move.reshape(-1).nonzero()[:, 0].tolist():
                kept = flat[index].clone()
                flat[index] += move.reshape(-1)[index]
                changes[index] = mean_loss(model, batches, loss) - before
                flat[index] = kept
            found[name] = changes.reshape(move.shape)
    return found


def gradients(model, batches, names, loss=cross_entropy):
    """What `backward` leaves in `.grad`."""
    model = copied(model)
    mean_loss(model, batches, loss).backward()
    parameters = dict(model.named_parameters())
    return {
        name: torch.zeros_like(parameters[name])
        if parameters[name].grad is None
        else parameters[name].grad
        for name in names
    }


def hessian(model, batches, names, loss=cross_entropy, step=1e-5):
    """Central differences of the gradient, (weights, weights), float64 models only."""
    model = copied(model)
    parameters = dict(model.named_parameters())
    columns = []
    with torch.no_grad():
        for name in names:
            flat = parameters[name].data.view(-1)
            for index in range(len(flat)):
                kept = flat[index].clone()
                slopes = []
                for sign in (1, -1):
                    flat[index] = kept + sign * step
                    with torch.enable_grad():
                        found = gradients(model, batches, names, loss)
                    slopes.append(torch.cat([found[it].reshape(-1) for it in names]))
                flat[index] = kept
                columns.append((slopes[0] - slopes[1]) / (2 * step))
    return torch.stack(columns, dim=1)


def times_hessian(model, batches, vector, loss=cross_entropy):
    """The derivative of the gradient along a vector, forward over reverse."""
    model = copied(model)
    weights = {name: dict(model.named_parameters())[name].detach() for name in vector}

    def mean(chosen):
        def run(inputs):
            return functional_call(model, chosen, (inputs,))

        return mean_loss(run, batches, loss)

    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, at the first jvp
        _, products = torch.func.jvp(torch.func.grad(mean), (weights,), (dict(vector),))
    return products
