"""Pictures in folders: one folder per part, in it one folder per class."""

import csv
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurank.data.optional import optional
from neurank.data.splits import Split, Splits
from neurank.errors import DataError, FileError
from neurank.progress import track
from neurank.text import legible

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
"""How the names of pictures end, in capitals or not; other files are left out."""

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_MOST_PIXELS = 64 * 10**6
_MOST_CLASSES = 10**6
_LONGEST_TABLE = 2**24  # bytes of classes.csv
# Of more than 8 bits a channel; Pillow cuts their brightest off instead of scaling them.
_DEEP = ("I", "F")

ByClass = Mapping[str, Sequence[Path]]
"""Of each class, by its folder's name, the pictures, sorted by name."""


@dataclass(frozen=True)
class ClassTable:
    """Which label the pictures of a class folder get, and what the labels are called.

    Attributes
    ----------
    labels : class folder -> label.
    names : the readable name of each label from 0.
    """

    labels: Mapping[str, int]
    names: tuple[str, ...]


def load_folder(folder: Path, batch_size: int) -> Splits:
    """Load pictures from DIR/train/CLASS/*, DIR/val/CLASS/* (or validation/) and DIR/test/CLASS/*.

    RGB, x/255, shape (examples, 3, height, width); grey and palettes are converted, transparency
    is dropped. Pictures end in jpg, jpeg, png, bmp or webp, in capitals or not; other files, and
    names that begin with a dot, are left out. All pictures are kept in memory, 12 bytes a pixel.

    **Without test/** the pictures of val/ are shared out: of each class, sorted by name, those at
    even places (0, 2, ...) are validation and those at odd places (1, 3, ...) test.

    **Labels** are the places of the class folders among the sorted names of all parts' class
    folders. Where there is a DIR/classes.csv, they come from there: behind a header line, its
    first column is the class folder, the second its label, the third, if there is one, a readable
    name, which otherwise is the folder's. Then there are as many classes as the largest label
    says, and a label without a row is called by its number. So the labels can be those of a
    network that knows more classes than the folder has.

    **Order**: the first picture of each class, then the second of each, and so on, so that the
    first so many examples have all classes alike.

    Parameters
    ----------
    folder
        DIR. Nothing outside of it is read; links that lead out are refused.
    batch_size
        Examples per batch, in all three parts.

    Raises
    ------
    DataError
        A folder is missing, a part has no pictures, two pictures differ in size, a class folder is
        not in classes.csv, a link leads out of DIR, there is not enough memory, or Pillow is not
        installed.
    FileError
        A file is damaged, is no picture of these kinds, has more than 64 million pixels or more
        than 8 bits a channel, or classes.csv cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for part, shade in (("train", 0), ("val", 51), ("test", 255)):
    ...         Path(folder, part, "cat").mkdir(parents=True)
    ...         Image.new("L", (6, 4), shade).save(Path(folder, part, "cat", "1.png"))
    ...     splits = load_folder(Path(folder), batch_size=10)
    >>> splits.validation.inputs.shape, splits.validation.inputs.unique().tolist(), splits.classes
    (torch.Size([1, 3, 4, 6]), [0.20000000298023224], ('cat',))
    """
    root = folder.resolve()
    parts = {name: _by_class(path, root) for name, path in _part_folders(folder).items()}
    if "test" not in parts:
        parts["validation"], parts["test"] = _shared_out(parts["validation"])
    for name, by_class in parts.items():
        _check_any(name, by_class, folder)
    table = _class_table(folder, root, sorted(set(chain.from_iterable(parts.values()))))
    size = _common_size([path for by_class in parts.values() for path in _in_turns(by_class)])
    called = legible(root.name)

    def part(name: str) -> Split:
        paths = _in_turns(parts[name])
        targets = torch.tensor([table.labels[_class_of(path)] for path in paths])
        inputs = _decoded(paths, size, f"decoding {name}")
        return Split(inputs, targets, f"{called}/{name}", batch_size, table.names)

    return Splits(part("train"), part("validation"), part("test"), called, table.names)


def _part_folders(folder: Path) -> dict[str, Path]:
    """Find the folders of train, validation and, where there is one, test."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: give the one that has train and val in it")
    validation = [folder / name for name in ("val", "validation") if _is_there(folder / name)]
    if len(validation) == 2:
        raise DataError(f"{folder} has both val and validation: leave one of them")
    if not validation or not _is_there(folder / "train"):
        missing = "val" if _is_there(folder / "train") else "train"
        raise DataError(
            f"{folder} has no folder {missing}: put the pictures into train/CLASS/ and val/CLASS/, "
            "and those of the final test into test/CLASS/"
        )
    found = {"train": folder / "train", "validation": validation[0]}
    test = folder / "test"
    return {**found, "test": test} if _is_there(test) else found


def _is_there(path: Path) -> bool:
    """Whether there is such a name, be it that of a link that leads nowhere."""
    return path.is_symlink() or path.exists()


def _by_class(part: Path, root: Path) -> ByClass:
    folders = [path for path in _listed(part, root) if not path.is_file()]
    return {path.name: tuple(_pictures(path, root)) for path in folders}


def _pictures(folder: Path, root: Path) -> Iterator[Path]:
    for path in _listed(folder, root):
        if path.suffix.lower() not in EXTENSIONS:
            continue
        if not path.is_file():
            raise FileError(f"{path} is no file, or a link that leads to none: remove it")
        yield path


def _listed(folder: Path, root: Path) -> list[Path]:
    """List a folder sorted by name, without hidden things; nothing in it may lead out."""
    try:
        found = sorted(_inside(folder, root).iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise FileError(f"{folder} cannot be read ({error}): see that it may be read") from error
    return [_inside(path, root) for path in found if not path.name.startswith(".")]


def _inside(path: Path, root: Path) -> Path:
    """Give the path back, unless a link in it leads out of the data set."""
    try:
        leads_to = path.resolve()
    except (OSError, RuntimeError) as error:
        raise FileError(f"{path} leads nowhere ({error}): remove it") from error
    if not leads_to.is_relative_to(root):
        raise DataError(
            f"{path} is a link to {leads_to}, outside of {root}: copy what it leads to into its "
            "place"
        )
    return path


def _shared_out(validation: ByClass) -> tuple[ByClass, ByClass]:
    """Give of each class the pictures at even places, and those at odd places."""
    even = {name: paths[::2] for name, paths in validation.items()}
    return even, {name: paths[1::2] for name, paths in validation.items()}


def _check_any(part: str, by_class: ByClass, folder: Path) -> None:
    if not any(by_class.values()):
        raise DataError(
            f"{folder} has no pictures for {part}: put files that end in {', '.join(EXTENSIONS)} "
            "into one folder per class; where there is no test, val needs two of a class"
        )


def _in_turns(by_class: ByClass) -> tuple[Path, ...]:
    """Take the first picture of each class, then the second of each, and so on."""
    places = ((place, path) for paths in by_class.values() for place, path in enumerate(paths))
    return tuple(path for _, path in sorted(places, key=lambda it: (it[0], _class_of(it[1]))))


def _class_of(path: Path) -> str:
    return path.parent.name


def _class_table(folder: Path, root: Path, found: Sequence[str]) -> ClassTable:
    """Read classes.csv, or number the class folders."""
    path = folder / "classes.csv"
    if not _is_there(path):
        return ClassTable({name: label for label, name in enumerate(found)}, tuple(found))
    table = _read_table(_inside(path, root))
    missing = next((name for name in found if name not in table.labels), None)
    if missing is not None:
        raise DataError(
            f"{path} has no row for the class folder {legible(missing)!r} (its first line is taken "
            "for the header): add one, or remove the folder"
        )
    return table


def _read_table(path: Path) -> ClassTable:
    labels: dict[str, int] = {}
    names: dict[int, str] = {}
    for line, row in _rows(path):
        name, label = row[0].strip(), _label(row, path, line)
        if name in labels or label in names:
            again = f"the folder {legible(name)!r}" if name in labels else f"the label {label}"
            raise FileError(f"{path} has {again} again in line {line}: give each one row")
        labels[name] = label
        names[label] = (row[2].strip() if len(row) > 2 else "") or name
    if not labels:
        raise FileError(f"{path} has no rows behind its header: add them, or remove the file")
    return ClassTable(labels, tuple(names.get(at, str(at)) for at in range(max(names) + 1)))


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line behind the header that is not empty, and what it says."""
    try:
        if path.stat().st_size > _LONGEST_TABLE:
            raise FileError(f"{path} is longer than {_LONGEST_TABLE:,} bytes: give a short table")
        with path.open(encoding="utf-8", newline="") as stream:
            lines = csv.reader(stream)
            next(lines, None)
            yield from ((lines.line_num, row) for row in lines if any(row))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(
            f"{path} cannot be read ({error}): give a table in UTF-8, columns divided by commas"
        ) from error


def _label(row: Sequence[str], path: Path, line: int) -> int:
    text = row[1].strip() if len(row) > 1 else ""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < _MOST_CLASSES):
        raise FileError(
            f"{path} has in line {line} the label {legible(text)!r}: give a folder, a whole number "
            f"from 0 to {_MOST_CLASSES - 1:,} and, if you like, a name, divided by commas"
        )
    return int(text)


def _common_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Read width and height from the headers of all pictures, which must agree."""
    first = _size(paths[0])
    for path in track(paths[1:], label="looking at sizes", total=len(paths) - 1):
        size = _size(path)
        if size != first:
            raise DataError(
                f"{paths[0]} is {_by(first)} pixels and {path} is {_by(size)}: make all pictures "
                "one size first, or give a function of your own as file.py:factory"
            )
    return first


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]:,} x {size[1]:,}"


def _size(path: Path) -> tuple[int, int]:
    with _opened(path) as picture:
        width, height = picture.size
    return width, height


def _decoded(paths: Sequence[Path], size: tuple[int, int], label: str) -> Tensor:
    """Decode pictures of one size into x/255, shape (pictures, 3, height, width)."""
    width, height = size
    pixels = _room(len(paths), 3, height, width)
    for row, path in enumerate(track(paths, label=label)):
        with _opened(path) as picture:
            if picture.mode.partition(";")[0] in _DEEP:
                raise FileError(
                    f"{path} has more than 8 bits a channel (mode {picture.mode}): convert it to "
                    "8 bits"
                )
            rgb = np.array(_without_palette(picture).convert("RGB"))  # (height, width, 3)
        pixels[row] = torch.from_numpy(rgb).permute(2, 0, 1)
    return pixels.div_(255)


def _without_palette(picture: Any) -> Any:
    """Resolve a palette whose colours are partly transparent, which Pillow wants done first."""
    transparent = picture.mode == "P" and "transparency" in picture.info
    return picture.convert("RGBA") if transparent else picture


def _room(*shape: int) -> Tensor:
    try:
        return torch.empty(shape)
    except RuntimeError as error:
        raise DataError(
            f"{shape[0]:,} pictures of {_by((shape[3], shape[2]))} pixels do not fit into memory: "
            "take fewer or smaller ones, or give a function of your own as file.py:factory"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a picture whose pixels are decoded on request only; what goes wrong names the file.

    More pixels than `_MOST_PIXELS` are refused by what the header says.
    """
    image = optional("PIL.Image", "a folder of pictures", "pip install pillow")
    try:
        with _undisturbed(image), image.open(path, formats=_FORMATS) as picture:
            _check_pixels(picture.width * picture.height, path)
            yield picture
    except image.DecompressionBombError as error:
        raise FileError(f"{path} is too large ({error}): make it smaller") from error
    except FileError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise FileError(
            f"{path} is no readable picture ({error}): get an undamaged copy, or remove it"
        ) from error


def _check_pixels(pixels: int, path: Path) -> None:
    if pixels > _MOST_PIXELS:
        raise FileError(
            f"{path} has {pixels:,} of at most {_MOST_PIXELS:,} pixels: make it smaller"
        )


@contextmanager
def _undisturbed(image: Any) -> Iterator[None]:
    """Let Pillow not warn of the many pixels that are refused right afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", image.DecompressionBombWarning)
        yield
