"""Plain text for people: names that cannot harm a terminal, shares, and tables."""

import math
from collections.abc import Sequence

_LONGEST_NAME = 40


def legible(text: str, longest: int = _LONGEST_NAME) -> str:
    r"""Return `text` fit for a terminal: control characters escaped, the middle cut out if long.

    Examples
    --------
    >>> print(legible("conv\x1b[2J"))
    conv\x1b[2J
    """
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    if len(shown) <= longest:
        return shown
    half = (longest - 1) // 2
    return f"{shown[: longest - 1 - half]}…{shown[-half:]}"


def percent(share: float) -> str:
    """Return a share in percent, "undefined" for NaN.

    Examples
    --------
    >>> percent(0.01234), percent(float("nan"))
    ('1.23 %', 'undefined')
    """
    return "undefined" if math.isnan(share) else f"{100 * share:.2f} %"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one line per row, its columns padded to equal width and two blanks apart.

    Examples
    --------
    >>> aligned([("conv1", "10"), ("fc", "4")])
    ['conv1  10', 'fc     4']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
