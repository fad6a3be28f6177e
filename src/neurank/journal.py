r"""The finished chunks of a long run in one file that survives a kill at any instant.

A journal is a header and then one record per chunk, in the order in which they were appended. All
have one form, numbers little-endian::

    frame    8 bytes  the mark of a beginning
             8 bytes  number of the record, 0 for the header
             8 bytes  length of the payload
             4 bytes  checksum
    payload           one line of JSON; in a chunk also the float64 numbers of its arrays
    trailer  4 bytes  checksum
             8 bytes  the mark of an end

One CRC-32 runs through the whole file, over everything but the checksums themselves and the marks
of an end, and each checksum is its state at that place. So a record fits only where it was written:
a changed byte is found, and so are records that were swapped, repeated, removed or put in. Nothing
in a file is ever executed.

`Journal.append` returns when its record is on the disk. What a kill in the middle of it leaves is
the beginning of one record; the next opening cuts that off. Any other fault is refused. A file
whose end was cut off on purpose cannot be told from that of a killed run, and is taken for one:
its last chunks are computed again. After a power cut some disks show a last record of full length
with wrong bytes: that is refused, and the message says how to keep the records before it.
"""

import json
import math
import os
import shlex
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from io import FileIO
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from zlib import crc32

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from neurank.errors import FileError
from neurank.files import Json, as_json, destination, sync_folder, write_bytes

Arrays: TypeAlias = Mapping[str, NDArray[np.float64]]
"""One finished chunk: float64 arrays of any shape by name."""

FORMAT = 1
RECORD_LIMIT = 2**30
"""Longest payload, in bytes, that is written or read."""

_BEGIN = b"\x9bneurank"
_END = b"\x9bneurend"
_FIELDS = struct.Struct("<8sQQ")
_CHECKSUM = struct.Struct("<I")
_FRAME = _FIELDS.size + _CHECKSUM.size
_TRAILER = _CHECKSUM.size + len(_END)
_DIFFERENCES_NAMED = 5
_LONGEST_SHOWN = 80
_ABSENT = object()


class Journal(Protocol):
    """Finished chunks by key: arrays that need not be computed again."""

    @property
    def reused(self) -> int:
        """How many chunks were there when the journal was opened."""

    def get(self, key: str) -> dict[str, NDArray[np.float64]] | None:
        """Return fresh copies of a chunk's arrays, bit for bit as appended, or None."""

    def append(self, key: str, arrays: Arrays) -> None:
        """Add a chunk, and return when it is on the disk."""

    def keys(self) -> tuple[str, ...]:
        """Return the keys of all chunks, in the order of the file."""


@contextmanager
def open_journal(
    path: str | os.PathLike[str] | None, fingerprint: Mapping[str, Json]
) -> Iterator[Journal]:
    """Open the journal of a run, new or to be resumed, for one writer at a time.

    Threads may share the journal; a forked process may not append to it.

    Parameters
    ----------
    path
        The file; a new one if it is not there. While the journal is open, a lock on the file
        ``<path>.lock`` beside it keeps other writers out; a killed process leaves no lock. None
        stands for no file: a journal that keeps nothing.
    fingerprint
        All that the chunks depend on, as nested mappings of what JSON can say. A journal that was
        begun with another fingerprint is refused.

    Yields
    ------
    Journal
        With every chunk that an earlier run appended.

    Raises
    ------
    FileError
        The file is foreign or altered (then it is left as it is, and the message says how much of
        it is intact), belongs to another run, is open elsewhere, or cannot be read or written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "run.journal")
    ...     with open_journal(path, {"seed": 7}) as journal:
    ...         journal.append("fc1/0", {"sums": np.array([0.5, 1.5])})
    ...     with open_journal(path, {"seed": 7}) as journal:
    ...         journal.reused, journal.get("fc1/0"), journal.get("fc1/1")
    (1, {'sums': array([0.5, 1.5])}, None)
    """
    if path is None:
        yield no_journal()
        return
    target = destination(path)
    now = as_json(fingerprint, "fingerprint")
    with _locked(target), closing(_opened(target, now)) as journal:
        yield journal


def no_journal() -> Journal:
    """Return a journal that keeps nothing, for a run that is not to be resumed.

    Examples
    --------
    >>> journal = no_journal()
    >>> journal.append("fc1/0", {"sums": np.ones(2)})
    >>> journal.reused, journal.keys(), journal.get("fc1/0")
    (0, (), None)
    """
    return _NoJournal()


def chunks_in(path: str | os.PathLike[str]) -> int:
    """Count the chunks in a file that is a journal; 0 if there is no file.

    Raises
    ------
    FileError
        The file is foreign or altered, or cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "run.journal")
    ...     before = chunks_in(path)
    ...     with open_journal(path, {"seed": 7}) as journal:
    ...         journal.append("fc1/0", {"sums": np.zeros(3)})
    ...     before, chunks_in(path)
    (0, 1)
    """
    target = destination(path)
    if not target.exists():
        return 0
    with _file(target) as file:
        return max(0, sum(1 for _ in _records(target, file)) - 1)


class _NoJournal:
    reused = 0

    def get(self, key: str) -> None:
        pass

    def append(self, key: str, arrays: Arrays) -> None:
        pass

    def keys(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class _Record:
    """Where a record lies in the file, and the checksums of its frame and its payload."""

    number: int
    start: int
    length: int
    frame_sum: int
    payload_sum: int

    @property
    def body(self) -> int:
        return self.start + _FRAME

    @property
    def end(self) -> int:
        return self.body + self.length + _TRAILER


_NOTHING = _Record(number=-1, start=-_FRAME - _TRAILER, length=0, frame_sum=0, payload_sum=0)
"""What lies before the header."""


class _AlteredError(Exception):
    """What is wrong with a record."""


class _JournalFile:
    """A journal whose lock is held and whose file ends with the last whole record."""

    def __init__(
        self, path: Path, file: FileIO, chunks: Mapping[str, _Record], last: _Record
    ) -> None:
        self.reused = len(chunks)
        self._path = path
        self._file = file
        self._chunks = dict(chunks)
        self._last = last
        self._whole = True
        self._owner = os.getpid()
        self._turn = threading.Lock()

    def keys(self) -> tuple[str, ...]:
        return tuple(self._chunks)

    def get(self, key: str) -> dict[str, NDArray[np.float64]] | None:
        record = self._chunks.get(key)
        if record is None:
            return None
        with self._turn:
            self._refuse_when_closed()
            payload = _read(self._file, record.body, record.length)
        if len(payload) < record.length or crc32(payload, record.frame_sum) != record.payload_sum:
            raise FileError(
                f"{self._path} was altered while it was open: record {record.number} at byte "
                f"{record.start:,} is no longer what it was; open it again to see what is intact"
            )
        return _arrays(payload)

    def append(self, key: str, arrays: Arrays) -> None:
        payload = _chunk(key, arrays)
        with self._turn:
            self._refuse_unless_ready(key)
            blob, record = _framed(payload, self._last)
            # Until the record is known to be on the disk; an exception leaves it so.
            self._whole = False
            try:
                self._file.seek(record.start)
                _write(self._file, blob)
                os.fsync(self._file.fileno())
                self._chunks[key] = self._last = record
            except OSError as error:
                self._cut_back()
                raise FileError(
                    f"{self._path} could not take the chunk {key!r} ({error.strerror or error}); "
                    f"the {len(self._chunks)} chunks before it are safe. Free some space, then "
                    "resume with the same file"
                ) from error
            except BaseException:  # Ctrl-C
                self._cut_back()
                raise
            self._whole = True

    def close(self) -> None:
        self._file.close()

    def _cut_back(self) -> None:
        # Where this fails too, the next opening finds a torn record and cuts it off.
        with suppress(OSError):
            _cut(self._file, self._last.end)

    def _refuse_when_closed(self) -> None:
        if self._file.closed:
            raise FileError(f"{self._path} was closed; use the journal inside its `with`")

    def _refuse_unless_ready(self, key: str) -> None:
        self._refuse_when_closed()
        if os.getpid() != self._owner:
            raise FileError(
                f"{self._path} was opened by the process {self._owner}; let that one append"
            )
        if not self._whole:
            raise FileError(
                f"{self._path} takes no more chunks, because an earlier one could not be written; "
                "open it again to go on"
            )
        if key in self._chunks:
            raise FileError(
                f"{self._path} has the chunk {key!r} already; give every chunk a key of its own"
            )


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    lock = FileLock(f"{target}.lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise FileError(
            f"{target} is in use: another run appends to it; wait for its end, or give another file"
        ) from None
    except OSError as error:
        raise FileError(
            f"{target} could not be locked ({error.strerror or error}); its folder must be writable"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _opened(target: Path, fingerprint: Json) -> _JournalFile:
    """Return the journal in `target`, made if it is not there yet."""
    if _has_header(target):
        sync_folder(target)  # the run that made it may have ended before it did this
    else:
        write_bytes(target, _framed(_header(fingerprint), _NOTHING)[0])
    file = _file(target)
    try:
        return _resumed(target, file, fingerprint)
    except BaseException:
        file.close()
        raise


def _resumed(target: Path, file: FileIO, fingerprint: Json) -> _JournalFile:
    records = _records(target, file)
    last, header = next(records)
    _refuse_another_run(target, header, fingerprint)
    chunks = {}
    for last, payload in records:
        chunks[_head(payload)[0]] = last
    if _size(file) > last.end:
        _cut(file, last.end)
    return _JournalFile(target, file, chunks, last)


def _has_header(target: Path) -> bool:
    """Whether a header was written to the file in full; what is no beginning of one is refused."""
    if not target.exists():
        return False
    with _file(target) as file:
        return next(_records(target, file), None) is not None


def _file(target: Path) -> FileIO:
    if not target.is_file():
        raise FileError(f"{target} is not a regular file; give another name")
    try:
        return target.open("r+b", buffering=0)
    except OSError as error:
        raise FileError(
            f"{target} could not be opened ({error.strerror or error}); check its permissions"
        ) from error


def _records(path: Path, file: FileIO) -> Iterator[tuple[_Record, bytes]]:
    """Yield each whole record with its payload; stop at the end, or where the last one is torn."""
    if not _BEGIN.startswith(_read(file, 0, len(_BEGIN))):
        raise FileError(
            f"{path} is refused and left as it is: it is no journal, or its first bytes were "
            "altered; give another name, or restore a copy"
        )
    last, size = _NOTHING, _size(file)
    while last.end < size:
        try:
            found = _record_after(last, file, size)
        except _AlteredError as fault:
            raise FileError(_refusal(path, last, fault)) from None
        if found is None:
            return
        last = found[0]
        yield found


def _record_after(last: _Record, file: FileIO, size: int) -> tuple[_Record, bytes] | None:
    """Return the next record and its payload, or None if only its beginning is there."""
    frame = _read(file, last.end, _FRAME)
    expected = _BEGIN + (last.number + 1).to_bytes(8, "little")
    if not frame.startswith(expected[: len(frame)]):
        raise _AlteredError("does not begin with the mark and the number that belong there")
    if len(frame) < _FRAME:
        _refuse_a_gap(frame)
        return None
    _, number, length = _FIELDS.unpack_from(frame)
    frame_sum = crc32(frame[: _FIELDS.size], last.payload_sum)
    if frame[_FIELDS.size :] != _CHECKSUM.pack(frame_sum):
        raise _AlteredError("has a frame that does not match its checksum")
    if length > RECORD_LIMIT:
        raise _AlteredError(f"claims {length:,} bytes, over {RECORD_LIMIT:,}")
    body = _read(file, last.end + _FRAME, min(length + _TRAILER, size))
    payload, rest = body[:length], body[length:]
    payload_sum = crc32(payload, frame_sum)
    trailer = _CHECKSUM.pack(payload_sum) + _END
    if not trailer.startswith(rest):
        raise _AlteredError("has a payload that does not match its checksum")
    if len(rest) < _TRAILER:
        _refuse_a_gap(body)
        return None
    if number > 0:
        _head(payload)
    return _Record(number, last.end, length, frame_sum, payload_sum), payload


def _refuse_a_gap(rest: bytes) -> None:
    # What a kill leaves is the beginning of a record. If the end is there, something before it
    # is not.
    if rest.endswith(_END):
        raise _AlteredError("lacks bytes in its middle")


def _refusal(path: Path, last: _Record, fault: _AlteredError) -> str:
    message = (
        f"{path} is refused and left as it is: record {last.number + 1} at byte {last.end:,} "
        f"{fault}, so the file was altered. Restore a copy, or delete it to start anew"
    )
    if last.number < 0:
        return message
    return (
        f"{message}, or keep the {last.number} chunks before that record with "
        f"`truncate -s {last.end} {shlex.quote(str(path))}`"
    )


def _framed(payload: bytes, last: _Record) -> tuple[bytes, _Record]:
    """Return the bytes of the record that follows `last`, and its place."""
    fields = _FIELDS.pack(_BEGIN, last.number + 1, len(payload))
    frame_sum = crc32(fields, last.payload_sum)
    payload_sum = crc32(payload, frame_sum)
    record = _Record(last.number + 1, last.end, len(payload), frame_sum, payload_sum)
    parts = (fields, _CHECKSUM.pack(frame_sum), payload, _CHECKSUM.pack(payload_sum), _END)
    return b"".join(parts), record


def _header(fingerprint: Json) -> bytes:
    envelope = {"format": FORMAT, "neurank": version("neurank"), "fingerprint": fingerprint}
    return json.dumps(envelope, allow_nan=False).encode() + b"\n"


def _refuse_another_run(path: Path, header: bytes, now: Json) -> None:
    envelope = json.loads(header)
    if envelope["format"] != FORMAT:
        raise FileError(
            f"{path} is refused: its format version is {envelope['format']!r} and this neurank "
            f"writes {FORMAT}; resume with neurank {envelope['neurank']}, or give another file"
        )
    found = list(_differences(envelope["fingerprint"], now))
    if found:
        named = "; ".join(found[:_DIFFERENCES_NAMED])
        others = len(found) - _DIFFERENCES_NAMED
        raise FileError(
            f"{path} belongs to another run: {named}"
            + (f"; and {others} more differ" if others > 0 else "")
            + ". Resume with what it was begun with, or give another file"
        )


def _differences(then: object, now: object, where: str = "") -> Iterator[str]:
    """Say of each field, by its dotted name, what it was and what it is."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in sorted({**then, **now}):
            inner = f"{where}.{name}" if where else name
            yield from _differences(then.get(name, _ABSENT), now.get(name, _ABSENT), inner)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for index, pair in enumerate(zip(then, now, strict=True)):
            yield from _differences(*pair, f"{where}[{index}]")
    elif _text(then) != _text(now):  # as text, for True == 1 and -0.0 == 0.0
        yield f"{where} is {_shown(then)} in the journal and {_shown(now)} now"


def _text(value: object) -> str:
    return "absent" if value is _ABSENT else json.dumps(value)


def _shown(value: object) -> str:
    text = _text(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"


def _chunk(key: str, arrays: Arrays) -> bytes:
    """Return a chunk as the payload of a record."""
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype != np.float64:
            kind = getattr(array, "dtype", type(array).__name__)
            raise FileError(
                f"the chunk {key!r} has the array {name!r} of {kind}; a journal holds numpy "
                "arrays of float64: convert it first"
            )
    head = {"key": key, "arrays": {name: list(array.shape) for name, array in arrays.items()}}
    numbers = (np.asarray(array, "<f8").tobytes() for array in arrays.values())
    payload = b"".join([json.dumps(head).encode(), b"\n", *numbers])
    if len(payload) > RECORD_LIMIT:
        raise FileError(
            f"the chunk {key!r} takes {len(payload):,} bytes, over {RECORD_LIMIT:,}; make the "
            "chunks smaller"
        )
    return payload


def _head(payload: bytes) -> tuple[str, dict[str, list[int]], int]:
    """Return a chunk's key, the shapes of its arrays by name, and where their numbers begin."""
    try:
        begin = payload.index(b"\n") + 1
        head: Any = json.loads(payload[:begin])
        key, shapes = head["key"], head["arrays"]
        sizes = [size for shape in shapes.values() for size in shape]
        numbers = sum(math.prod(shape) for shape in shapes.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _AlteredError("has a head that cannot be read") from None
    if not isinstance(key, str) or not all(type(size) is int and size >= 0 for size in sizes):
        raise _AlteredError("has a head that cannot be read")
    if begin + 8 * numbers != len(payload):
        raise _AlteredError("holds more or fewer numbers than its head says")
    return key, shapes, begin


def _arrays(payload: bytes) -> dict[str, NDArray[np.float64]]:
    _, shapes, begin = _head(payload)
    arrays = {}
    for name, shape in shapes.items():
        count = math.prod(shape)
        flat = np.frombuffer(payload, "<f8", count, begin)
        arrays[name] = flat.astype(np.float64).reshape(shape)
        begin += 8 * count
    return arrays


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _read(file: FileIO, start: int, length: int) -> bytes:
    """Return `length` bytes from `start`, fewer only where the file ends."""
    file.seek(start)
    parts = []
    while length > 0 and (part := file.read(length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _write(file: FileIO, blob: bytes) -> None:
    left = memoryview(blob)
    while left:
        left = left[os.write(file.fileno(), left) :]


def _cut(file: FileIO, length: int) -> None:
    os.ftruncate(file.fileno(), length)
    os.fsync(file.fileno())
