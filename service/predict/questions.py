"""A question about one user: bound to a version as a row for the device, and its result decoded."""

from collections.abc import Mapping, Sequence

import msgspec

from peterrec.model.errors import PeterRecError
from peterrec.model.kinds import KINDS
from peterrec.patches.bundle.bundle import Catalog
from peterrec.service.errors import NotARankingTask, row_error
from peterrec.service.predict.device_link import BoundRow
from peterrec.service.predict.explanation import Explain
from peterrec.service.predict.filters import ItemFilter
from peterrec.service.predict.item_ids import (
    History,
    ItemId,
    MappedHistory,
    MappedSelection,
    UnknownItems,
    map_selection,
)
from peterrec.service.predict.kinds import ANSWERS, Prediction, Ranked, Subject
from peterrec.service.predict.where import Where
from peterrec.service.protocol.messages import BundleEntry, Row, RowResult
from peterrec.service.protocol.served_task import ServedTask, Split

Answer = Prediction | PeterRecError
CatalogsByDigest = Mapping[str, Catalog | PeterRecError]
"""The catalog of each ranking bundle, or the error why it can't be read."""


class Question(msgspec.Struct, frozen=True, gc=False):
    """One user's history, as item ids and mapped to tokens once, and what to answer for it.

    With several backbones, it is mapped once for each that a version of a task has.

    ``unknown_items`` says how it was mapped, ``explain`` what an explanation names, if one is
    wanted. A ``where`` that is shared by questions to many tasks holds for rankings only.
    ``selections`` are those of the catalogs so far, by ``selection_key``.
    """

    history: History
    item_ids: Sequence[ItemId]
    top_k: int
    exclude_seen: bool
    exclude: Sequence[ItemId] | None = None
    candidates: Sequence[ItemId] | None = None
    user_id: str | int | None = None
    unknown_items: UnknownItems = "drop"
    explain: Explain | None = None
    where: Where | None = None
    is_where_shared: bool = False
    has_titles: bool = False
    selections: dict[str, MappedSelection | PeterRecError] = msgspec.field(default_factory=dict)

    def select(
        self, key: str, catalog: Catalog, allowed: ItemFilter | PeterRecError | None = None
    ) -> MappedSelection | PeterRecError:
        """Return which items of a catalog may be answered; mapped once for each ``selection_key``.

        If that says that there is a filter, the first call gets it, or what is wrong with it.
        """
        found = self.selections.get(key)
        if found is None:
            found = self.selections[key] = self._selected(catalog, allowed)
        return found

    def _selected(
        self, catalog: Catalog, allowed: ItemFilter | PeterRecError | None
    ) -> MappedSelection | PeterRecError:
        if isinstance(allowed, PeterRecError):
            return allowed
        seen = self.item_ids if self.exclude_seen else ()
        excluded = [*(self.exclude or ()), *seen]
        return map_selection(catalog, excluded, self.candidates, allowed)

    def user(self, prod: BundleEntry) -> bytes:
        """The key that assigns a user to a canary: the user id, or else the history's tokens."""
        if self.user_id is not None:
            return str(self.user_id).encode("utf-8", "surrogatepass")
        history = self.history
        if isinstance(history, MappedHistory):
            return history.tokens
        found = history.by[prod.backbone]
        return b"" if isinstance(found, PeterRecError) else found.tokens


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


def selection_key(served: ServedTask, bundle: BundleEntry) -> str:
    """Name what a question's items are mapped to: a catalog, and what of it is available."""
    available = served.availability
    return bundle.digest if available is None else f"{bundle.digest} {available.digest}"


def bind(
    served: ServedTask, question: Question, catalogs: CatalogsByDigest
) -> BoundQuestion | PeterRecError:
    """Bind a question to a version, or return the error why this version can't be asked."""
    bundle = served.bundle
    if KINDS[bundle.kind].has_catalog:
        return _bind_ranking(served, question, catalogs[bundle.digest])
    if (
        question.exclude is not None
        or question.candidates is not None
        or (question.where is not None and not question.is_where_shared)
    ):
        return NotARankingTask(served.task, bundle.kind)
    history = question.history
    if not isinstance(history, MappedHistory):
        found = history.by[bundle.backbone]
        if isinstance(found, PeterRecError):
            return found
        history = found
    row = Row(bundle.handle, history.tokens, older=history.older if bundle.has_table else b"")
    subject = Subject(bundle, history, question.user_id, None, question.has_titles)
    return BoundQuestion(served, BoundRow(row, bundle.digest), subject)


def _bind_ranking(
    served: ServedTask, question: Question, catalog: Catalog | PeterRecError
) -> BoundQuestion | PeterRecError:
    if isinstance(catalog, PeterRecError):
        return catalog
    bundle = served.bundle
    selection = question.select(selection_key(served, bundle), catalog)
    if isinstance(selection, PeterRecError):
        return selection
    history = question.history
    if not isinstance(history, MappedHistory):
        found = history.by[bundle.backbone]
        if isinstance(found, PeterRecError):
            return found
        history = found
    row = Row(
        bundle.handle,
        history.tokens,
        min(question.top_k, bundle.outputs),
        selection.excluded,
        selection.candidates,
        older=history.older if bundle.has_table else b"",
        allowed=selection.allowed,
    )
    ranked = Ranked(catalog, selection)
    subject = Subject(bundle, history, question.user_id, ranked, question.has_titles)
    return BoundQuestion(served, BoundRow(row, bundle.digest), subject)


def decode(subject: Subject, result: RowResult) -> Answer:
    """Decode a row's result into the prediction of its head's kind, or into its error."""
    if result.error:
        return row_error(result.error, result.detail)
    return ANSWERS[subject.bundle.kind].decode(subject, result)
