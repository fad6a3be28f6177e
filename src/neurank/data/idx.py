"""MNIST and its relatives: idx files, plain or gzipped.

An idx file is two zero bytes, one for the type of its numbers (8: unsigned bytes), one for the
number of axes, the length of each axis as a big-endian 32-bit number, and then the numbers.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from neurank.data.splits import Split, Splits
from neurank.errors import DataError, FileError

DIGITS = tuple("0123456789")
GARMENTS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

_UNSIGNED_BYTE = 8
_LARGEST = 2**30  # bytes; MNIST's training pictures are 47 million
_FITTED, _TRAINING_FILE, _TEST_FILE = 55_000, 60_000, 10_000


def load_mnist(folder: Path, batch_size: int) -> Splits:
    """Load MNIST from the folder with its four idx files.

    70,000 grey digits of 28 x 28 pixels, x/255. Train: rows 0 to 54,999 of the training file;
    validation: its rows 55,000 to 59,999; test: the 10,000 rows of the test file.

    Source: Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits.

    Raises
    ------
    DataError
        The folder or one of the files is missing.
    FileError
        A file is damaged, or is not what its name says.
    """
    return _load(folder, "mnist", DIGITS, batch_size)


def load_fashion_mnist(folder: Path | None, batch_size: int) -> Splits:
    """Load Fashion-MNIST, which has MNIST's form, sizes and splits, with garments for digits.

    Without a folder the files are those of Debian's package dataset-fashion-mnist.

    Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, arXiv:1708.07747.

    Raises
    ------
    DataError
        The folder or one of the files is missing.
    FileError
        A file is damaged, or is not what its name says.
    """
    if folder is None and not DEBIAN_FASHION_MNIST.is_dir():
        raise DataError(
            f"fashion-mnist without a path looks in {DEBIAN_FASHION_MNIST}, which is not there: "
            "install it (apt install dataset-fashion-mnist) or give the folder "
            "(fashion-mnist:DIR)"
        )
    return _load(folder or DEBIAN_FASHION_MNIST, "fashion-mnist", GARMENTS, batch_size)


def read_idx(path: Path, axes: int) -> Tensor:
    """Read an idx file of unsigned bytes, gzipped if its name ends in ``.gz``.

    Never more is read than the header promises, and one byte; a header that promises more than
    the file can hold is refused before any of it is.

    Parameters
    ----------
    path
        The file.
    axes
        How many axes it must have: 3 for pictures, 1 for labels.

    Returns
    -------
    Tensor of uint8
        In the shape that the header states.

    Raises
    ------
    FileError
        The file is not an idx file of that kind, or it is cut short, too long or damaged.
    """
    try:
        with _opened(path) as stream:
            shape = _read_header(stream, path, axes)
            content = stream.read(math.prod(shape) + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise FileError(f"{path} cannot be read ({error}): get an undamaged copy") from error
    if len(content) != math.prod(shape):
        fault = "more" if len(content) > math.prod(shape) else f"only {len(content):,}"
        raise FileError(
            f"{path} promises {math.prod(shape):,} bytes of data and holds {fault}: "
            "get an undamaged copy"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy()).reshape(shape)


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _read_header(stream: BinaryIO, path: Path, axes: int) -> tuple[int, ...]:
    header = stream.read(4 + 4 * axes)
    magic = bytes((0, 0, _UNSIGNED_BYTE, axes))
    if header[:4] != magic:
        raise FileError(
            f"{path} begins with the bytes {header[:4].hex(' ')} where an idx file of unsigned "
            f"bytes with {axes} axes has {magic.hex(' ')}: give the right file"
        )
    if len(header) < 4 + 4 * axes:
        raise FileError(f"{path} ends within its header: get an undamaged copy")
    shape = struct.unpack(f">{axes}I", header[4:])
    if math.prod(shape) > _most_bytes(path):
        raise FileError(
            f"{path} promises {' x '.join(f'{size:,}' for size in shape)} bytes, more than a file "
            "of its size can hold: get an undamaged copy"
        )
    return shape


def _most_bytes(path: Path) -> int:
    """Bound what the file can hold: gzip at its very best makes 1,032 bytes into one."""
    size = path.stat().st_size
    return min(_LARGEST, 1032 * size if path.suffix == ".gz" else size)


def _load(folder: Path, name: str, classes: tuple[str, ...], batch_size: int) -> Splits:
    inputs, targets = _read_pair(folder, "train", _TRAINING_FILE, classes)
    test_inputs, test_targets = _read_pair(folder, "t10k", _TEST_FILE, classes)

    def part(part_name: str, inputs: Tensor, targets: Tensor) -> Split:
        return Split(inputs, targets, f"{name}/{part_name}", batch_size, classes)

    return Splits(
        train=part("train", inputs[:_FITTED], targets[:_FITTED]),
        validation=part("validation", inputs[_FITTED:], targets[_FITTED:]),
        test=part("test", test_inputs, test_targets),
        name=name,
        classes=classes,
    )


def _read_pair(
    folder: Path, stem: str, examples: int, classes: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    pictures = _find(folder, f"{stem}-images-idx3-ubyte")
    labels = _find(folder, f"{stem}-labels-idx1-ubyte")
    inputs, targets = read_idx(pictures, axes=3), read_idx(labels, axes=1)
    if inputs.shape != (examples, 28, 28):
        raise FileError(
            f"{pictures} holds {' x '.join(f'{size:,}' for size in inputs.shape)} numbers where "
            f"{examples:,} x 28 x 28 were expected: give the whole original file"
        )
    if len(targets) != examples:
        raise FileError(
            f"{labels} holds {len(targets):,} labels where {examples:,} were expected: "
            "give the whole original file"
        )
    if int(targets.max()) >= len(classes):
        raise FileError(
            f"{labels} has the label {int(targets.max())}, and labels go to {len(classes) - 1}: "
            "give the original file"
        )
    return inputs.unsqueeze(1).float().div_(255), targets.long()


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder} has neither {name} nor {name}.gz: give the folder that has them")
