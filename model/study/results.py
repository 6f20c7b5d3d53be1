"""What a comparison writes: results of runs, and the report's tables. All of it is JSON."""

from typing import NotRequired, TypedDict

from peterrec.model.documents import Document
from peterrec.model.spec import HeadKind

Point = dict[str, float]
"""One epoch of a curve: ``epoch``, ``runs``, ``validation_loss`` and a value for each metric."""


class Parameters(TypedDict):
    """How many weights there are: trained below the head, in the head, in the whole backbone.

    ``size_bytes`` is that of a bundle where the method makes one, and for a baseline that of its
    weights with the indices of those that are kept sparsely. A baseline has no backbone.
    """

    trained: int
    head: int
    size_bytes: NotRequired[int]
    backbone: NotRequired[int]
    backbone_blocks: NotRequired[int]


class RunOutcome(TypedDict, total=False):
    """What training gave. The prior has only metrics and users; a failed run only ``failed``.

    ``metrics`` and ``users`` are by task. ``epochs`` are ``FinetuneEpoch`` as JSON; baselines have
    none. ``parts`` are those that fine-tuning chose. ``failed`` is an error's code, and ``reason``
    its message.
    """

    metrics: dict[str, dict[str, float]]
    users: dict[str, dict[str, int]]
    validation_loss: float
    best_epoch: int
    epochs: list[Document]
    parts: list[str]
    seconds: float
    parameters: Parameters
    device: str
    failed: str
    reason: str


class RunResult(RunOutcome):
    """One line of the journal: what was run, what it gave, and how long it took."""

    key: str
    spec: Document
    label: str
    wall_seconds: float
    cpu_seconds: float


class Spread(TypedDict):
    """Mean and sample standard deviation over runs; the deviation of one run is None.

    Runs differ in their seed, and in their split of the users if there are several splits.
    """

    mean: float
    std: float | None
    runs: int


class Tuning(TypedDict):
    """What was chosen on one split's validation users: learning rates, or a baseline's strength.

    ``is_at_edge`` if it is the lowest or highest of those tried, so a better one may be outside.
    """

    rates: dict[str, float]
    trials: list[dict[str, float | None]]
    is_at_edge: bool


class Row(TypedDict):
    """One method in one task's table, over all splits of its data set.

    ``keys`` are the keys of the runs that the metrics are of, and ``tuning`` what was chosen, both
    by the names of the splits' corpora. ``parts`` counts the runs in which fine-tuning chose a
    combination, by its name. Fields below ``failed`` are missing from the prior's row. A
    baseline has no shares of a backbone, epochs and curve.
    """

    method: str
    family: str
    is_causal: bool
    insertion: str | None
    bottleneck: int | None
    cardinality: int
    depth: int | str
    extras: str
    queries: int
    label_share: float
    metrics: dict[str, Spread]
    users: dict[str, int]
    keys: dict[str, list[str]]
    failed: int
    trained_parameters: NotRequired[int]
    head_parameters: NotRequired[int]
    size_bytes: NotRequired[float]
    share: NotRequired[float]
    share_of_blocks: NotRequired[float]
    seconds: NotRequired[float]
    cpu_seconds: NotRequired[float]
    parts: NotRequired[dict[str, int]]
    epochs: NotRequired[float]
    tuning: NotRequired[dict[str, Tuning]]
    curve: NotRequired[list[Point]]


class Verdict(TypedDict):
    """Whether the paper's finding holds for one pair of methods.

    ``relative`` is the difference divided by the rival's metric. ``share``, only against FineAll,
    is the part of the rival's trained parameters that the method trains.
    """

    method: str
    rival: str
    difference: float
    standard_error: float
    relative: float
    holds: bool
    share: NotRequired[float]


class Gap(TypedDict):
    """How much larger a metric of one method is than of another, over the same test users.

    The interval is the mean and 1.96 standard errors on either side.
    """

    method: str
    rival: str
    metric: str
    mean: float
    standard_error: float
    low: float
    high: float


class LeftOut(TypedDict):
    """A method without a row because every run of it failed: an error's code and message."""

    method: str
    failed: str
    reason: str


class Table(TypedDict):
    """One task's methods; ``primary`` names the metric that verdicts and plots use.

    ``splits`` are the names of the corpora whose runs it is of.
    """

    data_set: str
    splits: list[str]
    task: str
    kind: HeadKind
    primary: str
    rows: list[Row]
    left_out: list[LeftOut]
    gaps: list[Gap]
    verdicts: list[Verdict]


class Report(TypedDict):
    """The contents of ``comparison.json``."""

    settings: Document
    corpora: dict[str, Document]
    software: dict[str, str]
    device: str
    tables: list[Table]
    unfinished: int
    runs: list[RunResult]
