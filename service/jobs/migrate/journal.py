"""What a migration has finished, step by step, so that it goes on after a kill.

A step belongs to a task, the version that it comes from and the backbone that it goes to. Nothing
is trained twice for them, and nothing is put into the traffic twice: a guard may have removed it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from peterrec.service.jobs.journal_lines import append_line, read_lines
from peterrec.service.jobs.migrate.comparison import Comparison
from peterrec.service.jobs.server_calls import Document

STATE_FOLDER = "_migrate"
"""Folder of the journal and of its lock, in the output folder."""

JOURNAL_NAME = "journal.ndjson"

Key = tuple[str, str]
"""A task and the digest of the version that it comes from."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What is finished of one task.

    ``trained`` is the digest of the new bundle, ``pushed`` its version, and ``canary`` the share
    of the users that it got.
    """

    trained: str | None = None
    comparison: Comparison | None = None
    pushed: int | None = None
    canary: int | None = None

    def may_replace(self, traffic: Document | None) -> bool:
        """True if there is no traffic, or nothing but a canary of the new bundle."""
        if traffic is None:
            return True
        others = [*traffic["canary"], *traffic["shadow"]]
        return all(each["digest"] == self.trained for each in others)


@dataclass(slots=True)
class Journal:
    """The steps of all tasks on their way to one backbone."""

    path: Path
    backbone: str
    steps: dict[Key, Steps] = field(default_factory=dict)

    @classmethod
    def read(cls, out: Path, backbone: str, *, mends: bool) -> "Journal":
        """Read what there is; ``mends`` removes what a killed run wrote in part."""
        journal = cls(out / STATE_FOLDER / JOURNAL_NAME, backbone)
        for line in read_lines(journal.path, mends=mends):
            if line["backbone"] == backbone:
                journal._take(line)
        return journal

    def of(self, task: str, digest: str) -> Steps:
        """What is finished of a task that comes from this version."""
        return self.steps.get((task, digest), Steps())

    def add(self, task: str, digest: str, **step: object) -> Steps:
        """Note a step, which is on the disk when this returns."""
        line = {"backbone": self.backbone, "task": task, "from": digest, **step}
        append_line(self.path, line)
        self._take(line)
        return self.of(task, digest)

    def _take(self, line: Mapping[str, Any]) -> None:  # Any: JSON
        key = (line["task"], line["from"])
        found = {name: line[name] for name in ("trained", "pushed", "canary") if name in line}
        if "trained" in line:  # a bundle that was trained again was neither compared nor pushed
            found |= {"comparison": None, "pushed": None, "canary": None}
        if "comparison" in line:
            found["comparison"] = Comparison(**line["comparison"])
        self.steps[key] = replace(self.of(*key), **found)


def written(comparison: Comparison) -> Document:
    """A comparison as the journal and the report have it."""
    return asdict(comparison)
