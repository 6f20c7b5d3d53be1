"""How a failed command ends: with one coded line that says what to do, whatever happened.

No exception of a library or of Python reaches a person. The traceback is for us: it is printed if
``PETERREC_TRACEBACK`` is set, and kept in a file if the failure is a fault of ours.
"""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rich.console import Console

from peterrec.model.disk import refusal
from peterrec.model.errors import PeterRecError
from peterrec.service.errors import (
    Interrupted,
    OutOfMemory,
    OutputClosed,
    ProcessLost,
    UnexpectedFailure,
)
from peterrec.service.settings import shows_tracebacks

OUTPUT = Path("the command's output or a temporary file")
"""What an error of the operating system is about that names no file."""

MEMORY_TEXTS = ("can't allocate memory", "out of memory", "Cannot allocate memory")
"""What libraries write if memory is short and they have no class of error for it."""

LONGEST_TEXT = 500
"""Characters of a library's message that are shown."""


def failure_of(error: BaseException) -> PeterRecError:
    """The error that a person is shown for any exception."""
    if isinstance(error, PeterRecError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("the command was interrupted.", hint="Nothing more was written.")
    if isinstance(error, BrokenPipeError):
        return OutputClosed("nobody reads the command's output any longer.")
    if _is_out_of_memory(error):
        return OutOfMemory(
            f"the memory is not enough: {_text(error)}.",
            hint="Close other programs, use less data or smaller settings, or a larger machine.",
        )
    if isinstance(error, BrokenExecutor):
        return ProcessLost(
            "a process of this command was killed, most likely because memory was short.",
            hint="Repeat the command with fewer processes at a time.",
        )
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return refusal(error, OUTPUT)
    return UnexpectedFailure(f"{type(error).__name__}: {_text(error)}.")


@contextmanager
def interruption_keeps(what: Callable[[], str]) -> Iterator[None]:
    """Tell at Ctrl-C what is kept, in the words of ``what``, which is called then."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted("the command was interrupted.", hint=what()) from error


def report(
    error: BaseException, rephrase: Callable[[str], str] = lambda hint: hint
) -> PeterRecError:
    """Print an exception for a person, on stderr; return the error that was printed.

    ``rephrase`` gives a hint the words of the command that failed.
    """
    shown = failure_of(error)
    hint = rephrase(shown.hint)
    if isinstance(shown, UnexpectedFailure) and not shows_tracebacks():
        hint = _where_the_traceback_is(error)
    with suppress(OSError, ValueError):  # stderr may be closed or on a full disk, too
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"[red]{shown.code}[/red]: ", end="")
        console.print(shown.message, markup=False)
        if hint:
            console.print(f"  {hint}", markup=False)
        if shows_tracebacks():
            traceback.print_exception(error)
    return shown


def show_every_name() -> None:
    """Let file names and ids that the terminal's encoding lacks be printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Write what is still in memory, so that a full disk is an error of the command."""
    if sys.stdout is not None:
        sys.stdout.flush()


def give_up_output() -> None:
    """Let Python end without writing the rest of an output that cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            _redirect_to_nothing(stream)


def _redirect_to_nothing(stream: IO[str]) -> None:
    with suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


def _is_out_of_memory(error: BaseException) -> bool:
    """True for Python's error and those of libraries, which are not imported for this."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    is_plain = isinstance(error, RuntimeError | OSError)
    return is_plain and any(text in str(error) for text in MEMORY_TEXTS)


def _text(error: BaseException) -> str:
    """The error's message on one line."""
    lines = " ".join(str(error).split())
    shown = lines if len(lines) <= LONGEST_TEXT else f"{lines[:LONGEST_TEXT]} …"
    return shown.rstrip(".") or "it has no message"


def _where_the_traceback_is(error: BaseException) -> str:
    """Keep the traceback in a file, and say so; repeating may take hours or not fail again."""
    asking = "This is a fault of PeterRec: please report it"
    text = "".join(traceback.format_exception(error))
    try:
        number, name = tempfile.mkstemp(prefix="peterrec-failure-", suffix=".txt")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return f"{asking} with the lines that PETERREC_TRACEBACK=1 prints."
    return f"{asking} with {name}."
