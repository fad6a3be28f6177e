"""The importance switch by its equations, slowly, in float64.

The network is the user's own module, called as a whole; the switch multiplies what one of its
modules returns (eq. 3).
"""

import math

import numpy as np
import torch
from scipy import integrate, special, stats
from torch.nn import functional


def logits(model, name, switch, inputs):
    """Eqs. 3 to 5: every channel that the module `name` returns times its switch, (units,)."""

    def multiply(_module, _inputs, output):
        return torch.stack([switch[j] * output[:, j] for j in range(len(switch))], dim=1)

    handle = model.get_submodule(name).register_forward_hook(multiply)
    try:
        return model(inputs)
    finally:
        handle.remove()


def mean(phi):
    return [float(own) / math.fsum(phi) for own in phi]


def divergence(phi, alpha):
    """Eq. 9, term by term."""
    phi = [float(own) for own in phi]
    total, units = math.fsum(phi), len(phi)
    first = math.lgamma(total) - math.lgamma(units * alpha)
    second = math.fsum(-math.lgamma(own) for own in phi) + units * math.lgamma(alpha)
    third = math.fsum(
        (own - alpha) * (special.digamma(own) - special.digamma(total)) for own in phi
    )
    return first + second + third


def divergence_by_integration(phi, alpha):
    """The integral of q log(q / p) over the simplex of two units, a Beta distribution."""
    q, p = stats.beta(*phi), stats.beta(alpha, alpha)
    return integrate.quad(lambda s: q.pdf(s) * (q.logpdf(s) - p.logpdf(s)), 0, 1, limit=500)[0]


def divergence_slope(phi, alpha):
    """Eq. 9 differentiated by hand: (phi_j - a) psi'(phi_j) - (sum phi - n a) psi'(sum phi)."""
    total, units = math.fsum(phi), len(phi)
    common = (total - units * alpha) * special.polygamma(1, total)
    return np.array([(own - alpha) * special.polygamma(1, own) - common for own in phi])


def bound(model, name, batches, phi, alpha):
    """Eq. 8 with the analytic mean for the integral: log p(D | mean of s) - KL."""
    switch = torch.tensor(mean(phi), dtype=torch.float64)
    likelihood = 0.0
    for inputs, targets in batches:
        with torch.no_grad():
            chances = torch.softmax(logits(model, name, switch, inputs), dim=1)
        likelihood += math.fsum(
            math.log(float(row[target])) for row, target in zip(chances, targets, strict=True)
        )
    return likelihood - divergence(phi, alpha)


def slope_by_differences(function, phi, step=1e-5):
    """Central differences of fourth order."""
    slopes = []
    for j in range(len(phi)):

        def at(moves, j=j):
            moved = list(phi)
            moved[j] += moves * step
            return function(moved)

        slopes.append((8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step))
    return np.array(slopes)


def perceptron_bound_slope(weights, inputs, targets, phi, alpha):
    """Eq. 8's gradient by hand for ``W2 relu(s * (W1 x + b1)) + b2``, the chain rule written out.

    d log p / d s_j = sum over classes c of ([c is the target] - p_c) W2_cj [h_j > 0] a_j, and
    d s_j / d phi_k = ([j = k] - s_j) / sum of phi.
    """
    (w1, b1), (w2, b2) = weights
    phi = np.asarray(phi)
    switch = phi / phi.sum()
    slope = np.zeros(len(phi))
    for x, target in zip(inputs, targets, strict=True):
        before = w1 @ x + b1
        h = switch * before
        outputs = w2 @ np.maximum(h, 0) + b2
        chances = np.exp(outputs - outputs.max())
        chances /= chances.sum()
        residual = -chances
        residual[target] += 1
        slope += (residual @ w2) * (h > 0) * before
    by_phi = (slope - slope @ switch) / phi.sum()
    return by_phi - divergence_slope(phi, alpha)


def train(model, name, batches, *, units, epochs, alpha, lr, start):
    """Descend the batch's mean cross-entropy plus KL / N with Adam, and return phi."""
    count = sum(len(targets) for _, targets in batches)
    parameter = torch.full((units,), start, dtype=torch.float64, requires_grad=True)
    prior = torch.distributions.Dirichlet(torch.full((units,), alpha, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=lr)
    for _ in range(epochs):
        for inputs, targets in batches:
            phi = functional.softplus(parameter)
            posterior = torch.distributions.Dirichlet(phi)
            outputs = logits(model, name, posterior.mean, inputs)
            divergence = torch.distributions.kl_divergence(posterior, prior)
            loss = functional.cross_entropy(outputs, targets) + divergence / count
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return functional.softplus(parameter).detach()
