"""The folder that a run leaves behind: nothing that was there before is ever overwritten."""

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from neurank.agreement import Agreement
from neurank.errors import FileError
from neurank.files import Json
from neurank.ranking import Ranking
from neurank.report.documents import plain
from neurank.text import legible

RUNS = Path("runs")
"""Where numbered folders are made."""


@dataclass(frozen=True)
class RunFolder:
    """A folder of one run; every file in it is written once.

    Attributes
    ----------
    path : the folder.
    """

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """What has been written so far, by name."""
        return tuple(sorted(self.path.iterdir()))

    def file(self, name: str) -> Path:
        """Return the path of a file that is not there yet.

        Raises
        ------
        FileError
            It is there already, or `name` leads out of the folder.

        Examples
        --------
        >>> RunFolder(Path("somewhere")).file("scores.png").name
        'scores.png'
        """
        path = self.path / name
        if Path(name).name != name:
            raise FileError(f"{name!r} is not the name of a file: give one without a folder")
        if path.exists():
            raise FileError(f"{path} is there already: give each file of a run its own name")
        return path

    def save_ranking(self, name: str, ranking: Ranking) -> Path:
        """Write a ranking as ``<name>.safetensors``."""
        path = self.file(f"{name}.safetensors")
        ranking.save(path)
        return path

    def save_agreement(self, agreement: Agreement, name: str = "agreement") -> Path:
        """Write an agreement as a table to read, ``<name>.txt``, and to reckon with, ``.csv``."""
        text, table = self.file(f"{name}.txt"), self.file(f"{name}.csv")
        frame = agreement.to_frame()
        frame["layer"] = frame["layer"].map(_cell)
        for column in ("top_a", "top_b"):
            frame[column] = frame[column].map(lambda units: " ".join(map(str, units)))
        _write(text, f"{agreement}\n")
        _write(table, frame.to_csv(index=False))
        return text

    def save_figure(self, name: str, figure: Figure) -> Path:
        """Write a figure as ``<name>.png``."""
        path = self.file(f"{name}.png")
        _guarded(path, lambda: figure.savefig(path, format="png"))
        return path

    def save_summary(self, summary: Mapping[str, Json]) -> Path:
        """Write ``summary.json``; NaN and infinity become null."""
        path = self.file("summary.json")
        _write(path, json.dumps(plain(summary), indent=2, allow_nan=False) + "\n")
        return path


def run_folder(path: str | os.PathLike[str]) -> RunFolder:
    """Make the folder `path` for a run, or take it if it is there and empty.

    Raises
    ------
    FileError
        There is something in it, it is a file, or it cannot be made.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as somewhere:
    ...     run_folder(Path(somewhere, "one")).path.is_dir()
    True
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise FileError(f"{folder} is a file: give the name of a new folder")
    _guarded(folder, lambda: folder.mkdir(parents=True, exist_ok=True))
    if any(folder.iterdir()):
        raise FileError(
            f"{folder} is not empty, and a run overwrites nothing: give the name of a new folder"
        )
    return RunFolder(folder)


def numbered_run_folder(stem: str, parent: str | os.PathLike[str] = RUNS) -> RunFolder:
    """Make the next folder ``parent/stem-001``, ``-002`` and so on.

    Two runs that start at once get two folders.

    Raises
    ------
    FileError
        It cannot be made.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as somewhere:
    ...     [numbered_run_folder("demo", somewhere).path.name for _ in range(2)]
    ['demo-001', 'demo-002']
    """
    home = Path(parent)
    _guarded(home, lambda: home.mkdir(parents=True, exist_ok=True))
    number = 1 + max((_number(entry.name, stem) for entry in home.iterdir()), default=0)
    while not _made(folder := home / f"{stem}-{number:03d}"):
        number += 1  # another run has just taken that number
    return RunFolder(folder)


def _made(folder: Path) -> bool:
    """Make a folder; False if it is there already."""
    with suppress(FileExistsError):
        folder.mkdir()
        return True
    return False


def _number(name: str, stem: str) -> int:
    found = re.fullmatch(rf"{re.escape(stem)}-(\d+)", name)
    return int(found[1]) if found else 0


def _write(path: Path, text: str) -> None:
    _guarded(path, lambda: path.write_text(text, encoding="utf-8"))


def _guarded(path: Path, action: Callable[[], object]) -> None:
    try:
        action()
    except OSError as error:
        raise FileError(
            f"{path} could not be written ({error.strerror or error}): free some space, or choose "
            "a folder that you may write to"
        ) from error


def _cell(name: str) -> str:
    """Return a name that no spreadsheet takes for a formula and no terminal for a command."""
    shown = legible(name, 120)
    return f"'{shown}" if shown[:1] in {"=", "+", "-", "@"} else shown
