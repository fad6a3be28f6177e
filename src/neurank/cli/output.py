"""What the command line says, to people and to machines, and how it fails."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping

import typer
from typer.core import TyperGroup

from neurank.errors import CondenseError, NeurankError
from neurank.files import Json
from neurank.report.documents import plain
from neurank.text import legible

WRONG_INPUT, FAILED, INTERRUPTED = 2, 1, 130
"""Exit codes: what was given cannot be used; it went wrong on the way; Ctrl-C."""

_INTERRUPTED = "interrupted: files that were finished are kept, nothing is half written"
_LONGEST_LINE = 4000
_NO_MEMORY = ("can't allocate memory", "out of memory", "Unable to allocate")
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer exports only this child of it


class OneLineErrors(TyperGroup):
    """A group of commands whose errors are one line on standard error, with an exit code."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # typer's own name
        """Run a command; with ``--traceback`` let errors of all kinds through."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            _fail(str(interruption) or _INTERRUPTED)
            raise typer.Exit(INTERRUPTED) from None
        except _UsageError as error:
            _fail(f"{_usage_message(error)} Try '{_command_path(error, ctx)} --help'.")
            raise typer.Exit(WRONG_INPUT) from None
        except BrokenPipeError:
            raise  # whoever read the output has had enough; typer ends quietly
        except Exception as error:
            if isinstance(error, typer.Exit | typer.Abort) or ctx.params.get("traceback"):
                raise
            _fail(_message(error))
            raise typer.Exit(_exit_code(error)) from None


def say(text: object = "", *, quiet: bool = False, end: str = "\n") -> None:
    """Print some lines for people on standard output, or nothing with ``--json``."""
    if not quiet:
        sys.stdout.write(f"{text}{end}")


def document(content: Mapping[str, Json]) -> None:
    """Print the one JSON document of a command on standard output."""
    sys.stdout.write(json.dumps(plain(content), allow_nan=False) + "\n")


def command_line(*words: object) -> str:
    """Return a command that can be pasted into a shell.

    Examples
    --------
    >>> command_line("neurank", "rank", "my net.py:make")
    "neurank rank 'my net.py:make'"
    """
    return shlex.join(str(word) for word in words)


def heading(title: str) -> str:
    r"""Return a title with a line under it.

    Examples
    --------
    >>> heading("Agreement")
    'Agreement\n---------'
    """
    return f"{title}\n{'-' * len(title)}"


def _fail(message: str) -> None:
    line = legible(" ".join(message.split()), _LONGEST_LINE)
    sys.stderr.write(f"neurank: {line}\n")


def _message(error: Exception) -> str:
    if isinstance(error, NeurankError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path and its permissions"
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in _NO_MEMORY):
        return f"out of memory ({error}); give a smaller --batch-size, or fewer examples"
    return (
        f"{type(error).__name__}: {error}; see where with 'neurank --traceback' in front of the "
        "command"
    )


def _exit_code(error: Exception) -> int:
    wrote_in_vain = isinstance(error.__cause__, OSError)
    wrong_input = isinstance(error, NeurankError | FileNotFoundError | IsADirectoryError)
    broken_promise = isinstance(error, CondenseError) or wrote_in_vain
    return WRONG_INPUT if wrong_input and not broken_promise else FAILED


def _usage_message(error: Exception) -> str:
    format_message: Callable[[], str] | None = getattr(error, "format_message", None)
    return str(error) if format_message is None else format_message()


def _command_path(error: Exception, ctx: typer.Context) -> str:
    return str((getattr(error, "ctx", None) or ctx).command_path)
