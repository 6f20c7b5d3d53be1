"""What callers tell of answers: an id that carries the answer, and its comparison with an outcome.

The id holds what was answered, so that no server has to remember anything: any replica can compare
it with an outcome, days later and after a restart. It is signed with a secret of the registry, so
that nobody can tell outcomes of answers that were not given.
"""

import math
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from hashlib import blake2b
from hmac import compare_digest
from itertools import count
from typing import Annotated, NamedTuple
from zlib import crc32

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from peterrec.service.errors import MalformedRequest
from peterrec.service.predict.canary import Answered
from peterrec.service.predict.kinds import ANSWERS, Prediction
from peterrec.service.predict.kinds.descriptor import OutcomeForm
from peterrec.service.telemetry.events import FeedbackSums
from peterrec.service.telemetry.feedback import note, note_error

MOST_NAMES = 100
"""Names that an id carries: the best items of a longer ranking."""

DIGITS = 16
"""Digits of the bundle's digest that an id carries."""

LARGEST_VERSION = 2**53

SECRET_BYTES = 32

MARK_BYTES = 10
"""Bytes of a signature, which is what tells predictions apart, too."""

Outcome = str | int | float | list[str | int]


class Told(Struct, frozen=True, array_like=True, gc=False):
    """An answer as its id carries it. ``place`` is a checksum of the tenant and the task.

    ``names`` are checksums of what was said. ``number`` makes equal answers different.
    """

    number: int
    place: int
    version: Annotated[int, Meta(ge=1, le=LARGEST_VERSION)]
    digest: str
    kind: str
    names: list[int]
    score: float | None

    def is_of(self, tenant: str, task: str) -> bool:
        """Whether this task gave the answer."""
        return self.place == _place(tenant, task)


class Signed(NamedTuple):
    """An answer, and the mark of its prediction, which nobody else can make."""

    told: Told
    mark: str


class PredictionIds:
    """Makes and reads the ids of predictions. ``secret`` is the registry's; None if not known."""

    def __init__(self, secret: bytes | None = None) -> None:
        self.secret = secret
        self._numbers = count(secrets.randbits(56))

    def of(self, answered: Answered) -> str | None:
        """Return the id of an answer, if it is one, and of a kind that outcomes can be told of."""
        answer, by = answered
        if not isinstance(answer, Prediction) or by is None or self.secret is None:
            return None
        sampled = ANSWERS[by.bundle.kind].sampled
        if sampled is None:
            return None
        has_score = sampled.is_confident or sampled.form == "number"
        told = Told(
            next(self._numbers),
            _place(by.tenant, by.task),
            by.version,
            by.bundle.digest[:DIGITS],
            by.bundle.kind,
            [*map(_checksum, sampled.says(answer)[:MOST_NAMES])],
            sampled.score(answer) if has_score else None,
        )
        content = _encode(told)
        return urlsafe_b64encode(self._mark(content) + content).rstrip(b"=").decode()

    def read(self, text: str) -> Signed:
        """Read an id; MalformedRequest if none of this registry's servers has made it."""
        try:
            found = urlsafe_b64decode(text + "=" * (-len(text) % 4))
            mark, content = found[:MARK_BYTES], found[MARK_BYTES:]
            if self.secret is not None and compare_digest(mark, self._mark(content)):
                told = _decode(content)
                if told.kind in ANSWERS:  # another replica may know more
                    return Signed(told, mark.hex())
        except (ValueError, msgspec.MsgspecError):
            pass
        raise MalformedRequest(
            f"{text[:40]!r} is no prediction_id of this service.",
            hint='Send what an answer has as prediction_id: ask with "prediction_ids": true.',
        )

    def mark_of_user(self, tenant: str, task: str, user_id: str | int) -> str | None:
        """Return what stands for a user of a task; nobody can find the user by it."""
        if self.secret is None:
            return None
        content = f"{tenant}/{task}\n{user_id}".encode("utf-8", "surrogatepass")
        return self._mark(content, b"user").hex()

    def _mark(self, content: bytes, use: bytes = b"id") -> bytes:
        assert self.secret is not None
        return blake2b(content, digest_size=MARK_BYTES, key=self.secret, person=use).digest()


def with_id(answered: Answered, prediction_id: str | None) -> Answered:
    """Return an answer that has its id, if it has one."""
    if prediction_id is None or not isinstance(answered.answer, Prediction):
        return answered
    return Answered(replace(answered.answer, prediction_id=prediction_id), answered.by)


def compare(told: Told, outcome: Outcome, sums: FeedbackSums) -> float | None:
    """Add how right an answer was; returns it too, None if it is a number.

    Raises MalformedRequest if the kind of task has no such outcomes.
    """
    sampled = ANSWERS[told.kind].sampled
    assert sampled is not None
    if sampled.form == "number":
        note_error(sums, abs(_number(outcome) - (told.score or 0.0)))
        return None
    came = {*map(_checksum, _names(outcome, sampled.form))}
    hit = _COMPARE[sampled.form](told.names, came)
    note(sums, hit, told.score if sampled.is_confident else None)
    return hit


def _number(outcome: Outcome) -> float:
    if isinstance(outcome, int | float) and math.isfinite(outcome):
        return float(outcome)
    raise MalformedRequest("the outcome of a value task is a number.", hint="Send what came of it.")


def _names(outcome: Outcome, form: OutcomeForm) -> set[str]:
    listed = outcome if isinstance(outcome, list) else [outcome]
    if any(isinstance(each, float) for each in listed):
        raise MalformedRequest(
            "the outcome is a number, but the task answers with names.",
            hint="Send the label, the tags, or the ids of the items.",
        )
    if not listed and form == "any":
        raise MalformedRequest(
            "the outcome names nothing.", hint="Send the label, or at least one item."
        )
    return {str(each) for each in listed}


def _is_among(said: Iterable[int], came: set[int]) -> float:
    return float(not came.isdisjoint(said))


def _overlap(said: Iterable[int], came: set[int]) -> float:
    union = came.union(said)
    return len(came.intersection(said)) / len(union) if union else 1.0


_COMPARE = {"any": _is_among, "overlap": _overlap}


def _checksum(name: str) -> int:
    return crc32(name.encode("utf-8", "surrogatepass"))


def _place(tenant: str, task: str) -> int:
    return crc32(f"{tenant}/{task}".encode())


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Told).decode
