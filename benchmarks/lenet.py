"""The network that the benchmarks measure: the LeNet 10-20-100-25, trained once and kept."""

import os
from pathlib import Path

from safetensors.torch import load_file, save_file

import neurank as nr

UNITS = {"conv1": 10, "conv2": 20, "fc1": 100, "fc2": 25}
EPOCHS = 6
RESULTS = Path(__file__).parent.parent / "build" / "benchmarks"
"""Where benchmarks leave weights and measurements; not under version control."""
KEPT = RESULTS / f"lenet_{EPOCHS}_epochs.safetensors"


def mnist(batch_size=1000):
    """Load MNIST from the folder that NEURANK_DATA names."""
    folder = os.environ.get("NEURANK_DATA")
    if not folder:
        raise SystemExit("NEURANK_DATA is not set: it names the folder that holds mnist/")
    return nr.data.load(f"mnist:{folder}/mnist", batch_size=batch_size)


def trained(data, weights=None, kept=KEPT):
    """Build the network and load `weights`, or train them once and keep them in `kept`."""
    model = nr.zoo.lenet(*UNITS.values(), seed=0)
    path = kept if weights is None else weights
    if weights is None and not kept.is_file():
        print(f"training {EPOCHS} epochs; the weights are kept in {kept.name}", flush=True)
        nr.fit(model, data.train, data.validation, epochs=EPOCHS, batch_size=50)
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_suffix(".part")
        save_file(model.state_dict(), unfinished)
        unfinished.replace(kept)
        return model.eval()
    model.load_state_dict(load_file(path))
    return model.eval()
