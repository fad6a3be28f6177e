"""Tensors with JSON metadata in one sealed ``.safetensors`` file.

The file is an ordinary safetensors file that any reader of that format opens. Its metadata has one
key, ``"neurank"``, whose text is JSON::

    {"sha256": ..., "format": 1, "kind": ..., "neurank": ..., "metadata": ...}

`sha256` is the digest of the whole file with the 64 digits of the digest itself taken as zeros. So
a change of any byte is found: in a tensor, in the metadata, in the header's blanks or in the
header's length. Nothing in a file is ever executed.
"""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from neurank.errors import FileError

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
"""What JSON can say; tuples are written as lists."""

FORMAT = 1
HEADER_LIMIT = 16 * 1024 * 1024
"""Longest header, in bytes, that is written or read."""

_KEY = "neurank"
_UNSEALED = "0" * 64
_ANOTHER = "take another copy, or give a file that neurank wrote"
_SEAL_MARK = rb'"{\"sha256\":\"'  # as it stands inside the header, a JSON text in a JSON text


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Json],
    *,
    kind: str,
) -> None:
    """Write tensors and metadata as one file; whatever fails, a file already there survives.

    The bytes go to a temporary file in the same folder, which is synced and then renamed. Equal
    content gives equal bytes, in whatever order the mappings list it.

    Parameters
    ----------
    path
        Where to write. A symbolic link is followed. The folder must exist.
    tensors
        Name to tensor, on any device; the file holds detached copies, of equal dtype and shape.
    metadata
        Anything JSON can say, finite numbers only. Tuples come back as lists.
    kind
        What the file is, such as ``"ranking"``; `read_tensors` must ask for the same.

    Raises
    ------
    FileError
        The file cannot be written, or the content cannot be stored: the message says which.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "one.safetensors")
    ...     write_tensors(path, {"x": torch.ones(2)}, {"seed": 7}, kind="example")
    ...     read_tensors(path, kind="example")
    ({'x': tensor([1., 1.])}, {'seed': 7})
    """
    target = destination(path)
    write_bytes(target, _serialised(tensors, metadata, kind, target))


def read_tensors(
    path: str | os.PathLike[str], *, kind: str
) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Read a file that `write_tensors` wrote, and refuse any other.

    Parameters
    ----------
    path
        The file.
    kind
        What the file must be, as it was written.

    Returns
    -------
    tuple
        The tensors, on the CPU, by name; and the metadata.

    Raises
    ------
    FileError
        The file is missing, foreign, cut short or altered in any byte, or of another kind or
        format version. The header's length is checked before anything is read into memory.
    """
    source = Path(path)
    blob, header = _bytes_and_header(source)
    envelope = _envelope(source, header)
    _check_seal(source, blob, envelope)
    if envelope.get("kind") != kind:
        _refuse(
            source, f"it holds a {envelope.get('kind')!r}, not a {kind!r}", f"give a {kind} file"
        )
    metadata = envelope.get("metadata")
    if not isinstance(metadata, dict):
        _refuse(source, "its metadata is missing")
    try:
        return safetensors.torch.load(blob), metadata
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        _refuse(source, f"its tensors cannot be read ({error})", cause=error)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hex, of the names, dtypes, shapes and bytes of some tensors.

    The order in which the mapping lists them, their device and their memory layout do not count.

    Examples
    --------
    >>> one, two = torch.zeros(2), torch.ones(3)
    >>> tensors_digest({"a": one, "b": two}) == tensors_digest({"b": two, "a": one})
    True
    >>> tensors_digest({"a": one}) == tensors_digest({"a": one.reshape(1, 2)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = _dense_copy(name, tensors[name])
        # dtype and shape fix how many bytes follow, so no two contents run together alike
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def as_json(value: object, where: str = "metadata") -> Json:
    """Return a copy of `value` in lists and dicts, keys sorted, that JSON holds without loss.

    Parameters
    ----------
    value
        Nested mappings, sequences, strings, numbers, booleans and None.
    where
        How error messages call it.

    Raises
    ------
    FileError
        Something in it has no JSON form, NaN and infinity among them; the message says where.

    Examples
    --------
    >>> as_json({"layers": ("fc1", "fc2"), "k": 5})
    {'k': 5, 'layers': ['fc1', 'fc2']}
    """
    if value is None or type(value) in (bool, int, str):
        return value  # type: ignore[return-value]  # narrowed by the set of types above
    if isinstance(value, float):
        if value - value != 0:
            raise FileError(f"{where} is {value}, which JSON cannot hold; leave it out or say None")
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise FileError(f"{where} has the key {key!r}; JSON keys are strings: use str()")
        return {key: as_json(value[key], f"{where}[{key!r}]") for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [as_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise FileError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold; "
        "turn it into a string, a number, a list or a dict first"
    )


def destination(path: str | os.PathLike[str]) -> Path:
    """Return the file that `path` leads to, links followed; it need not be there yet.

    Raises
    ------
    FileError
        It is a folder, or its folder does not exist.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise FileError(f"{target} is a folder; give the name of a file in it")
    if not target.parent.is_dir():
        raise FileError(f"{target} cannot be written: its folder does not exist; create it first")
    return target


def write_bytes(target: Path, blob: bytes) -> None:
    """Write a whole file by way of a draft that is synced and renamed, and sync its folder.

    Raises
    ------
    FileError
        The file cannot be written; then one that was there before is untouched.
    """
    try:
        _replace(target, blob)
    except OSError as error:
        raise FileError(
            f"{target} could not be written ({error.strerror or error}); a file that was there "
            "before is untouched. Free some space or choose another folder, then save again"
        ) from error
    sync_folder(target)


def sync_folder(target: Path) -> None:
    """Make the renaming to `target` survive a power cut, where the system can promise that."""
    if os.name == "nt":  # pragma: no cover - Windows opens no folders
        return
    try:
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        # some file systems sync no folders, and a folder may be writable but not readable
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise FileError(
                f"{target} was written, but its folder could not be synced ({error.strerror}), so "
                "a power cut may still undo it; check the disk and save again"
            ) from error


def _serialised(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Json], kind: str, target: Path
) -> bytes:
    envelope = {
        "sha256": _UNSEALED,
        "format": FORMAT,
        "kind": kind,
        "neurank": version("neurank"),
        "metadata": as_json(metadata),
    }
    text = json.dumps(envelope, allow_nan=False, separators=(",", ":"))
    if "__metadata__" in tensors:
        raise FileError("no tensor may be called '__metadata__', the format's own word; rename it")
    copies = {name: _dense_copy(name, tensors[name]) for name in tensors}
    try:
        blob = safetensors.torch.save(copies, {_KEY: text})
    except (SafetensorError, KeyError, ValueError) as error:
        raise FileError(
            f"{target} cannot be written: safetensors has no form for its tensors ({error}); "
            "convert their names or dtypes first"
        ) from error
    if int.from_bytes(blob[:8], "little") > HEADER_LIMIT:
        raise FileError(
            f"{target} cannot be written: its names and metadata exceed {HEADER_LIMIT:,} bytes; "
            "keep large things in tensors"
        )
    start = _seal_start(blob)
    return blob[:start] + _seal(blob, start) + blob[start + len(_UNSEALED) :]


def _dense_copy(name: str, tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that shares memory with no other tensor."""
    if not isinstance(tensor, Tensor):
        raise FileError(f"{name!r} is a {type(tensor).__name__}; give a tensor")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise FileError(
            f"the tensor {name!r} is sparse, quantized or without data ({tensor.layout}, "
            f"{tensor.device}, {tensor.dtype}); make it dense first"
        )
    # resolve_*: a conjugate or negative view stores other bytes than it shows
    host = tensor.detach().cpu().resolve_conj().resolve_neg()
    return host.clone(memory_format=torch.contiguous_format)


def _seal_start(blob: bytes) -> int:
    """Return where the digest's 64 digits begin, or -1."""
    mark = blob.find(_SEAL_MARK, 0, 8 + HEADER_LIMIT)
    return -1 if mark < 0 else mark + len(_SEAL_MARK)


def _seal(blob: bytes, start: int) -> bytes:
    digest = hashlib.sha256(memoryview(blob)[:start])
    digest.update(_UNSEALED.encode())
    digest.update(memoryview(blob)[start + len(_UNSEALED) :])
    return digest.hexdigest().encode()


def _replace(target: Path, blob: bytes) -> None:
    draft = target.with_name(f".{target.name[:64]}.{secrets.token_hex(8)}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException:  # Ctrl-C included: no draft stays behind
        draft.unlink(missing_ok=True)
        raise


def _bytes_and_header(source: Path) -> tuple[bytes, bytes]:
    if not source.is_file():
        raise FileError(f"{source} is not there, or not a regular file; check the path")
    try:
        with source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or length > size - 8:
                _refuse(source, f"it is cut short or foreign: it has only {size:,} bytes")
            if length > HEADER_LIMIT:
                _refuse(source, f"its header claims {length:,} bytes, over {HEADER_LIMIT:,}")
            file.seek(0)
            blob = file.read()
    except OSError as error:
        raise FileError(
            f"{source} could not be read ({error.strerror or error}); check its permissions"
        ) from error
    return blob, blob[8 : 8 + length]


def _envelope(source: Path, header: bytes) -> dict[str, Any]:
    """Return the metadata's envelope, once its format version is known to be ours."""
    notes = _parsed(source, header).get("__metadata__")
    if not isinstance(notes, dict) or not isinstance(notes.get(_KEY), str):
        _refuse(source, "it is a safetensors file, but not one of neurank's")
    envelope = _parsed(source, notes[_KEY])
    if envelope.get("format") != FORMAT:
        _refuse(
            source,
            f"its format version is {envelope.get('format')!r} and this neurank reads {FORMAT}",
            f"read it with neurank {envelope.get('neurank')!r}, or write it anew",
        )
    return envelope


def _parsed(source: Path, text: bytes | str) -> dict[str, Any]:
    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        found = json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or NaN in it
        _refuse(source, f"its header is not readable ({error})", cause=error)
    if not isinstance(found, dict):
        _refuse(source, "its header is not a JSON object")
    return found


def _check_seal(source: Path, blob: bytes, envelope: dict[str, Any]) -> None:
    start = _seal_start(blob)
    if start < 0 or envelope.get("sha256") != _seal(blob, start).decode():
        _refuse(source, "its bytes do not match its SHA-256: it was altered or cut short")


def _refuse(
    source: Path, reason: str, remedy: str = _ANOTHER, *, cause: BaseException | None = None
) -> NoReturn:
    raise FileError(f"{source} is refused: {reason}; {remedy}") from cause
