"""The networks that the authors of the neuron-ranking paper published, as modules of their own.

The weights are those of their repository (kamadforge/ranking on GitHub), converted to safetensors:
``lenet5_mnist``, ``lenet5_fashionmnist`` and ``lenet5_mnist_pruned_7_10_40_20``.
"""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

FULL = {"mnist": "lenet5_mnist", "fashion-mnist": "lenet5_fashionmnist"}
"""The networks behind Table 1, by data set."""

PRUNED = "lenet5_mnist_pruned_7_10_40_20"
"""MNIST after mask pruning and retraining: the units that went have zeros for weights."""


class AuthorsLeNet(nn.Module):
    """LeNet-5 with 10-20-100-25 units, pooling before ReLU and BatchNorm behind it.

    There is no nonlinearity after c5 and f6. The prediction is the largest of the 25 outputs of
    f6, of which ten are classes; the files hold a layer `output` that was never trained and is
    not run. The pruned network ends in `out7`, 25 to 10, instead.

    Parameters
    ----------
    pruned : whether `out7` is there and run.
    """

    def __init__(self, *, pruned: bool = False) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 10, 5)
        self.bn1 = nn.BatchNorm2d(10)
        self.c3 = nn.Conv2d(10, 20, 5)
        self.bn2 = nn.BatchNorm2d(20)
        self.c5 = nn.Linear(320, 100)
        self.f6 = nn.Linear(100, 25)
        self.pruned = pruned
        if pruned:
            self.out7 = nn.Linear(25, 10)
        else:
            self.output = nn.Linear(25, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures, (examples, 1, 28, 28), to logits, (examples, 25), or 10 if pruned."""
        x = self.bn1(functional.relu(functional.max_pool2d(self.c1(x), 2)))
        x = self.bn2(functional.relu(functional.max_pool2d(self.c3(x), 2)))
        x = self.f6(self.c5(x.flatten(1)))
        return self.out7(x) if self.pruned else x


def data_folder() -> Path:
    """Return the folder that the environment variable NEURANK_DATA names."""
    folder = os.environ.get("NEURANK_DATA")
    if not folder or not (Path(folder) / "models").is_dir():
        message = (
            f"NEURANK_DATA={folder!r} is not a folder with mnist/ and models/ in it: set it to one"
        )
        raise SystemExit(message)
    return Path(folder)


def authors_net(name: str, folder: Path) -> AuthorsLeNet:
    """Load ``models/<name>.safetensors`` from the data folder, in evaluation mode."""
    model = AuthorsLeNet(pruned=name == PRUNED)
    model.load_state_dict(load_file(folder / "models" / f"{name}.safetensors"))
    return model.eval()


def error_percent(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Return the share of wrong predictions, in per cent."""
    with torch.inference_mode():
        wrong = model(inputs).argmax(dim=1) != targets
    return 100 * float(wrong.double().mean())
