"""The work of ``peterrec migrate``: train each task again, compare, register, give it some users.

Each step of each task is in the journal when it is finished. A task that fails costs no other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from peterrec.model.data.interactions import read_histories
from peterrec.model.data.observer import ReadingObserver
from peterrec.model.disk import make_folder, read_bytes, write_bytes, write_text
from peterrec.model.documents import Document
from peterrec.model.errors import PeterRecError
from peterrec.model.files.backbone_folder import LoadedBackbone, load_backbone
from peterrec.patches.bundle.bundle import read_manifest, sign_bundle
from peterrec.patches.bundle.described import inherit_descriptions
from peterrec.patches.bundle.signatures import SigningKey
from peterrec.patches.identity import digest_of, format_digest
from peterrec.service.errors import (
    NewVersionWorse,
    ProdMoved,
    TrafficInUse,
    TrainingDataChanged,
    error_body,
)
from peterrec.service.jobs.journal_lines import alone_in
from peterrec.service.jobs.migrate.comparison import Comparison, Side, compare_sides
from peterrec.service.jobs.migrate.journal import STATE_FOLDER, Journal, Steps, written
from peterrec.service.jobs.migrate.plan import (
    ENDS_ALL,
    Backbones,
    PlannedTask,
    Planner,
    Repeat,
    bundle_of,
)
from peterrec.service.jobs.migrate.report import MovedTask, Outcome, report_of, report_text
from peterrec.service.jobs.recording import Recording
from peterrec.service.jobs.report.measured import recorded_training
from peterrec.service.jobs.score.bundles import TaskChoice
from peterrec.service.jobs.server_calls import Server, outputs_parameter, push, task_path
from peterrec.service.jobs.train import FinetuneJob, run_finetune

WHOLE = 100
"""Sum of the weights of prod and the canary."""


@dataclass(frozen=True, slots=True)
class CanaryOptions:
    """How new versions are registered: the share of users in per cent, and the guard's bounds.

    ``tolerance`` is the share of its metric that a new version may lose. New bundles are signed
    with ``keys``.
    """

    weight: int
    guard: Mapping[str, object]
    tolerance: float
    allow_new_outputs: bool = False
    keys: tuple[SigningKey, ...] = ()


class Migration:
    """Moves planned tasks, one after the other."""

    def __init__(
        self,
        out: Path,
        to: Server,
        backbones: Backbones,
        journal: Journal,
        options: CanaryOptions,
        observer: ReadingObserver,
    ) -> None:
        self._out = out
        self._to = to
        self._backbones = backbones
        self._journal = journal
        self._options = options
        self._observer = observer
        self._loaded = cache(load_backbone)

    def move(self, planned: PlannedTask) -> MovedTask:
        """Do what is left of one task. An error that ends all is raised, others are told."""
        steps = self._steps(planned)
        if planned.blocked is not None:
            return MovedTask(planned, "blocked", steps, planned.blocked)
        if planned.repeat is None:
            return MovedTask(planned, "canary" if planned.is_done else "moved", steps)
        try:
            self._move(planned, planned.repeat)
        except ENDS_ALL:
            raise
        except PeterRecError as error:
            outcome: Outcome = "worse" if isinstance(error, NewVersionWorse) else "failed"
            return MovedTask(planned, outcome, self._steps(planned), error_body(error))
        return MovedTask(planned, "canary", self._steps(planned))

    def _steps(self, planned: PlannedTask) -> Steps:
        return self._journal.of(planned.task, planned.digest)

    def _move(self, planned: PlannedTask, repeat: Repeat) -> None:
        if not self._is_trained(planned):
            self._train(planned, repeat)
        comparison = self._steps(planned).comparison or self._compare(planned, repeat)
        if comparison.is_worse(self._options.tolerance):
            raise NewVersionWorse(
                comparison.metric, comparison.old, comparison.new, self._options.tolerance
            )
        self._register(planned)

    def _bundle(self, planned: PlannedTask) -> Path:
        return self._out / f"{planned.task}.bundle"

    def _is_trained(self, planned: PlannedTask) -> bool:
        """True if the bundle of an earlier run is there, as it was."""
        trained, path = self._steps(planned).trained, self._bundle(planned)
        return trained is not None and path.is_file() and _digest(read_bytes(path)) == trained

    def _train(self, planned: PlannedTask, repeat: Repeat) -> None:
        path, data = self._bundle(planned), repeat.data
        self._observer.notice(f"{planned.task}: training on the new backbone.")
        job = FinetuneJob(
            interactions=data.histories_source,
            answers=data.answers_source,
            out=path,
            name=repeat.name,
            overwrite=True,
        )
        new = self._loaded(self._backbones.new_folder)
        packed = run_finetune(new, job, repeat.settings, self._observer, Recording())
        recorded = packed.task.record["data"]
        wanted = repeat.wanted
        digests = (recorded["histories_digest"], recorded["labels_digest"])
        if digests != (wanted.histories_digest, wanted.labels_digest):
            raise TrainingDataChanged(str(data.events.interactions), "it changed meanwhile")
        bundle = inherit_descriptions(packed.bundle, bundle_of(self._to, planned))
        if self._options.keys:
            bundle = sign_bundle(bundle, self._options.keys)
        write_bytes(path, bundle)
        self._journal.add(planned.task, planned.digest, trained=_digest(bundle))

    def _compare(self, planned: PlannedTask, repeat: Repeat) -> Comparison:
        old_folder = self._backbones.old_folders[planned.backbone]
        old = self._side(self._loaded(old_folder), bundle_of(self._to, planned))
        new = self._side(
            self._loaded(self._backbones.new_folder), read_bytes(self._bundle(planned))
        )
        histories = read_histories(repeat.data.histories_source, self._observer)
        labels = repeat.data.answers_source.read(repeat.settings.kind, self._observer)
        found = compare_sides(old, new, histories, labels, self._observer.progress)
        self._journal.add(planned.task, planned.digest, comparison=written(found))
        return found

    def _side(self, loaded: LoadedBackbone, bundle: bytes) -> Side:
        """A version with the settings by which its own training split the users."""
        manifest = read_manifest(bundle)
        settings = recorded_training(manifest).split_settings(manifest.kind)
        return Side(loaded, bundle, replace(settings, seed=manifest.provenance.seed))

    def _register(self, planned: PlannedTask) -> None:
        """Push the new version unless it is there, and make it a canary unless it is one."""
        steps, detail = self._steps(planned), self._to.get(task_path(planned.task))
        if detail["aliases"].get("prod", {}).get("digest") != planned.digest:
            raise ProdMoved(planned.task)
        if not steps.may_replace(detail["traffic"]):
            raise TrafficInUse(planned.task)
        numbers = {each["digest"]: each["version"] for each in detail["versions"]}
        revision = detail["revision"]
        if steps.trained not in numbers:
            file, parameters = self._bundle(planned), {"alias": ""}
            pushed = push(
                self._to, file, planned.task, parameters, revision, self._observer.progress
            )
            numbers[pushed["digest"]] = pushed["version"]
            revision = pushed["registry_revision"]
        assert steps.trained is not None
        version = numbers[steps.trained]
        if steps.pushed is None:
            self._journal.add(planned.task, planned.digest, pushed=version)
        if detail["traffic"] is None:
            self._to.change(
                "PUT",
                task_path(planned.task, "/traffic"),
                self._traffic(version),
                if_match=revision,
                params=outputs_parameter(allow_new_outputs=self._options.allow_new_outputs),
            )
        self._journal.add(planned.task, planned.digest, canary=self._options.weight)

    def _traffic(self, version: int) -> Document:
        weight = self._options.weight
        canary = [{"version": version, "weight": weight}]
        return {"prod_weight": WHOLE - weight, "canary": canary, "guard": self._options.guard}


def _digest(data: bytes) -> str:
    return format_digest(digest_of(data))


REPORT = "report.json"


def run_migrate(
    out: Path, planner: Planner, choice: TaskChoice, options: CanaryOptions
) -> list[MovedTask]:
    """Move the chosen tasks, and write the report whenever one of them has ended."""
    make_folder(out)
    with alone_in(out, STATE_FOLDER):
        backbones, observer = planner.backbones, planner.observer
        journal = Journal.read(out, backbones.new.fingerprint, mends=True)
        planned = planner.plan(choice, journal)
        migration = Migration(out, planner.to, backbones, journal, options, observer)
        moved: list[MovedTask] = []
        for each in planned:
            moved.append(migration.move(each))
            write_text(
                out / REPORT, report_text(report_of(backbones, moved, planned[len(moved) :]))
            )
    return moved
