"""torch-pruning as the oracle of coupling: what goes with a unit is what its graph says.

Where it says something else, its own network, carried out, does not run or computes something else.
"""

from importlib.util import find_spec

import pytest
import torch
from tests.architectures import ARCHITECTURES
from tests.conftest import unavailable
from torch import nn

if find_spec("torch_pruning") is None:
    unavailable("torch-pruning is not installed; pip install 'neurank[bench]' brings it")

from benchmarks.coupling import ELSE, EXPLAINED, FAILS, NO_GROUP, SAME, SOUND, Ours, Theirs, outcome

from benchmarks import coupling

pytestmark = pytest.mark.filterwarnings("ignore:Maximum recursive depth reached:UserWarning")

QUICK = ("lenet", "resnet-basic", "resnet-zero-padded", "squeezenet", "shufflenet-v1", "swin")
NAMES = [
    one.name if one.name in QUICK else pytest.param(one.name, marks=pytest.mark.slow)
    for one in ARCHITECTURES
]


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_those_of_torch_pruning_or_its_networks_are_wrong(name):
    found = outcome(name)
    assert not found["refused"]
    verdicts = {verdict.partition(":")[0]: count for verdict, count in found["verdicts"].items()}
    # each unit was looked at, some were the same, and in no case were both right in their way
    assert sum(found["verdicts"].values()) == found["units"] > 0
    assert set(verdicts) <= {SAME, FAILS, ELSE, NO_GROUP}
    assert (set(verdicts) != {SAME}) == (name in EXPLAINED)


def test_every_explanation_is_of_an_architecture():
    assert set(EXPLAINED) <= {one.name for one in ARCHITECTURES}


def small(before=3):
    """Two convolutions whose sum goes on, with BatchNorm behind the first."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Conv2d(before, 4, 3, padding=1) for _ in range(2))
            self.bn = nn.BatchNorm2d(4)
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc((self.bn(self.a(x)) + self.b(x)).relu().mean(dim=(2, 3)))

    return Net().double().eval(), torch.randn(2, before, 5, 5, dtype=torch.float64)


def test_elements_are_rows_and_columns_by_hand():
    model, inputs = small()
    wanted = {
        **{f"{conv}.weight": frozenset(range(54, 81)) for conv in "ab"},  # row 2 of (4, 27)
        **dict.fromkeys(("a.bias", "b.bias"), frozenset({2})),
        **{f"bn.{it}": frozenset({2}) for it in ("weight", "bias", "running_mean", "running_var")},
        "fc.weight": frozenset({2, 6}),  # column 2 of (2, 4)
    }
    assert Ours(model, inputs).elements("a", 2) == wanted
    theirs = Theirs(model, inputs)
    assert theirs.elements(theirs.group("a.weight", [2])) == wanted


def test_a_tie_too_few_is_found_out(monkeypatch):
    whole = Ours.elements

    def without_running_mean(self, layer, unit):
        found = whole(self, layer, unit)
        return {name: it for name, it in found.items() if not name.endswith("running_mean")}

    monkeypatch.setattr(Ours, "elements", without_running_mean)
    assert outcome("resnet-basic")["verdicts"].keys() == {SOUND}


def test_what_is_left_of_a_network_is_said():
    model, inputs = small()
    assert coupling.carried_out(model, inputs, "a.weight", [1]) == SOUND

    class Numbered(type(model)):
        def forward(self, x):
            return self.fc((self.bn(self.a(x)) + self.b(x)).mean(dim=(2, 3)).view(-1, 4))

    model.__class__ = Numbered
    assert coupling.carried_out(model, inputs, "a.weight", [1]) == FAILS

    class Crossed(type(model)):
        def forward(self, x):
            return self.fc((self.bn(self.a(x)) + self.b(x)).flip(1).mean(dim=(2, 3)))

    model.__class__ = Crossed
    assert coupling.carried_out(model, inputs, "a.weight", [0]) == ELSE
