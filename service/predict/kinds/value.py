"""Answers of value tasks: a number."""

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from peterrec.model.kinds.value import ValueScale
from peterrec.service.predict.kinds.descriptor import (
    AnswerKind,
    Measure,
    Prediction,
    Subject,
    scores_of,
    used_fields,
)
from peterrec.service.protocol.messages import RowResult


class ValuePrediction(Prediction, frozen=True, kw_only=True, tag="value"):
    """Answer of a value task."""

    value: float
    unit: Annotated[
        str | UnsetType, Meta(description="What the number counts, if the bundle says so.")
    ] = UNSET


def _decode(subject: Subject, result: RowResult) -> ValuePrediction:
    (score,), bundle = scores_of(result), subject.bundle
    value = ValueScale(bundle.scale, bundle.shift).apply(score)
    return ValuePrediction(value=value, unit=bundle.unit or UNSET, **used_fields(subject))


def _divergence(first: ValuePrediction, second: ValuePrediction) -> float:
    """Difference in relation to the larger number; at most 1, also for opposite signs."""
    largest = max(abs(first.value), abs(second.value))
    return min(1.0, abs(first.value - second.value) / largest) if largest else 0.0


KIND = AnswerKind(
    prediction=ValuePrediction,
    decode=_decode,
    divergence=_divergence,
    divergence_text="difference in relation to the larger value",
    text=lambda answer: f"{answer.value:.1f}",
    measure=Measure(
        unit="value",
        scores=lambda bundle, logits: logits * bundle.scale,
        shift=lambda bundle: bundle.shift,
    ),
)
