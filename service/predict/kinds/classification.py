"""Answers of classification tasks: the most probable label and every label's probability."""

from typing import Annotated

import numpy as np
from msgspec import Meta

from peterrec.service.predict.columns import Column
from peterrec.service.predict.kinds.descriptor import (
    AnswerKind,
    ArrowColumns,
    Floats,
    Measure,
    Prediction,
    Sampled,
    Scores,
    Subject,
    every_score,
    scores_as_table,
    scores_of,
    used_fields,
)
from peterrec.service.protocol.messages import BundleEntry, RowResult


class ClassPrediction(Prediction, frozen=True, kw_only=True, tag="classification"):
    """Answer of a classification task."""

    label: Annotated[str, Meta(description="The most probable label.")]
    scores: Annotated[dict[str, float], Meta(description="Probability of every label, in order.")]


def _decode(subject: Subject, result: RowResult) -> ClassPrediction:
    scores, labels = scores_of(result), subject.bundle.labels
    return ClassPrediction(
        label=labels[scores.index(max(scores))],
        scores=dict(zip(labels, scores, strict=True)),
        **used_fields(subject),
    )


def _divergence(first: ClassPrediction, second: ClassPrediction) -> float:
    """1 if the classes differ."""
    return float(first.label != second.label)


def _log_odds(bundle: BundleEntry, logits: Floats) -> Floats:
    """Log-odds of each class against all others, [N, K]; 0 if there is only one class.

    The logits alone say nothing: a number added to all of them changes no probability. The best
    class is computed apart, since the sum of the others would vanish in rounding beside it.
    """
    if logits.shape[1] == 1:
        return np.zeros_like(logits)
    every, best = np.arange(len(logits)), logits.argmax(1)  # [N], [N]
    weights = np.exp(logits - logits[every, best][:, None])  # [N, K], 1 at the best
    others = weights.sum(1, keepdims=True) - weights
    others[every, best] = 1.0
    found: Floats = logits - logits[every, best][:, None] - np.log(others)  # [N, K]
    rest = logits.copy()
    rest[every, best] = -np.inf
    second = rest.max(1, keepdims=True)  # [N, 1]
    total = second[:, 0] + np.log(np.exp(rest - second).sum(1))  # [N]
    found[every, best] = logits[every, best] - total
    return found


def _bulk(bundle: BundleEntry, scores: Scores) -> ArrowColumns:
    """The most probable label and its probability, and those of all labels."""
    import pyarrow as pa

    best = scores.argmax(1)  # [N]
    labels = pa.DictionaryArray.from_arrays(pa.array(best.astype(np.int32)), [*bundle.labels])
    probabilities = pa.array(scores[np.arange(len(best)), best])
    return {"label": labels, "score": probabilities, **every_score(bundle, scores)}


KIND = AnswerKind(
    prediction=ClassPrediction,
    decode=_decode,
    divergence=_divergence,
    divergence_text="share of histories with another class",
    text=lambda answer: answer.label,
    measure=Measure(unit="log-odds", scores=_log_odds, rests_on=lambda answer: (answer.label,)),
    columns=(
        Column("label", "BYTES", lambda answer: answer.label, "The most probable label."),
        Column(
            "probabilities",
            "FP32",
            lambda answer: answer.scores,
            "The probability of every label, in the order of `labels`.",
            "labels",
        ),
    ),
    sampled=Sampled(
        says=lambda answer: (answer.label,),
        score=lambda answer: answer.scores[answer.label],
        form="any",
        is_confident=True,
    ),
    bulk=_bulk,
    table=scores_as_table(_bulk),
)
