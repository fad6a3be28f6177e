"""The commands, put together."""

from typing import Annotated

import typer

import neurank
from neurank.cli.compare import compare
from neurank.cli.condense import condense
from neurank.cli.dead import dead
from neurank.cli.demo import demo
from neurank.cli.output import OneLineErrors, say
from neurank.cli.rank import rank
from neurank.cli.specialize import specialize
from neurank.cli.train import train

app = typer.Typer(
    name="neurank",
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(neurank.__version__)
        raise typer.Exit


@app.callback()
def main(
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error comes from.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Which units of a trained network matter, how sure we are, and the smaller network.

    Start with [bold]neurank demo[/bold], which needs nothing.

    For a network of yours: [bold]rank[/bold] it by two methods, [bold]compare[/bold] the rankings,
    [bold]condense[/bold] it by one. [bold]specialize[/bold] cuts out a network for one class,
    [bold]dead[/bold] finds units that do nothing.

    Exit codes: 0 done, 2 something given cannot be used, 1 failed on the way, 130 Ctrl-C.
    """
    del traceback, version  # read from the context


app.command()(demo)
for command in (train, rank, compare, condense, specialize, dead):
    app.command(no_args_is_help=True)(command)
