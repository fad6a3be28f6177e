from contextlib import nullcontext

import numba
import pytest
import torch
from torch import nn

from neurank.modes import evaluating, threads_as_torch


class Counting(nn.Module):
    """Overwrites one buffer and replaces another at every call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("overwritten", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2), persistent=False)

    def forward(self, x):
        self.overwritten += 1
        self.replaced = self.replaced + 1
        return x + torch.rand(())


def flags(model):
    return [module.training for module in model.modules()]


def test_every_module_evaluates_inside_and_is_itself_again_outside():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    model[1][1].eval()
    before = flags(model)
    with evaluating(model):
        assert not any(flags(model))
        model[0].train()
    assert flags(model) == before


@pytest.mark.parametrize("fails", [False, True])
def test_buffers_and_generator_come_back_even_after_an_exception(fails):
    model = Counting()
    held = model.replaced
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError) if fails else nullcontext(), evaluating(model):
        model(torch.ones(1))
        with torch.inference_mode():
            model(torch.ones(1))
        assert model.overwritten.tolist() == [2, 2]
        if fails:
            raise RuntimeError("as a forward pass may")
    assert model.overwritten.tolist() == [0, 0]
    assert model.replaced is held
    assert held.tolist() == [0, 0]
    assert torch.equal(torch.get_rng_state(), state)


def test_buffers_with_nan_survive():
    model = nn.BatchNorm1d(2)
    model.running_mean.fill_(torch.nan)
    with evaluating(model):
        pass
    assert model.running_mean.isnan().all()


@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_loops_take_torch_s_threads_and_leave_them(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        own = numba.get_num_threads()
        torch.set_num_threads(threads)  # numba's start may just have changed it
        with threads_as_torch():
            assert torch.get_num_threads() == threads
            assert numba.get_num_threads() == min(threads, own)
        assert torch.get_num_threads() == threads
        assert numba.get_num_threads() == own
    finally:
        torch.set_num_threads(before)
