"""The file of ``peterrec finetune-many``: one TOML table per task."""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from peterrec.model.data.tables import Condition
from peterrec.model.spec import HeadKind, PatchGeometry
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.service.errors import TaskFileInvalid
from peterrec.service.jobs.options import AnswerOptions


class TaskEntry(BaseModel):
    """One task: where its answers are, its bundle, and how it is trained.

    Paths count from the file's folder. Fields have the names of ``peterrec finetune``'s options.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path
    kind: HeadKind
    name: str | None = None
    labels: Path | None = None
    label_column: str | None = None
    tag_separator: str | None = None
    targets: Path | None = None
    target_column: str = "item_id"
    target_order_column: str | None = None
    delimiter: str = ","
    answers_where: tuple[str, ...] = ()
    min_label_count: int = Field(1, ge=1)
    max_unknown_share: float = Field(0.1, ge=0, le=1)
    epochs: int = Field(12, ge=1)
    batch_size: int = Field(128, ge=1)
    lr: float = Field(1e-2, ge=0)
    head_lr: float = Field(1e-2, ge=0)
    item_dropout: float = Field(0.2, ge=0, le=1)
    seed: int = Field(0, ge=0)
    validation_share: float = Field(0.1, ge=0, le=0.9)
    test_share: float = Field(0.1, ge=0, le=0.9)
    patience: int = Field(3, ge=1)

    def answers(self, folder: Path, user_column: str) -> AnswerOptions:
        """Where the answers are, seen from where the command runs."""
        return AnswerOptions(
            kind=self.kind,
            user_column=user_column,
            labels=None if self.labels is None else folder / self.labels,
            label_column=self.label_column,
            tag_separator=self.tag_separator,
            targets=None if self.targets is None else folder / self.targets,
            target_column=self.target_column,
            target_order_column=self.target_order_column,
            delimiter=self.delimiter,
            where=tuple(Condition.parse(text) for text in self.answers_where),
        )

    def settings(self, geometry: PatchGeometry) -> FinetuneSettings:
        """The task's settings with a patch in the places that all tasks share."""
        return FinetuneSettings(
            kind=self.kind,
            insertion=geometry.insertion,
            bottleneck=geometry.bottleneck,
            cardinality=geometry.cardinality,
            blocks=geometry.blocks,
            has_inner_skip=geometry.has_inner_skip,
            has_norms=geometry.has_norms,
            has_cls=geometry.has_cls,
            queries=geometry.queries,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.lr,
            head_learning_rate=self.head_lr,
            item_dropout=self.item_dropout,
            seed=self.seed,
            validation_share=self.validation_share,
            test_share=self.test_share,
            patience=self.patience,
            min_label_count=self.min_label_count,
            max_unknown_share=self.max_unknown_share,
        )


class TaskFile(BaseModel):
    """``[[tasks]]``, and ``[defaults]`` for what they have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[TaskEntry, ...] = Field(min_length=1)


def read_task_file(path: Path) -> tuple[TaskEntry, ...]:
    """The tasks of a file; refused with the task's number and field."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        defaults = document.pop("defaults", {})
        document["tasks"] = [{**defaults, **task} for task in document.get("tasks", [])]
        entries = TaskFile.model_validate(document).tasks
    except ValidationError as error:
        reasons = "; ".join(f"{_place(e['loc'])}: {e['msg']}" for e in error.errors())
        raise TaskFileInvalid(f"{path}: {reasons}.", hint="See docs/training.md.") from error
    except (OSError, ValueError, TypeError) as error:
        raise TaskFileInvalid(f"{path} is no readable TOML file of tasks: {error}.") from error
    outs = [entry.out for entry in entries]
    if len(set(outs)) < len(outs):
        twice = max(outs, key=outs.count)
        raise TaskFileInvalid(f"{path}: two tasks write {twice}.", hint="Give each its own out.")
    return entries


def _place(loc: tuple[int | str, ...]) -> str:
    """``task 2, field epochs`` for a place such as ``("tasks", 1, "epochs")``."""
    names = [f"task {part + 1}" if isinstance(part, int) else f"field {part}" for part in loc[1:]]
    return ", ".join(names) or str(loc[0])
