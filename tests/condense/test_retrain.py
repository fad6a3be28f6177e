import inspect

import pytest
import torch
from tests.condense.nets import WithNumber, drawn, every_second

from neurank import training
from neurank.condense import retrain as module
from neurank.condense.condensed import condense
from neurank.data import Split
from neurank.errors import MethodError

retrain = module.retrain


class TrainingOnly:
    """Splits whose test part must not be touched."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(60, 1, 6, 6, generator=generator)
        targets = (inputs.mean(dim=(1, 2, 3)) > 0).long()
        self.train = Split(inputs[:40], targets[:40], "train", batch_size=8)
        self.validation = Split(inputs[40:], targets[40:], "validation")

    @property
    def test(self):
        raise AssertionError("retraining looked at the test split")


def test_a_rewritten_network_learns_again_in_place_without_the_test_split():
    splits = TrainingOnly()
    model = drawn(WithNumber, dtype=torch.float32)
    small = condense(model, every_second(model, "conv1", "fc1"), splits.validation).model
    history = retrain(small, splits, epochs=4, lr=0.05)
    assert history.best_error < history.initial_error
    assert training.error_rate(small, splits.validation) == history.best_error


def test_the_defaults_are_the_papers():
    settings = {name: p.default for name, p in inspect.signature(retrain).parameters.items()}
    assert (settings["lr"], settings["final_lr"]) == (0.1, 0.001)
    assert (settings["momentum"], settings["weight_decay"]) == (0.9, 5e-4)


def test_every_setting_arrives(monkeypatch):
    arrived = {}

    def fit(model, train, validation, **settings):
        arrived.update(settings, model=model, train=train, validation=validation)

    monkeypatch.setattr(module, "fit", fit)
    splits = TrainingOnly()
    settings = {
        "epochs": 2,
        "lr": 0.5,
        "final_lr": 0.25,
        "momentum": 0.1,
        "weight_decay": 0.2,
        "batch_size": 3,
        "patience": 4,
        "seed": 5,
        "progress": False,
    }
    retrain("model", splits, **settings)
    assert arrived == {
        **settings,
        "model": "model",
        "train": splits.train,
        "validation": splits.validation,
    }


def test_settings_are_checked():
    with pytest.raises(MethodError, match="epochs=0"):
        retrain(drawn(WithNumber, dtype=torch.float32), TrainingOnly(), epochs=0)
