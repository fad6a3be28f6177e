"""``neurank train``: train a network by the papers' recipe."""

from typing import Annotated

import typer
from torch import nn

from neurank.cli import arguments
from neurank.cli.models import architecture, save_weights
from neurank.cli.output import command_line, document, say
from neurank.cli.sources import load_data
from neurank.data import Splits
from neurank.files import Json
from neurank.text import aligned, percent
from neurank.training import History, error_rate, fit


def train(
    model: arguments.Model,
    data: arguments.Data,
    out: arguments.Out,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training part.")] = 10,
    lr: Annotated[float, typer.Option(help="Learning rate of the first epoch.")] = 0.1,
    batch_size: arguments.BatchSize = 50,
    seed: arguments.Seed = 0,
    json: arguments.Json = False,
) -> None:
    """Train a network and write its weights.

    Stochastic gradient descent with momentum 0.9 and weight decay 5e-4. The learning rate falls to
    a hundredth. The weights of the epoch with the lowest validation error are kept.
    """
    arguments.check_out(out)
    splits = load_data(data, batch_size=batch_size)
    network = architecture(model, seed=seed).factory()
    history = fit(
        network,
        splits.train,
        splits.validation,
        epochs=epochs,
        lr=lr,
        final_lr=lr / 100,
        batch_size=batch_size,
        seed=seed,
    )
    summary = _summary(network, splits, history)
    made: dict[str, Json] = {"model": model, "data": data, "epochs": epochs, "lr": lr, "seed": seed}
    save_weights(network, out, {**made, **summary})
    if json:
        document({**made, **summary, "losses": history.losses, "written": str(out)})
        return
    say("\n".join(aligned(_rows(history, summary))))
    say(f"\nwrote {out}")
    ranked = ("--weights", out, "--out", "ranking.safetensors")
    say(f"next: {command_line('neurank', 'rank', model, data, *ranked)}")


def _summary(network: nn.Module, splits: Splits, history: History) -> dict[str, Json]:
    return {
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "best_epoch": history.best_epoch,
        "validation_error": history.best_error,
        "test_error": error_rate(network, splits.test),
        "seconds": round(history.seconds, 1),
    }


def _rows(history: History, summary: dict[str, Json]) -> list[tuple[str, str]]:
    return [
        ("parameters", f"{summary['parameters']:,}"),
        ("best epoch", f"{history.best_epoch} of {len(history.losses)}"),
        ("validation error", percent(history.best_error)),
        ("test error", percent(float(str(summary["test_error"])))),
        ("seconds", f"{history.seconds:.1f}"),
    ]
