"""Answers of value tasks: a number."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import UNSET, Meta, UnsetType

from peterrec.model.kinds.value import ValueScale
from peterrec.service.predict.columns import Column
from peterrec.service.predict.kinds.descriptor import (
    AnswerKind,
    ArrowColumns,
    Measure,
    Prediction,
    Sampled,
    Scores,
    Subject,
    scores_of,
    used_fields,
)
from peterrec.service.protocol.messages import BundleEntry, RowResult


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


def _bulk(bundle: BundleEntry, scores: Scores) -> ArrowColumns:
    """The numbers, in float64."""
    import pyarrow as pa

    scale = ValueScale(bundle.scale, bundle.shift)
    return {"value": pa.array(scores[:, 0].astype(np.float64) * scale.scale + scale.shift)}


def _table(bundle: BundleEntry, answers: Sequence[ValuePrediction]) -> ArrowColumns:
    import pyarrow as pa

    return {"value": pa.array([answer.value for answer in answers], pa.float64())}


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
    columns=(Column("value", "FP64", lambda answer: answer.value, "The number."),),
    sampled=Sampled(says=lambda answer: (), score=lambda answer: answer.value, form="number"),
    bulk=_bulk,
    table=_table,
)
