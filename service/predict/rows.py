"""A question for one version → a row for the device, and the row's result → a prediction."""

from collections.abc import Mapping, Sequence

import msgspec

from peterrec.model.errors import PeterRecError
from peterrec.model.kinds import KINDS
from peterrec.service.errors import NotARankingTask, row_error
from peterrec.service.predict.device_link import AdmittedRow
from peterrec.service.predict.item_ids import Catalog, ItemId, MappedHistory, map_selection
from peterrec.service.predict.kinds import ANSWERS, Prediction, Ranked, Subject
from peterrec.service.protocol.messages import BundleEntry, Row, RowResult
from peterrec.service.protocol.served_task import ServedTask, Split

Answer = Prediction | PeterRecError
Catalogued = Mapping[str, Catalog | PeterRecError]
"""Catalogs by digest, or why one can't be read."""


class Question(msgspec.Struct, frozen=True, gc=False):
    """One history, mapped once, and what to answer for it."""

    history: MappedHistory
    ids: Sequence[ItemId]
    top_k: int
    exclude_seen: bool
    exclude: Sequence[ItemId] | None = None
    candidates: Sequence[ItemId] | None = None
    user_id: str | int | None = None

    @property
    def user(self) -> bytes:
        """Whom a canary's share is counted by: the user, else whoever has this history."""
        if self.user_id is None:
            return self.history.tokens
        return str(self.user_id).encode("utf-8", "surrogatepass")


class Admission(msgspec.Struct, frozen=True):
    """A row ready for the device and what its answer will need."""

    by: ServedTask
    row: AdmittedRow
    subject: Subject
    beside: "Beside | None" = None


class Beside(msgspec.Struct, frozen=True):
    """What else one history means to a task with traffic.

    ``prod`` answers if a canary can't; None if prod itself is the one that answers. ``silent``
    rows are compared and never answer.
    """

    split: Split
    prod: Admission | PeterRecError | None
    silent: Sequence[Admission]


def admit(
    served: ServedTask, question: Question, catalogs: Catalogued
) -> Admission | PeterRecError:
    """The row that asks this version; or why it can't be asked."""
    bundle = served.bundle
    if KINDS[bundle.kind].has_catalog:
        return _admit_ranking(served, question, catalogs[bundle.digest])
    if question.exclude is not None or question.candidates is not None:
        return NotARankingTask(served.task, bundle.kind)
    row = Row(bundle.handle, question.history.tokens)
    subject = Subject(bundle, question.history, question.user_id, None)
    return Admission(served, AdmittedRow(row, bundle.digest), subject)


def _admit_ranking(
    served: ServedTask, question: Question, catalog: Catalog | PeterRecError
) -> Admission | PeterRecError:
    if isinstance(catalog, PeterRecError):
        return catalog
    bundle: BundleEntry = served.bundle
    excluded = [*(question.exclude or ()), *(question.ids if question.exclude_seen else ())]
    selection = map_selection(catalog, excluded, question.candidates)
    row = Row(
        bundle.handle,
        question.history.tokens,
        min(question.top_k, bundle.outputs),
        selection.excluded,
        selection.candidates,
    )
    subject = Subject(bundle, question.history, question.user_id, Ranked(catalog, selection))
    return Admission(served, AdmittedRow(row, bundle.digest), subject)


def prediction(subject: Subject, result: RowResult) -> Answer:
    """What a row's result says, or why there is none."""
    if result.error:
        return row_error(result.error, result.detail)
    return ANSWERS[subject.bundle.kind].decode(subject, result)
