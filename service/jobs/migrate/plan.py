"""What a migration would do: for each task, what it is trained on, or why it can't be moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from peterrec.model.data.observer import ReadingObserver
from peterrec.model.errors import DiskFull, PeterRecError
from peterrec.model.files.backbone_info import BackboneInfo, read_backbones
from peterrec.model.kinds import KINDS
from peterrec.model.progress import Progress
from peterrec.model.spec import BackboneSpec
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.options import options_of
from peterrec.patches.bundle.bundle import read_manifest
from peterrec.patches.identity import digest_of, format_digest, parse_task
from peterrec.service.errors import (
    ErrorBody,
    NewBackboneNotServed,
    NothingHeldOut,
    OldBackboneMissing,
    ServerRefused,
    ServerUnreachable,
    TaskNotActive,
    TrafficInUse,
    TrainingUnrepeatable,
    error_body,
)
from peterrec.service.jobs.migrate.data_places import DataFinder, Look, Wanted, look_from
from peterrec.service.jobs.migrate.journal import Journal
from peterrec.service.jobs.report.measured import RecordedTraining, recorded_training
from peterrec.service.jobs.score.bundles import TaskChoice
from peterrec.service.jobs.server_calls import Document, Server, task_path
from peterrec.service.jobs.task_data import TaskData, data_of

ENDS_ALL = (ServerUnreachable, DiskFull)
"""Errors after which no other task would fare better. All others cost only their own task."""


@dataclass(frozen=True, slots=True)
class DataPlaces:
    """Where data are looked for: recorded ones by ``look``, or those that a file names by task.

    Paths of ``named`` are relative to ``folder``.
    """

    look: Look
    named: Mapping[str, TaskData] = field(default_factory=dict)
    folder: Path = Path()


@dataclass(frozen=True, slots=True)
class Backbones:
    """The backbone to which tasks move, and those from which they come, by fingerprint."""

    new: BackboneInfo
    new_folder: Path
    old: Mapping[str, BackboneInfo]
    old_folders: Mapping[str, Path]

    @classmethod
    def read(cls, new: Path, old: Sequence[Path]) -> "Backbones":
        """Read the folders; BackboneGivenTwice if two hold the same one."""
        first, *others = read_backbones([new, *old])
        folders = zip(others, old, strict=True)
        return cls(
            first,
            new,
            {info.fingerprint: info for info in others},
            {info.fingerprint: folder for info, folder in folders},
        )


@dataclass(frozen=True, slots=True)
class Repeat:
    """How a task is trained again, and what it was trained on.

    ``defaults`` are the settings that the bundle does not record, as it is older than they are.
    """

    data: TaskData
    settings: FinetuneSettings
    wanted: Wanted
    name: str
    defaults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """A task with the version that prod names, and what would be done with it.

    ``repeat`` is None if nothing is left to do, as prod has moved or an earlier run was here
    (``is_done``), or if it is ``blocked``.
    """

    task: str
    version: int | None = None
    digest: str = ""
    backbone: str = ""
    kind: str = ""
    repeat: Repeat | None = None
    blocked: ErrorBody | None = None
    is_done: bool = False

    @property
    def has_moved(self) -> bool:
        """True if prod is a version for the new backbone already."""
        return self.repeat is None and self.blocked is None and not self.is_done


@dataclass(frozen=True, slots=True)
class Planner:
    """Looks at tasks of a server, and changes nothing there.

    ``max_unknown_share`` replaces what was recorded, if given.
    """

    to: Server
    backbones: Backbones
    places: DataPlaces
    finder: DataFinder
    observer: ReadingObserver
    max_unknown_share: float | None = None

    def plan(self, choice: TaskChoice, journal: Journal) -> list[PlannedTask]:
        """Plan every chosen task. Canaries that are not of an earlier run block a task.

        NewBackboneNotServed unless the server holds it.
        """
        self._require_served()
        names = choice.of(parse_task(each["task"]) for each in self.to.get("/tasks"))
        planned = []
        for done, name in enumerate(names):
            self.observer.progress(Progress("planning", done, len(names), unit="tasks"))
            planned.append(self._task(name, journal))
        self.observer.progress(Progress("planning", len(names), len(names), unit="tasks"))
        return planned

    def _require_served(self) -> None:
        first = self.to.get("/backbone")
        served = [each["fingerprint"] for each in (first, *first["others"])]
        if self.backbones.new.fingerprint not in served:
            raise NewBackboneNotServed(self.backbones.new.fingerprint, served)

    def _task(self, name: str, journal: Journal) -> PlannedTask:
        planned = PlannedTask(name)
        try:
            detail = self.to.get(task_path(name))
            planned = _as_it_is(name, detail)
            if planned.backbone == self.backbones.new.fingerprint:
                return planned
            steps = journal.of(name, planned.digest)
            if steps.canary is not None:
                return replace(planned, is_done=True)
            if not steps.may_replace(detail["traffic"]):
                raise TrafficInUse(name)
            return replace(planned, repeat=self._repeat(planned))
        except ENDS_ALL:
            raise
        except PeterRecError as error:
            return replace(planned, blocked=error_body(error))

    def _repeat(self, planned: PlannedTask) -> Repeat:
        manifest = read_manifest(bundle_of(self.to, planned))
        old = self.backbones.old.get(planned.backbone)
        if old is None:
            raise OldBackboneMissing(planned.backbone)
        recorded = recorded_training(manifest)
        if manifest.kind not in KINDS or not recorded.settings:
            raise TrainingUnrepeatable("its bundle has no settings of its training")
        settings, defaults = settings_on(recorded, old.spec, self.backbones.new.spec)
        if settings.kind != manifest.kind:
            raise TrainingUnrepeatable(f"its settings are those of a {settings.kind} task")
        if not settings.test_share:
            raise NothingHeldOut
        if self.max_unknown_share is not None:
            settings = replace(settings, max_unknown_share=self.max_unknown_share)
        wanted = Wanted.of(manifest.kind, recorded.data)
        data = self._data(planned.task, recorded, wanted)
        return Repeat(data, settings, wanted, manifest.name, defaults)

    def _data(self, task: str, recorded: RecordedTraining, wanted: Wanted) -> TaskData:
        named = self.places.named.get(task)
        if named is None and not recorded.reading:
            raise TrainingUnrepeatable("its bundle does not say how its data were read")
        data = data_of(recorded.reading) if named is None else named
        look = self.places.look if named is None else look_from(self.places.folder)
        return self.finder.find(data, look, wanted)


def bundle_of(to: Server, planned: PlannedTask) -> bytes:
    """The bundle of the planned version, from the server."""
    data = to.content(task_path(planned.task, f"/versions/{planned.version}/bundle"))
    if format_digest(digest_of(data)) != planned.digest:
        raise ServerRefused(
            "unexpected_answer", "the bundle has another digest than its version.", "Try again."
        )
    return data


def settings_on(
    recorded: RecordedTraining, old: BackboneSpec, new: BackboneSpec
) -> tuple[FinetuneSettings, tuple[str, ...]]:
    """The recorded settings for another backbone, and the names of those that are not recorded.

    TrainingUnrepeatable if they are not understood.
    """
    values = dict(recorded.settings)
    options = options_of(FinetuneSettings)
    unknown = set(values) - {each.field for each in options}
    if unknown:
        raise TrainingUnrepeatable(
            f"its settings have {', '.join(sorted(unknown))}, not known here"
        )
    named = {each.name: values[each.field] for each in options if each.field in values}
    try:
        settings: FinetuneSettings = TypeAdapter(FinetuneSettings).validate_python(named)
    except (ValidationError, PeterRecError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.message
        raise TrainingUnrepeatable(f"its settings are not understood: {first}") from error
    blocks = blocks_on(settings.blocks, len(old.dilations), len(new.dilations))
    missing = tuple(each.name for each in options if each.field not in values)
    return replace(settings, blocks=blocks), missing


def blocks_on(blocks: tuple[int, ...] | None, old: int, new: int) -> tuple[int, ...] | None:
    """Blocks for a backbone of another depth: all, as many at the top, or those of equal numbers.

    TrainingUnrepeatable if there are no such blocks.
    """
    if blocks is None or old == new:
        return blocks
    if blocks == tuple(range(old)):
        return tuple(range(new))
    if blocks == tuple(range(old - len(blocks), old)) and len(blocks) <= new:
        return tuple(range(new - len(blocks), new))
    if max(blocks) >= new:
        numbers = ", ".join(map(str, blocks))
        raise TrainingUnrepeatable(f"it patches the blocks {numbers}, and the backbone has {new}")
    return blocks


def _as_it_is(name: str, detail: Document) -> PlannedTask:
    """A task as the server has it; TaskNotActive if prod names no version."""
    prod: Mapping[str, Any] | None = detail["aliases"].get("prod")  # Any: JSON
    if prod is None:
        raise TaskNotActive(name)
    version = next(each for each in detail["versions"] if each["digest"] == prod["digest"])
    return PlannedTask(name, prod["version"], prod["digest"], version["backbone"], version["kind"])
