"""The calls that tell what came of predictions."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

import msgspec
from msgspec import Struct

from peterrec_client.answers import FeedbackCounted
from peterrec_client.call import Call
from peterrec_client.questions import encode

TrueAnswer = str | int | float | Sequence[str | int]
"""The true label, all true tags, the number, or the items that the user took."""


class _Told(Struct, frozen=True, omit_defaults=True):
    outcome: TrueAnswer
    prediction_id: str | None = None
    user_id: str | int | None = None


class _FeedbackBody(Struct, frozen=True):
    feedback: Sequence[_Told]


def feedback(task: str, outcomes: Mapping[str, TrueAnswer]) -> Call[FeedbackCounted]:
    """Tell outcomes by the ids of predictions. One that is told again does not count again."""
    return _call(task, [_Told(came, prediction_id=told) for told, came in outcomes.items()])


def feedback_of_users(task: str, outcomes: Mapping[str | int, TrueAnswer]) -> Call[FeedbackCounted]:
    """Tell outcomes of the last predictions for users."""
    return _call(task, [_Told(came, user_id=user) for user, came in outcomes.items()])


def _call(task: str, told: Sequence[_Told]) -> Call[FeedbackCounted]:
    return Call(
        "POST",
        f"/tasks/{quote(task, safe='')}/feedback",
        msgspec.json.Decoder(FeedbackCounted).decode,
        encode(_FeedbackBody(told)),
    )
