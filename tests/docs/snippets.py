"""Find the code blocks of Markdown documents, check their marks, and run them.

A block of a language in ``RUNNERS`` has a comment before it, which says what the tests do with it:
``<!-- run: SCENARIO -->`` or ``<!-- shown: REASON -->``. A block of any language after
``<!-- output -->`` must equal the output of the block before it; ``…`` matches any text.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

MARK = re.compile(r"<!--\s*(run|shown|output)\s*(?::\s*(.*?))?\s*-->\s*\Z", re.DOTALL)
TIMEOUT_S = 180


@dataclass(frozen=True)
class Block:
    """A fenced block. ``mark`` is run, shown, output or empty; ``about`` is the text after it."""

    document: str
    line: int
    language: str
    text: str
    mark: str
    about: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"


def blocks_of(text: str, document: str) -> list[Block]:
    """Return every fenced block, in order."""
    found, previous = [], ""
    for token in MarkdownIt("commonmark").parse(text):
        if token.type == "fence":
            assert token.map is not None
            mark = MARK.match(previous)
            kind, about = mark.groups(default="") if mark else ("", "")
            language = (token.info.split() or [""])[0]
            found.append(Block(document, token.map[0] + 1, language, token.content, kind, about))
        previous = token.content if token.type == "html_block" else ""
    return found


def problems_of(blocks: list[Block]) -> list[str]:
    """Return a description of every wrong or missing mark."""
    found = []
    for before, block in zip([None, *blocks], blocks, strict=False):
        if block.mark == "" and block.language in RUNNERS:
            found.append(f"{block.place}: neither <!-- run: … --> nor <!-- shown: … -->")
        if block.mark == "run" and block.language not in RUNNERS:
            found.append(f"{block.place}: {block.language or 'a plain block'} can't be run")
        if block.mark in {"run", "shown"} and not block.about:
            found.append(f"{block.place}: {block.mark} needs a name or a reason after a colon")
        if block.mark == "output" and (before is None or before.mark != "run"):
            found.append(f"{block.place}: output of which block?")
    return found


def scenarios_of(blocks: list[Block]) -> list[str]:
    """Return the names of the scenarios that a document's blocks run in."""
    return list(dict.fromkeys(block.about for block in blocks if block.mark == "run"))


def steps_of(blocks: list[Block], scenario: str) -> Iterator[tuple[Block, Block | None]]:
    """Return the blocks of a scenario, each with its expected output."""
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        if block.mark == "run" and block.about == scenario:
            yield block, after if after is not None and after.mark == "output" else None


@dataclass
class Session:
    """Runs the blocks of one scenario in one folder, environment and Python namespace."""

    folder: Path
    environment: Mapping[str, str]
    names: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})

    def run(self, block: Block) -> str:
        """Run a block and return its output; fail the test if the block fails."""
        return RUNNERS[block.language](self, block)


def _run_bash(session: Session, block: Block) -> str:
    return _shell(session, block.text, block.place)


def _run_console(session: Session, block: Block) -> str:
    """Run the commands after ``$``; return each command followed by its output."""
    for command, expected in _exchanges(block.text):
        printed = _shell(session, command, block.place)
        assert is_as_shown(expected, printed), f"{block.place}: $ {command}\n{printed}"
    return ""


def _run_python(session: Session, block: Block) -> str:
    """Run Python code in this process, so that a traceback names the document's lines."""
    code = compile("\n" * block.line + block.text, block.document, "exec")
    printed = io.StringIO()
    before = dict(os.environ)
    os.environ.update(session.environment)
    try:
        with contextlib.chdir(session.folder), contextlib.redirect_stdout(printed):
            exec(code, session.names)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return printed.getvalue()


RUNNERS: Mapping[str, Callable[[Session, Block], str]] = {
    "bash": _run_bash,
    "sh": _run_bash,
    "console": _run_console,
    "python": _run_python,
}


def _shell(session: Session, script: str, place: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=session.folder,
        env={**os.environ, **session.environment, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{place}: exit status {done.returncode}\n{done.stdout}"
    return done.stdout


def _exchanges(text: str) -> Iterator[tuple[str, str]]:
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    for part in parts:
        lines = part.splitlines()
        end = next(n for n, line in enumerate(lines) if not line.endswith("\\"))
        yield "\n".join(lines[: end + 1]), "\n".join(lines[end + 1 :])


def is_as_shown(shown: str, printed: str) -> bool:
    """Return True if ``printed`` matches ``shown``, in which ``…`` stands for any text."""
    pattern = ".*?".join(re.escape(part) for part in _trimmed(shown).split("…"))
    return re.fullmatch(pattern, _trimmed(printed), re.DOTALL) is not None


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
