"""The data sets that `load` knows by name."""

from collections.abc import Callable
from pathlib import Path

from neurank.data.cifar10 import load_cifar10
from neurank.data.digits import load_digits
from neurank.data.folder import load_folder
from neurank.data.idx import load_fashion_mnist, load_mnist
from neurank.data.splits import Splits
from neurank.errors import DataError


def load(spec: str, *, batch_size: int = 200) -> Splits:
    """Load a data set as three disjoint parts that are the same every time.

    ================================= ========== ================ ======= ========== ======
    spec                              example    pixels           train   validation test
    ================================= ========== ================ ======= ========== ======
    ``digits``                        1 x 8 x 8  x/16             1,197   300        300
    ``mnist:DIR``                     1 x 28 x 28 x/255           55,000  5,000      10,000
    ``fashion-mnist[:DIR]``           1 x 28 x 28 x/255           55,000  5,000      10,000
    ``cifar10:DIR``                   3 x 32 x 32 x/255           45,000  5,000      10,000
    ``folder:DIR``                    3 x h x w   x/255           train/  val/       test/
    ================================= ========== ================ ======= ========== ======

    `digits` comes with scikit-learn. `mnist` and `fashion-mnist` read the four original idx
    files in DIR, plain or gzipped; without DIR, `fashion-mnist` reads those of Debian's package
    dataset-fashion-mnist. `cifar10` reads train-*.parquet and test-*.parquet in DIR and needs
    ``neurank[cifar10]``; it takes some seconds, for it decodes 60,000 PNG pictures. Where the
    data set has a test file, validation is the end of its training file.

    `folder` reads pictures of one size that lie in one folder per class, as in
    DIR/train/tench/1.jpg, DIR/val/tench/2.jpg (or validation/) and DIR/test/tench/3.jpg, and needs
    Pillow. Without test/ the pictures of val/ are shared out: of each class, sorted by name, those
    at even places (0, 2, ...) are validation, those at odd places test. A label is the place of
    the class's folder among the sorted names of all, or what DIR/classes.csv says; see
    `neurank.data.folder.load_folder`.

    Parameters
    ----------
    spec
        One of the names above, with its folder after a colon.
    batch_size
        Examples per batch, in all three parts.

    Returns
    -------
    Splits
        Inputs of float32, shape (examples, channels, height, width), and targets of int64.

    Raises
    ------
    DataError
        The name is unknown, the folder or a file in it is missing, or what lies in the folder does
        not fit together.
    FileError
        A file is damaged, or is not what its name says.

    Examples
    --------
    >>> digits = load("digits", batch_size=100)
    >>> digits.train
    Split(digits/train: 1,197 examples of 1 x 8 x 8, 10 classes, batches of 100)
    """
    name, _, path = spec.partition(":")
    if name not in _SOURCES:
        raise DataError(f"no data set is called {name!r}: give one of {', '.join(KNOWN)}")
    return _SOURCES[name](Path(path).expanduser() if path else None, batch_size)


def _digits(folder: Path | None, batch_size: int) -> Splits:
    if folder is not None:
        raise DataError(f"digits come with scikit-learn and have no folder: drop {str(folder)!r}")
    return load_digits(batch_size)


def _mnist(folder: Path | None, batch_size: int) -> Splits:
    return load_mnist(_needed(folder, "mnist"), batch_size)


def _cifar10(folder: Path | None, batch_size: int) -> Splits:
    return load_cifar10(_needed(folder, "cifar10"), batch_size)


def _folder(folder: Path | None, batch_size: int) -> Splits:
    return load_folder(_needed(folder, "folder"), batch_size)


def _needed(folder: Path | None, name: str) -> Path:
    if folder is None:
        raise DataError(f"{name} needs the folder that has its files: give {name}:DIR")
    return folder


KNOWN = ("digits", "mnist:DIR", "fashion-mnist[:DIR]", "cifar10:DIR", "folder:DIR")

_SOURCES: dict[str, Callable[[Path | None, int], Splits]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": _cifar10,
    "folder": _folder,
}
