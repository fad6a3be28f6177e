"""Watching inside a Lightning training; skipped where Lightning is not installed."""

import sys
from types import SimpleNamespace

import pytest
import torch
from tests.watch.nets import DATA, network, same, state_of
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import neurank as nr
from neurank.errors import MethodError
from neurank.watch import lightning as module

# Lightning warns about few workers, missing loggers and what it deprecates itself.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_without_lightning_the_module_imports_and_says_what_is_missing(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    module.made_callback.cache_clear()
    with pytest.raises(ImportError, match=r"WatchUnits needs .* 'neurank\[lightning\]'"):
        module.WatchUnits  # noqa: B018 (asking for it is what fails)
    with pytest.raises(AttributeError, match="no attribute 'Watch'"):
        module.Watch  # noqa: B018


L = pytest.importorskip(
    "lightning.pytorch", reason="Lightning is not installed: pip install 'neurank[lightning]'"
)

LOADER = DataLoader(
    TensorDataset(*(torch.cat(parts) for parts in zip(*DATA, strict=True))), batch_size=10
)


class Classifier(L.LightningModule):
    def __init__(self, fails_at=None, error=ValueError):
        super().__init__()
        self.net = network()
        self.losses, self.fails_at, self.error = [], fails_at, error

    def training_step(self, batch, _):
        if len(self.losses) == self.fails_at:
            raise self.error
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), lr=0.01)

    def train_dataloader(self):
        return LOADER


def trainer(epochs, *callbacks, **settings):
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **settings,
    )


def steps(callback):
    return [vitals.step for vitals in callback.watching.history]


def hooks_of(used):
    return [len(optimizer._optimizer_step_post_hooks) for optimizer in used.optimizers]


def test_units_are_watched_and_training_is_the_same():
    classifier, plain = Classifier(), Classifier()
    shown = []
    settings = {"layers": ["fc1"], "exact_every": 1, "thresholds": nr.Thresholds(dead=0.9)}
    callback = module.WatchUnits(DATA, every=3, writers=[shown.append], **settings)
    used = trainer(2, callback)
    used.fit(classifier)
    trainer(2).fit(plain)
    assert classifier.losses == plain.losses
    assert same(state_of(classifier.net), state_of(plain.net))
    assert steps(callback) == [0, 3, 6, 8]
    assert shown == callback.watching.history
    assert list(shown[0].layers) == ["fc1"]
    assert "small effect" in shown[0].layers["fc1"].reasons
    last = nr.vitals(classifier.net, DATA, exact=False)
    assert shown[-1].loss == last.loss
    assert hooks_of(used) == [0]


def test_accumulated_batches_are_one_step():
    callback = module.WatchUnits(DATA, every=1)
    trainer(1, callback, accumulate_grad_batches=2).fit(Classifier())
    assert steps(callback) == [0, 1, 2]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_no_hook_is_left_where_training_fails(error):
    callback = module.WatchUnits(DATA, every=2)
    used = trainer(2, callback)
    classifier = Classifier(fails_at=3, error=error)
    optimizers = []
    own = classifier.configure_optimizers

    def configured():
        optimizers.append(own())
        return optimizers[-1]

    classifier.configure_optimizers = configured
    with pytest.raises((error, SystemExit)):
        used.fit(classifier)
    assert steps(callback) == [0, 2]
    assert [len(it._optimizer_step_post_hooks) for it in optimizers] == [0]


def test_fitting_once_more_and_going_on_from_a_checkpoint(tmp_path):
    classifier, callback = Classifier(), module.WatchUnits(DATA, every=3)
    first = trainer(1, callback)
    first.fit(classifier)
    assert steps(callback) == [0, 3, 4]
    first.save_checkpoint(tmp_path / "last.ckpt")
    again = module.WatchUnits(DATA, every=3)
    trainer(2, again).fit(Classifier(), ckpt_path=tmp_path / "last.ckpt")
    assert steps(again) == [4, 6, 8]
    before = callback.watching
    trainer(1, callback).fit(classifier)
    assert callback.watching is not before
    assert steps(callback) == [0, 3, 4]


def test_a_network_that_is_condensed_is_followed():
    from neurank.condense.lightning import CondenseAt

    condensing = CondenseAt(epochs={1}, method=nr.WeightNorm(), ratio=0.5, data=DATA)
    callback = module.WatchUnits(DATA, every=2)
    used = trainer(2, callback, condensing)
    classifier = Classifier()
    used.fit(classifier)
    assert steps(callback) == [0, 2, 4, 6, 8]
    assert [len(it.layers["fc1"].reasons) for it in callback.watching.history] == [
        10, 10, 10, 5, 5,
    ]  # fmt: skip
    assert [it.step for it in callback.watching.events] == [4]
    assert hooks_of(used) == [0]


def during(classifier, optimizers=None, **changes):
    """A stand-in for a trainer at the start of a training."""
    if optimizers is None:
        optimizers = [classifier.configure_optimizers()]
    settings = {"global_step": 0, "model": classifier, "optimizers": optimizers}
    return SimpleNamespace(**(settings | changes))


def test_networks_and_optimizers_are_found_or_named():
    classifier = Classifier()
    classifier.other = nn.Linear(2, 2)
    callback = module.WatchUnits(DATA)
    with pytest.raises(MethodError, match=r"2 children with parameters \(net, other\)"):
        callback.on_train_start(during(classifier), classifier)
    other = torch.optim.SGD(classifier.other.parameters(), lr=0.1)
    callback = module.WatchUnits(DATA, module="net")
    with pytest.raises(MethodError, match="no optimizer holds a parameter of 'net'"):
        callback.on_train_start(during(classifier, [other]), classifier)
    with pytest.raises(MethodError, match="trained inside a DataParallel"):
        callback.on_train_start(during(classifier, model=nn.DataParallel(classifier)), classifier)
    assert callback.watching is None
    callback.on_exception(during(classifier), classifier, ValueError())  # nothing to leave
    own = classifier.configure_optimizers()
    used = during(classifier, [other, own])
    callback.on_train_start(used, classifier)
    assert hooks_of(used) == [0, 1]
    callback.on_train_end(used, classifier)
    assert hooks_of(used) == [0, 0]


def test_a_misspelt_setting_is_refused():
    with pytest.raises(TypeError, match="evry"):
        module.WatchUnits(DATA, evry=3)
