"""CIFAR-10 from parquet files in the layout of the Hugging Face hub."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurank.data.optional import optional
from neurank.data.splits import Split, Splits
from neurank.errors import DataError, FileError
from neurank.progress import track

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
SIZE = (32, 32)

_FITTED, _TRAINING_FILE, _TEST_FILE = 45_000, 50_000, 10_000
_LARGEST = 2**30  # bytes; the training file is 113 million


def load_cifar10(folder: Path, batch_size: int) -> Splits:
    """Load CIFAR-10 from the folder with its train-*.parquet and test-*.parquet files.

    60,000 colour pictures of 32 x 32 pixels, x/255. Train: rows 0 to 44,999 of the training
    file; validation: its rows 45,000 to 49,999; test: the 10,000 rows of the test file.

    Decoding 60,000 PNG pictures takes about 10 s on one core; threads do not make it faster,
    because pictures this small keep Python itself busy.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.

    Raises
    ------
    DataError
        The folder or one of the files is missing, or pyarrow or Pillow is not installed.
    FileError
        A file is damaged, or is not what its name says.
    """
    inputs, targets = _read_part(folder, "train", _TRAINING_FILE)
    test_inputs, test_targets = _read_part(folder, "test", _TEST_FILE)

    def part(name: str, inputs: Tensor, targets: Tensor) -> Split:
        return Split(inputs, targets, f"cifar10/{name}", batch_size, CLASSES)

    return Splits(
        train=part("train", inputs[:_FITTED], targets[:_FITTED]),
        validation=part("validation", inputs[_FITTED:], targets[_FITTED:]),
        test=part("test", test_inputs, test_targets),
        name="cifar10",
        classes=CLASSES,
    )


def _read_part(folder: Path, stem: str, examples: int) -> tuple[Tensor, Tensor]:
    files = sorted(folder.glob(f"{stem}-*.parquet"))
    if not files:
        raise DataError(f"{folder} has no {stem}-*.parquet: give the folder that has it")
    tables = [_read_table(path) for path in files]
    pictures = [picture for encoded, _ in tables for picture in encoded]
    labels = [label for _, column in tables for label in column]
    where = files[0] if len(files) == 1 else folder / f"{stem}-*.parquet"
    if len(pictures) != examples:
        raise FileError(
            f"{where} holds {len(pictures):,} rows where {examples:,} were expected: "
            "give the whole original data set"
        )
    if not set(labels) <= set(range(len(CLASSES))):
        raise FileError(
            f"{where} has labels outside 0 to {len(CLASSES) - 1}: give the original data set"
        )
    shown = track(pictures, label=f"decoding {stem}", total=examples)
    return _decode(shown, where), torch.tensor(labels)


def _read_table(path: Path) -> tuple[list[bytes], list[int]]:
    """Read the encoded pictures and the labels of one file, nothing of which runs."""
    arrow = _optional("pyarrow")
    parquet = _optional("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            _check_size(file.metadata, path)
            table = file.read(columns=["img", "label"])
        pictures = table.column("img").combine_chunks().field("bytes").to_pylist()
        labels = table.column("label").cast(arrow.int64()).to_pylist()
    except (arrow.ArrowException, KeyError, OSError) as error:
        raise FileError(
            f"{path} cannot be read as CIFAR-10 in parquet ({error}): get an undamaged copy with "
            "the columns img (bytes, path) and label"
        ) from error
    return pictures, labels


def _check_size(metadata: Any, path: Path) -> None:
    """Refuse a file that unpacks to more than the data set can, before it is unpacked."""
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if size > _LARGEST or metadata.num_rows > _TRAINING_FILE:
        raise FileError(
            f"{path} promises {metadata.num_rows:,} rows and {size:,} bytes, more than CIFAR-10 "
            "has: give the original data set"
        )


def _decode(pictures: Iterable[bytes], where: Path) -> Tensor:
    """Decode PNG pictures into x/255, channels first."""
    image = _optional("PIL.Image")
    rows = []
    for row, encoded in enumerate(pictures):
        try:
            picture = image.open(io.BytesIO(encoded), formats=("PNG",))
            if picture.size != SIZE or picture.mode != "RGB":
                raise FileError(
                    f"{where} has in row {row:,} a picture of {picture.size} in {picture.mode} "
                    "where 32 x 32 in RGB was expected: give the original data set"
                )
            rows.append(picture.tobytes())
        except (OSError, SyntaxError, TypeError) as error:
            raise FileError(
                f"{where} has in row {row:,} no readable PNG picture ({error}): "
                "get an undamaged copy"
            ) from error
    pixels = np.frombuffer(bytearray().join(rows), np.uint8).reshape(-1, *SIZE, 3)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(255)


def _optional(module: str) -> Any:
    """Import what CIFAR-10 needs beyond the rest of neurank."""
    return optional(module, "CIFAR-10", "pip install 'neurank[cifar10]'")
