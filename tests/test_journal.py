import errno
import itertools
import json
import os
import random
import resource
import shlex
import signal
import stat
import subprocess
import threading
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.killing import MOMENTS, run_and_kill

from neurank import journal as module
from neurank.errors import FileError
from neurank.journal import no_journal, open_journal

RUN = {
    "model": {"digest": "ab12", "layers": ["conv1", "fc1"]},
    "method": {"name": "PermutationShapley", "passes": 4, "antithetic": False},
    "version": "0.1",
}


def chunk(number, seed=0):
    """Some arrays of any bits, most of them no numbers; chunks differ in size."""
    draw = np.random.default_rng([seed, number])
    bits = draw.integers(0, 2**64, size=(number % 3, 2), dtype=np.uint64)
    return {"sums": bits.view(np.float64), "count": np.array(float(number + seed))}


def keys(count):
    return tuple(f"fc1/{number}" for number in range(count))


def append(journal, numbers, seed=0):
    for number in numbers:
        journal.append(f"fc1/{number}", chunk(number, seed))


def written(path, count, *, fingerprint=RUN, seed=0):
    """Write a journal of `count` chunks; give its bytes and where each record ends."""
    ends = []
    with open_journal(path, fingerprint) as journal:
        ends.append(path.stat().st_size)
        for number in range(count):
            append(journal, [number], seed)
            ends.append(path.stat().st_size)
    return path.read_bytes(), ends


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == np.float64
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def assert_holds(journal, count):
    assert journal.keys() == keys(count)
    for number in range(count):
        assert_same(journal.get(f"fc1/{number}"), chunk(number))


def refusal(path, fingerprint=RUN):
    """Why the journal is refused; it is left as it was."""
    before = path.read_bytes()
    with pytest.raises(FileError) as caught, open_journal(path, fingerprint):
        pass
    assert path.read_bytes() == before
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.journal"


@pytest.fixture
def unsynced(monkeypatch):
    """Spare the disk where thousands of files are opened; no power cut is tested here."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # noqa: ARG005 - the call's own name


# What goes in comes out


any_arrays = st.dictionaries(
    st.text(max_size=5),
    hnp.arrays(np.uint64, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    max_size=3,
)


@given(st.dictionaries(st.text(max_size=9), any_arrays, max_size=3))
def test_every_bit_comes_back_at_once_and_in_the_next_run(tmp_path_factory, chunks):
    path = tmp_path_factory.mktemp("journals") / "run"
    chunks = {
        key: {name: bits.view(np.float64) for name, bits in arrays.items()}
        for key, arrays in chunks.items()
    }
    for reused in (0, len(chunks)):
        with open_journal(path, {}) as journal:
            assert journal.reused == reused
            for key, arrays in chunks.items():
                if reused == 0:
                    assert journal.get(key) is None
                    journal.append(key, arrays)
                assert_same(journal.get(key), arrays)
            assert journal.keys() == tuple(chunks)


def test_special_values_and_shapes_come_back(path):
    signalling = np.array([0x7FF0000000000001, 0xFFF8DEADBEEF0001], np.uint64).view(np.float64)
    arrays = {
        "special": np.array([-0.0, np.inf, -np.inf, 5e-324]),
        "nan": signalling,
        "point": np.array(-0.0),
        "empty": np.empty((3, 0, 2)),
        "view": np.arange(12.0).reshape(3, 4).T[::-1, ::2],
    }
    with open_journal(path, RUN) as journal:
        journal.append("Größe \x1b \ud800", arrays)
    with open_journal(path, RUN) as journal:
        assert_same(journal.get("Größe \x1b \ud800"), arrays)


def test_chunks_are_found_in_the_next_run_and_more_can_follow(path):
    written(path, 3)
    with open_journal(path, RUN) as journal:
        assert journal.reused == 3
        append(journal, [3, 4])
        assert journal.reused == 3
        assert_holds(journal, 5)
    with open_journal(path, RUN) as journal:
        assert journal.reused == 5
        assert_holds(journal, 5)


def test_what_is_given_out_may_be_changed(path):
    with open_journal(path, RUN) as journal:
        journal.append("a", {"x": np.ones(2)})
        journal.get("a")["x"][:] = 7
        assert_same(journal.get("a"), {"x": np.ones(2)})


def test_equal_runs_write_equal_bytes(tmp_path):
    assert written(tmp_path / "a", 4) == written(tmp_path / "b", 4)


def test_a_link_is_followed_and_shares_the_lock(path, tmp_path):
    (tmp_path / "link").symlink_to(path)
    with open_journal(tmp_path / "link", RUN):
        assert "in use" in refusal(path)
    assert path.is_file()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    "opened", [nullcontext(no_journal()), open_journal(None, RUN)], ids=["no_journal", "no path"]
)
def test_a_journal_without_a_file_keeps_nothing(opened):
    with opened as journal:
        append(journal, [0, 0])
        assert (journal.get("fc1/0"), journal.keys(), journal.reused) == (None, (), 0)


def test_threads_may_share_a_journal(path):
    with open_journal(path, RUN) as journal:

        def work(first):
            for number in range(first, 40, 4):
                journal.append(str(number), chunk(number))
                assert_same(journal.get(str(number)), chunk(number))

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with open_journal(path, RUN) as journal:
        assert journal.reused == 40
        for number in range(40):
            assert_same(journal.get(str(number)), chunk(number))


# What is no chunk


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.ones(2, np.float32), "float32"),
        (np.ones(2, ">f8"), ">f8"),
        (np.ones(2, object), "object"),
        ([1.0], "list"),
    ],
)
def test_what_is_not_float64_is_refused(path, value, kind):
    with open_journal(path, RUN) as journal:
        with pytest.raises(FileError, match=f"'a' has the array 'x' of {kind}"):
            journal.append("a", {"x": value})
        assert journal.keys() == ()
        journal.append("a", {})


def test_a_key_can_be_used_once(path):
    written(path, 1)
    with open_journal(path, RUN) as journal:
        append(journal, [1])
        for number in (0, 1):
            with pytest.raises(FileError, match="a key of its own"):
                append(journal, [number])
        assert_holds(journal, 2)


def test_a_chunk_over_the_limit_is_refused(path, monkeypatch):
    monkeypatch.setattr(module, "RECORD_LIMIT", 1000)
    with open_journal(path, RUN) as journal:
        with pytest.raises(FileError, match="make the chunks smaller"):
            journal.append("a", {"x": np.ones(200)})
        append(journal, [0])
        assert_holds(journal, 1)


def test_a_closed_journal_says_so(path):
    with open_journal(path, RUN) as journal:
        append(journal, [0])
    with pytest.raises(FileError, match="was closed"):
        journal.get("fc1/0")
    with pytest.raises(FileError, match="was closed"):
        append(journal, [1])


def test_a_forked_process_may_read_but_not_append(path):
    with open_journal(path, RUN) as journal:
        append(journal, [0])

        def work(tell):
            try:
                append(journal, [1])
            except FileError as error:
                tell(str(error))

        ended = run_and_kill(work)
        append(journal, [1])
        assert_holds(journal, 2)
    assert ended.code == 0
    assert f"opened by the process {os.getpid()}" in ended.told[0]


# Torn and altered files


@pytest.mark.usefixtures("unsynced")
def test_of_every_beginning_the_whole_chunks_are_kept_and_the_rest_can_follow(path):
    blob, ends = written(path, 3)
    for length in range(len(blob) + 1):
        path.write_bytes(blob[:length])
        whole = sum(end <= length for end in ends[1:])
        with open_journal(path, RUN) as journal:
            assert path.stat().st_size == max(ends[0], ends[whole])
            assert journal.reused == whole
            assert_holds(journal, whole)
            append(journal, range(whole, 3))
        assert path.read_bytes() == blob


@pytest.mark.usefixtures("unsynced")
def test_every_changed_byte_is_refused(path):
    blob, ends = written(path, 3)
    change = random.Random(0)
    for place in range(len(blob)):
        bad = bytearray(blob)
        bad[place] ^= change.randrange(1, 256)
        path.write_bytes(bad)
        told = refusal(path)
        if place >= 8:
            record = sum(end <= place for end in ends)
            start = ([0, *ends])[record]
            assert f"record {record} at byte {start:,} " in told


def test_the_intact_chunks_can_be_kept_as_the_message_says(tmp_path):
    path = tmp_path / "two words.journal"
    blob, ends = written(path, 4)
    path.write_bytes(blob[: ends[2] + 40] + b"?" + blob[ends[2] + 41 :])
    told = refusal(path)
    assert "keep the 2 chunks" in told
    subprocess.run(shlex.split(told.split("`")[1]), check=True)
    with open_journal(path, RUN) as journal:
        assert journal.reused == 2
        assert_holds(journal, 2)


def test_an_altered_header_leaves_no_chunks_to_keep(path):
    blob, _ = written(path, 1)
    path.write_bytes(blob[:20] + b"?" + blob[21:])
    assert "truncate" not in refusal(path)


def alterations(blob, ends, other, other_ends, draw):
    """Yield alterations of a journal, drawn at random, that no kill could have made."""
    starts = [0, *ends[:-1]]
    records = [blob[start:end] for start, end in zip(starts, ends, strict=True)]
    size = len(blob)

    def flipped():
        bad = bytearray(blob)
        for bit in draw.sample(range(8 * size), draw.randint(1, 8)):
            bad[bit // 8] ^= 1 << bit % 8
        return bytes(bad)

    def overwritten():
        start = draw.randrange(size)
        length = min(draw.choice([1, 8, 100, size]), size - start)
        filling = draw.choice([bytes(length), b"\xff" * length, draw.randbytes(length)])
        return blob[:start] + filling + blob[start + length :]

    def inserted():
        place = draw.randrange(size)
        return blob[:place] + draw.randbytes(draw.choice([1, 8, 100])) + blob[place:]

    def deleted():
        # What reaches into the last mark is a cut at the end and some bytes behind it.
        start, stop = sorted(draw.sample(range(size - 7), 2))
        return blob[:start] + blob[stop:]

    def swapped():
        one, two = sorted(draw.sample(range(len(records)), 2))
        bad = list(records)
        bad[one], bad[two] = bad[two], bad[one]
        return b"".join(bad)

    def repeated():
        number = draw.randrange(len(records))
        place = draw.randint(0, len(records))
        return b"".join([*records[:place], records[number], *records[place:]])

    def removed():
        number = draw.randrange(len(records) - 1)
        return b"".join(records[:number] + records[number + 1 :])

    def joined():
        kept = draw.randint(1, size)
        return blob[:kept] + draw.choice([blob, other])

    def grafted():
        # Not the first chunk: the header before it is the same in both.
        number = draw.randrange(2, len(records))
        graft = other[other_ends[number - 1] : other_ends[number]]
        return b"".join([*records[:number], graft, *records[number + 1 :]])

    ways = [flipped, overwritten, inserted, deleted, swapped, repeated, removed, joined, grafted]
    for way in itertools.cycle(ways):
        bad = way()
        if bad != blob:
            yield way.__name__, bad


def assert_all_refused(tmp_path, rounds):
    draw = random.Random(rounds)
    path = tmp_path / "run.journal"
    for count in (2, 3, 5, 9):
        mine = written(tmp_path / f"mine{count}", count)
        other = written(tmp_path / f"other{count}", count, seed=1)
        for name, bad in itertools.islice(alterations(*mine, *other, draw), rounds // 4):
            path.write_bytes(bad)
            try:
                with open_journal(path, RUN) as journal:
                    pytest.fail(f"{name}: {journal.reused} chunks were taken from {bad!r}")
            except FileError as error:
                assert "is refused" in str(error)  # noqa: PT017 - no failure may pass for one
            assert path.read_bytes() == bad


@pytest.mark.usefixtures("unsynced")
def test_random_alterations_are_refused(tmp_path):
    assert_all_refused(tmp_path, 800)


@pytest.mark.slow
@pytest.mark.usefixtures("unsynced")
def test_ten_thousand_random_alterations_are_refused(tmp_path):
    assert_all_refused(tmp_path, 10_000)


def test_a_gap_that_swallows_the_rest_of_the_file_is_no_torn_record(path):
    with open_journal(path, RUN) as journal:
        journal.append("long", {"x": np.ones(100)})
        start = path.stat().st_size
        journal.append("short", {"x": np.ones(1)})
    blob = path.read_bytes()
    path.write_bytes(blob[: start - 700] + blob[start - 100 :])
    assert "lacks bytes in its middle" in refusal(path)


@pytest.mark.parametrize("tail", [b"?", b"\x9bneurank?", b"\x9bneurank\x07", bytes(20), bytes(99)])
def test_an_end_that_begins_no_record_is_refused(path, tail):
    blob, _ = written(path, 2)
    path.write_bytes(blob + tail)
    assert "record 3" in refusal(path)


def test_a_torn_checksum_that_does_not_fit_is_refused(path):
    blob, _ = written(path, 2)
    path.write_bytes(blob[:-20] + bytes([blob[-20] ^ 1]) + blob[-19:-9])
    assert "record 2" in refusal(path)


def test_a_chunk_altered_while_it_is_open_is_not_given_out(path):
    with open_journal(path, RUN) as journal:
        append(journal, [2])
        blob = path.read_bytes()
        for bad in (blob[:-20] + bytes([blob[-20] ^ 1]) + blob[-19:], blob[:-20]):
            path.write_bytes(bad)
            with pytest.raises(FileError, match=r"altered while it was open: record 1"):
                journal.get("fc1/2")


def test_a_huge_record_is_refused_before_it_is_read(path, monkeypatch):
    blob, _ = written(path, 1)
    monkeypatch.setattr(module, "RECORD_LIMIT", 2**40)
    with open_journal(path, RUN) as journal:
        frame = module._framed(b"", journal._last)[0][: module._FIELDS.size]
    monkeypatch.undo()
    fields = bytearray(frame)
    fields[16:24] = (2**34).to_bytes(8, "little")
    checksum = module.crc32(fields, int.from_bytes(blob[-12:-8], "little"))
    path.write_bytes(blob + fields + checksum.to_bytes(4, "little"))
    os.truncate(path, 2**35)  # sparse: takes no room on the disk
    with pytest.raises(FileError, match="claims 17,179,869,184 bytes"), open_journal(path, RUN):
        pass


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no json\n",
        b"[]\n",
        b'{"key": 1, "arrays": {}}\n',
        b'{"key": "a", "arrays": []}\n',
        b'{"key": "a", "arrays": {"x": [-1, -1]}}\n' + bytes(8),
        b'{"key": "a", "arrays": {"x": [1.0]}}\n' + bytes(8),
        b'{"key": "a", "arrays": {"x": [2]}}\n' + bytes(8),
        b'{"key": "a", "arrays": {"x": [1]}}\n' + bytes(9),
        b'{"key": "a", "arrays": ' + b"[" * 100_000 + b"\n",
    ],
)
def test_a_chunk_that_cannot_be_read_is_refused_though_its_checksum_is_good(path, payload):
    with open_journal(path, RUN) as journal:
        blob = module._framed(payload, journal._last)[0]
    path.write_bytes(path.read_bytes() + blob)
    assert "record 1" in refusal(path)


@pytest.mark.parametrize(
    "content", [b"x", b"PK\x03\x04 a zip", b"\x80\x04\x95 a pickle of some sort", bytes(99)]
)
def test_a_foreign_file_is_refused_and_left(path, content):
    path.write_bytes(content)
    assert "is no journal" in refusal(path)


def test_an_empty_file_becomes_a_journal(path):
    path.touch()
    assert written(path, 2)[0] == written(path.with_name("other"), 2)[0]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("folder", "is a folder"), ("pipe", "not a regular file"), ("no/run", "does not exist")],
)
def test_what_cannot_be_a_journal_is_refused(tmp_path, kind, reason):
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(FileError, match=reason), open_journal(path, RUN):
        pass


# The fingerprint


def changed(where, value):
    other = json.loads(json.dumps(RUN))
    *rooms, last = where
    inner = other
    for room in rooms:
        inner = inner[room]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return other


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        (("method", "passes"), 8, "method.passes is 4 in the journal and 8 now"),
        (("method", "passes"), 4.0, "method.passes is 4 in the journal and 4.0 now"),
        (("method", "antithetic"), 0, "method.antithetic is false in the journal and 0 now"),
        (("method", "name"), "x", 'method.name is "PermutationShapley" in the journal and "x" now'),
        (("method", "name"), None, 'name is "PermutationShapley" in the journal and absent now'),
        (("method", "seed"), 3, "method.seed is absent in the journal and 3 now"),
        (("model", "layers", 1), "fc2", 'model.layers[1] is "fc1" in the journal and "fc2" now'),
        (("model", "layers"), ["fc1"], 'layers is ["conv1", "fc1"] in the journal and ["fc1"] now'),
        (("model",), "ab12", 'model is {"digest": "ab12"'),
        (("version",), "0.2", 'version is "0.1" in the journal and "0.2" now'),
        (("version",), None, 'version is "0.1" in the journal and absent now'),
    ],
)
def test_another_fingerprint_is_refused_and_its_field_named(path, where, value, told):
    written(path, 2)
    message = refusal(path, changed(where, value))
    assert "belongs to another run" in message
    assert told in message
    with open_journal(path, RUN) as journal:
        assert_holds(journal, 2)


def test_five_differing_fields_are_named_and_the_others_counted(path):
    with open_journal(path, dict.fromkeys("abcdefgh", 1)):
        pass
    told = refusal(path, dict.fromkeys("abcdefgh", 2))
    assert told.count("in the journal and 2 now") == 5
    assert "and 3 more differ" in told
    assert "more" not in refusal(path, {name: 1 + (name < "f") for name in "abcdefgh"})


def test_a_long_value_is_shown_short(path):
    with open_journal(path, {"note": "x" * 1000}):
        pass
    assert len(refusal(path, {"note": "y" * 1000})) < len(str(path)) + 300


def test_order_and_tuples_make_no_other_fingerprint(path):
    with open_journal(path, {"a": (1, 2), "b": {"c": -0.0, "d": None}}):
        pass
    with open_journal(path, {"b": {"d": None, "c": -0.0}, "a": [1, 2]}) as journal:
        assert journal.reused == 0
    assert "b.c is -0.0" in refusal(path, {"a": [1, 2], "b": {"c": 0.0, "d": None}})


def test_a_fingerprint_that_json_cannot_hold_is_refused(path):
    with (
        pytest.raises(FileError, match=r"fingerprint\['a'\] is nan"),
        open_journal(path, {"a": float("nan")}),
    ):
        pass
    assert not path.exists()


def test_another_format_is_refused(path, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", 2)
    written(path, 1)
    monkeypatch.undo()
    assert "format version is 2 and this neurank writes 1" in refusal(path)


# One writer


def test_a_second_writer_is_refused_at_once(path):
    with open_journal(path, RUN) as journal:
        assert "in use" in refusal(path)

        def work(tell):
            tell(refusal(path))

        assert "in use" in run_and_kill(work).told[0]
        append(journal, [0])
    with open_journal(path, RUN) as journal:
        assert_holds(journal, 1)


def test_an_exception_frees_the_journal(path):
    with pytest.raises(ZeroDivisionError), open_journal(path, RUN):
        raise ZeroDivisionError
    refusal(path, {"another": "run"})
    with open_journal(path, RUN):
        pass


def test_a_killed_process_leaves_no_lock(path):
    def work(_):
        with open_journal(path, RUN) as journal:
            append(journal, [0])
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_and_kill(work).killed
    with open_journal(path, RUN) as journal:
        assert_holds(journal, 1)


# Writes that fail


def failing(monkeypatch, name, error):
    def fail(handle, *rest):
        if name == "write":
            true(handle, rest[0][: len(rest[0]) // 2])
        raise error

    true = getattr(os, name)
    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("cutting", [True, False], ids=["cut back", "not cut back"])
@pytest.mark.parametrize("name", ["write", "fsync"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_after_a_failed_write_the_chunks_before_it_are_safe(
    path, monkeypatch, name, error, cutting
):
    with open_journal(path, RUN) as journal:
        append(journal, range(2))
        whole = path.read_bytes()
        failing(monkeypatch, name, error)
        if not cutting:
            failing(monkeypatch, "ftruncate", OSError(errno.EIO, "broken"))
        expected = FileError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected, match=r"No space left.*the 2 chunks before it are safe|^$"):
            append(journal, [2])
        monkeypatch.undo()
        assert (path.read_bytes() == whole) == cutting
        assert_holds(journal, 2)
        with pytest.raises(FileError, match="open it again"):
            append(journal, [2])
    with open_journal(path, RUN) as journal:
        # a record whose sync failed may be there in full
        assert journal.reused == 2 + (name == "fsync" and not cutting)
        append(journal, range(journal.reused, 4))
        assert_holds(journal, 4)


def test_writes_may_come_in_pieces(path, monkeypatch):
    true = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: true(handle, data[:7]))
    written(path, 3)
    with open_journal(path, RUN) as journal:
        assert_holds(journal, 3)


def test_a_header_that_cannot_be_written_leaves_no_file(path, monkeypatch):
    failing(monkeypatch, "fsync", OSError(errno.ENOSPC, "No space left"))
    with pytest.raises(FileError, match="No space left"), open_journal(path, RUN):
        pass
    monkeypatch.undo()
    assert not path.exists()
    written(path, 1)


@pytest.mark.parametrize("room", range(0, 300, 37))
def test_a_full_disk_costs_no_acknowledged_chunk(path, room):
    def work(tell):
        with open_journal(path, RUN) as journal:
            limit = path.stat().st_size + room
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                for number in range(9):
                    append(journal, [number])
                    tell(number)
            except FileError as error:
                assert_holds(journal, number)
                tell(error)

    ended = run_and_kill(work)
    *acknowledged, told = ended.told
    assert ended.code == 0
    assert acknowledged == [str(number) for number in range(len(acknowledged))]
    assert f"File too large); the {len(acknowledged)} chunks before it are safe" in told
    with open_journal(path, RUN) as journal:
        assert journal.reused == len(acknowledged)
        append(journal, range(journal.reused, 9))
        assert_holds(journal, 9)


# Kills


def test_nothing_counts_before_it_is_synced(path, monkeypatch):
    steps = []

    def noted(name):
        true = getattr(os, name)

        def call(handle, *rest):
            is_folder = name == "fsync" and stat.S_ISDIR(os.fstat(handle).st_mode)
            steps.append("fsync folder" if is_folder else name)
            return true(handle, *rest)

        monkeypatch.setattr(os, name, call)

    for name in ("write", "fsync", "ftruncate", "replace"):
        noted(name)
    with open_journal(path, RUN) as journal:
        append(journal, [0])
    os.truncate(path, path.stat().st_size - 1)
    with open_journal(path, RUN) as journal:
        append(journal, [0])
    created = ["fsync", "replace", "fsync folder"]
    mended = ["fsync folder", "ftruncate", "fsync"]
    appended = ["write", "fsync"]
    assert steps == [*created, *appended, *mended, *appended]


def appending(path, count=None):
    """Work for a process to be killed: append what is missing, or without end; tell each chunk."""

    def work(tell):
        with open_journal(path, RUN) as journal:
            missing = itertools.count(journal.reused)
            for number in missing if count is None else range(journal.reused, count):
                append(journal, [number])
                tell(number)

    return work


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("torn", [False, True], ids=["new", "torn"])
def test_a_kill_at_any_call_loses_no_acknowledged_chunk(tmp_path, moment, torn):
    whole, ends = written(tmp_path / "whole", 4)
    for call in itertools.count(1):
        path = tmp_path / f"{call}.journal"
        if torn:
            path.write_bytes(whole[: ends[2] - 5])
        ended = run_and_kill(appending(path, 4), at_call=call, moment=moment)
        if ended.code == 0:
            break
        assert ended.killed
        with open_journal(path, RUN) as journal:
            assert {int(line) for line in ended.told} <= set(range(journal.reused))
            assert_holds(journal, journal.reused)
            append(journal, range(journal.reused, 4))
        assert path.read_bytes() == whole
    # every missing chunk is written and synced, and before it the header, or what replaces the tear
    assert call > 2 * (3 if torn else 4) + 2


def assert_kills_lose_nothing(path, kills):
    """Kill a run again and again; each resumes what the last one left."""
    draw = random.Random(kills)
    for _ in range(kills):
        ended = run_and_kill(appending(path), after=draw.uniform(0, 0.1))
        assert ended.killed
        with open_journal(path, RUN) as journal:
            assert_holds(journal, journal.reused)
            assert all(int(line) < journal.reused for line in ended.told)


def test_a_kill_at_any_instant_loses_no_acknowledged_chunk(path):
    assert_kills_lose_nothing(path, 10)


@pytest.mark.slow
def test_two_hundred_kills_lose_no_acknowledged_chunk(path):
    assert_kills_lose_nothing(path, 200)


def test_a_process_that_does_not_end_is_killed_and_told_of(path):
    with pytest.raises(TimeoutError, match="had not ended"):
        run_and_kill(appending(path), limit=0.1)
