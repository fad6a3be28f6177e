"""Condensing inside a Lightning training; skipped where Lightning is not installed."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from tests.cases import seeded
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from neurank.condense import lightning as module
from neurank.condense.carry import carry_over
from neurank.condense.condensed import condense
from neurank.condense.plan import plan
from neurank.errors import CondenseError
from neurank.rankers.random_score import RandomScore
from neurank.rankers.rank import rank
from neurank.rankers.weight_norm import WeightNorm

# Lightning warns about few workers, missing loggers and what it deprecates itself.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_without_lightning_the_module_imports_and_says_what_is_missing(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    module.made_callback.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'neurank\[lightning\]'") as raised:
        module.CondenseAt  # noqa: B018 (asking for it is what fails)
    assert isinstance(raised.value, CondenseError)
    with pytest.raises(AttributeError, match="no attribute 'Condense'"):
        module.Condense  # noqa: B018


L = pytest.importorskip(
    "lightning.pytorch", reason="Lightning is not installed: pip install 'neurank[lightning]'"
)
callbacks = pytest.importorskip("lightning.pytorch.callbacks")


def drawn_data():
    with seeded("lightning"):
        inputs = torch.randn(24, 1, 6, 6, dtype=torch.float64)
        return [(part, (part.mean((1, 2, 3)) > 0).long()) for part in inputs.split(8)]


DATA = drawn_data()
LOADER = DataLoader(TensorDataset(*map(torch.cat, zip(*DATA, strict=True))), batch_size=8)


def network():
    with seeded("network"):
        return nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten()),
            *(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 2)),
        ).double()


class Classifier(L.LightningModule):
    def __init__(self, net=None):
        super().__init__()
        self.net = net or network()
        self.losses = []

    def training_step(self, batch, _):
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, _):
        self.net(batch[0])

    def configure_optimizers(self):
        return settings_of(self.net)

    def train_dataloader(self):
        return LOADER

    def val_dataloader(self):
        return LOADER


def settings_of(net):
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)
    return {"optimizer": optimizer, "lr_scheduler": scheduler}


def condensing(**settings):
    wanted = {"epochs": {1, 3}, "method": WeightNorm(), "ratio": 0.3, "data": DATA}
    return module.CondenseAt(**(wanted | settings))


def trainer(epochs, *others, kind=L.Trainer):
    return kind(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(others),
    )


def nobody(_net, _plan):
    pass


def by_hand(epochs, *, removal="zero", watched=nobody):
    """The same training as a plain loop; gives network, losses and optimizer.

    `watched` is called after every step, and with the plan when a network is condensed.
    """
    net, losses = network(), []
    made = settings_of(net)
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]
    for epoch in range(epochs):
        if epoch in {1, 3}:
            ranking = rank(net, DATA, WeightNorm(), removal=removal, progress=False)
            chosen = plan(ranking, ratio=0.3)
            small = condense(net, chosen, DATA, removal=removal, progress=False)
            carry_over(optimizer, net, small.model, small.cuts)
            net = small.model
            watched(net, chosen)
        for inputs, targets in DATA:
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            watched(net, None)
        scheduler.step()
    return net, losses, optimizer


def assert_equal(found, wanted):
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in wanted.items()
    }
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


def test_training_goes_on_as_in_a_plain_loop():
    classifier, callback = Classifier(), condensing()
    used = trainer(5, callback)
    used.fit(classifier)
    net, losses, optimizer = by_hand(5)
    assert classifier.losses == losses
    assert_equal(classifier.net.state_dict(), net.state_dict())
    assert used.optimizers[0].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert classifier.net[0].weight.shape[0] == 3
    assert list(callback.done) == [1, 3]
    assert callback.done[3].report.widths == {"0": (3, 3), "4": (5, 4), "6": (2, 2)}
    assert callback.done[3].carried[0].left_out == ()
    assert list(callback.done[1].carried[0].parameters) == [n for n, _ in net.named_parameters()]


def test_the_settings_reach_ranking_and_condensing():
    classifier = Classifier()
    callback = condensing(
        epochs=[0], method=RandomScore(), ratio={"4": 0.5}, seed=3, module="net", removal="mean"
    )
    trainer(1, callback).fit(classifier)
    wanted = plan(rank(network(), DATA, RandomScore(), layers=["4"], seed=3), ratio={"4": 0.5})
    assert callback.done[0].plan == wanted
    assert callback.done[0].plan != plan(
        rank(network(), DATA, RandomScore(), layers=["4"], seed=4), ratio={"4": 0.5}
    )
    assert callback.done[0].plan.source["removal"] == "mean"


@pytest.mark.parametrize("removal", ["zero", "mean"])
def test_averages_of_callbacks_go_on(removal):
    classifier = Classifier()
    averaging = callbacks.WeightAveraging(avg_fn=get_ema_avg_fn(0.5))
    trainer(2, averaging, condensing(removal=removal)).fit(classifier)  # takes over the average

    average = AveragedModel(network(), avg_fn=get_ema_avg_fn(0.5), use_buffers=True)

    def watched(net, chosen):
        if chosen is None:
            average.update_parameters(net)
        else:
            average.module = condense(average.module, chosen, DATA, removal=removal).model

    by_hand(2, removal=removal, watched=watched)
    assert_equal(classifier.net.state_dict(), average.module.state_dict())
    assert classifier.net[0].weight.shape[0] == 3


def test_an_average_inside_the_module_goes_on():
    class Averaging(Classifier):
        def __init__(self):
            super().__init__()
            self.ema = AveragedModel(self.net, avg_fn=get_ema_avg_fn(0.5))
            self.other = AveragedModel(nn.Linear(2, 2))

        def on_train_batch_end(self, *_):
            self.ema.update_parameters(self.net)

    classifier = Averaging()
    with pytest.raises(CondenseError, match=r"3 children with parameters \(net, ema, other\)"):
        trainer(2, condensing()).fit(classifier)
    classifier = Averaging()
    trainer(4, condensing(module="net")).fit(classifier)
    assert classifier.ema.n_averaged == 12
    assert classifier.ema.module[4].weight.shape == classifier.net[4].weight.shape
    assert not torch.equal(classifier.ema.module[4].weight, classifier.net[4].weight)


def test_a_network_with_two_names_is_replaced_under_both():
    classifier = Classifier()
    classifier.parts = nn.ModuleList([classifier.net])
    trainer(2, condensing(module="parts.0")).fit(classifier)
    assert classifier.net is classifier.parts[0]
    assert classifier.net[0].weight.shape[0] == 3


@pytest.mark.parametrize("epochs", [1, 3, 4])
def test_a_training_goes_on_from_a_checkpoint(tmp_path, epochs):
    whole = Classifier()
    trainer(5, condensing()).fit(whole)

    first = trainer(epochs, condensing())
    first.fit(Classifier())
    first.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    again, callback = Classifier(), condensing()
    callback.repeat(again, checkpoint)
    trainer(5, callback).fit(again, ckpt_path=tmp_path / "last.ckpt")
    assert again.losses == whole.losses[epochs * len(DATA) :]
    assert_equal(again.state_dict(), whole.state_dict())
    assert list(callback.plans) == [1, 3]
    assert list(callback.done) == [epoch for epoch in (1, 3) if epoch >= epochs]


def test_plans_of_a_checkpoint_are_repeated_once():
    classifier, callback = Classifier(), condensing()
    callback.on_train_epoch_start(during(classifier), classifier)
    checkpoint = {"callbacks": {callback.state_key: callback.state_dict()}}
    again, fresh = Classifier(), condensing()
    fresh.repeat(again, checkpoint)
    assert again.net[0].weight.shape == classifier.net[0].weight.shape
    with pytest.raises(CondenseError, match="condensed before epoch 1 already"):
        fresh.repeat(again, checkpoint)
    with pytest.raises(CondenseError, match=r"no plans of CondenseAt\(other\)"):
        condensing(module="other").repeat(again, checkpoint)


def test_a_network_that_was_condensed_otherwise_is_not_condensed_again():
    classifier, callback = Classifier(), condensing()
    callback.on_train_epoch_start(during(classifier), classifier)
    before, restored = classifier.net, condensing()
    restored.load_state_dict(callback.state_dict())
    restored.on_train_epoch_start(during(classifier), classifier)
    assert classifier.net is before


def test_fitting_once_more_does_not_condense_an_epoch_again():
    classifier, callback = Classifier(), condensing()
    trainer(2, callback).fit(classifier)
    width = len(classifier.net[4].weight)
    trainer(2, callback).fit(classifier)
    assert len(classifier.net[4].weight) == width


def test_lightning_under_its_other_name_takes_the_callback():
    other = pytest.importorskip("pytorch_lightning", reason="it comes with some installations only")

    class OtherClassifier(other.LightningModule):
        training_step = Classifier.training_step
        configure_optimizers = Classifier.configure_optimizers

        def __init__(self):
            super().__init__()
            self.net, self.losses = network(), []

    classifier = OtherClassifier()
    trainer(2, condensing(), kind=other.Trainer).fit(classifier, LOADER)
    assert classifier.net[0].weight.shape[0] == 3


def during(classifier, optimizers=None, **changes):
    """A stand-in for a trainer before its second epoch."""
    settings = {
        "current_epoch": 1,
        "model": classifier,
        "lightning_module": classifier,
        "optimizers": optimizers or [settings_of(classifier.net)["optimizer"]],
        "callbacks": [],
    }
    return SimpleNamespace(**(settings | changes))


def test_optimizers_of_other_networks_stay_as_they_are():
    classifier, other = Classifier(), torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    before = copy.copy(other.param_groups[0]["params"])
    own = settings_of(classifier.net)["optimizer"]
    callback = condensing()
    callback.on_train_epoch_start(during(classifier, [other, own]), classifier)
    assert len(callback.done[1].carried) == 1
    assert all(p is q for p, q in zip(other.param_groups[0]["params"], before, strict=True))
    assert own.param_groups[0]["params"][0] is classifier.net[0].weight


def test_other_epochs_change_nothing():
    classifier = Classifier()
    before = classifier.net
    condensing().on_train_epoch_start(during(classifier, current_epoch=2), classifier)
    assert classifier.net is before


def test_what_cannot_go_on_is_refused():
    classifier = Classifier()
    before = classifier.net
    with pytest.raises(CondenseError, match="trained inside a DataParallel"):
        condensing().on_train_epoch_start(
            during(classifier, model=nn.DataParallel(classifier)), classifier
        )
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(CondenseError, match="no optimizer holds a parameter of 'net'"):
        condensing().on_train_epoch_start(during(classifier, [other]), classifier)
    assert classifier.net is before


@pytest.mark.parametrize("epochs", [(), {-1}, {1.0}, {True}, ["2"]])
def test_epochs_are_checked(epochs):
    with pytest.raises(CondenseError, match="names no epoch"):
        condensing(epochs=epochs)


def test_a_misspelt_setting_is_refused():
    with pytest.raises(TypeError, match="epoch"):
        condensing(epoch={1})
