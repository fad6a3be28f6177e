import pytest
import torch
from tests.watch.nets import DATA, network, same, state_of
from torch import nn
from torch.nn import functional

from neurank.errors import DataError, ModelError
from neurank.watch.losses import mean_loss


def test_it_is_the_mean_over_examples_in_evaluation_mode():
    model, ragged = network(), [DATA[0], (DATA[1][0][:3], DATA[1][1][:3])]
    before = state_of(model)
    found = mean_loss(model, ragged)
    assert model.training
    assert same(state_of(model), before)
    model.eval()
    logits = torch.cat([model(inputs) for inputs, _ in ragged])
    wanted = functional.cross_entropy(logits, torch.cat([it for _, it in ragged]))
    assert found == pytest.approx(float(wanted.detach()), rel=1e-12)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(DataError, match="no examples"):
        mean_loss(network(), [])
    with pytest.raises(ModelError, match="no tensor of logits"):
        mean_loss(nn.Conv2d(1, 2, 3), [(torch.zeros(2, 1, 6, 6), torch.tensor([0, 1]))])
    with pytest.raises(ModelError, match="NaN or infinite in batch 1"):
        mean_loss(nn.Identity(), [(torch.full((2, 3), torch.nan), torch.tensor([0, 1]))])
