"""Types of the keyword arguments that stand for the commands' options.

Written by ``python -m peterrec.service.library.keywords``; a test compares it.
"""

from collections.abc import Sequence
from typing import Literal, TypedDict

from peterrec.service.library.inputs import Answers, Histories


class EventKeywords(TypedDict, total=False):
    """Where events are and how their table is read."""

    user_column: str
    item_column: str
    order_column: str | None
    delimiter: str | None
    columns: str | Sequence[str] | None
    missing: Sequence[str] | None
    where: Sequence[str] | None


class AnswerKeywords(TypedDict, total=False):
    """Where a task's answers are."""

    labels: Answers | None
    label_column: str | None
    tag_separator: str | None
    targets: Histories | None
    target_column: str
    target_order_column: str | None
    answers_columns: str | Sequence[str] | None
    answers_where: Sequence[str] | None


class TimeKeywords(TypedDict, total=False):
    """How events are split in time."""

    cut_off: str | None
    until: str | None


class TrackKeywords(TypedDict, total=False):
    """The tracker that follows a training."""

    track: Literal["tensorboard", "mlflow"] | None
    track_to: str | None


class PretrainKeywords(TypedDict, total=False):
    """What shapes a pretraining run."""

    channels: int
    dilations: Sequence[int]
    kernel_size: int
    causal: bool
    max_len: int
    epochs: int
    batch_size: int
    lr: float
    seed: int
    validation_share: float
    patience: int
    min_count: int
    leave_out_last: int
    loss: Literal["full", "sampled"] | Literal["auto"]
    dropout: float
    item_dropout: float
    start: Literal["spectral", "random"]
    contrast_weight: float
    precision: Literal["float32", "bfloat16"]


class FinetuneKeywords(TypedDict, total=False):
    """What shapes a fine-tuning run."""

    epochs: int
    batch_size: int
    lr: float
    head_lr: float
    item_dropout: float
    seed: int
    patience: int
    insertion: Literal["serial2", "serial1", "parallel2"]
    bottleneck: int
    cardinality: int
    blocks: str | Sequence[int] | None
    inner_skip: bool
    norms: bool
    cls: bool | None
    queries: int
    parts: str
    validation_share: float
    test_share: float
    min_label_count: int
    max_unknown_share: float
    unit: str | None
    trunk_variants: int
