"""``neurank compare``: where two rankings agree."""

from pathlib import Path
from typing import Annotated

import typer

from neurank.agreement import compare as compare_rankings
from neurank.cli import arguments
from neurank.cli.output import document, say
from neurank.cli.words import number_or_per_layer
from neurank.errors import RankingError
from neurank.ranking import Ranking
from neurank.report.documents import agreement_document


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A ranking that 'neurank rank' wrote.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another ranking of the same network.")],
    k: Annotated[
        str,
        typer.Option(
            "-k",
            metavar="5|conv1=3,fc1=5",
            help="How many top units to compare: in every layer, or layer by layer.",
        ),
    ] = "5",
    json: arguments.Json = False,
) -> None:
    """Compare two rankings of one network: shared top units, how likely by chance, correlations."""
    first, second = Ranking.load(a), Ranking.load(b)
    sizes = number_or_per_layer(k, int, "-k")
    if isinstance(sizes, int):
        _check_k(sizes, first, second)
    names = (a.stem, b.stem) if first.method == second.method and a.stem != b.stem else None
    agreement = compare_rankings(first, second, sizes, names=names)
    if json:
        document(agreement_document(agreement))
    else:
        say(agreement)


def _check_k(k: int, first: Ranking, second: Ranking) -> None:
    units = {name: first[name].units for name in first if name in second}
    if units and not 1 <= k <= min(units.values()):
        fitting = ",".join(f"{name}={min(max(k, 1), width)}" for name, width in units.items())
        raise RankingError(
            f"-k {k} does not fit every layer, the smallest has {min(units.values())} units: give "
            f"-k {fitting}"
        )
