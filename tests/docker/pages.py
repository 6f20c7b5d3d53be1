"""Reads a runbook as somebody on call does: panels and queries to look at, commands to run.

Blocks of a shell have a mark before them. Under *What to look at* it is ``<!-- run: look -->``, and
under *How to know it is over* ``<!-- run: over -->``: these are run for every fault of the page.
Under *What to do* the mark names the fault in which the commands lead to the end. A ``promql``
block is asked of Prometheus: what one looks at has an answer while the alert fires, and what is
told at the end has none any more.
"""

import re
from dataclasses import dataclass, replace

from tests.docker.boards import BOARDS, MARKS, REGISTRATIONS, Panel
from tests.docker.queries import ROOT
from tests.docs.snippets import Block, blocks_of

FOLDER = ROOT / "docs" / "runbooks"
PARTS = ["What it means", "What to look at", "What to do", "How to know it is over"]
LOOK, DO, OVER = PARTS[1:]
NAMES = {board.name: {panel.title: panel for panel in board.panels} for board in BOARDS}

_CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
MARK_NAMES = {mark.name for mark in (*MARKS, REGISTRATIONS)}


@dataclass(frozen=True)
class Page:
    """One runbook: its alerts, and the text and the blocks of each part."""

    name: str
    alerts: tuple[str, ...]
    texts: dict[str, str]
    blocks: dict[str, list[Block]]

    @property
    def panels(self) -> list[tuple[str, str]]:
        """The panels to look at: dashboard and title."""
        return panels_in(self.texts[LOOK])

    def queries(self, part: str) -> list[str]:
        return [block.text.strip() for block in self.blocks[part] if block.language == "promql"]

    def commands(self, part: str, fault: str) -> list[Block]:
        """The blocks of a part that are run for a fault."""
        return [
            block for block in self.blocks[part] if block.mark == "run" and block.about == fault
        ]

    @property
    def faults(self) -> set[str]:
        """The faults that commands of this page are marked with."""
        return {block.about for block in self.blocks[DO] if block.mark == "run"}


def read_page(name: str) -> Page:
    """Read one page by its name."""
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    head, *rest = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    texts = dict(zip(rest[::2], rest[1::2], strict=True))
    assert list(texts) == PARTS, f"{name}: {list(texts)}"
    alerts = tuple(re.findall(r"`(PeterRec\w+)`", head))
    blocks = {part: _blocks_of(name, part, texts[part]) for part in PARTS}
    return Page(name, alerts, texts, blocks)


def _blocks_of(name: str, part: str, text: str) -> list[Block]:
    found = blocks_of(text, f"{name}, {part}")
    return [replace(block, text=block.text.rstrip() + "\n") for block in found]


def panels_in(text: str) -> list[tuple[str, str]]:
    """The panels that a text names: titles in italics after a dashboard in italics and a colon."""
    found, board = [], ""
    prose = " ".join(_CODE.sub("", text).split())
    for name, colon in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)(:?)", prose):
        if name in NAMES and colon:
            board = name
        elif board and (name in NAMES[board] or name not in MARK_NAMES):
            found.append((board, name))
    return found


def panel_of(board: str, title: str) -> Panel | None:
    """The panel of a dashboard with this title; None if there is none."""
    return NAMES[board].get(title)
