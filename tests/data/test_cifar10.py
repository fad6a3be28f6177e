import io
import json

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from neurank.data import cifar10 as reader
from neurank.data import load
from neurank.errors import DataError, FileError


def png(pixels, mode="RGB", form="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, form)
    return stream.getvalue()


def write(path, pictures, labels, columns=("img", "label")):
    encoded = [{"bytes": picture, "path": None} for picture in pictures]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table([pyarrow.array(encoded, kind), pyarrow.array(labels)], names=columns)
    parquet.write_table(table, path)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch, pixels):
    """A data set in CIFAR-10's form with 6 + 2 pictures, the training ones in two files."""
    monkeypatch.setattr(reader, "_FITTED", 4)
    monkeypatch.setattr(reader, "_TRAINING_FILE", 6)
    monkeypatch.setattr(reader, "_TEST_FILE", 2)
    pictures = [png(picture) for picture in pixels]
    write(tmp_path / "train-00000-of-00002.parquet", pictures[:5], [0, 1, 2, 3, 4])
    write(tmp_path / "train-00001-of-00002.parquet", pictures[5:6], [5])
    write(tmp_path / "test-00000-of-00001.parquet", pictures[6:], [8, 9])
    return tmp_path


def test_pictures_and_labels_go_to_their_parts(folder, pixels):
    splits = load(f"cifar10:{folder}", batch_size=3)
    parts = (splits.train, splits.validation, splits.test)
    assert [part.targets.tolist() for part in parts] == [[0, 1, 2, 3], [4, 5], [8, 9]]
    read = torch.cat([part.inputs for part in parts])
    assert torch.equal(read, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    assert read.dtype == torch.float32
    assert splits.train.batch_size == 3
    assert splits.classes[9] == "truck"


TEST_FILE = "test-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("picture", "fault"),
    [
        (png(np.zeros((31, 32, 3), np.uint8)), r"row 1 a picture of \(32, 31\)"),
        (png(np.zeros((32, 32, 3), np.uint8), "L"), "in L"),
        (png(np.zeros((32, 32, 3), np.uint8), form="BMP"), "no readable PNG"),
        (b"no picture", "no readable PNG"),
        (png(np.zeros((32, 32, 3), np.uint8))[:60], "no readable PNG"),
        (None, "no readable PNG"),
    ],
)
def test_pictures_of_another_kind_are_refused(folder, pixels, picture, fault):
    write(folder / TEST_FILE, [png(pixels[0]), picture], [0, 1])
    with pytest.raises(FileError, match=fault):
        load(f"cifar10:{folder}")


@pytest.mark.parametrize("label", [-1, 10, None])
def test_labels_outside_the_classes_are_refused(folder, pixels, label):
    write(folder / TEST_FILE, [png(pixels[0])] * 2, [0, label])
    with pytest.raises(FileError, match="labels outside 0 to 9"):
        load(f"cifar10:{folder}")


def test_too_few_rows_are_refused(folder, pixels):
    write(folder / TEST_FILE, [png(pixels[0])], [0])
    with pytest.raises(FileError, match="1 rows where 2"):
        load(f"cifar10:{folder}")


def test_too_many_rows_are_refused_before_they_are_read(folder, pixels):
    write(folder / TEST_FILE, [png(pixels[0])] * 7, [0] * 7)
    with pytest.raises(FileError, match="promises 7 rows"):
        load(f"cifar10:{folder}")


def test_a_file_that_unpacks_to_too_much_is_refused(folder, monkeypatch):
    monkeypatch.setattr(reader, "_LARGEST", 100)
    with pytest.raises(FileError, match="more than CIFAR-10 has"):
        load(f"cifar10:{folder}")


def test_other_columns_are_refused(folder, pixels):
    write(folder / TEST_FILE, [png(pixels[0])] * 2, [0, 1], columns=("image", "class"))
    with pytest.raises(FileError, match="columns img"):
        load(f"cifar10:{folder}")


@pytest.mark.parametrize("content", [b"", b"PAR1 but not really PAR1"])
def test_damaged_files_are_refused(folder, content):
    (folder / TEST_FILE).write_bytes(content)
    with pytest.raises(FileError, match=TEST_FILE):
        load(f"cifar10:{folder}")


def test_missing_files_are_named(folder):
    (folder / TEST_FILE).unlink()
    with pytest.raises(DataError, match=r"no test-\*.parquet"):
        load(f"cifar10:{folder}")


def test_without_pyarrow_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'neurank\[cifar10\]'"):
        load(f"cifar10:{folder}")


def test_the_real_cifar10_has_its_labels_and_original_pixels(data_dir):
    """One thousand test pictures; `test_all_of_the_real_cifar10` reads the rest."""
    path = data_dir / "cifar10" / TEST_FILE
    pictures, labels = reader._read_table(path)
    assert labels[:10] == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert np.bincount(labels).tolist() == [1000] * 10
    decoded = reader._decode(pictures[:100], path)
    assert decoded.shape == (100, 3, 32, 32)
    assert decoded[0, :, 0, 0].mul(255).tolist() == [158, 112, 49]
    features = json.loads(parquet.read_schema(path).metadata[b"huggingface"])["info"]["features"]
    assert tuple(features["label"]["names"]) == reader.CLASSES


@pytest.mark.slow
def test_all_of_the_real_cifar10(cifar10):
    import hashlib

    parts = (cifar10.train, cifar10.validation, cifar10.test)
    assert [part.examples for part in parts] == [45_000, 5_000, 10_000]
    pixels = cifar10.test.inputs.mul(255).round().to(torch.uint8).flatten(1)
    labels = cifar10.test.targets.to(torch.uint8).unsqueeze(1)
    original = torch.cat([labels, pixels], dim=1).numpy().tobytes()
    # Published for test_batch.bin of the binary version (Gluon's CIFAR10 checks it).
    assert hashlib.sha1(original).hexdigest() == "67eb016db431130d61cd03c7ad570b013799c88c"
