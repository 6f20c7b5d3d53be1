"""A question about one user: bound to a version as a row for the device, and its result decoded."""

from collections.abc import Mapping, Sequence

import msgspec

from peterrec.model.errors import PeterRecError
from peterrec.model.kinds import KINDS
from peterrec.service.errors import NotARankingTask, row_error
from peterrec.service.predict.device_link import BoundRow
from peterrec.service.predict.explanation import Explain
from peterrec.service.predict.item_ids import (
    Catalog,
    ItemId,
    MappedHistory,
    UnknownItems,
    map_selection,
)
from peterrec.service.predict.kinds import ANSWERS, Prediction, Ranked, Subject
from peterrec.service.protocol.messages import Row, RowResult
from peterrec.service.protocol.served_task import ServedTask, Split

Answer = Prediction | PeterRecError
CatalogsByDigest = Mapping[str, Catalog | PeterRecError]
"""The catalog of each ranking bundle, or the error why it can't be read."""


class Question(msgspec.Struct, frozen=True, gc=False):
    """One user's history, as item ids and mapped to tokens once, and what to answer for it.

    ``unknown_items`` says how it was mapped, ``explain`` what an explanation names, if one is
    wanted.
    """

    history: MappedHistory
    item_ids: Sequence[ItemId]
    top_k: int
    exclude_seen: bool
    exclude: Sequence[ItemId] | None = None
    candidates: Sequence[ItemId] | None = None
    user_id: str | int | None = None
    unknown_items: UnknownItems = "drop"
    explain: Explain | None = None

    @property
    def user(self) -> bytes:
        """The key that assigns a user to a canary: the user id, or else the history's tokens."""
        if self.user_id is None:
            return self.history.tokens
        return str(self.user_id).encode("utf-8", "surrogatepass")


class BoundQuestion(msgspec.Struct, frozen=True):
    """A question bound to one version: its row, and what decoding the row's result needs.

    ``others`` is set if the task has a canary or a shadow.
    """

    by: ServedTask
    row: BoundRow
    subject: Subject
    others: "OtherVersions | None" = None


class OtherVersions(msgspec.Struct, frozen=True):
    """The question bound to further versions of a task with traffic.

    ``fallback`` is bound to prod, which answers if a canary can't; None if prod is the version that
    answers. ``shadows`` are computed for comparison and never answer.
    """

    split: Split
    fallback: BoundQuestion | PeterRecError | None
    shadows: Sequence[BoundQuestion]


def bind(
    served: ServedTask, question: Question, catalogs: CatalogsByDigest
) -> BoundQuestion | PeterRecError:
    """Bind a question to a version, or return the error why this version can't be asked."""
    bundle = served.bundle
    if KINDS[bundle.kind].has_catalog:
        return _bind_ranking(served, question, catalogs[bundle.digest])
    if question.exclude is not None or question.candidates is not None:
        return NotARankingTask(served.task, bundle.kind)
    history = question.history
    row = Row(bundle.handle, history.tokens, older=history.older if bundle.has_table else b"")
    subject = Subject(bundle, history, question.user_id, None)
    return BoundQuestion(served, BoundRow(row, bundle.digest), subject)


def _bind_ranking(
    served: ServedTask, question: Question, catalog: Catalog | PeterRecError
) -> BoundQuestion | PeterRecError:
    if isinstance(catalog, PeterRecError):
        return catalog
    bundle = served.bundle
    seen = question.item_ids if question.exclude_seen else ()
    selection = map_selection(catalog, [*(question.exclude or ()), *seen], question.candidates)
    row = Row(
        bundle.handle,
        question.history.tokens,
        min(question.top_k, bundle.outputs),
        selection.excluded,
        selection.candidates,
        older=question.history.older if bundle.has_table else b"",
    )
    subject = Subject(bundle, question.history, question.user_id, Ranked(catalog, selection))
    return BoundQuestion(served, BoundRow(row, bundle.digest), subject)


def decode(subject: Subject, result: RowResult) -> Answer:
    """Decode a row's result into the prediction of its head's kind, or into its error."""
    if result.error:
        return row_error(result.error, result.detail)
    return ANSWERS[subject.bundle.kind].decode(subject, result)
