"""A fine-tuned task as a Python object: its answers, its metrics, its bundle."""

import os
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Unpack, get_args

import msgspec

from peterrec.model.data.interactions import read_histories
from peterrec.model.data.observer import ReadingObserver
from peterrec.model.disk import read_bytes, write_bytes
from peterrec.model.documents import Document
from peterrec.model.progress import Progress
from peterrec.model.scratch import ScratchFolder
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.training_file import training_file_of, write_training_file
from peterrec.patches.bundle.verify import (
    BackboneIdentity,
    BundleLimits,
    TrustedKeys,
    VerifiedBundle,
    verify_bundle,
)
from peterrec.patches.identity import Blob, format_digest
from peterrec.service.errors import OutputExists
from peterrec.service.jobs.describing import DescribeOptions, described
from peterrec.service.jobs.options import AnswerOptions, EventOptions, TimeOptions
from peterrec.service.jobs.server_calls import DEFAULT_URL, outputs_parameter, push, server
from peterrec.service.jobs.train import EvaluateJob, Part, run_evaluate
from peterrec.service.library.backbone import Backbone, BackboneOrPath, DeviceName, as_backbone
from peterrec.service.library.inputs import (
    Histories,
    ItemId,
    as_path,
    as_source,
    is_table,
    listed,
    sequence,
)
from peterrec.service.library.inputs import Table as TableOrPath
from peterrec.service.library.keywords import require_one_of, settings_of, takes
from peterrec.service.library.metrics import Metrics
from peterrec.service.library.option_types import AnswerKeywords, EventKeywords, TimeKeywords
from peterrec.service.library.shown import watched
from peterrec.service.library.sources import event_options, task_answers, time_options
from peterrec.service.pages.page import Cell, Table, fragment
from peterrec.service.predict.schemas import MAX_INSTANCES
from peterrec_client import Explain, Instance, Prediction, Pushed, predicting
from peterrec_client.questions import CallOptions, Where

SHOWN_OUTPUTS = 8
"""Labels or items that a task's HTML form names."""


class EvaluateKeywords(EventKeywords, AnswerKeywords, TimeKeywords, total=False):
    """Keyword arguments of ``Task.evaluate``."""


class Task:
    """A patch and a head for one backbone: what a bundle holds. It never changes.

    ``record`` has the settings, data and epochs of its training; it is empty if the task came from
    a bundle file, which keeps only a part of it in its manifest.
    """

    def __init__(
        self, backbone: Backbone, bundle: VerifiedBundle, record: Document | None = None
    ) -> None:
        self.backbone = backbone
        self.record: Document = record or {}
        self._bundle = bundle
        self._lock = Lock()
        self._loaded_on: set[str] = set()

    @property
    def name(self) -> str:
        """The name in the bundle's manifest."""
        return self._bundle.manifest.name

    @property
    def kind(self) -> str:
        """What it answers with: classification, tags, ranking or value."""
        return self._bundle.manifest.kind

    @property
    def outputs(self) -> tuple[str, ...]:
        """Labels, tags or catalog items in the order of the head's outputs; empty for a value."""
        return tuple(self._bundle.catalog or self._bundle.manifest.head.labels or ())

    @property
    def metrics(self) -> Metrics:
        """Metrics of the users that fine-tuning kept apart."""
        return Metrics(dict(self._bundle.manifest.metrics), self._users("test_users"))

    @property
    def digest(self) -> str:
        """The version id (``sha256:…``), as the server names it."""
        return format_digest(self._bundle.digest)

    @property
    def bundle(self) -> bytes:
        """The bytes of the bundle file."""
        return self._bundle.blob.data

    @takes(EventOptions)
    def predict(  # type: ignore[misc]  # `where` of tables is a part of the `where` here
        self,
        histories: Histories | Collection[Instance],
        *,
        exclude: Collection[ItemId] | None = None,
        candidates: Collection[ItemId] | None = None,
        top_k: int | None = None,
        exclude_seen: bool | None = None,
        unknown_items: Literal["drop", "map", "error"] | None = None,
        explain: Explain | int | None = None,
        where: Where | str | Sequence[str] | None = None,
        titles: bool | None = None,
        device: DeviceName = "auto",
        progress: bool | None = None,
        **options: Unpack[EventKeywords],
    ) -> list[Prediction]:
        """The answers that a server gives for these histories, in their order.

        ``histories`` is a list of histories, each a list of item ids, oldest first; or histories by
        user, or a table of events. ``exclude`` and ``candidates`` hold for all of them; where they
        differ, give ``peterrec_client.Instance`` objects. The other parameters are those of the
        HTTP call, with its defaults and limits; ``explain`` names this many items of each history
        that moved its answer most. A dict as ``where`` says which items a ranking may return, by
        their attributes (texts are filters of a table of events). ``titles`` adds display names.
        Answers are computed in calls of 256 histories.
        """
        of_items = where if isinstance(where, Mapping) else None
        given: dict[str, Any] = {**options}  # Any: their values
        if where is not None and of_items is None:
            given["where"] = where
        parameters: CallOptions = {
            "top_k": top_k,
            "exclude_seen": exclude_seen,
            "unknown_items": unknown_items,
            "explain": explain,
            "where": of_items,
            "titles": titles,
        }
        with watched(progress) as seen:
            asked = list(self._instances(histories, given, exclude, candidates, seen))
            return self._predict(asked, parameters, device, seen)

    def described(
        self,
        *,
        titles: Mapping[ItemId, str] | TableOrPath | None = None,
        attributes: TableOrPath | None = None,
        id_column: str = "id",
        title_column: str = "title",
        attribute: Sequence[str] | None = None,
        list_separator: str = "|",
        missing: Sequence[str] | None = None,
        progress: bool | None = None,
    ) -> "Task":
        """This task with display names for its outputs, and attributes of a ranking's items.

        ``titles`` are by item or label, or a table with a column of ids and one of titles.
        ``attributes`` is a table of items: with ``attribute`` only these columns (COLUMN or
        COLUMN=TYPE, with text, number, time or list), else all. A path, a DataFrame or an Arrow
        table is a table. ``list_separator`` stands between several texts in one field. The result
        has another digest; what is computed stays.
        """
        tables = DescribeOptions(
            titles=_described_table(titles, id_column, title_column),
            attributes=_described_table(attributes, id_column, title_column),
            id_column=id_column,
            title_column=title_column,
            attribute=None if attribute is None else [*attribute],
            list_separator=list_separator,
        )
        form = EventOptions(interactions=Path(), missing=None if missing is None else [*missing])
        with watched(progress) as seen:
            data = described(self.bundle, tables, form, seen)
        return task_of(self.backbone, data, self.record)

    @takes(EventOptions, AnswerOptions, TimeOptions)
    def evaluate(
        self,
        interactions: Histories,
        *,
        part: Part = "all",
        min_label_count: int = 1,
        max_unknown_share: float = 0.1,
        validation_share: float = 0.1,
        test_share: float = 0.1,
        progress: bool | None = None,
        **options: Unpack[EvaluateKeywords],
    ) -> Metrics:
        """Measure the task again, on the users of any data, as ``peterrec evaluate`` does.

        With ``part="test"`` and the data, shares and seed of the training, these are the users that
        fine-tuning kept apart.
        """
        given: dict[str, object] = {**options}
        data = interactions if is_table(interactions) else listed(interactions)
        events = event_options(data, given)
        shares = {
            "min_label_count": min_label_count,
            "max_unknown_share": max_unknown_share,
            "validation_share": validation_share,
            "test_share": test_share,
        }
        settings_of(FinetuneSettings, {"kind": self.kind, **shares})  # checks the bounds
        job = EvaluateJob(
            bundle=self.bundle,
            interactions=events.source(time_options(given).end_of_histories),
            answers=task_answers(data, events, self.kind, given),
            part=part,
            **shares,  # type: ignore[arg-type]  # an int and three floats
        )
        with watched(progress) as seen:
            return Metrics(*run_evaluate(self.backbone.loaded, job, seen))

    def save(self, out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the bundle file, which ``peterrec push`` and ``load_bundle`` take.

        A task that was trained in this process also gets its ``training.jsonl`` beside it.
        """
        path = Path(out)
        if path.exists() and not overwrite:
            raise OutputExists(f"{path} exists.", hint="Give another path, or overwrite=True.")
        write_bytes(path, self.bundle)
        if self.record:
            write_training_file(training_file_of(path), self.record)
        return path

    def push(
        self,
        task: str | None = None,
        *,
        url: str | None = None,
        api_key: str | None = None,
        alias: str = "prod",
        validate_only: bool = False,
        allow_new_outputs: bool = False,
        if_match: int | None = None,
    ) -> Pushed:
        """Register the bundle on a running server and let it answer, as ``peterrec push`` does.

        ``task`` is the name to register it for, by default its own. Without ``url`` and ``api_key``
        the variables ``PETERREC_URL`` and ``PETERREC_API_KEY`` are read, as by the command. The
        server verifies the bundle and runs its probes; a refusal lists every reason. It refuses a
        bundle, too, whose kind, labels, catalog or unit are not those that callers get now
        (``outputs_differ``), unless ``allow_new_outputs`` is given.
        """
        url = url or os.environ.get("PETERREC_URL") or DEFAULT_URL
        api_key = api_key or os.environ.get("PETERREC_API_KEY")
        parameters = {"alias": alias, "validate_only": str(validate_only).lower()}
        parameters |= outputs_parameter(allow_new_outputs=allow_new_outputs)
        with ScratchFolder() as folder, server(url, api_key) as to:
            file = self.save(folder / f"{self.name}.bundle")
            pushed = push(to, file, task or self.name, parameters, if_match)
        return msgspec.convert(pushed, Pushed)

    def _predict(
        self,
        instances: Sequence[Instance],
        options: CallOptions,
        device: DeviceName,
        observer: ReadingObserver,
    ) -> list[Prediction]:
        require_one_of("device", device, get_args(DeviceName))
        on = self.backbone.local_device(device)
        with self._lock:
            if device not in self._loaded_on:
                on.load(self._bundle)
                self._loaded_on.add(device)
                weakref.finalize(self, on.free, self._bundle.digest)
        answers: list[Prediction] = []
        for at in range(0, len(instances), MAX_INSTANCES):
            part = instances[at : at + MAX_INSTANCES]
            call = predicting.predict_many(self.name, part, options)
            assert isinstance(call.body, bytes)
            found = call.read(on.answer(self._bundle.digest, self.name, call.body))
            answers += [answer for answer in found if isinstance(answer, Prediction)]
            done = at + len(part)
            observer.progress(Progress("predicting", done, len(instances), unit="users"))
        return answers

    def _instances(
        self,
        histories: Histories | Collection[Instance],
        options: Mapping[str, object],
        exclude: Collection[ItemId] | None,
        candidates: Collection[ItemId] | None,
        observer: ReadingObserver,
    ) -> Iterator[Instance]:
        selection: dict[str, Any] = {  # Any: lists of items, or None
            name: None if given is None else sequence(given, f"a list of items as {name}")
            for name, given in (("exclude", exclude), ("candidates", candidates))
        }
        if is_table(histories):
            found = read_histories(event_options(histories, {**options}).source(), observer)
            for place, user in enumerate(found.users):
                yield Instance(found.items_of(place), user_id=user, **selection)
        elif isinstance(histories, Mapping):
            for user, row in zip(histories, listed(histories).rows, strict=True):
                yield Instance(row, user_id=user, **selection)
        else:
            yield from self._listed_instances(histories, selection)

    def _listed_instances(
        self,
        histories: object,
        selection: Mapping[str, Any],  # Any: as above
    ) -> Iterator[Instance]:
        for place, each in enumerate(sequence(histories, "a list of histories")):
            if isinstance(each, Instance):
                more = {name: given for name, given in selection.items() if given is not None}
                yield msgspec.structs.replace(each, **more) if more else each
            else:
                yield Instance(
                    sequence(each, f"a list of item ids as history {place}"), **selection
                )

    def _users(self, part: str) -> int | None:
        try:
            notes = msgspec.json.decode(self._bundle.manifest.provenance.notes or "{}")
            return int(notes["data"][part])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            return None  # a bundle of another program

    def __repr__(self) -> str:
        return f"<peterrec.Task {self.name!r}: {self.kind}, {self.digest[:19]}>"

    def _repr_html_(self) -> str:
        facts: list[tuple[Cell, ...]] = [
            ("name", self.name),
            ("kind", self.kind),
            ("outputs", self._outputs_text()),
            ("size in bytes", self._bundle.size_bytes),
            ("digest", self.digest[:19] + "…"),
            ("backbone", self.backbone.fingerprint[:12] + "…"),
        ]
        return fragment([Table("Task", ("", ""), facts), self.metrics.table()], title=self.name)

    def _outputs_text(self) -> str:
        names = self.outputs
        shown = ", ".join(names[:SHOWN_OUTPUTS]) or "a number"
        return shown if len(names) <= SHOWN_OUTPUTS else f"{shown}, … ({len(names):,})"

    def __reduce__(self) -> tuple[Any, ...]:  # Any: as pickle wants it
        return task_of, (self.backbone, self.bundle, self.record)

    def __deepcopy__(self, memo: Mapping[int, object]) -> "Task":
        """The object itself, since it never changes."""
        return self


def task_of(backbone: Backbone, data: bytes, record: Document | None = None) -> Task:
    """The task of a bundle's bytes; BundleRejected lists every reason why it does not fit."""
    return Task(backbone, _verified(backbone, Blob(data), None), record)


def load_bundle(
    path: str | os.PathLike[str],
    backbone: BackboneOrPath,
    *,
    trusted_keys: str | os.PathLike[str] | None = None,
) -> Task:
    """Open a bundle file for a backbone, with every check that a server makes.

    With ``trusted_keys``, a PEM file or a folder of ``*.pub`` files, one of them must have signed
    it. Raises BundleRejected with every reason.
    """
    keys = None if trusted_keys is None else TrustedKeys.read([Path(trusted_keys)])
    loaded = as_backbone(backbone)
    return Task(loaded, _verified(loaded, Blob(read_bytes(as_path(path, "path"))), keys))


def _described_table(
    given: Mapping[ItemId, str] | TableOrPath | None, id_column: str, title_column: str
) -> Any:  # Any: a path, or a table of any library
    """A table as the commands' options have it: a path, or what is as good as one."""
    if given is None or is_table(given):
        return None if given is None else as_source(given)
    import pyarrow as pa

    assert isinstance(given, Mapping), "what is no table is a dict"
    names = {id_column: map(str, given), title_column: map(str, given.values())}
    return pa.table({column: list(texts) for column, texts in names.items()})


def _verified(backbone: Backbone, source: Blob, keys: TrustedKeys | None) -> VerifiedBundle:
    identity = BackboneIdentity(backbone.fingerprint, backbone.spec)
    return verify_bundle(source, backbone=identity, limits=BundleLimits(), trusted_keys=keys)
