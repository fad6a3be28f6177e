"""The printed switch rows of Table 1, beside what the authors' own networks give.

    NEURANK_DATA=... python experiments/neuron_ranking/printed_switches.py [--long]

The paper does not say how many pictures, epochs or which optimiser its switches had. This prints,
for a handful of plain settings, the best units of every layer and how many of them are in the
printed row. Settings are listed, not chosen: every line that was computed is shown.

By default 20,000 training pictures, a few minutes on one core. ``--long`` adds all 60,000, and the
way of the authors' published script: train mode, that is BatchNorm with the batch's statistics and
dropout behind it, pictures shuffled, three epochs, and no divergence to speak of (theirs is
annealed by a factor of 1e-6, so it is left out here).
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from authors import FULL, AuthorsLeNet, authors_net, data_folder
from torch import Tensor, nn
from torch.nn import functional

import neurank as nr
from neurank.data import Split

LAYERS = {"c1": "conv1", "c3": "conv2", "c5": "fc1", "f6": "fc2"}

PRINTED = {
    "mnist": {
        "c1": (8, 1, 3, 9, 6),
        "c3": (9, 2, 8, 19, 6),
        "c5": (25, 96, 58, 56, 88, 52, 23, 43, 30, 4),
        "f6": (7, 1, 4, 6, 9),
    },
    "fashion-mnist": {
        "c1": (0, 7, 5, 9, 6),
        "c3": (5, 8, 13, 14, 15),
        "c5": (94, 7, 50, 92, 13, 25, 60, 40, 75, 45),
        "f6": (1, 7, 9, 5, 8),
    },
}
"""Table 1, rows IS."""


@dataclass(frozen=True)
class Setting:
    """How switches are trained."""

    pictures: int
    batch_size: int
    epochs: int
    alpha: float = 2.0
    lr: float = 0.001

    def __str__(self) -> str:
        return (
            f"{self.pictures:6,} pictures, batches of {self.batch_size}, {self.epochs:2} epochs, "
            f"alpha {self.alpha:g}, Adam {self.lr:g}"
        )

    @property
    def method(self) -> nr.ImportanceSwitch:
        """The library's own switch."""
        return nr.ImportanceSwitch(epochs=self.epochs, alpha=self.alpha, lr=self.lr)


SHORT = (
    *(Setting(20_000, 200, epochs) for epochs in (1, 3, 10)),
    Setting(20_000, 200, 10, alpha=0.5),
    *(Setting(20_000, 200, epochs, lr=0.01) for epochs in (3, 10)),
    Setting(20_000, 200, 10, lr=0.1),
)
LONG = tuple(Setting(60_000, 100, epochs) for epochs in (1, 3))
AUTHORS = Setting(60_000, 100, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description="Table 1's rows IS on the authors' networks.")
    parser.add_argument("--long", action="store_true", help="60,000 pictures, and train mode")
    parser.add_argument("--data", choices=FULL, action="append", help="one data set only")
    arguments = parser.parse_args()
    folder = data_folder()
    for name in arguments.data or FULL:
        model = authors_net(FULL[name], folder)
        pictures = training_pictures(f"mnist:{folder / 'mnist'}" if name == "mnist" else name)
        for layer, its_name in LAYERS.items():
            print(f"\n{name}, {its_name}: printed {shown(PRINTED[name][layer])}", flush=True)
            for setting in (*SHORT, *(LONG if arguments.long else ())):
                print_line(name, layer, str(setting), best(model, pictures, layer, setting))
            if arguments.long:
                scores = in_train_mode(model, pictures, layer, AUTHORS)
                order = tuple(torch.argsort(scores, descending=True).tolist())
                print_line(name, layer, f"{AUTHORS}, train mode", order)


def training_pictures(spec: str) -> Split:
    """Return the whole training file, 60,000 rows in its order."""
    splits = nr.data.load(spec)
    parts = (splits.train, splits.validation)
    return Split(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.targets for part in parts]),
        f"{splits.name}/training file",
    )


def best(model: nn.Module, pictures: Split, layer: str, setting: Setting) -> tuple[int, ...]:
    """Rank a layer's units by the library's switch, best first."""
    data = pictures.first(setting.pictures).rebatched(setting.batch_size)
    return nr.rank(model, data, setting.method, layers=[layer]).order(layer)


def in_train_mode(
    model: AuthorsLeNet, pictures: Split, layer: str, setting: Setting, seed: int = 0
) -> Tensor:
    """Train a switch the way of the authors' script, and return its mean."""
    with torch.random.fork_rng(devices=[]), training_with_dropout(model):
        torch.manual_seed(seed)
        parameter = torch.full((len(model.get_submodule(layer).weight),), -1.0, requires_grad=True)
        optimizer = torch.optim.Adam([parameter], lr=setting.lr)
        for _ in range(setting.epochs):
            for rows in torch.randperm(setting.pictures).split(setting.batch_size):
                phi = functional.softplus(parameter)
                with switched(model, layer, phi / phi.sum()):
                    logits = model(pictures.inputs[rows])
                loss = functional.cross_entropy(logits, pictures.targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return functional.softplus(parameter).detach()


@contextmanager
def training_with_dropout(model: AuthorsLeNet) -> Iterator[None]:
    """Put the model into train mode, with dropout of 0.5 behind both BatchNorms."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with ExitStack() as stack:
        for norm in (model.bn1, model.bn2):
            drop = norm.register_forward_hook(lambda *call: functional.dropout(call[2], 0.5))
            stack.callback(drop.remove)
        try:
            model.requires_grad_(False).train()
            yield
        finally:
            model.eval().requires_grad_(True).load_state_dict(state)


@contextmanager
def switched(model: nn.Module, layer: str, switch: Tensor) -> Iterator[None]:
    """Multiply what a layer returns by the switch, channel by channel."""
    module = model.get_submodule(layer)
    handle = module.register_forward_hook(
        lambda *call: (call[2].transpose(1, -1) * switch).transpose(1, -1)
    )
    try:
        yield
    finally:
        handle.remove()


def print_line(name: str, layer: str, setting: str, order: tuple[int, ...]) -> None:
    """Print the best units and how many of them are printed in the paper."""
    printed = PRINTED[name][layer]
    found = order[: len(printed)]
    common = len(set(found) & set(printed))
    remark = ", in the printed order" if found == printed else ""
    print(f"  {setting}: {common} of {len(printed)}{remark}  {shown(found)}", flush=True)


def shown(units: tuple[int, ...]) -> str:
    """Write units as the paper does."""
    return ",".join(map(str, units))


if __name__ == "__main__":
    main()
