"""Answers as Arrow record batches, with the columns that ``peterrec score`` writes.

One task's columns stand for themselves; those of many tasks are fields of one column, ``results``.
A user that was not answered has ``error_code`` and ``error_reason``, and nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from peterrec.model.errors import PeterRecError
from peterrec.model.kinds import KINDS
from peterrec.service.errors import OutputsChanged
from peterrec.service.predict.canary import Answered
from peterrec.service.predict.kinds import ANSWERS, Prediction
from peterrec.service.protocol.messages import BundleEntry
from peterrec.service.protocol.served_task import ServedTask

END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""The end of a stream in Arrow's IPC streaming format."""


class AnsweredUser(NamedTuple):
    """One user's answers, in the order of the tasks; or the error of the user as a whole."""

    user_id: str | int | None
    answers: Sequence[Answered] = ()
    error: PeterRecError | None = None


def about_bundle(bundle: BundleEntry) -> dict[str, object]:
    """What a reader of a table of answers should know of the bundle that gave them."""
    about: dict[str, object] = {"kind": bundle.kind}
    if bundle.labels:
        about["labels"] = [*bundle.labels]
    if bundle.unit:
        about["unit"] = bundle.unit
    if KINDS[bundle.kind].has_threshold:
        about["threshold"] = bundle.threshold
    return about


class AnswerTables:
    """Makes record batches of one schema. ``tasks`` are as they were served at the beginning.

    Answers of a later version whose outputs differ would mean something else in the same columns,
    so they become errors.
    """

    def __init__(
        self,
        tasks: Mapping[str, ServedTask | PeterRecError],
        *,
        is_one: bool,
        has_numbers: bool,
    ) -> None:
        import pyarrow as pa

        self._pa = pa
        self._bundles = {
            task: None if isinstance(served, PeterRecError) else served.bundle
            for task, served in tasks.items()
        }
        self._about = {
            task: {} if bundle is None else about_bundle(bundle)
            for task, bundle in self._bundles.items()
        }
        self._fitting: dict[str, bool] = {}  # by task and digest
        self._is_one = is_one
        self._user_type = pa.int64() if has_numbers else pa.string()
        about: object = {"tasks": self._about}
        if is_one:
            ((task, fields),) = self._about.items()
            about = {"task": task, **fields}
        schema = self._batch([]).schema
        self._schema = schema.with_metadata({"peterrec": json.dumps(about)})

    def begin(self) -> bytes:
        """The schema as a message."""
        return bytes(self._schema.serialize())

    def rows(self, users: Sequence[AnsweredUser]) -> bytes:
        """A record batch as a message."""
        return bytes(self._batch(users).cast(self._schema).serialize())

    def _batch(self, users: Sequence[AnsweredUser]) -> Any:  # Any: pyarrow loads later
        pa = self._pa
        ids = [each.user_id for each in users]
        if self._user_type == pa.string():
            ids = [each if each is None else str(each) for each in ids]
        else:
            ids = [each if isinstance(each, int) and _is_int64(each) else None for each in ids]
        columns: dict[str, Any] = {"user_id": pa.array(ids, self._user_type)}
        errors = [each.error for each in users]
        by_task = {
            task: self._columns(
                task, [each.answers[at] if each.answers else None for each in users]
            )
            for at, task in enumerate(self._bundles)
        }
        if self._is_one:
            ((own, failed),) = by_task.values()
            columns |= own
            errors = [one or other for one, other in zip(errors, failed, strict=True)]
        else:
            parts = [
                self._struct({**own, **self._errors(failed)}) for own, failed in by_task.values()
            ]
            columns["results"] = pa.StructArray.from_arrays(parts, [*by_task])
        columns |= self._errors(errors)
        return pa.RecordBatch.from_pydict(columns)

    def _struct(self, columns: Mapping[str, Any]) -> Any:
        return self._pa.StructArray.from_arrays([*columns.values()], [*columns])

    def _errors(self, errors: Sequence[PeterRecError | None]) -> dict[str, Any]:
        pa = self._pa
        codes = [None if error is None else error.code for error in errors]
        reasons = [None if error is None else str(error) for error in errors]
        return {
            "error_code": pa.array(codes, pa.string()),
            "error_reason": pa.array(reasons, pa.string()),
        }

    def _columns(
        self, task: str, answered: Sequence[Answered | None]
    ) -> tuple[dict[str, Any], list[PeterRecError | None]]:
        """One task's columns, with nothing where there is no answer, and the errors."""
        pa, bundle = self._pa, self._bundles[task]
        found: list[Prediction] = []
        places: list[int | None] = []
        versions: list[int | None] = []
        errors: list[PeterRecError | None] = []
        for each in answered:
            error = None if each is None else self._error(task, each)
            errors.append(error)
            is_answer = each is not None and error is None
            places.append(len(found) if is_answer else None)
            versions.append(each.by.version if is_answer and each and each.by else None)
            if is_answer and each is not None and isinstance(each.answer, Prediction):
                found.append(each.answer)
        columns: dict[str, Any] = {
            "used_items": pa.array([each.used_items for each in found], pa.int32()),
            "unknown_items": pa.array([each.unknown_items for each in found], pa.int32()),
        }
        if bundle is not None:
            columns |= ANSWERS[bundle.kind].table(bundle, found)
        order = pa.array(places, pa.int32())
        taken = {name: _plain(column).take(order) for name, column in columns.items()}
        return {**taken, "version": pa.array(versions, pa.int32())}, errors

    def _error(self, task: str, each: Answered) -> PeterRecError | None:
        if isinstance(each.answer, PeterRecError):
            return each.answer
        assert each.by is not None
        key = f"{task}\n{each.by.bundle.digest}"
        if key not in self._fitting:
            self._fitting[key] = about_bundle(each.by.bundle) == self._about[task]
        return None if self._fitting[key] else OutputsChanged(task, each.by.version)


def _is_int64(number: int) -> bool:
    return -(1 << 63) <= number < 1 << 63


def _plain(column: Any) -> Any:
    """Texts instead of numbers of a dictionary, which not every reader of streams follows."""
    return column.dictionary_decode() if hasattr(column, "dictionary_decode") else column
