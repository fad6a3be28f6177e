import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurank import files
from neurank.errors import FileError
from neurank.files import as_json, read_tensors, tensors_digest, write_tensors

TENSORS = {"scores": torch.tensor([0.5, float("nan"), -1.0], dtype=torch.float64)}
METADATA = {"seed": 7, "layers": ["conv1", "fc1"], "note": "Größe \x1b </script>"}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "saved.safetensors"
    write_tensors(path, TENSORS, METADATA, kind="ranking")
    return path


def resealed(path, edit):
    """Rewrite the file at `path` with `edit` applied to the envelope, and its seal made good."""
    with safetensors.safe_open(path, "pt") as file:
        envelope = json.loads(file.metadata()["neurank"])
    tensors = safetensors.torch.load_file(path)
    edit(envelope)
    envelope["sha256"] = "0" * 64
    text = json.dumps(envelope, separators=(",", ":"))
    blob = safetensors.torch.save(tensors, {"neurank": text})
    start = files._seal_start(blob)
    path.write_bytes(blob[:start] + files._seal(blob, start) + blob[start + 64 :])


def foreign(path, header):
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def leftovers(path):
    return [other.name for other in path.parent.iterdir() if other != path]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(st.characters(codec="utf-8"))
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=9), json_values))
def test_metadata_comes_back_equal(tmp_path_factory, metadata):
    path = tmp_path_factory.mktemp("files") / "x"
    write_tensors(path, TENSORS, metadata, kind="ranking")
    assert read_tensors(path, kind="ranking")[1] == metadata


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3)])
def test_tensors_come_back_bit_for_bit(tmp_path, dtype, shape):
    tensor = (torch.randn(shape) * 3).to(dtype)
    write_tensors(tmp_path / "x", {"a": tensor}, {}, kind="k")
    back = read_tensors(tmp_path / "x", kind="k")[0]["a"]
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert tensors_digest({"": back}) == tensors_digest({"": tensor})


def test_nan_comes_back(saved):
    torch.testing.assert_close(read_tensors(saved, kind="ranking")[0], TENSORS, equal_nan=True)


def test_parameters_views_and_tied_tensors_are_stored_as_plain_copies(tmp_path):
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    write_tensors(tmp_path / "x", {"a": weight, "b": weight, "t": weight.T}, {}, kind="k")
    back, _ = read_tensors(tmp_path / "x", kind="k")
    assert not back["a"].requires_grad
    assert torch.equal(back["b"], weight)
    assert torch.equal(back["t"], weight.T)


def test_what_is_read_may_be_changed_in_place(saved):
    tensors, _ = read_tensors(saved, kind="ranking")
    tensors["scores"].zero_()
    assert read_tensors(saved, kind="ranking")[0]["scores"][0] == 0.5


def test_any_safetensors_reader_opens_the_file(saved):
    with safetensors.safe_open(saved, "pt") as file:
        assert json.loads(file.metadata()["neurank"])["kind"] == "ranking"
        assert torch.equal(file.get_tensor("scores")[::2], TENSORS["scores"][::2])


def test_equal_content_gives_equal_bytes(tmp_path):
    tensors = {name: torch.ones(2, dtype=dtype) for name, dtype in
               [("b", torch.int64), ("a", torch.float64), ("c", torch.bool)]}  # fmt: skip
    metadata = {"z": 1, "a": {"y": 2, "b": (3,)}}
    write_tensors(tmp_path / "x", tensors, metadata, kind="k")
    again = {name: tensors[name] for name in sorted(tensors)}
    write_tensors(tmp_path / "y", again, {"a": {"b": [3], "y": 2}, "z": 1}, kind="k")
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_every_changed_byte_is_refused_and_the_file_named(saved):
    good = saved.read_bytes()
    change = random.Random(0)
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= change.randrange(1, 256)
        saved.write_bytes(bad)
        with pytest.raises(FileError, match=r"saved\.safetensors is refused"):
            read_tensors(saved, kind="ranking")


def test_changes_that_leave_the_json_alike_are_refused(saved):
    good = saved.read_bytes()
    length = int.from_bytes(good[:8], "little")
    seal = files._seal_start(good)
    upper = good[:seal] + good[seal : seal + 64].upper() + good[seal + 64 :]
    wider = (
        (length + 8).to_bytes(8, "little") + good[8 : 8 + length] + b" " * 8 + good[8 + length :]
    )
    for bad in (upper, wider, good + b"\0"):
        saved.write_bytes(bad)
        with pytest.raises(FileError, match="is refused"):
            read_tensors(saved, kind="ranking")


def test_every_truncation_is_refused(saved):
    good = saved.read_bytes()
    for length in range(0, len(good), 7):
        saved.write_bytes(good[:length])
        with pytest.raises(FileError, match="is refused"):
            read_tensors(saved, kind="ranking")


def test_metadata_that_imitates_a_seal_is_kept(tmp_path):
    imitation = {"sha256": "0" * 64, "text": '"{\\"sha256\\":\\"' + "0" * 64}
    write_tensors(tmp_path / "x", {'{"sha256":"' + "0" * 64: torch.ones(1)}, imitation, kind="k")
    assert read_tensors(tmp_path / "x", kind="k")[1] == imitation


def test_another_kind_is_refused(saved):
    with pytest.raises(FileError, match="holds a 'ranking', not a 'model'"):
        read_tensors(saved, kind="model")


def test_another_format_version_is_refused(saved):
    resealed(saved, lambda envelope: envelope.update(format=2))
    with pytest.raises(FileError, match="format version is 2 and this neurank reads 1"):
        read_tensors(saved, kind="ranking")


def test_nan_in_the_json_is_refused_though_the_seal_is_good(saved):
    resealed(saved, dict.copy)
    assert read_tensors(saved, kind="ranking")[1] == METADATA
    resealed(saved, lambda envelope: envelope["metadata"].update(seed=float("nan")))
    with pytest.raises(FileError, match="NaN is not JSON"):
        read_tensors(saved, kind="ranking")


def test_a_sealed_file_without_metadata_is_refused(saved):
    resealed(saved, lambda envelope: envelope.pop("metadata"))
    with pytest.raises(FileError, match="metadata is missing"):
        read_tensors(saved, kind="ranking")


def test_tensors_that_overlap_are_refused_though_the_seal_is_good(tmp_path):
    entry = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    envelope = {"sha256": "0" * 64, "format": 1, "kind": "k", "neurank": "1", "metadata": {}}
    text = json.dumps(envelope, separators=(",", ":"))
    header = {"__metadata__": {"neurank": text}, "a": entry, "b": entry}
    foreign(tmp_path / "x", json.dumps(header, separators=(",", ":")).encode())
    blob = (tmp_path / "x").read_bytes() + b"data"
    start = files._seal_start(blob)
    (tmp_path / "x").write_bytes(blob[:start] + files._seal(blob, start) + blob[start + 64 :])
    with pytest.raises(FileError, match="tensors cannot be read"):
        read_tensors(tmp_path / "x", kind="k")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"__metadata__": 3}',
        b'{"__metadata__": {"neurank": "3"}}',
        b'{"__metadata__": {"neurank": {"format": 1}}}',
        b'{"__metadata__": {"format": "pt"}}',
        b'{"__metadata__": {"neurank": "{\\"format\\": 1}"}}',
    ],
)
def test_foreign_headers_are_refused(tmp_path, header):
    foreign(tmp_path / "x", header)
    with pytest.raises(FileError, match=r"x is refused.*neurank wrote"):
        read_tensors(tmp_path / "x", kind="k")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 a zip", b"\x80\x04\x95 a pickle of some sort"]
)
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FileError, match="x is refused: it is cut short or foreign"):
        read_tensors(tmp_path / "x", kind="k")


def test_a_huge_header_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write((2**34).to_bytes(8, "little") + b"{")
        file.truncate(2**35)  # sparse: takes no room on the disk
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("the header was read"))
    with pytest.raises(FileError, match="header claims 17,179,869,184 bytes"):
        read_tensors(path, kind="k")


def test_a_header_over_the_limit_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "HEADER_LIMIT", 1000)
    with pytest.raises(FileError, match="exceed 1,000 bytes"):
        write_tensors(tmp_path / "x", TENSORS, {"long": "x" * 1000}, kind="k")
    assert not leftovers(tmp_path / "x")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(FileError, match=f"{kind} is not there, or not a regular file"):
        read_tensors(path, kind="k")


def test_nothing_is_written_without_a_folder_or_over_one(tmp_path):
    with pytest.raises(FileError, match="folder does not exist"):
        write_tensors(tmp_path / "no" / "x", TENSORS, {}, kind="k")
    with pytest.raises(FileError, match="is a folder"):
        write_tensors(tmp_path, TENSORS, {}, kind="k")


def test_a_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "x")
    write_tensors(tmp_path / "link", TENSORS, {}, kind="k")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "x").is_file()


def test_the_file_gets_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_tensors(tmp_path / "x", TENSORS, {}, kind="k")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failing", [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_no_draft(saved, monkeypatch, failing, error):
    def fail(*_, **__):
        raise error

    before = saved.read_bytes()
    monkeypatch.setattr(*failing, fail)
    expected = FileError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match=r"No space left.*is untouched|^$"):
        write_tensors(saved, {"new": torch.ones(3)}, {}, kind="ranking")
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert not leftovers(saved)


@pytest.mark.parametrize(("number", "refused"), [(errno.EIO, True), (errno.EINVAL, False)])
def test_a_folder_that_does_not_sync_is_told_unless_it_never_does(
    tmp_path, monkeypatch, number, refused
):
    fsync = os.fsync

    def fail_on_folders(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, "no")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fail_on_folders)
    with pytest.raises(FileError, match="was written, but") if refused else nullcontext():
        write_tensors(tmp_path / "x", TENSORS, METADATA, kind="k")
    assert read_tensors(tmp_path / "x", kind="k")[1] == METADATA


def test_file_and_folder_are_synced_about_the_rename(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(handle):
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def noted_replace(self, target):
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_tensors(tmp_path / "x", TENSORS, {}, kind="k")
    assert steps == ["file", "rename", "folder"]


FULL_DISK = """
import resource, sys, torch
from neurank.errors import FileError
from neurank.files import write_tensors

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_tensors(sys.argv[1], {"new": torch.ones(10_000)}, {}, kind="ranking")
except FileError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="this system cannot limit file sizes")
def test_a_full_disk_leaves_the_old_file_and_no_draft(saved):
    before = saved.read_bytes()
    told = subprocess.run(
        [sys.executable, "-c", FULL_DISK, saved], capture_output=True, text=True, check=True
    ).stdout
    assert "could not be written" in told
    assert str(saved) in told
    assert saved.read_bytes() == before
    assert not leftovers(saved)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), r"metadata\['a'\]\[1\] is nan"),
        (float("inf"), r"metadata\['a'\]\[1\] is inf"),
        (torch.ones(1), "is a Tensor"),
        ({1: 2}, "has the key 1"),
        (Path("x"), "is a .*Path"),
    ],
)
def test_metadata_that_json_cannot_hold_is_refused_by_place(tmp_path, value, reason):
    with pytest.raises(FileError, match=reason):
        write_tensors(tmp_path / "x", TENSORS, {"a": [1, value]}, kind="k")
    assert not leftovers(tmp_path / "x")


def test_json_is_a_copy():
    inner = {"b": (1, 2)}
    copy = as_json({"a": inner})
    inner["b"] = None
    assert copy == {"a": {"b": [1, 2]}}


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": [1.0]},
        {"a": torch.ones(2).to_sparse()},
        {"a": torch.ones(2, device="meta")},
        {"a": torch.ones(2, dtype=torch.complex128)},
        {"__metadata__": torch.ones(2)},
        {"\ud800": torch.ones(2)},
    ],
    ids=["list", "sparse", "meta", "complex128", "reserved", "surrogate"],
)
def test_tensors_without_a_form_are_refused(tmp_path, tensors):
    with pytest.raises(FileError):
        write_tensors(tmp_path / "x", tensors, {}, kind="k")
    assert not leftovers(tmp_path / "x")


def test_the_digest_tells_names_dtypes_shapes_and_bytes_apart():
    one = torch.arange(6.0)
    digests = [
        tensors_digest(tensors)
        for tensors in (
            {},
            {"a": one},
            {"b": one},
            {"a": one.view(torch.int32)},
            {"a": one.reshape(2, 3)},
            {"a": torch.where(one == 0, -0.0, one)},
            {"a": one, "b": one},
            {"a": one[:3], "b": one[3:]},
            {"a": one[:2], "b": one[2:]},
        )
    ]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)


def test_the_digest_sees_values_not_layout_or_order():
    grid = torch.arange(6.0).reshape(2, 3)
    expected = tensors_digest({"a": grid.T.contiguous(), "b": grid})
    assert tensors_digest({"b": grid, "a": grid.T}) == expected
    assert tensors_digest({"a": torch.nn.Parameter(grid.T), "b": grid}) == expected
