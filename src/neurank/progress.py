"""A progress bar for whatever takes more than a second or two."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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


@contextmanager
def reporting(label: str, total: int, *, show: bool = True) -> Iterator[Callable[[str], None]]:
    """Show a bar as `track` does, whose steps are taken by calling what is yielded.

    Parameters
    ----------
    label
        What is being done.
    total
        The number of steps.
    show
        False keeps quiet on a terminal too.

    Yields
    ------
    Callable
        ``step(text)`` takes one step and shows the text, such as the best result so far.

    Examples
    --------
    >>> with reporting("ranking fc1", 2) as step:
    ...     step("top 3 ± 0.01")
    ...     step("top 3 ± 0.007")
    """
    if not (show and sys.stderr.isatty()):
        yield lambda _text: None
        return
    with _bar() as bar:
        task = bar.add_task(label, total=total)
        yield lambda text: bar.update(task, advance=1, description=f"{label}  {text}".rstrip())


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
