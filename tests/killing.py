"""Run a function in a forked process, and kill that process in the middle of it."""

import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Moment = Literal["before", "half", "after"]
MOMENTS: tuple[Moment, ...] = ("before", "half", "after")

_WRITE = os.write  # the true one, whatever a killer puts in its place


@dataclass(frozen=True)
class Ended:
    """How a process ended: its code (minus the signal that killed it), and what it had told."""

    code: int
    told: tuple[str, ...]

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


def run_and_kill(
    work: Callable[[Callable[[str], None]], None],
    *,
    after: float | None = None,
    at_call: int | None = None,
    moment: Moment = "before",
    limit: float = 120.0,
) -> Ended:
    """Call ``work(tell)`` in a forked process that SIGKILL ends, unless it is done sooner.

    Parameters
    ----------
    work
        What to do; what it tells (one line at a time) reaches the caller even if it is killed.
    after
        Kill it this many seconds after the fork.
    at_call
        Kill it at its call of this number, from 1, of ``os.write``, ``os.fsync``,
        ``os.ftruncate`` or ``os.replace``.
    moment
        ``"before"`` or ``"after"`` the call is carried out, or when ``"half"`` of the bytes are
        written (before it, for a call that writes none).
    limit
        A process that neither ends nor is killed in so many seconds is killed and an error.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python warns of threads that a fork leaves behind; the work here does not need them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reader)
        _work_and_exit(work, writer, at_call, moment)
    os.close(writer)
    try:
        told, ended = _listened(reader, limit if after is None else after)
        if not ended:
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told += _what_is_left(reader)
    finally:
        os.close(reader)
    if not ended and after is None:
        raise TimeoutError(f"the process had not ended after {limit} s; it told {told!r}")
    # a line may be cut short by the kill; what counts is whole lines
    return Ended(code, tuple(told.decode().split("\n")[:-1]))


def _work_and_exit(work, writer, at_call, moment) -> None:
    code = 1
    try:
        if at_call is not None:
            _arm(at_call, moment)
        work(lambda line: _WRITE(writer, f"{line}\n".encode()) and None)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _arm(at_call: int, moment: Moment) -> None:
    """Replace the calls that change files by such that kill this process at the given one."""
    seen = 0

    def lethal(name):
        true = getattr(os, name)

        def call(*arguments):
            nonlocal seen
            seen += 1
            if seen == at_call and moment != "after":
                if moment == "half" and name == "write":
                    handle, data = arguments
                    true(handle, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            result = true(*arguments)
            if seen == at_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in ("write", "fsync", "ftruncate", "replace"):
        setattr(os, name, lethal(name))


def _listened(reader: int, seconds: float) -> tuple[bytes, bool]:
    """What came through the pipe, and whether its other end was closed in time."""
    heard, deadline = b"", time.monotonic() + seconds
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(reader, 1 << 16)
        if not part:
            return heard, True
        heard += part
        if time.monotonic() > deadline:
            break
    return heard, False


def _what_is_left(reader: int) -> bytes:
    # Processes that the dead one started may hold the pipe open: never wait for its end.
    os.set_blocking(reader, False)
    heard = b""
    try:
        while part := os.read(reader, 1 << 16):
            heard += part
    except BlockingIOError:
        pass
    return heard
