"""Lines of the log in both forms, with what names their request, and without warnings."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import logging, sys, warnings
from pathlib import Path
import structlog
from peterrec.service.system.logs import LogStyle, configure_logs

configure_logs(LogStyle("{level}", "{form}"), "worker-1", lambda: {{"request_id": "r1"}})
log = structlog.get_logger()
log.info("half", path="a\\udc80b", folder=Path("x"))
log.info("own", request_id="r2")
warnings.warn("a library's warning", RuntimeWarning, stacklevel=1)
logging.getLogger("some.library").error("of a library")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


def lines_of(form: str, level: str = "info") -> list[str]:
    script = SCRIPT.format(form=form, level=level)
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        capture_output=True,
        text=True,
        errors="backslashreplace",
        check=True,
    )
    return done.stderr.splitlines()


def test_every_line_is_an_object_also_of_a_library_or_with_what_is_no_text():
    lines = [json.loads(line) for line in lines_of("json")]
    assert [line["event"] for line in lines] == ["half", "own", "of a library", "failed"]
    assert {line["process"] for line in lines} == {"worker-1"}
    assert [line["request_id"] for line in lines] == ["r1", "r2", "r1", "r1"]
    assert lines[0]["path"] == "a\udc80b"
    assert "ZeroDivisionError" in lines[-1]["exception"]


@pytest.mark.parametrize("form", ["json", "logfmt"])
def test_warnings_are_lines_at_level_debug_only(form):
    assert not [line for line in lines_of(form) if "a library's warning" in line]
    (line,) = [line for line in lines_of(form, "debug") if "a library's warning" in line]
    assert "worker-1" in line
