"""A progress bar for whatever takes more than a second or two."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


def track(
    iterable: Iterable[T], *, label: str, total: int | None = None, show: bool = True
) -> Iterator[T]:
    """Yield the items of `iterable` unchanged and show on standard error how far they have come.

    The bar, with the time that has gone and an estimate of what is left, appears only where
    `show` is true and standard error is a terminal, and it goes when the items have ended. What
    is computed never depends on it.

    Parameters
    ----------
    iterable
        What to go through, once.
    label
        What is being done, in a few words; printed as it stands, never read as markup.
    total
        The number of items, where ``len(iterable)`` does not tell it.
    show
        False keeps quiet on a terminal too.

    Yields
    ------
    T
        Each item in its turn.

    Examples
    --------
    >>> list(track("abc", label="letters"))
    ['a', 'b', 'c']
    """
    if not (show and sys.stderr.isatty()):
        yield from iterable
        return
    with _bar() as bar:
        yield from bar.track(iterable, total=total, description=label)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
