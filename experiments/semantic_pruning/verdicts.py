"""Tables, figures and verdicts from what the steps found."""

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from found import SCOPES, Found
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor

from neurank.classes import DISCRETE, Projection, agreement_by_class, jump_association
from neurank.classes.interference import (
    overlaps,
    projections,
    pruned_correlations,
    rank_correlation,
)
from neurank.report import classes as draw

LAYER_RATIOS = (0.05, 0.25, 0.5)
"""Of Figure 4."""
PRINTED_SETTINGS = ("NWP-M", "LWP-33", "NWP-66", "LWP-66")
"""Of Figure 3."""
ALIKE_RATIOS = (0.1, 0.25, 0.5)
WORDS = {True: "holds", False: "does not hold", None: "see"}


@dataclass(frozen=True)
class Verdict:
    """What became of a claim: whether it holds (None: neither), and the figures behind that."""

    network: str
    claim: str
    holds: bool | None
    figure: str


# --- tables ---


def layer_shares(found: Found) -> pd.DataFrame:
    """Return the share of each layer that is pruned directly, network-wise, mean over classes."""
    rows = []
    for statistic in found.responses:
        for ratio, kept in zip(
            LAYER_RATIOS, found.kept("NWP", LAYER_RATIOS, statistic), strict=True
        ):
            for layer in found.layers:
                share = torch.stack([one[layer] for one in kept]).logical_not().double().mean()
                rows.append([found.name, statistic, ratio, layer, float(share)])
    return pd.DataFrame(rows, columns=["network", "responses", "theta", "layer", "pruned"])


def settings_table(found: Found) -> pd.DataFrame:
    """Return parameters and mean accuracy of each discrete setting; empty without counts."""
    if found.counted is None:
        return pd.DataFrame()
    own, rows = found.own, []
    for setting in ("whole", *(str(it) for it in DISCRETE)):
        at = own.column(setting)
        shown = int(own.pictures.sum())
        gained, lost = int(own.gained[:, at].sum()), int(own.lost[:, at].sum())
        change = (gained - lost) / shown
        spread = 1.96 * math.sqrt(max(0.0, (gained + lost) / shown - change**2) / shown)
        kept = float(own.parameters[:, at].double().mean())
        removed = float(own.parameters[:, 0].double().mean()) - kept
        rows.append(
            {
                "network": found.name,
                "setting": setting,
                "parameters kept": round(kept),
                "parameters removed": round(removed),
                "accuracy": float(own.recall[:, at].mean()),
                "change": change,
                "change +-": spread,
                "lowest class": float(own.recall[:, at].min()),
                "highest class": float(own.recall[:, at].max()),
            }
        )
    return pd.DataFrame(rows)


def classes_table(found: Found) -> pd.DataFrame:
    """Return what becomes of each class along the ratios; empty without counts."""
    if found.counted is None:
        return pd.DataFrame()
    rows = []
    for scope in SCOPES:
        ratios, (pictures, hits, _, _) = found.own.along(scope)
        share = hits / pictures[:, None].double()
        for row, (name, printed, group, largest) in enumerate(
            zip(
                found.classes,
                found.printed(scope),
                found.grouped(scope),
                found.without_loss(scope),
                strict=True,
            )
        ):
            best = int(share[row, 1:].argmax()) + 1
            rows.append(
                {
                    "network": found.name,
                    "scope": scope,
                    "class": name,
                    "pictures": int(pictures[row]),
                    "whole": float(share[row, 0]),
                    "best": float(share[row, best]),
                    "best at": ratios[best],
                    "as printed": printed,
                    "group": group.kind,
                    "theta": group.theta,
                    "gain": group.gain,
                    "low": group.low,
                    "high": group.high,
                    "p": group.p_value,
                    "no loss up to": largest,
                }
            )
    return pd.DataFrame(rows)


def quality_table(found: Found) -> pd.DataFrame:
    """Return recall, false positives, precision, F1 and AUROC with the other classes there."""
    frames = []
    for scope, frame in found.rest.items():
        names = dict(zip(found.labels, found.classes, strict=True))
        named_rows = frame.assign(network=found.name, scope=scope)
        named_rows["class"] = named_rows.pop("label").map(names)
        frames.append(named_rows)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def improved_in(frame: pd.DataFrame) -> pd.DataFrame:
    """Return for each class that gains recall somewhere what else it gains where it gains most."""
    rows = []
    for name, one in frame.groupby("class", sort=False):
        whole = one[one.setting == "whole"].iloc[0]
        pruned = one[one.setting != "whole"]
        best = pruned.loc[pruned.recall.idxmax()]
        if best.recall > whole.recall:
            measures = ("recall", "false_positive_rate", "f1", "auroc")
            rows.append({"class": name} | {it: best[it] - whole[it] for it in measures})
    return pd.DataFrame(rows, columns=["class", "recall", "false_positive_rate", "f1", "auroc"])


# --- verdicts, claim by claim ---


def on_loss(found: Found) -> Iterator[Verdict]:
    """Claim (a): for each class some ratio removes filters with no loss."""
    if found.counted is None:
        return
    table = classes_table(found)
    for scope, rows in table.groupby("scope", sort=False):
        largest, kept = rows["no loss up to"], (rows["as printed"] != "degraded").sum()
        yield Verdict(
            found.title,
            f"for each class some ratio prunes without loss, {scope}",
            bool((largest > 0).all()),
            f"{_pictures(found)} pictures a class; no significant loss up to {largest.min():g} to "
            f"{largest.max():g}, median {largest.median():g}; {kept} of {len(rows)} "
            "classes keep every picture's worth of accuracy at some ratio",
        )


def on_layers(found: Found) -> Iterator[Verdict]:
    """Claim (b): The first layer is never pruned directly, the middle ones most."""
    table = layer_shares(found)
    for statistic, rows in table.groupby("responses", sort=False):
        wide = rows.pivot(index="theta", columns="layer", values="pruned")[list(found.layers)]
        first, last = wide.iloc[:, 0], wide.iloc[:, -1]
        yield Verdict(
            found.title,
            f"NWP never prunes the first layer, {statistic}",
            bool((first == 0).all()),
            f"{_shares(first)} of {found.layers[0]} at ratios {_ratios(wide.index)}",
        )
        yield Verdict(
            found.title,
            f"NWP does not prune the last layer at a low ratio, {statistic}",
            bool(last.iloc[0] == 0),
            f"{_shares(last)} of {found.layers[-1]} at ratios {_ratios(wide.index)}",
        )
        places = [int(row.argmax()) for _, row in wide.iterrows()]
        edge = len(found.layers) / 5
        yield Verdict(
            found.title,
            f"NWP prunes the middle layers most, {statistic}",
            all(edge <= at < len(found.layers) - edge for at in places),
            "; ".join(
                f"{ratio:g}: {found.layers[at]} ({at + 1} of {len(found.layers)}), "
                f"{100 * row.iloc[at]:.0f} %"
                for (ratio, row), at in zip(wide.iterrows(), places, strict=True)
            ),
        )


def on_means(found: Found) -> Iterator[Verdict]:
    """Claim (b), continued: what network-wise pruning by means per position costs."""
    own, mean = found.counted, found.by_mean
    if own is None or mean is None:
        return
    parts = {}
    for setting in mean.settings[1:]:
        if setting in own.settings:
            at, there = mean.column(setting), own.column(setting)
            parts[setting] = (mean.recall[:, at].mean(), own.recall[:, there].mean())
    yield Verdict(
        found.title,
        "network-wise pruning keeps more recall by means per position than by sums",
        all(one > other for one, other in parts.values()),
        "; ".join(f"{it} {100 * a:.1f} for {100 * b:.1f} %" for it, (a, b) in parts.items()),
    )


def on_residual(found: Found) -> Iterator[Verdict]:
    """Claim (b): Which layers are pruned as a consequence."""
    if found.residual is None:
        return
    for threshold, rows in found.residual.groupby("threshold"):
        wide = rows.pivot(index="theta", columns="layer", values="residual")[list(found.layers)]
        at = int(wide.iloc[-1].argmax())
        some = bool((wide > 0).any(axis=None))
        most = f"most in {found.layers[at]} ({100 * wide.iloc[-1, at]:.0f} % at 0.5)"
        yield Verdict(
            found.title,
            f"some filters are pruned residually, input at most {threshold:g} of the whole's",
            some,
            f"{_shares(wide.mean(axis=1))} of a layer's filters on average at ratios "
            f"{_ratios(wide.index)}" + (f"; {most}" if some else ""),
        )


def on_settings(found: Found) -> Iterator[Verdict]:
    """Claim (c): What the discrete settings cost."""
    if found.counted is None:
        return
    table = settings_table(found).set_index("setting")

    def change(setting: str) -> str:
        row = table.loc[setting]
        return f"{setting} {100 * row.change:+.1f} ± {100 * row['change +-']:.1f}"

    for setting in ("NWP-0", "NWP-33"):
        yield Verdict(
            found.title,
            f"{setting} costs about 10 points (5 to 15)",
            bool(-0.15 <= table.change[setting] <= -0.05),
            f"{change(setting)} points, whole {100 * table.accuracy['whole']:.1f} %",
        )
    pairs = [(f"LWP-{it}", f"NWP-{it}") for it in ("33", "M", "66")]
    yield Verdict(
        found.title,
        "layer-wise is more resistant than network-wise",
        all(table.change[one] > table.change[other] for one, other in pairs),
        "; ".join(f"{change(one)}, {change(other)}" for one, other in pairs),
    )
    names = ("LWP-M", "LWP-66", "NWP-66")
    yield Verdict(
        found.title,
        "LWP-M, LWP-66 and NWP-66 are serious drops (above 20 points)",
        all(table.change[it] < -0.2 for it in names),
        ", ".join(change(it) for it in names),
    )


def on_improvement(found: Found) -> Iterator[Verdict]:
    """Claim (d): Some classes improve."""
    if found.counted is None:
        return
    table = classes_table(found)
    for scope, rows in table.groupby("scope", sort=False):
        printed, honest = (
            {kind: list(rows["class"][rows[column] == kind]) for kind in rows[column].unique()}
            for column in ("as printed", "group")
        )
        yield Verdict(
            found.title,
            f"some classes improve, read off the values, {scope}",
            "improved" in printed,
            _kinds(printed),
        )
        better = honest.get("improved", [])
        yield Verdict(
            found.title,
            f"some classes improve beyond chance, {scope}",
            bool(better),
            _kinds(honest) + (f": {', '.join(better)}" if better else ""),
        )


def on_overlap(found: Found) -> Iterator[Verdict]:
    """Claim (e): What classes keep in common falls along the ratio."""
    ratios = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    beside = ~torch.eye(len(found.labels), dtype=torch.bool)
    for scope in SCOPES:
        shared = overlaps(found.kept(scope, ratios))
        counts = shared.kept_counts[:, beside].double().mean(dim=1)
        jaccard = shared.kept_jaccard[:, beside].mean(dim=1)
        chance = (shared.kept_counts / shared.kept_chance)[:, beside].mean(dim=1)
        yield Verdict(
            found.title,
            f"overlap of what is kept falls along the ratio, {scope}",
            bool((jaccard.diff() < 0).all()),
            f"Jaccard {_numbers(jaccard)} at ratios {_ratios(ratios)}; units shared "
            f"{counts[0]:.0f} to {counts[-1]:.0f}, {_numbers(chance)} times as many as by chance",
        )


def on_neighbours(found: Found) -> Iterator[Verdict]:
    """Claim (f): Accuracy rises where pruned sets move towards those of related classes."""
    if found.counted is None:
        return
    for scope in SCOPES:
        ratios, (pictures, hits, _, _) = found.own.along(scope)
        kept = found.kept(scope, ratios[1:])
        recall = (hits / pictures[:, None].double())[:, 1:]
        measures = {
            "correlation": pruned_correlations(kept),
            "overlap (Jaccard)": overlaps(kept).pruned_jaccard,
        }
        for measure, values in measures.items():
            tied = jump_association(values, recall, found.related)
            yield Verdict(
                found.title,
                f"{measure} of pruned sets with related classes rises where accuracy does, {scope}",
                None if math.isnan(tied.p_value) else tied.spearman > 0 and tied.p_value <= 0.05,
                f"Spearman {tied.spearman:+.2f}, {tied.by_chance:+.2f} by chance, p "
                f"{tied.p_value:.2g}, {tied.pairs} steps",
            )


def on_quality(found: Found) -> Iterator[Verdict]:
    """Claim (g): Recall alone rewards a network that always says yes."""
    for scope, frame in found.rest.items():
        whole = frame[frame.setting == "whole"].set_index("label").f1
        near = frame[frame.setting != "whole"]
        near = near[near.f1 >= near.label.map(whole) - 0.01]
        yield Verdict(
            found.title,
            f"for each class some ratio prunes without losing more than a point of F1, {scope}",
            near.label.nunique() == len(whole),
            f"{near.label.nunique()} of {len(whole)} classes, of the ratios "
            f"{_ratios(_ratio_of(it) for it in frame.setting.unique()[1:])}",
        )
        gains = improved_in(frame.rename(columns={"label": "class"}))
        if not len(gains):
            yield Verdict(
                found.title, f"what gains recall gains F1, {scope}", None, "no class gains recall"
            )
            continue
        better = {it: int((gains[it] > 0.01).sum()) for it in ("f1", "auroc")}
        whole = frame[frame.setting == "whole"]
        yield Verdict(
            found.title,
            f"what gains recall gains F1 or AUROC, {scope}",
            bool(better["f1"] == len(gains) and better["auroc"] == len(gains)),
            f"of {len(gains)} classes that gain recall (median "
            f"{100 * gains.recall.median():+.0f} points) {better['f1']} gain more than a point of "
            f"F1 and {better['auroc']} of AUROC; false positives there go from "
            f"{100 * whole.false_positive_rate.median():.1f} % up by "
            f"{100 * gains.false_positive_rate.median():.1f} points, F1 by "
            f"{100 * gains.f1.median():+.1f}, AUROC by {100 * gains.auroc.median():+.1f} (medians)",
        )


def on_shapley(found: Found) -> Iterator[Verdict]:
    """Claim (h): Shapley values per class beside responses per class."""
    if found.shapley is None:
        return
    for statistic in ("sum",):
        table = agreement_by_class(found.shapley, found.ranking(statistic))
        means = table.groupby("layer", sort=False).spearman.mean()
        yield Verdict(
            found.title,
            "Shapley values of a class's recall order units as its responses do",
            None,
            "mean Spearman by layer: "
            + ", ".join(f"{layer} {value:+.2f}" for layer, value in means.items())
            + f"; single classes {table.spearman.min():+.2f} to {table.spearman.max():+.2f}",
        )


def on_density(found: Found) -> Iterator[Verdict]:
    """Claim (i): Dense classes share pruned sets, and improve."""
    alike = found.related & ~torch.eye(len(found.labels), dtype=torch.bool)
    unlike = ~found.related & ~torch.eye(len(found.labels), dtype=torch.bool)
    density = dense(found)
    for scope in SCOPES:
        near = pruned_correlations(found.kept(scope, ALIKE_RATIOS))
        one, other = near[:, alike].mean(dim=1), near[:, unlike].mean(dim=1)
        yield Verdict(
            found.title,
            f"related classes share what is pruned, {scope}",
            bool((one > other).all()),
            f"correlation of pruned sets {_numbers(one)} among related classes, "
            f"{_numbers(other)} among others, at ratios {_ratios(ALIKE_RATIOS)}",
        )
        if found.counted is None:
            continue
        table = classes_table(found)
        rows = table[table.scope == scope]
        gain = (rows.best - rows.whole).to_numpy()
        test = spearmanr(density.numpy(), gain)
        text = f"Spearman of density and best gain {test.statistic:+.2f}, p {test.pvalue:.2g}"
        in_group = found.related.any(dim=1).numpy()
        if not in_group.all():
            text += f"; mean best gain {_split(gain, in_group)}"
            better = (rows.group == "improved").to_numpy()
            text += f"; improved beyond chance {better[in_group].sum()} of {in_group.sum()} dogs, "
            text += f"{better[~in_group].sum()} of {(~in_group).sum()} others"
        yield Verdict(
            found.title,
            f"classes in dense regions gain more, {scope}",
            bool(test.statistic > 0 and test.pvalue <= 0.05),
            text,
        )


def dense(found: Found) -> Tensor:
    """Return each class's mean rank correlation of responses with the three nearest classes."""
    labels = list(found.labels)
    rows = torch.cat([it[labels] for it in found.responses["mean"].values()], dim=1)
    nearest = rank_correlation(rows).fill_diagonal_(-1).topk(3, dim=1).values
    return nearest.mean(dim=1)


CLAIMS = (
    *(on_loss, on_layers, on_means, on_residual, on_settings, on_improvement),
    *(on_overlap, on_neighbours, on_quality, on_shapley, on_density),
)


# --- figures ---


def figures(found: Found) -> Iterator[tuple[str, Figure]]:
    """Draw Figures 2 to 7, and what stands beside the recall."""
    yield from _layer_figures(found)
    for scope, frame in found.rest.items():
        yield f"quality-{scope}", _quality_panels(found, scope, frame)
    own = found.counted
    if own is None:
        return
    table = settings_table(found)
    yield (
        "figure2",
        draw.setting_bars(
            list(table.setting),
            list(table["parameters kept"]),
            list(table["parameters removed"]),
            list(table.accuracy),
        ).get_figure(),
    )
    lines = {
        name: own.recall[:, own.column(name)].tolist() for name in ("whole", *PRINTED_SETTINGS)
    }
    yield "figure3", draw.class_accuracies(lines, found.classes).get_figure()
    for scope in SCOPES:
        ratios, (pictures, hits, _, _) = own.along(scope)
        kinds = [group.kind for group in found.grouped(scope)]
        for reading, wanted in (("", kinds), ("-printed", found.printed(scope))):
            yield (
                f"figure5-{scope}{reading}",
                draw.accuracy_panels(ratios, pictures, hits, found.classes, wanted),
            )
    yield from _neighbour_figures(found)
    chosen = _examples(found, "LWP")
    for scope in SCOPES:
        at = (0.0, 0.15, 0.4)
        kept = found.kept(scope, at)
        labels = list(found.labels)
        rows = {layer: it[labels] for layer, it in found.responses["sum"].items()}
        places: Sequence[Projection] = projections(rows, kept)
        yield (
            f"figure7-{scope}",
            draw.projection_panels(places, at, found.classes, highlight=chosen[0]),
        )


def _layer_figures(found: Found) -> Iterator[tuple[str, Figure]]:
    if found.residual is not None:
        for threshold, rows in found.residual.groupby("threshold"):
            wide = {
                kind: rows.pivot(index="theta", columns="layer", values=kind)[list(found.layers)]
                for kind in ("direct", "residual")
            }
            yield (
                f"figure4-residual-{threshold:g}",
                draw.pruned_by_layer(
                    found.layers,
                    wide["direct"].to_numpy().tolist(),
                    wide["residual"].to_numpy().tolist(),
                    list(wide["direct"].index),
                ),
            )
    for statistic, rows in layer_shares(found).groupby("responses", sort=False):
        direct = rows.pivot(index="theta", columns="layer", values="pruned")[list(found.layers)]
        shares, none = direct.to_numpy().tolist(), (0 * direct).to_numpy().tolist()
        yield (
            f"figure4-{statistic}",
            draw.pruned_by_layer(found.layers, shares, none, list(direct.index)),
        )


def _examples(found: Found, scope: str) -> list[int]:
    """Pick a class that gains most, one that changes least and one that loses most."""
    _, (pictures, hits, _, _) = found.own.along(scope)
    share = hits / pictures[:, None].double()
    late = share[:, 1:]
    best = late.max(dim=1).values - share[:, 0]
    moved = (late - share[:, :1]).abs().mean(dim=1)
    area = late.mean(dim=1) - share[:, 0]
    picked = [int(best.argmax())]
    for order in (moved.argsort(), area.argsort()):
        picked.append(next(at for at in order.tolist() if at not in picked))
    return picked


def _neighbour_figures(found: Found) -> Iterator[tuple[str, Figure]]:
    """Draw what three classes share with the classes nearest to them and farthest from them."""
    scope = "LWP"
    ratios, (pictures, hits, _, _) = found.own.along(scope)
    share = hits / pictures[:, None].double()
    shared = overlaps(found.kept(scope, ratios[1:]))
    near = pruned_correlations(found.kept(scope, [0.2]))[0]
    for kind, at in zip(("gains", "resists", "loses"), _examples(found, scope), strict=True):
        order = [it for it in near[at].argsort(descending=True).tolist() if it != at]
        beside = [*order[:3], *order[-3:]]
        lines = [
            {found.classes[it]: values[:, at, it].tolist() for it in beside}
            for values in (shared.kept_jaccard, shared.pruned_jaccard)
        ]
        yield (
            f"figure6-{kind}",
            draw.neighbour_curves(
                ratios[1:],
                *lines,
                share[at, 1:].tolist(),
                title=found.classes[at],
                measure="overlap (Jaccard)",
            ),
        )


def _quality_panels(found: Found, scope: str, frame: pd.DataFrame) -> Figure:
    """Draw recall, false positives, F1 and AUROC of each class along the ratio."""
    columns = 5
    rows = -(-len(found.labels) // columns)
    figure = Figure(figsize=(2.2 * columns, 1.9 * rows + 0.5), dpi=120, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    measures = {
        "recall": "recall",
        "false_positive_rate": "false positives",
        "f1": "F1",
        "auroc": "AUROC",
    }
    for axes, label, name in zip(panels, found.labels, found.classes, strict=False):
        one = frame[frame.label == label]
        along = [_ratio_of(it) for it in one.setting]
        for at, (measure, called) in enumerate(measures.items()):
            style = {"color": draw.COLOURS[at], "marker": draw.MARKERS[at], "markersize": 3}
            axes.plot(along, one[measure], label=called, linewidth=1, **style)
        axes.set_title(name, fontsize=9)
        axes.set_ylim(-0.03, 1.03)
        axes.tick_params(labelsize=7)
    figure.supxlabel(f"pruning ratio θ, {scope}", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure with 64 colours, which is enough for lines and bars."""
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=100)
    with Image.open(written) as picture:
        picture.convert("RGB").quantize(64).save(path, optimize=True)


# --- words ---


def _pictures(found: Found) -> int:
    return int(found.own.pictures.min())


def _ratio_of(setting: str) -> float:
    return 0.0 if setting == "whole" else float(setting.partition("-")[2]) / 100


def _ratios(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _numbers(values: Sequence[float] | Tensor) -> str:
    return ", ".join(f"{float(value):.2f}" for value in values)


def _shares(values: Sequence[float]) -> str:
    return ", ".join(f"{100 * value:.1f}" for value in values) + " %"


def _kinds(members: dict[str, list[str]]) -> str:
    return ", ".join(f"{len(names)} {kind}" for kind, names in sorted(members.items()))


def _split(gain, in_group) -> str:
    one, other = 100 * gain[in_group].mean(), 100 * gain[~in_group].mean()
    return f"{one:+.1f} points of dogs, {other:+.1f} of others"


def as_markdown(verdicts: Sequence[Verdict]) -> str:
    """Set claims, verdicts and figures side by side."""
    lines = ["| network | claim | here | figure |", "|---|---|---|---|"]
    lines += [f"| {it.network} | {it.claim} | {WORDS[it.holds]} | {it.figure} |" for it in verdicts]
    return "\n".join(lines)


def quality_means(quality: pd.DataFrame) -> str:
    """Set down what each ratio does to the mean class, as a table."""
    names = {"recall": "recall", "false_positive_rate": "false positives", "f1": "F1"}
    lines = [
        f"| network | setting | {', '.join(names.values()).replace(', ', ' | ')} | AUROC |",
        "|---|---|---:|---:|---:|---:|",
    ]
    means = quality.groupby(["network", "scope", "setting"], sort=False)[[*names, "auroc"]].mean()
    for (network, scope, setting), row in means.iterrows():
        called = f"{scope}, whole" if setting == "whole" else setting
        shares = " | ".join(f"{100 * row[name]:.1f} %" for name in names)
        lines.append(f"| {network} | {called} | {shares} | {row.auroc:.3f} |")
    return "\n".join(lines)


def report(out: Path, folder: Path, networks: Sequence[str]) -> None:
    """Write tables, figures and verdicts of the networks that are there."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    there = [found for name in networks if (found := Found.read(out / name)) is not None]
    tables = {
        "settings": settings_table,
        "classes": classes_table,
        "layers": layer_shares,
        "quality": quality_table,
    }
    for name, made in tables.items():
        frame = pd.concat([made(found) for found in there], ignore_index=True)
        frame.round(4).to_csv(folder / f"{name}.csv", index=False)
    residual = [it.residual.assign(network=it.name) for it in there if it.residual is not None]
    if residual:
        pd.concat(residual).round(4).to_csv(folder / "residual.csv", index=False)
    shapley = [
        agreement_by_class(it.shapley, it.ranking()).assign(network=it.name)
        for it in there
        if it.shapley is not None
    ]
    if shapley:
        pd.concat(shapley).round(4).to_csv(folder / "shapley.csv", index=False)
    verdicts = [verdict for claim in CLAIMS for found in there for verdict in claim(found)]
    text = as_markdown(verdicts)
    quality = pd.concat([quality_table(found) for found in there])
    if len(quality):
        text += "\n\nMeans over the classes, pictures of all classes:\n\n" + quality_means(quality)
    (folder / "claims.md").write_text(text + "\n")
    print(text)
    for found in there:
        for name, figure in figures(found):
            save(figure, folder / "figures" / f"{found.name}-{name}.png")
