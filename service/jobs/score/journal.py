"""What a run of bulk scoring has finished: a file that grows by a line with every part.

A run that was killed at any moment goes on after its last line. The first line says what is scored
and how; a run that differs from it does not go on.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peterrec.model.disk import make_folder
from peterrec.model.documents import Document
from peterrec.service.errors import OutputChanged, RunChanged
from peterrec.service.jobs.journal_lines import append_line, read_lines

STATE_FOLDER = "_score"
"""Folder of the journal and of copies of the bundles. Readers of tables pass over such names."""

JOURNAL_NAME = "journal.ndjson"


@dataclass(frozen=True, slots=True)
class PartDone:
    """A part that is finished: rows of the input, how many of them were bad, and its files' sizes.

    ``items`` counts the items of all histories, and ``unknown`` those that the backbone has not.
    """

    part: int
    rows: int
    bad: int
    items: int
    unknown: int
    files: dict[str, int]


@dataclass(slots=True)
class Journal:
    """The journal of one output folder. ``header`` is None in a new one."""

    path: Path
    header: Document | None = None
    parts: list[PartDone] = field(default_factory=list)
    is_complete: bool = False

    @classmethod
    def read(cls, folder: Path) -> "Journal":
        """Read what there is; a line that a killed run did not end is removed."""
        journal = cls(folder / STATE_FOLDER / JOURNAL_NAME)
        for line in read_lines(journal.path):
            journal._take(line)
        return journal

    @property
    def rows(self) -> int:
        """Rows of the input that are finished."""
        return sum(part.rows for part in self.parts)

    def begin(self, header: Document) -> None:
        """Write the first line, or compare it with that of the run which is to go on."""
        if self.header is None:
            make_folder(self.path.parent)
            append_line(self.path, {"run": header})
            self.header = header
            return
        for name, value in header.items():
            before = self.header.get(name)
            if before != json.loads(json.dumps(value)):
                raise RunChanged(name, _shown(before), _shown(value))

    def add(self, part: PartDone) -> None:
        """Note a part whose files all have their names."""
        append_line(self.path, {"part": asdict(part)})
        self.parts.append(part)

    def end(self) -> None:
        """Note that nothing is left to do."""
        append_line(self.path, {"complete": True})
        self.is_complete = True

    def require_files(self, folder: Path, passing: str) -> None:
        """Refuse to go on if a finished file is gone or has another size.

        Files of the folder ``passing`` are joined to others in the end, and may be gone.
        """
        for part in self.parts:
            for name, size in part.files.items():
                path = folder / name
                if path.parent.name == passing:
                    continue
                if not path.is_file() or path.stat().st_size != size:
                    raise OutputChanged(str(path))

    def _take(self, line: Mapping[str, Any]) -> None:  # Any: JSON
        if "run" in line:
            self.header = line["run"]
        elif "part" in line:
            self.parts.append(PartDone(**line["part"]))
        else:
            self.is_complete = True


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:199]}…"
