import gzip
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neurank.data import idx, load
from neurank.errors import DataError, FileError


def idx_bytes(numbers, shape, kind=8):
    return bytes((0, 0, kind, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + bytes(numbers)


@pytest.fixture
def write(tmp_path):
    def write(content, name="some-idx1-ubyte"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
        return path

    return write


@pytest.mark.parametrize("name", ["labels-idx1-ubyte", "labels-idx1-ubyte.gz"])
def test_labels_are_read(write, name):
    path = write(idx_bytes([3, 1, 255], (3,)), name)
    assert idx.read_idx(path, axes=1).tolist() == [3, 1, 255]


@given(shape=st.tuples(*[st.integers(0, 4)] * 3))
def test_pictures_are_read_in_row_order(tmp_path_factory, shape):
    count = shape[0] * shape[1] * shape[2]
    path = tmp_path_factory.mktemp("idx") / "pictures"
    path.write_bytes(idx_bytes(range(count), shape))
    expected = torch.arange(count, dtype=torch.uint8).reshape(shape)
    assert torch.equal(idx.read_idx(path, axes=3), expected)


@pytest.mark.parametrize("name", ["a", "a.gz"])
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "begins with"),
        (b"\x89PNG\r\n\x1a\n", "89 50 4e 47"),
        (idx_bytes([1] * 4, (2, 2)), "with 1 axes"),
        (idx_bytes([1] * 3, (3,), kind=0x0D), "unsigned"),
        (idx_bytes([], (3,))[:6], "within its header"),
        (idx_bytes([1, 2], (3,)), "more than a file|holds only 2"),
        (idx_bytes([1, 2, 3, 4], (3,)), "promises 3 bytes of data and holds more"),
    ],
)
def test_foreign_and_damaged_files_are_refused(write, name, content, fault):
    path = write(content, name)
    with pytest.raises(FileError, match=fault) as refusal:
        idx.read_idx(path, axes=1)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("name", ["a", "a.gz"])
@pytest.mark.parametrize("shape", [(2**32 - 1,) * 3, (1000,) * 3])
def test_a_promise_that_the_file_cannot_hold_is_refused_before_it_is_read(write, name, shape):
    with pytest.raises(FileError, match="more than a file of its size can hold"):
        idx.read_idx(write(idx_bytes([0] * 100, shape), name), axes=3)


def test_no_file_is_larger_than_the_cap(write, monkeypatch):
    monkeypatch.setattr(idx, "_LARGEST", 10)
    with pytest.raises(FileError, match="can hold"):
        idx.read_idx(write(idx_bytes([0] * 11, (11,))), axes=1)
    assert len(idx.read_idx(write(idx_bytes([0] * 10, (10,))), axes=1)) == 10


def test_of_a_gzip_bomb_no_more_is_read_than_its_header_promises(write, monkeypatch):
    path = write(idx_bytes(bytes(50_000_000), (10,)), "bomb.gz")
    asked = []

    class Counting(gzip.GzipFile):
        def read(self, size=-1):
            asked.append(size)
            return super().read(size)

    monkeypatch.setattr(idx.gzip, "open", Counting)
    with pytest.raises(FileError, match="holds more"):
        idx.read_idx(path, axes=1)
    assert asked == [8, 11]


@pytest.mark.parametrize("damage", ["cut", "flip", "block", "plain"])
def test_damaged_gzip_files_are_refused(tmp_path, damage):
    content = gzip.compress(idx_bytes(range(200), (200,)))
    damaged = {
        "cut": content[:-20],
        "flip": content[:40] + bytes((content[40] ^ 255,)) + content[41:],
        "block": content[:10] + b"\xff" + content[11:],
        "plain": b"no gzip",
    }
    path = tmp_path / "labels.gz"
    path.write_bytes(damaged[damage])
    with pytest.raises(FileError, match="undamaged copy"):
        idx.read_idx(path, axes=1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set in MNIST's form with 6 + 2 pictures."""
    monkeypatch.setattr(idx, "_FITTED", 4)
    monkeypatch.setattr(idx, "_TRAINING_FILE", 6)
    monkeypatch.setattr(idx, "_TEST_FILE", 2)
    for stem, labels in {"train": [0, 1, 2, 3, 4, 9], "t10k": [5, 6]}.items():
        pictures = b"".join(bytes([51 * (label % 6)]) * 784 for label in labels)
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(
            idx_bytes(pictures, (len(labels), 28, 28))
        )
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx_bytes(labels, (len(labels),)))
    return tmp_path


def test_rows_go_to_their_parts(folder):
    splits = load(f"mnist:{folder}")
    assert splits.train.targets.tolist() == [0, 1, 2, 3]
    assert splits.validation.targets.tolist() == [4, 9]
    assert splits.test.targets.tolist() == [5, 6]
    assert torch.allclose(splits.train.inputs[:, 0, 5, 5], torch.tensor([0.0, 0.2, 0.4, 0.6]))


@pytest.mark.parametrize("suffix", ["images-idx3-ubyte", "labels-idx1-ubyte"])
def test_a_missing_file_is_named(folder, suffix):
    (folder / f"t10k-{suffix}").unlink()
    with pytest.raises(DataError, match=f"neither t10k-{suffix} nor t10k-{suffix}.gz"):
        load(f"mnist:{folder}")


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("train-images-idx3-ubyte", idx_bytes([0] * 784 * 5, (5, 28, 28)), "5 x 28 x 28"),
        ("train-images-idx3-ubyte", idx_bytes([0] * 6 * 9, (6, 3, 3)), "6 x 3 x 3"),
        ("train-labels-idx1-ubyte", idx_bytes([0] * 5, (5,)), "5 labels where 6"),
        ("train-labels-idx1-ubyte", idx_bytes([], (0,)), "0 labels where 6"),
        ("train-labels-idx1-ubyte", idx_bytes([10] * 6, (6,)), "label 10, and labels go to 9"),
    ],
)
def test_files_of_another_data_set_are_refused(folder, name, content, fault):
    (folder / name).write_bytes(content)
    with pytest.raises(FileError, match=fault):
        load(f"mnist:{folder}")


def test_fashion_mnist_without_the_package_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(idx, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    with pytest.raises(DataError, match="apt install dataset-fashion-mnist"):
        load("fashion-mnist")


def test_fashion_mnist_finds_the_package_and_takes_a_folder(monkeypatch, folder):
    monkeypatch.setattr(idx, "DEBIAN_FASHION_MNIST", folder)
    for splits in (load("fashion-mnist"), load(f"fashion-mnist:{folder}")):
        assert splits.classes[9] == "Ankle boot"
        assert splits.validation.targets.tolist() == [4, 9]


def test_the_real_mnist(mnist):
    assert [part.examples for part in (mnist.train, mnist.validation, mnist.test)] == [
        55_000,
        5_000,
        10_000,
    ]
    fitted = mnist.train.targets.bincount() + mnist.validation.targets.bincount()
    assert fitted.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.test.targets[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert mnist.train.inputs.shape[1:] == (1, 28, 28)
    pixels = torch.cat([mnist.train.inputs, mnist.validation.inputs])
    assert round(float(pixels.mean()), 4) == 0.1307
    assert round(float(pixels.std()), 4) == 0.3081


def test_the_real_fashion_mnist(fashion_mnist):
    assert fashion_mnist.test.targets.bincount().tolist() == [1000] * 10
    assert fashion_mnist.test.targets[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert round(float(fashion_mnist.train.inputs.mean()), 3) == 0.286
