import numpy as np
import pytest

from neurank.observe.kernels.coalitions import coalition_values
from neurank.observe.kernels.perceptron import pack


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("coalitions", [0, 1, 63, 64, 200])
@pytest.mark.parametrize("pooled", [False, True])
def test_any_coalitions_of_each_example(coalitions, dtype, pooled):
    rng = np.random.default_rng(coalitions)
    contributions = rng.integers(-3, 4, (5, 9, 6)).astype(float)
    base, targets = rng.integers(-3, 4, 6).astype(float), rng.integers(0, 3, 5)
    windows = rng.integers(0, 6, (4, 3)) if pooled else np.arange(6)[:, None]
    matrix, bias = rng.integers(-2, 3, (3, len(windows))).astype(float), np.array([1.0, 0, 1])
    head = pack(windows, [(True, matrix, bias)], relu_at_end=False, dtype=np.dtype(dtype))
    masks = rng.random((5, coalitions, 9)) < 0.5
    found = coalition_values(base.astype(dtype), contributions.astype(dtype), masks, targets, head)
    sums = base + np.einsum("ecu,euf->ecf", masks.astype(float), contributions)
    logits = np.maximum(sums[:, :, windows].max(axis=3), 0) @ matrix.T + bias
    np.testing.assert_array_equal(found, logits.argmax(axis=2) == targets[:, None])
