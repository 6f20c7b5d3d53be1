"""``POST /tasks/{task}/feedback``: callers tell what came of predictions."""

from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, StrictFloat, StrictInt, StrictStr

from peterrec.patches.identity import Digest, TaskId, TaskRef, TenantId, parse_task
from peterrec.patches.registry.outcomes import PROD, Hits
from peterrec.patches.registry.records import TaskEntry
from peterrec.service.errors import FeedbackRefused, MalformedRequest
from peterrec.service.http.context import AdminContext, Caller, ClosedModel, Context, PredictContext
from peterrec.service.predict.feedback import DIGITS, Outcome, Signed, Told, compare
from peterrec.service.predict.remembered import RememberedAnswers
from peterrec.service.predict.schemas import MAX_USER_ID_CHARACTERS
from peterrec.service.protocol.messages import TrafficSeen
from peterrec.service.protocol.served_task import Split
from peterrec.service.telemetry.events import FeedbackGiven, FeedbackSums

router = APIRouter(prefix="/tasks/{task}/feedback", tags=["predict"])

MOST_OUTCOMES = 200
"""Outcomes of one call: with ids of a usual length, what fits into the largest body."""

Name = Annotated[StrictStr, Field(max_length=1024)] | StrictInt
UserName = Annotated[StrictStr, Field(max_length=MAX_USER_ID_CHARACTERS)] | StrictInt


class OutcomeRequest(ClosedModel):
    """What came of one prediction: of that with the id, or of the last one for the user."""

    prediction_id: str | None = Field(
        None, min_length=1, max_length=4096, description="As the answer had it."
    )
    user_id: UserName | None = Field(
        None, description="As the prediction had it, which asked to be remembered."
    )
    outcome: Name | StrictFloat | Annotated[list[Name], Field(max_length=1000)] = Field(
        description="The true label; all true tags; the number; or the items that the user took."
    )


class FeedbackRequest(ClosedModel):
    """Outcomes of predictions of one task."""

    feedback: list[OutcomeRequest] = Field(min_length=1, max_length=MOST_OUTCOMES)


class FeedbackView(BaseModel):
    """How many outcomes were counted, and how right the answers were, by version."""

    task: str
    counted: int
    repeated: int = Field(description="Outcomes of predictions of which one was told before.")
    unknown: int = Field(description="Outcomes of users of whom no answer is remembered.")
    hit_rate: dict[str, float | None] = Field(
        description="By version: the mean over this call's outcomes; null for numbers."
    )


class _Compared(NamedTuple):
    """The answer that an outcome is about, and what came."""

    signed: Signed
    outcome: Outcome


@router.post("")
async def give_feedback(
    caller: Caller, context: Context, request: Request, task: str, body: FeedbackRequest
) -> FeedbackView:
    """Tell what came of predictions, for the metrics of quality and the guard of a canary.

    Either all outcomes are taken or, if one is refused, none. Of each prediction one outcome
    counts, the first that is told, so that a call may be repeated. Needs the scope predict.
    """
    name = parse_task(task)
    caller.require("predict", name)
    entry = context.table.existing(caller.tenant, name)
    predictions: PredictContext = request.app.predictions
    if not predictions.predictor.may_sample(is_sensitive=entry.is_sensitive):
        raise FeedbackRefused(name)
    compared = await _compared(predictions.remembered, entry, body.feedback)
    marks = [each.signed.mark for each in compared]
    is_new = await predictions.remembered.claim(caller.tenant, marks) if marks else []
    new = [each for each, is_first in zip(compared, is_new, strict=True) if is_first]
    by_version = _summed(new)
    for version, (_, sums) in by_version.items():
        predictions.emit(FeedbackGiven(caller.tenant, name, version, sums))
    await _tell_guard(context, caller.tenant, name, [*by_version.values()])
    return FeedbackView(
        task=name,
        counted=len(new),
        repeated=len(compared) - len(new),
        unknown=len(body.feedback) - len(compared),
        hit_rate={
            str(version): sums.hits / sums.compared if sums.compared else None
            for version, (_, sums) in by_version.items()
        },
    )


async def _compared(
    remembered: RememberedAnswers, entry: TaskEntry, given: Sequence[OutcomeRequest]
) -> list[_Compared]:
    """Find the answers that outcomes are about; MalformedRequest if one is not of this task."""
    users = [each.user_id for each in given if each.user_id is not None]
    recalled = iter(await remembered.recall(entry.tenant, entry.task, users) if users else ())
    found: list[_Compared] = []
    for at, each in enumerate(given):
        try:
            if (each.prediction_id is None) is (each.user_id is None):
                raise MalformedRequest(
                    "an outcome is told of a prediction_id or of a user_id.", hint="Send one."
                )
            if each.prediction_id is not None:
                signed: Signed | None = _read(remembered, entry, each.prediction_id)
            else:
                signed = _remembered(remembered, entry, next(recalled))
            if signed is not None:
                compare(signed.told, each.outcome, FeedbackSums())
                found.append(_Compared(signed, each.outcome))
        except MalformedRequest as error:
            raise MalformedRequest(f"feedback[{at}]: {error.message}", hint=error.hint) from error
    return found


def _remembered(remembered: RememberedAnswers, entry: TaskEntry, text: str | None) -> Signed | None:
    """Return the answer to a user; None if there is none, or one of a task of this name before."""
    try:
        return None if text is None else _read(remembered, entry, text)
    except MalformedRequest:
        return None


def _read(remembered: RememberedAnswers, entry: TaskEntry, text: str) -> Signed:
    """Read an id; MalformedRequest if it is of another task, or of one that had this name."""
    signed = remembered.ids.read(text)
    told = signed.told
    digest = entry.digest_of(told.version)
    is_other = digest is not None and not digest.startswith(told.digest)
    if is_other or not told.is_of(*entry.ref) or told.version > max(entry.numbers, default=0):
        raise MalformedRequest(
            f"the prediction was not made by task {entry.task!r}.",
            hint="Send outcomes to the task that answered.",
        )
    return signed


def _summed(compared: Sequence[_Compared]) -> dict[int, tuple[Told, FeedbackSums]]:
    """Sum up by version."""
    by_version: dict[int, tuple[Told, FeedbackSums]] = {}
    for each in compared:
        told = each.signed.told
        _, sums = by_version.setdefault(told.version, (told, FeedbackSums()))
        compare(told, each.outcome, sums)
    return by_version


async def _tell_guard(
    context: AdminContext, tenant: TenantId, task: TaskId, told: list[tuple[Told, FeedbackSums]]
) -> None:
    """Let the guards of all replicas count the outcomes of prod and of those they watch."""
    served = context.table.resolve_prod(tenant, task)
    split = None if served is None else served.split
    guard = None if split is None else split.traffic.guard
    if served is None or split is None or guard is None or guard.max_hit_drop is None:
        return
    names = _names(split, Digest(served.bundle.digest))
    hits = {
        names[each.digest]: Hits(sums.compared, sums.hits)
        for each, sums in told
        if each.digest in names and sums.compared
    }
    if hits:
        ref = TaskRef(tenant, task)
        await context.registry.outcomes.count_hits(ref, split.revision, guard.window_s, hits)
        context.link.send_traffic(TrafficSeen(tenant, task, split.revision, []))


def _names(split: Split, prod: Digest) -> Mapping[str, str]:
    """Return what versions are called where hits are counted, by the digits that ids have."""
    return {**{each[:DIGITS]: each for each in split.canaries}, prod[:DIGITS]: PROD}
