"""What the steps of a network found, read back and put together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from networks import NETWORKS, related
from safetensors.torch import load_file
from torch import Tensor

import neurank as nr
from neurank.classes import Group, Quality, Setting, as_printed, groups, selections, thetas
from neurank.classes.grouping import Kind, sign_test

GRIDS = ("tenths", "twentieths", "fine")
"""The parts of the ratios that were swept."""
SCOPES = {"LWP": "layer", "NWP": "network"}
"""Layer-wise and network-wise pruning."""
Shown = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Counted:
    """Counts of a class's own pictures, a row per class and a column per setting.

    Attributes
    ----------
    settings : what the columns are; the first is the whole network.
    pictures : (classes,).
    hits, gained, lost, parameters : (classes, settings), as in `neurank.classes.Curves`.
    """

    settings: tuple[str, ...]
    pictures: Tensor
    hits: Tensor
    gained: Tensor
    lost: Tensor
    parameters: Tensor

    def column(self, setting: str) -> int:
        """Return the place of a setting."""
        return self.settings.index(setting)

    @property
    def recall(self) -> Tensor:
        """(classes, settings)."""
        return self.hits / self.pictures[:, None].double()

    def along(self, scope: str) -> tuple[tuple[float, ...], Shown]:
        """Return the ratios that were swept, 0 first, with pictures, hits, gained and lost."""
        there = [0.0, *(it for it in thetas()[1:] if named(scope, it) in self.settings)]
        at = [0, *(self.column(named(scope, ratio)) for ratio in there[1:])]
        shown = self.pictures, self.hits[:, at], self.gained[:, at], self.lost[:, at]
        return tuple(there), shown


@dataclass(frozen=True, eq=False)
class Found:
    """What is there of a network.

    Attributes
    ----------
    name : of the network.
    labels, classes : the classes that have pictures, and what they are called.
    folder : of the steps.
    """

    name: str
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> "Found | None":
        """Return what is there; None before responses are."""
        path = folder / "responses.safetensors"
        if not path.exists():
            return None
        scored = next(iter(load_file(path).values()))
        labels = (~scored.isnan().any(dim=1)).nonzero()[:, 0].tolist()
        names = json.loads((folder / "names.json").read_text())
        return cls(folder.name, tuple(labels), tuple(names[it] for it in labels), folder)

    @property
    def title(self) -> str:
        """What the tables call the network."""
        return NETWORKS[self.name].title

    @cached_property
    def related(self) -> Tensor:
        """(classes, classes), which are alike."""
        return related(NETWORKS[self.name].pictures, list(self.labels))

    @cached_property
    def counted(self) -> Counted | None:
        """The counts over all portions that were finished for all classes and grids, if any."""
        grids = {name: self._portions(f"own-{name}") for name in GRIDS}
        used = {name: found for name, found in grids.items() if found}
        if "tenths" not in used:
            return None
        numbers = set.intersection(*map(set, used.values()))
        parts = [_added([used[name][number] for number in sorted(numbers)]) for name in used]
        return _joined(parts)

    @property
    def own(self) -> Counted:
        """The counts, which must be there."""
        if self.counted is None:
            raise SystemExit(f"{self.title}: no portion of its pictures is counted for all classes")
        return self.counted

    @cached_property
    def by_mean(self) -> Counted | None:
        """The counts of pruning by means per position."""
        found = self._portions("mean")
        return _added(list(found.values())) if found else None

    @cached_property
    def rest(self) -> Mapping[str, pd.DataFrame]:
        """By scope, what is known of each class and ratio with the other classes' pictures."""
        found = {}
        for short, scope in SCOPES.items():
            path = self.folder / f"rest-{scope}.json"
            if path.exists():
                found[short] = _qualities(json.loads(path.read_text()))
        return found

    @cached_property
    def residual(self) -> pd.DataFrame | None:
        """The share of each layer that goes directly and residually, mean over the classes."""
        path = self.folder / "residual.json"
        if not path.exists():
            return None
        rows = pd.DataFrame(json.loads(path.read_text()))
        rows = rows.explode(["layers", "direct", "residual"]).rename(columns={"layers": "layer"})
        numbers = rows.astype({"direct": float, "residual": float})
        keys = ["threshold", "theta", "layer"]
        return numbers.groupby(keys, sort=False)[["direct", "residual"]].mean().reset_index()

    @cached_property
    def shapley(self) -> nr.Ranking | None:
        """Shapley values by class."""
        paths = {it.stem.partition("-")[2]: it for it in self.folder.glob("shapley-*.safetensors")}
        rows = {layer: load_file(paths[layer])[layer] for layer in self.layers if layer in paths}
        return as_ranking(rows) if rows else None

    @cached_property
    def responses(self) -> dict[str, dict[str, Tensor]]:
        """By statistic and layer, what each unit answers to each class, (classes, units)."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, rows in load_file(self.folder / "responses.safetensors").items():
            statistic, _, layer = name.partition("/")
            found.setdefault(statistic, {})[layer] = rows
        modules = dict(NETWORKS[self.name].build().named_modules())
        return {
            kind: {layer: found[kind][layer] for layer in modules if layer in found[kind]}
            for kind in ("sum", "mean")
        }

    @property
    def layers(self) -> tuple[str, ...]:
        """The convolutions that are pruned."""
        return tuple(self.responses["sum"])

    def ranking(self, statistic: str = "sum") -> nr.Ranking:
        """Return the responses as a ranking."""
        return as_ranking(self.responses[statistic])

    def kept(
        self, scope: str, ratios: Sequence[float], statistic: str = "sum"
    ) -> list[list[Mapping[str, Tensor]]]:
        """Return for each ratio and class which units are kept."""
        settings = [Setting(SCOPES[scope], ratio) for ratio in ratios]
        found = selections(self.ranking(statistic), self.labels, settings)
        by_class = [found[at : at + len(settings)] for at in range(0, len(found), len(settings))]
        return [[row[at].kept for row in by_class] for at in range(len(settings))]

    def grouped(self, scope: str) -> tuple[Group, ...]:
        """Return what becomes of each class, told from chance."""
        ratios, (pictures, hits, gained, lost) = self.own.along(scope)
        return groups(ratios, pictures, hits, gained, lost)

    def printed(self, scope: str) -> tuple[Kind, ...]:
        """Return what becomes of each class by the values alone."""
        _, (pictures, hits, _, _) = self.own.along(scope)
        return as_printed(pictures, hits)

    def without_loss(self, scope: str) -> list[float]:
        """Return for each class the largest ratio up to which it is never significantly lower."""
        ratios, (_, _, gained, lost) = self.own.along(scope)
        p = sign_test(gained, lost) * (len(ratios) - 1)
        lower = (p <= 0.05) & (lost > gained)
        leading = (~lower).long().cumprod(dim=1).sum(dim=1) - 1
        return [ratios[at] for at in leading.tolist()]

    def _portions(self, name: str) -> dict[int, Counted]:
        """Return the portions that are there for all classes."""
        found = {}
        for number in range(1000):
            paths = [self.folder / f"{name}-{label}-{number}.json" for label in self.labels]
            if not all(path.exists() for path in paths):
                return found
            found[number] = _stacked([json.loads(path.read_text())[0] for path in paths])
        return found


def named(scope: str, ratio: float) -> str:
    """Return the paper's name of a setting."""
    return str(Setting(SCOPES[scope], ratio))


def as_ranking(by_class: Mapping[str, Tensor]) -> nr.Ranking:
    """Make a ranking of scores by class; its own scores are their sums."""
    layers = {}
    for layer, rows in by_class.items():
        nothing = torch.zeros(rows.shape[1])
        counts = torch.zeros(rows.shape[1], dtype=torch.int64)
        layers[layer] = nr.LayerRanking(
            rows.nansum(dim=0), nothing, counts, status="computed", by_class=rows
        )
    return nr.Ranking(layers, {})


def _stacked(rows: Sequence[dict[str, list[int]]]) -> Counted:
    tensors = {
        name: torch.tensor([row[name] for row in rows])
        for name in ("pictures", "hits", "gained", "lost", "parameters")
    }
    return Counted(tuple(rows[0]["settings"]), **tensors)


def _added(parts: Sequence[Counted]) -> Counted:
    """Add up portions of the pictures."""
    sums = {
        name: torch.stack([getattr(part, name) for part in parts]).sum(dim=0)
        for name in ("pictures", "hits", "gained", "lost")
    }
    return Counted(parts[0].settings, parameters=parts[0].parameters, **sums)


def _joined(parts: Sequence[Counted]) -> Counted:
    """Put the settings of the same pictures side by side, the whole network once."""
    columns = [torch.arange(0 if at == 0 else 1, len(it.settings)) for at, it in enumerate(parts)]
    tensors = {
        name: torch.cat(
            [getattr(it, name)[:, own] for it, own in zip(parts, columns, strict=True)], dim=1
        )
        for name in ("hits", "gained", "lost", "parameters")
    }
    names = [it.settings[at] for it, own in zip(parts, columns, strict=True) for at in own]
    return Counted(tuple(names), parts[0].pictures, **tensors)


def _qualities(rows: Sequence[dict[str, list[float]]]) -> pd.DataFrame:
    found = []
    for row in rows:
        for at, setting in enumerate(row["settings"]):
            one = Quality(
                row["label"],
                own=row["pictures"],
                others=row["others"],
                hits=row["hits"][at],
                false_alarms=row["false_alarms"][at],
                auroc=row["auroc"][at],
            )
            found.append({"label": one.label, "setting": setting} | _shares(one))
    return pd.DataFrame(found)


def _shares(one: Quality) -> dict[str, float]:
    names = ("recall", "false_positive_rate", "precision", "f1", "auroc")
    return {name: getattr(one, name) for name in names}
