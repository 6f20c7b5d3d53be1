"""What a kind of head needs in a worker: its answer's schema, decoding, divergence and text."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypedDict, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET, Meta, Struct, UnsetType

from peterrec.patches.bundle.bundle import Catalog
from peterrec.service.predict.columns import Column
from peterrec.service.predict.explanation import Explanation
from peterrec.service.predict.item_ids import ItemId, MappedHistory, MappedSelection
from peterrec.service.protocol.messages import BundleEntry, RowResult
from peterrec.service.protocol.served_task import Role

AnswerRole = Annotated[
    Role,
    Meta(
        description="Why this version answered; pinned: the request chose it. A shadow never "
        "answers."
    ),
]


class Prediction(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """The fields that the answers of all kinds share; ``kind`` is the task's.

    In a call for many tasks, and of a task with traffic, each answer also names its own bundle.
    """

    version: int | UnsetType = UNSET
    digest: str | UnsetType = UNSET
    alias: str | UnsetType | None = UNSET
    role: AnswerRole | UnsetType = UNSET
    used_items: Annotated[
        int,
        Meta(description="Items that were read: the newest max_len, or all by an item table."),
    ]
    unknown_items: Annotated[
        int, Meta(description="Items that are not in the backbone's vocabulary.")
    ]
    unknown: Annotated[list[ItemId], Meta(description="The first ten unknown items.")]
    truncated: Annotated[
        bool, Meta(description="Whether older items than the newest max_len were left out.")
    ]
    cold: Annotated[bool, Meta(description="Whether no known item was read: a cold start.")]
    user_id: str | int | UnsetType = UNSET
    titles: Annotated[
        dict[str, str] | UnsetType,
        Meta(description="Display names of the labels or tags, if asked for and if it has some."),
    ] = UNSET
    explanation: Explanation | UnsetType = UNSET
    prediction_id: Annotated[
        str | UnsetType, Meta(description="Names this answer in feedback, if asked for.")
    ] = UNSET


class Ranked(Struct, frozen=True, gc=False):
    """What the answer of a head with a catalog needs in addition to its numbers."""

    catalog: Catalog
    selection: MappedSelection


class Subject(Struct, frozen=True, gc=False):
    """The user and the bundle that an answer is about, and whether it has display names."""

    bundle: BundleEntry
    history: MappedHistory
    user_id: str | int | None
    ranked: Ranked | None
    has_titles: bool = False


P = TypeVar("P", bound=Prediction)

OutcomeForm = Literal["any", "overlap", "number"]

Floats = npt.NDArray[np.float64]

Scores = npt.NDArray[np.float32]

ArrowColumns = dict[str, Any]  # Any: Arrow arrays, whose library workers need not load


def every_score(bundle: BundleEntry, scores: Scores) -> ArrowColumns:
    """The scores [N, K] of many answers as one column of lists, in the order of the outputs."""
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(scores).reshape(-1))
    return {"scores": pa.FixedSizeListArray.from_arrays(flat, scores.shape[1])}


Table = Callable[[BundleEntry, Sequence[Any]], ArrowColumns]  # Any: answers of one kind


def scores_as_table(bulk: Callable[[BundleEntry, Scores], ArrowColumns]) -> Table:
    """Columns from answers that have the ``scores`` of all labels."""

    def table(bundle: BundleEntry, answers: Sequence[Any]) -> ArrowColumns:  # Any: as above
        scores = np.array([[*answer.scores.values()] for answer in answers], np.float32)
        return bulk(bundle, scores.reshape(len(answers), len(bundle.labels)))

    return table


def _whole_answers(bundle: BundleEntry, answers: Sequence[Prediction]) -> ArrowColumns:
    import pyarrow as pa

    return {WHOLE_ANSWER.name: pa.array([_as_json(answer) for answer in answers], pa.string())}


def _unchanged(bundle: BundleEntry, logits: Floats) -> Floats:
    return logits


def _nothing(bundle: BundleEntry) -> float:
    return 0.0


def _all_outputs(answer: Prediction) -> Sequence[str] | None:
    return None


def _as_json(answer: Prediction) -> str:
    return msgspec.json.encode(answer).decode()


# Any: it shows the answers of every kind.
WHOLE_ANSWER: Column[Any] = Column("answer", "BYTES", _as_json, "The answer as a JSON object.")
"""The column of kinds that have none of their own."""


@dataclass(frozen=True, slots=True)
class Measure(Generic[P]):
    """How the outputs of a kind are measured when an answer is explained.

    ``scores`` turns logits float64 [N, K], a row for each history, into what is compared, in
    ``unit``. ``shift`` belongs to a score and cancels in differences. ``rests_on`` names the
    outputs that an answer rests on; None means all of them.
    """

    unit: str = "logit"
    scores: Callable[[BundleEntry, Floats], Floats] = _unchanged
    shift: Callable[[BundleEntry], float] = _nothing
    rests_on: Callable[[P], Sequence[str] | None] = _all_outputs


@dataclass(frozen=True, slots=True)
class Sampled(Generic[P]):
    """What of an answer is looked at while it serves, and compared with what came of it.

    ``says`` names the labels or items that the answer gives, best first. ``score`` is what the
    manifest's prior bounds. ``form`` is how an outcome is compared: ``any`` of its names was said,
    the ``overlap`` of both sets of names, or it is a ``number`` like the score.
    ``is_confident``: the score is the probability that the outcome is what was said.
    """

    says: Callable[[P], Sequence[str]]
    score: Callable[[P], float | None]
    form: OutcomeForm
    is_confident: bool = False


@dataclass(frozen=True, slots=True)
class AnswerKind(Generic[P]):
    """How one kind of head answers.

    ``prediction`` is the answer's schema; its tag is the kind's name. ``decode`` builds an answer
    from the device's numbers, on the hot path. ``divergence`` is how far two answers to one history
    differ, from 0 (the same) to 1. The guard of a canary and ``peterrec diff`` use this definition,
    which ``divergence_text`` describes. ``text`` says an answer in a few words. ``measure`` is what
    an explanation compares. ``columns`` are the answer in tensors. ``sampled`` is what is looked
    at of answers; None: only how much of the histories is known. ``bulk`` makes the columns of a
    table from the scores [N, K] of many answers, and ``table`` the same columns from answers.
    """

    prediction: type[P]
    decode: Callable[[Subject, RowResult], P]
    divergence: Callable[[P, P], float]
    divergence_text: str
    text: Callable[[P], str]
    measure: Measure[P] = Measure()
    columns: Sequence[Column[P]] = (WHOLE_ANSWER,)
    sampled: Sampled[P] | None = None
    bulk: Callable[[BundleEntry, Scores], ArrowColumns] = every_score
    table: Table = _whole_answers


class UsedFields(TypedDict):
    """The shared fields of an answer that come from its request."""

    used_items: int
    unknown_items: int
    unknown: list[ItemId]
    truncated: bool
    cold: bool
    user_id: str | int | UnsetType
    titles: dict[str, str] | UnsetType


def used_fields(subject: Subject) -> UsedFields:
    """How the request's history was read, and the user id as it was given."""
    history = subject.history
    read = history.whole if subject.bundle.has_table and history.is_truncated else history
    return {
        "used_items": read.used_items,
        "unknown_items": history.unknown_items,
        "unknown": history.unknown,
        "truncated": read.is_truncated,
        "cold": read.is_cold,
        "user_id": UNSET if subject.user_id is None else subject.user_id,
        "titles": _titles_of(subject.bundle) if subject.has_titles else UNSET,
    }


def _titles_of(bundle: BundleEntry) -> dict[str, str] | UnsetType:
    """The display names of the labels that have one; of a catalog, items have their own."""
    pairs = zip(bundle.labels, bundle.titles, strict=False)  # there may be no titles
    return {label: title for label, title in pairs if title} or UNSET


def scores_of(result: RowResult) -> "array[float]":
    """The scores of a row: one per output, or those of the best items."""
    values = array("f")
    values.frombytes(result.values)
    return values
