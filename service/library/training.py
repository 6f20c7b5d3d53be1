"""Training from Python: the jobs of the commands, with their results as objects."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

from peterrec.model.disk import require_writable_file, require_writable_folder
from peterrec.model.files.backbone_folder import LoadedBackbone, fingerprint_of
from peterrec.model.kinds import KINDS, KindName
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.options import options_of
from peterrec.model.training.pretrain.settings import PretrainSettings
from peterrec.service.errors import ArgumentInvalid
from peterrec.service.jobs.options import AnswerOptions, EventOptions, TimeOptions, parse_blocks
from peterrec.service.jobs.reading import ConsoleObserver
from peterrec.service.jobs.recording import Recording
from peterrec.service.jobs.task_file import TASK_OPTIONS, TaskEntry, read_task_file
from peterrec.service.jobs.torchrun import place_of
from peterrec.service.jobs.tracking.options import TrackerName, TrackOptions
from peterrec.service.jobs.train import (
    FinetuneJob,
    OnExisting,
    PackedTask,
    run_finetune,
    run_pretrain,
)
from peterrec.service.jobs.train_many import ManyJob, run_finetune_many
from peterrec.service.library import option_types as types
from peterrec.service.library.backbone import Backbone, BackboneOrPath, as_backbone
from peterrec.service.library.inputs import Histories, Listed, is_table, listed
from peterrec.service.library.keywords import require_one_of, settings_of, taken, takes
from peterrec.service.library.shown import watched
from peterrec.service.library.sources import (
    answer_options,
    event_options,
    task_answers,
    time_options,
)
from peterrec.service.library.task import Task, task_of


class PretrainArguments(
    types.EventKeywords, types.TrackKeywords, types.PretrainKeywords, total=False
):
    """Keyword arguments of ``pretrain`` that stand for options of the command."""


class FinetuneArguments(
    types.EventKeywords,
    types.AnswerKeywords,
    types.TimeKeywords,
    types.TrackKeywords,
    types.FinetuneKeywords,
    total=False,
):
    """Keyword arguments of ``finetune`` that stand for options of the command."""


class ManyArguments(
    types.EventKeywords,
    types.TimeKeywords,
    types.TrackKeywords,
    types.FinetuneKeywords,
    total=False,
):
    """Keyword arguments of ``finetune_many`` that stand for options of the command."""


@takes(EventOptions, PretrainSettings, TrackOptions)
def pretrain(
    interactions: Histories,
    *,
    out: str | os.PathLike[str] | None = None,
    until: object = None,
    device: Literal["cpu", "cuda"] = "cpu",
    resume: bool = False,
    overwrite: bool = False,
    settings: PretrainSettings | None = None,
    progress: bool | None = None,
    **options: Unpack[PretrainArguments],
) -> Backbone:
    """Train a backbone on users' histories, without labels, as ``peterrec pretrain`` does.

    With ``out`` the folder is written, with a checkpoint after every epoch that ``resume=True``
    continues from; without it the backbone is only returned. ``settings`` has the values that the
    keyword arguments do not give. Equal data and seeds give equal weights, here and by the command.
    """
    require_one_of("device", device, ("cpu", "cuda"))
    if resume and out is None:
        raise ArgumentInvalid("resume needs the folder of the checkpoints.", hint="Give `out`.")
    given: dict[str, object] = {**options, "until": until}
    events = event_options(interactions, given)
    chosen = settings_of(PretrainSettings, given, settings)
    folder = None if out is None else Path(out)
    before = time_options(given).until
    if folder is not None:
        require_writable_folder(folder)
    with place_of(device) as place, watched(progress if place.workers.writes else False) as seen:
        trained, fingerprint = run_pretrain(
            events.source(before),
            chosen,
            folder,
            _on_existing(resume, overwrite),
            seen,
            place,
            recording_of(given, seen),
        )
    items, weights = list(trained.vocabulary.items), trained.backbone.state_dict()
    name = fingerprint or fingerprint_of(trained.backbone.spec, items, weights)
    return Backbone(LoadedBackbone(trained.backbone, items, name, trained.record), trained)


@takes(EventOptions, AnswerOptions, TimeOptions, FinetuneSettings, TrackOptions)
def finetune(
    backbone: BackboneOrPath,
    interactions: Histories,
    *,
    kind: KindName | None = None,
    out: str | os.PathLike[str] | None = None,
    name: str | None = None,
    overwrite: bool = False,
    settings: FinetuneSettings | None = None,
    progress: bool | None = None,
    **options: Unpack[FinetuneArguments],
) -> Task:
    """Train one task's patch and head on a frozen backbone, as ``peterrec finetune`` does.

    ``labels`` is a table of answers by user, a dict by user, or a list in the order of
    ``interactions`` if these are a list; for a ranking, ``targets`` likewise has the items to
    recommend. With ``out`` the bundle is written too. ``name`` is that in the bundle's manifest, by
    default the file's, or ``task``. ``settings`` has the values that the keyword arguments do not
    give.
    """
    loaded = as_backbone(backbone)
    data = _read_once(interactions)
    given: dict[str, object] = {**options, **({} if kind is None else {"kind": kind})}
    chosen = finetune_settings(given, loaded, settings)
    events = event_options(data, given)
    path = None if out is None else Path(out)
    job = FinetuneJob(
        interactions=events.source(time_options(given).end_of_histories),
        answers=task_answers(data, events, chosen.kind, given),
        out=path,
        name=name or ("task" if path is None else path.name.removesuffix(".bundle")),
        overwrite=overwrite,
    )
    if path is not None:
        require_writable_file(path)
    with watched(progress) as seen:
        packed = run_finetune(loaded.loaded, job, chosen, seen, recording_of(given, seen))
    return _task(loaded, packed)


@takes(EventOptions, TimeOptions, FinetuneSettings, TrackOptions)
def finetune_many(
    backbone: BackboneOrPath,
    interactions: Histories,
    tasks: Mapping[str, Mapping[str, Any]] | str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: bool | None = None,
    **options: Unpack[ManyArguments],
) -> dict[str, Task]:
    """Train many tasks' patches and heads together, as ``peterrec finetune-many`` does.

    ``tasks`` has each task's own keyword arguments of ``finetune`` by its name, or is the path of
    the command's TOML file, whose bundles are written too. The keyword arguments are what the tasks
    share; options of training that a task does not give itself are taken from them.
    """
    loaded = as_backbone(backbone)
    if options.get("cls") is not None:
        raise ArgumentInvalid("cls is no option of tasks that are trained together.")
    data = _read_once(interactions)
    given: dict[str, object] = {**options}
    events = event_options(data, given)
    if isinstance(tasks, str | os.PathLike):
        entries, folder = read_task_file(Path(tasks)), Path(tasks).parent
    elif not isinstance(tasks, Mapping) or not tasks:
        raise ArgumentInvalid(
            "tasks has no task by its name.",
            hint='Give a dict such as {"gender": {"kind": "classification"}}.',
        )
    else:
        histories = data if isinstance(data, Listed) else None
        entries, folder = (
            tuple(
                _entry(name, {**_shared(given), **own}, histories, events.user_column)
                for name, own in tasks.items()
            ),
            None,
        )
    patch = _patch(given, loaded)
    job = ManyJob(events, time_options(given), entries, folder, patch, overwrite)
    with watched(progress) as seen:
        trained = run_finetune_many(loaded.loaded, job, seen, recording_of(given, seen))
    names = [entry.bundle_name for entry in entries]
    return {name: _task(loaded, packed) for name, (_, packed) in zip(names, trained, strict=True)}


def finetune_settings(
    given: Mapping[str, object], backbone: Backbone, base: FinetuneSettings | None = None
) -> FinetuneSettings:
    """Settings of fine-tuning; ``blocks`` may be a text, as on the command line: all is None."""
    values = dict(given)
    blocks = values.get("blocks", None if base is None else base.blocks)
    if blocks is None or isinstance(blocks, str):
        values["blocks"] = parse_blocks(blocks or "all", len(backbone.spec.dilations))
    if base is None and values.get("kind") not in KINDS:
        raise ArgumentInvalid(
            f"kind={values.get('kind')!r} is no kind of task.", hint=f"Give {', '.join(KINDS)}."
        )
    return settings_of(FinetuneSettings, values, base)


def recording_of(given: Mapping[str, object], observer: ConsoleObserver) -> Recording:
    """How a training is recorded; what goes wrong with it is a notice."""
    options = TrackOptions(**taken(TrackOptions, given))
    if options.track is not None:
        require_one_of("track", options.track, get_args(TrackerName))
    return Recording(options, observer.notice, observer.notices)


def _on_existing(resume: bool, overwrite: bool) -> OnExisting:
    if resume and overwrite:
        raise ArgumentInvalid("resume and overwrite exclude each other.")
    if resume:
        return "resume"
    return "overwrite" if overwrite else "refuse"


def _read_once(interactions: Histories) -> Histories | Listed:
    """The data; lists are read here, so that each part of the work sees them."""
    return interactions if is_table(interactions) else listed(interactions)


def _task(backbone: Backbone, packed: PackedTask) -> Task:
    return task_of(backbone, packed.bundle, packed.task.record)


OWN = frozenset(option.name for option in TASK_OPTIONS)
"""Options that each task of a run may have for itself; all others are the patch's place."""

PATCH = tuple(
    option.field
    for option in options_of(FinetuneSettings)
    if option.panel == "Model" and option.field not in {"kind", "has_cls"}
)
"""Fields of the settings that all tasks of a run share."""


def _shared(given: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in given.items() if name in OWN}


def _entry(
    name: str, given: Mapping[str, object], histories: Listed | None, user_column: str
) -> TaskEntry:
    accepted = OWN | set(taken(AnswerOptions, given)) | {"delimiter"}
    unknown = ", ".join(sorted(set(given) - accepted))
    if unknown:
        raise ArgumentInvalid(
            f"task {name!r} has no option {unknown}.", hint="The patch is the same for all tasks."
        )
    kind = given.get("kind")
    if kind not in KINDS:
        raise ArgumentInvalid(
            f"task {name!r}: kind={kind!r} is no kind of task.", hint=f"Give {', '.join(KINDS)}."
        )
    return TaskEntry(
        out=Path(f"{name}.bundle"),
        answers=answer_options(histories, user_column, str(kind), given),
        settings=settings_of(FinetuneSettings, given),
        name=name,
        delimiter=None if given.get("delimiter") is None else str(given["delimiter"]),
    )


def _patch(given: Mapping[str, object], backbone: Backbone) -> dict[str, Any]:  # Any: their values
    """The fields of the settings that all tasks share, as the command gives them."""
    values = {name: value for name, value in given.items() if name not in OWN}
    settings = finetune_settings({**values, "kind": next(iter(KINDS))}, backbone)
    return {name: getattr(settings, name) for name in PATCH}
