"""The house keeps its order: data flow one way, and some things happen in one room only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import neurank

SOURCE = Path(neurank.__file__).parent

# Who may import whom: a room those below it, itself, and none beside it.
FLOORS = (
    {"errors"},
    {"files", "modes", "progress", "text"},
    {"journal", "ranking"},
    {"data", "training", "zoo"},
    {"units"},
    {"observe"},
    {"rankers", "weights"},
    {"agreement", "combination", "running"},
    {"condense"},
    {"classes", "watch"},
    {"report"},
    {"cli"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Scoring takes any network and any batches, so it may not know ours.
CALLERS_OF = {"data": {"cli"}, "zoo": {"cli"}, "training": {"condense", "cli"}}

FOREIGN_TO_ALL = {
    "pickle": "a pickle runs what it holds",
    "dill": "a pickle runs what it holds",
    "joblib": "its files are pickles",
    "shelve": "its files are pickles",
    "torchvision": "it does not import beside a torch without CUDA",
}
NEVER_CALLED = {
    "eval": "runs text",
    "exec": "runs text",
    "torch.load": "reads pickles",
    "torch.save": "writes pickles",
    "numpy.load": "can read pickles",
    "np.load": "can read pickles",
}
# These belong to an optimizer, and hang on no model.
STEP_HOOKS = {"register_step_pre_hook", "register_step_post_hook"}


def room_of(module: str) -> str:
    """The room of a module: ``observe`` for ``neurank.observe.kernels.chains``."""
    return module.partition(".")[2].partition(".")[0]


def is_package(alias: ast.alias) -> bool:
    """Whether it is the package under its own name; then what is read from it counts."""
    return alias.name == "neurank" and alias.asname is None


def imported(module: str, tree: ast.AST) -> Iterator[str]:
    """Full names of what a module imports, wherever in the file it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if not is_package(alias))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "neurank":
            yield f"neurank.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def called(tree: ast.AST) -> Iterator[str]:
    """Names of what a module calls, as they are written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def import_faults(module: str, tree: ast.AST) -> Iterator[str]:
    here = room_of(module)
    for name in imported(module, tree):
        package = name.split(".")[0]
        if package in FOREIGN_TO_ALL:
            yield f"{module} imports {name}: {FOREIGN_TO_ALL[package]}"
        if package != "neurank" or name == "neurank.__version__":
            continue
        there = room_of(name)
        if there not in FLOOR_OF:
            yield f"{module} imports {name}, which is in none of the rooms"
        elif there != here and FLOOR_OF[there] >= FLOOR_OF[here]:
            yield f"{module} imports {name}: the data flow the other way"
        elif there != here and here not in CALLERS_OF.get(there, {here}):
            yield f"{module} imports {name}: scoring takes any network and any data"


def call_faults(module: str, tree: ast.AST) -> Iterator[str]:
    for name in called(tree):
        if name in NEVER_CALLED:
            yield f"{module} calls {name}, which {NEVER_CALLED[name]}"
        method = name.rpartition(".")[2]
        is_hook = method.startswith("register_") and method.endswith("hook")
        is_hook = is_hook and method not in STEP_HOOKS
        if is_hook and room_of(module) != "observe":
            yield f"{module} calls {name}: only observe/ hooks a model"


def faults(module: str, source: str) -> list[str]:
    tree = ast.parse(source)
    return [*import_faults(module, tree), *call_faults(module, tree)]


def modules() -> dict[str, Path]:
    paths = sorted(SOURCE.rglob("*.py"))
    names = (path.relative_to(SOURCE.parent).with_suffix("").parts for path in paths)
    return {".".join(parts): path for parts, path in zip(names, paths, strict=True)}


INSIDE = {name: path for name, path in modules().items() if name != "neurank.__init__"}


def test_every_module_is_in_a_room():
    assert {room_of(name) for name in INSIDE} <= FLOOR_OF.keys()


@pytest.mark.parametrize("module", INSIDE)
def test_a_module_keeps_the_order(module):
    assert faults(module, INSIDE[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("neurank.errors", "from neurank.files import Json", "the other way"),
        ("neurank.ranking", "import neurank.agreement", "the other way"),
        ("neurank.units.space", "from neurank.observe.hooks import recorded", "the other way"),
        ("neurank.units.space", "from neurank import rankers", "the other way"),
        ("neurank.units.space", "from ..observe import hooks", "the other way"),
        ("neurank.observe.game", "def f():\n    import neurank.rankers.rank", "the other way"),
        (
            "neurank.observe.game",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from neurank.cli import app",
            "the other way",
        ),
        ("neurank.data.idx", "from neurank.training import fit", "the other way"),
        ("neurank.training", "from neurank.data import Split", "the other way"),
        ("neurank.zoo", "from neurank.units.space import Layer", "the other way"),
        ("neurank.agreement", "from neurank.report.documents import table", "the other way"),
        ("neurank.observe.game", "from neurank.data import load", "any network and any data"),
        ("neurank.rankers.rank", "from neurank.zoo import lenet", "any network and any data"),
        ("neurank.rankers.rank", "from neurank.training import fit", "any network and any data"),
        ("neurank.cli.app", "from neurank import rank", "none of the rooms"),
        ("neurank.observe.game", "import neurank\nneurank.cli.app", "the other way"),
        ("neurank.observe.game", "import neurank\nneurank.rank(model)", "none of the rooms"),
        ("neurank.observe.game", "import neurank as nr\nnr.rank(model)", "none of the rooms"),
        ("neurank.files", "import pickle", "runs what it holds"),
        ("neurank.cli.models", "from torchvision.models import vgg16", "without CUDA"),
        ("neurank.cli.models", "import torchvision.models as m", "without CUDA"),
        ("neurank.cli.models", "torch.load(path, weights_only=True)", "reads pickles"),
        ("neurank.files", "torch.save(tensors, path)", "writes pickles"),
        ("neurank.data.idx", "np.load(path)", "can read pickles"),
        ("neurank.cli.models", "eval(text)", "runs text"),
        ("neurank.cli.models", "def f():\n    return [exec(text)]", "runs text"),
        (
            "neurank.rankers.rank",
            "model.get_submodule(x).register_forward_hook(f)",
            "only observe/ hooks",
        ),
        ("neurank.condense.surgery", "m.register_full_backward_hook(f)", "only observe/ hooks"),
        ("neurank.condense.surgery", "m.register_forward_pre_hook(f)", "only observe/ hooks"),
    ],
)
def test_a_planted_fault_is_found(module, source, fault):
    found = faults(module, source)
    assert len(found) == 1
    assert fault in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("neurank.rankers.rank", "from neurank.observe.game import Game\nimport torch"),
        ("neurank.observe.hooks", "module.register_forward_hook(f)"),
        ("neurank.watch.attack", "optimizer.register_step_post_hook(f)"),
        ("neurank.observe.game", "from neurank.observe.kernels import chains"),
        ("neurank.observe.game", "from . import removal\nfrom .kernels.chains import walk"),
        ("neurank.condense.retrain", "from neurank.training import fit"),
        ("neurank.cli.app", "from neurank import __version__, zoo\nfrom neurank.data import load"),
        ("neurank.rankers.rank", "import neurank\nversion = neurank.__version__"),
        ("neurank.observe.game", "model.eval()\ntext = 'torch.load(x)'"),
        ("neurank.observe.game", "module.register_buffer('mean', mean)"),
    ],
)
def test_what_is_allowed_is_not_found(module, source):
    assert faults(module, source) == []
