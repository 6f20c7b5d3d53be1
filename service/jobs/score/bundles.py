"""Which bundles score: from files, or from a registry as it is at one revision.

They are copied beside the output first. So a run that goes on uses the very same bundles, whatever
the registry or the files have become.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from peterrec.model.disk import make_folder, read_bytes, write_bytes
from peterrec.model.documents import Document
from peterrec.model.errors import PathMissing
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.patches.bundle.bundle import BUNDLE_SUFFIX
from peterrec.patches.bundle.verify import BackboneIdentity, BundleLimits, verify_bundle
from peterrec.patches.identity import (
    Blob,
    Digest,
    TaskRef,
    TenantId,
    format_digest,
    parse_digest,
    parse_task,
)
from peterrec.patches.registry.availability import Availability
from peterrec.patches.registry.registry import Registry
from peterrec.patches.registry.traffic import PROD
from peterrec.service.errors import NoTaskMatches, TwoBundlesOfOneName
from peterrec.service.jobs.score.scorer import ScoredTask

ALL = "all"
"""Stands for every task."""


@dataclass(frozen=True, slots=True)
class TaskChoice:
    """Which of the tasks that there are: named, matching a pattern, or all."""

    names: tuple[str, ...] = ()
    pattern: str | None = None

    @property
    def is_empty(self) -> bool:
        """True if nothing is chosen."""
        return not self.names and self.pattern is None

    def of(self, there: Iterable[str]) -> list[str]:
        """The chosen names in order; NoTaskMatches if a name or the pattern has no task."""
        found = sorted(there)
        for name in self.names:
            if name not in found and (name != ALL or not found):
                raise NoTaskMatches(name, found)
        if self.pattern is not None and not any(map(self._matches, found)):
            raise NoTaskMatches(self.pattern, found)
        return [name for name in found if self._takes(name)]

    def _takes(self, name: str) -> bool:
        return ALL in self.names or name in self.names or self._matches(name)

    def _matches(self, name: str) -> bool:
        return self.pattern is not None and fnmatchcase(name, self.pattern)


@dataclass(frozen=True, slots=True)
class PinnedTask:
    """A task and the version that scores it in a whole run, however often it goes on."""

    name: str
    digest: Digest
    version: int | None = None
    availability: Availability | None = None

    def to_json(self) -> Document:
        """What the journal keeps."""
        listed = self.availability
        return {
            "name": self.name,
            "digest": format_digest(self.digest),
            "version": self.version,
            "availability": None if listed is None else msgspec.to_builtins(listed),
        }

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> "PinnedTask":  # Any: JSON
        """Read what ``to_json`` wrote."""
        listed = kept["availability"]
        available = None if listed is None else msgspec.convert(listed, Availability)
        return cls(kept["name"], parse_digest(kept["digest"]), kept["version"], available)


@dataclass(frozen=True, slots=True)
class Pinned:
    """All tasks of a run, and the revision of the registry that named them; None: from files."""

    tasks: tuple[PinnedTask, ...] = ()
    revision: int | None = None

    def to_json(self) -> Document:
        """What the journal keeps."""
        return {"revision": self.revision, "tasks": [task.to_json() for task in self.tasks]}

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> "Pinned":  # Any: JSON
        """Read what ``to_json`` wrote."""
        return cls(tuple(map(PinnedTask.from_json, kept["tasks"])), kept["revision"])


def pin_files(paths: Sequence[Path], choice: TaskChoice, folder: Path) -> Pinned:
    """Choose bundle files by their names, and copy them. A folder stands for those in it."""
    there: dict[str, Path] = {}
    for file in _bundle_files(paths):
        own = parse_task(file.name.removesuffix(BUNDLE_SUFFIX))
        if own in there:
            raise TwoBundlesOfOneName(own, str(there[own]), str(file))
        there[own] = file
    tasks: list[PinnedTask] = []
    for name in choice.of(there):
        blob = Blob(read_bytes(there[name]))
        _keep(folder, blob)
        tasks.append(PinnedTask(name, blob.digest))
    return Pinned(tuple(tasks))


def _bundle_files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise PathMissing(f"{path} does not exist.", hint="Check the path of `bundles`.")
        files += sorted(path.glob(f"*{BUNDLE_SUFFIX}")) if path.is_dir() else [path]
    return files


async def pin_in_registry(
    registry: Registry, tenant: TenantId, choice: TaskChoice, folder: Path
) -> Pinned:
    """Choose the versions that ``prod`` names, all at one revision, and copy their bundles."""
    snapshot = await registry.feed.snapshot()
    there: set[str] = {
        ref.task
        for ref, entry in snapshot.tasks.items()
        if ref.tenant == tenant and PROD in entry.aliases
    }
    tasks: list[PinnedTask] = []
    for name in choice.of(there):
        entry = snapshot.tasks[TaskRef(tenant, parse_task(name))]
        version = entry.aliases[PROD]
        digest = entry.digest_of(version)
        assert digest is not None, "prod names no version"
        tasks.append(PinnedTask(name, digest, version, entry.availability))
    for digest in dict.fromkeys(task.digest for task in tasks):
        if not _path_of(folder, digest).exists():
            _keep(folder, await registry.blobs.get(digest))
    return Pinned(tuple(tasks), snapshot.revision)


def verified_tasks(pinned: Pinned, folder: Path, loaded: LoadedBackbone) -> list[ScoredTask]:
    """The pinned tasks with their copied bundles; BundleRejected if one does not fit."""
    identity = BackboneIdentity(loaded.fingerprint, loaded.backbone.spec)
    verified = {
        digest: verify_bundle(
            _path_of(folder, digest),
            backbone=identity,
            limits=BundleLimits(),
            expected_digest=digest,
        )
        for digest in {task.digest for task in pinned.tasks}
    }
    return [
        ScoredTask(task.name, verified[task.digest], task.version, task.availability)
        for task in pinned.tasks
    ]


def _keep(folder: Path, blob: Blob) -> None:
    make_folder(folder)
    write_bytes(_path_of(folder, blob.digest), blob.data)


def _path_of(folder: Path, digest: Digest) -> Path:
    return folder / f"{digest}{BUNDLE_SUFFIX}"
