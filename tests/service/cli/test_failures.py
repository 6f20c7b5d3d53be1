"""Every exception ends a command with one coded line, and the traceback is kept for us."""

import errno
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from peterrec.model.errors import DataFileMissing, DiskFull, PathMissing
from peterrec.service.cli.failures import failure_of, interruption_keeps, report
from peterrec.service.cli.server_options import exit_status
from peterrec.service.errors import (
    Interrupted,
    OutOfMemory,
    OutputClosed,
    ProcessLost,
    UnexpectedFailure,
)


class OutOfMemoryError(RuntimeError):
    """As torch and DuckDB call theirs, which are not imported for it."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataFileMissing("it is away."), DataFileMissing),
        (KeyboardInterrupt(), Interrupted),
        (BrokenPipeError(errno.EPIPE, ""), OutputClosed),
        (MemoryError("Unable to allocate 9 TiB"), OutOfMemory),
        (OutOfMemoryError("CUDA"), OutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemory),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), OutOfMemory),
        (OSError(errno.ENOSPC, "full"), DiskFull),
        (FileNotFoundError(errno.ENOENT, "", "away"), PathMissing),
        (ConnectionResetError(errno.ECONNRESET, "reset"), UnexpectedFailure),
        (TimeoutError(), UnexpectedFailure),
        (BrokenProcessPool("abruptly"), ProcessLost),
        (EOFError(), UnexpectedFailure),
        (KeyError("lost"), UnexpectedFailure),
    ],
)
def test_every_exception_is_an_error_with_a_code(error, kind):
    assert type(failure_of(error)) is kind
    assert failure_of(error).message.endswith(".")


def test_the_exit_status_of_an_interrupted_command_is_that_of_the_signal():
    assert exit_status(failure_of(KeyboardInterrupt())) == 128 + signal.SIGINT
    assert exit_status(failure_of(BrokenPipeError())) == 128 + signal.SIGPIPE
    assert exit_status(failure_of(ValueError())) == 1


def test_an_interruption_says_what_is_kept():
    with pytest.raises(Interrupted) as caught, interruption_keeps(lambda: "the checkpoint"):
        raise KeyboardInterrupt
    assert caught.value.hint == "the checkpoint"


def raised(error: BaseException) -> BaseException:
    """The exception with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_fault_of_ours_is_one_line_and_its_traceback_is_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PETERREC_TRACEBACK", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    report(raised(KeyError("a\nb")))
    said = capsys.readouterr().err
    (kept,) = tmp_path.iterdir()
    assert said.startswith("unexpected_failure: KeyError: 'a\\nb'.\n")
    assert str(kept) in said
    assert "Traceback" not in said
    assert "Traceback" in kept.read_text()


def test_a_fault_of_ours_is_told_where_no_file_can_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    report(raised(ValueError("odd")))
    assert "PETERREC_TRACEBACK=1" in capsys.readouterr().err


def test_the_traceback_is_printed_on_request(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("PETERREC_TRACEBACK", "1")
    report(raised(ValueError("odd")))
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("text", ["EOFError()", "KeyError(1)", "MemoryError()", "OSError(5, '')"])
def test_no_exception_within_a_command_reaches_a_person(text, tmp_path):
    """A command group whose one command fails, run by the real program."""
    program = (
        "import sys, types, typer\n"
        "from peterrec.service.cli import main as ours\n"
        "def fail():\n"
        f"    raise {text}\n"
        "group = types.ModuleType('peterrec.service.cli.failing')\n"
        "group.register = lambda app: app.command('fail')(fail)\n"
        "sys.modules[group.__name__] = group\n"
        "ours.COMMAND_GROUPS = (*ours.COMMAND_GROUPS, 'failing')\n"
        "sys.argv = ['peterrec', 'fail']\n"
        "ours.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(map(str, map(Path, sys.path)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.split(":")[0] in {
        "unexpected_failure",
        "out_of_memory",
        "file_system_failed",
    }
    assert "Traceback" not in done.stderr
