"""Commands of the training group: pretrain a backbone, fine-tune and evaluate tasks."""

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from peterrec.model.kinds import KINDS
from peterrec.service.cli import datasets

if TYPE_CHECKING:
    from peterrec.model.data.interactions import InteractionSource
    from peterrec.service.jobs.jobs import OnExisting
    from peterrec.service.jobs.options import AnswerOptions

if TYPE_CHECKING:
    Kind = str
else:
    Kind = StrEnum("Kind", {name.upper(): name for name in KINDS})
"""The kinds of head as the choices of an option; they are known only at run time."""


class Insertion(StrEnum):
    """Where a patch sits at a convolution."""

    SERIAL2 = "serial2"
    SERIAL1 = "serial1"
    PARALLEL2 = "parallel2"


class LossChoice(StrEnum):
    """Softmax of pretraining."""

    FULL = "full"
    SAMPLED = "sampled"
    AUTO = "auto"


class StartChoice(StrEnum):
    """Where item embeddings begin."""

    SPECTRAL = "spectral"
    RANDOM = "random"


class PrecisionChoice(StrEnum):
    """What blocks and products are computed in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class DeviceChoice(StrEnum):
    """What to compute on."""

    CPU = "cpu"
    CUDA = "cuda"


class PartChoice(StrEnum):
    """Whose answers are judged."""

    ALL = "all"
    TEST = "test"


INPUT, MODEL, RUN = "Input", "Model", "Training"

Interactions = Annotated[
    Path,
    typer.Option(
        help="CSV (also .gz) or Parquet file of events, or a folder of them.",
        rich_help_panel=INPUT,
    ),
]
UserColumn = Annotated[str, typer.Option(help="Column of user ids.", rich_help_panel=INPUT)]
ItemColumn = Annotated[str, typer.Option(help="Column of item ids.", rich_help_panel=INPUT)]
OrderColumn = Annotated[
    str | None,
    typer.Option(help="Time or position; without it the file's order.", rich_help_panel=INPUT),
]
Delimiter = Annotated[str, typer.Option(help="Between CSV fields.", rich_help_panel=INPUT)]
Where = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN=VALUE", help="Keep such events only.", rich_help_panel=INPUT),
]
Labels = Annotated[
    Path | None, typer.Option(help="Table of labels, tags or values.", rich_help_panel=INPUT)
]
LabelColumn = Annotated[
    str | None, typer.Option(help="Column of the answer.", rich_help_panel=INPUT)
]
TagSeparator = Annotated[
    str | None,
    typer.Option(help="Between tags in one field; else one row per tag.", rich_help_panel=INPUT),
]
Targets = Annotated[Path | None, typer.Option(help="Events to recommend.", rich_help_panel=INPUT)]
TargetColumn = Annotated[str, typer.Option(help="Column of target items.", rich_help_panel=INPUT)]
TargetOrder = Annotated[
    str | None, typer.Option(help="Time or position of targets.", rich_help_panel=INPUT)
]
AnswerWhere = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN=VALUE", help="Keep such labels or targets only.", rich_help_panel=INPUT
    ),
]
CutOff = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Histories before it, targets from it on.", rich_help_panel=INPUT
    ),
]
Until = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Read no event from it on.", rich_help_panel=INPUT),
]
MaxUnknownShare = Annotated[
    float,
    typer.Option(min=0, max=1, help="Unknown items and users borne.", rich_help_panel=INPUT),
]
MinLabelCount = Annotated[
    int, typer.Option(min=1, help="Leave rarer labels, tags or targets out.", rich_help_panel=INPUT)
]
BackboneFolder = Annotated[Path, typer.Option(help="Folder written by `peterrec pretrain`.")]
Blocks = Annotated[
    str, typer.Option(help="Patched ones: all, none, top:2 or 0,1.", rich_help_panel=MODEL)
]
Queries = Annotated[
    int,
    typer.Option(
        min=0, help="Of a reader of the history beside the network; 0: none.", rich_help_panel=MODEL
    ),
]
ValidationShare = Annotated[float, typer.Option(min=0, max=0.9, rich_help_panel=RUN)]
TestShare = Annotated[float, typer.Option(min=0, max=0.9, rich_help_panel=RUN)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Epochs = Annotated[int, typer.Option(min=1, rich_help_panel=RUN)]
BatchSize = Annotated[int, typer.Option(min=1, rich_help_panel=RUN)]
Rate = Annotated[float, typer.Option(min=0, help="Adam's, falling to 0.", rich_help_panel=RUN)]
Seed = Annotated[int, typer.Option(min=0, rich_help_panel=RUN)]
Patience = Annotated[
    int, typer.Option(min=1, help="Epochs without a better validation.", rich_help_panel=RUN)
]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(pretrain)
    app.command()(finetune)
    app.command()(evaluate)
    datasets.register(app)


def pretrain(
    interactions: Interactions,
    out: Annotated[Path, typer.Option(help="Backbone folder to write.")],
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    order_column: OrderColumn = None,
    delimiter: Delimiter = ",",
    where: Where = None,
    until: Until = None,
    channels: Annotated[int, typer.Option(min=1, rich_help_panel=MODEL)] = 64,
    dilations: Annotated[
        str, typer.Option(help="One per block.", rich_help_panel=MODEL)
    ] = "1,4,1,4,1,4,1,4",
    kernel_size: Annotated[int, typer.Option(min=2, rich_help_panel=MODEL)] = 3,
    causal: Annotated[bool, typer.Option(rich_help_panel=MODEL)] = True,
    max_len: Annotated[
        int, typer.Option(min=1, help="Items of a history that are used.", rich_help_panel=MODEL)
    ] = 50,
    epochs: Epochs = 5,
    batch_size: BatchSize = 64,
    lr: Rate = 3e-3,
    seed: Seed = 0,
    validation_share: ValidationShare = 0.05,
    patience: Patience = 2,
    min_count: Annotated[
        int, typer.Option(min=1, help="Leave rarer items out.", rich_help_panel=RUN)
    ] = 1,
    loss: Annotated[
        LossChoice, typer.Option(help="auto: exact up to 5,000 items.", rich_help_panel=RUN)
    ] = LossChoice.AUTO,
    start: Annotated[
        StartChoice, typer.Option(help="Item embeddings' start.", rich_help_panel=RUN)
    ] = StartChoice.SPECTRAL,
    contrast_weight: Annotated[
        float, typer.Option(min=0, help="Of the user vectors' loss.", rich_help_panel=RUN)
    ] = 0.5,
    precision: Annotated[
        PrecisionChoice, typer.Option(help="Of states and products.", rich_help_panel=RUN)
    ] = PrecisionChoice.FLOAT32,
    device: Annotated[
        DeviceChoice, typer.Option(help="What to compute on.", rich_help_panel=RUN)
    ] = DeviceChoice.CPU,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a backbone on users' sequences, without labels; also in several torchrun processes."""
    from peterrec.model.progress import no_progress
    from peterrec.model.training.pretrain.pretrain import PretrainSettings
    from peterrec.service.jobs.jobs import run_pretrain
    from peterrec.service.jobs.options import parse_dilations
    from peterrec.service.jobs.progress_bar import ProgressBars
    from peterrec.service.jobs.torchrun import place_of

    settings = PretrainSettings(
        channels=channels,
        dilations=parse_dilations(dilations),
        kernel_size=kernel_size,
        is_causal=causal,
        max_len=max_len,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=lr,
        seed=seed,
        validation_share=validation_share,
        patience=patience,
        min_count=min_count,
        loss=loss.value,
        start=start.value,
        contrast_weight=contrast_weight,
        precision=precision.value,
    )
    source = interaction_source(
        interactions, user_column, item_column, order_column, delimiter, where, until
    )
    on_existing = _on_existing(resume, overwrite)
    with place_of(device.value) as place, ProgressBars() as bars:
        on_progress = bars if place.workers.writes else no_progress
        trained, fingerprint = run_pretrain(source, settings, out, on_existing, on_progress, place)
    if not place.workers.writes:
        return
    epoch = trained.record["epochs"][trained.record["best_epoch"]]
    rows = {"validation loss": epoch["validation_loss"], **epoch["validation_metrics"]}
    _print_metrics(f"{out}, best epoch {epoch['epoch'] + 1}", rows)
    print(f"backbone {fingerprint}")


def finetune(
    backbone: BackboneFolder,
    interactions: Interactions,
    kind: Annotated[Kind, typer.Option(help="What the task answers with.")],
    out: Annotated[Path, typer.Option(help="Bundle to write, FILE.bundle.")],
    name: Annotated[str | None, typer.Option(help="Of the bundle; else the file's.")] = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    order_column: OrderColumn = None,
    delimiter: Delimiter = ",",
    where: Where = None,
    labels: Labels = None,
    label_column: LabelColumn = None,
    tag_separator: TagSeparator = None,
    targets: Targets = None,
    target_column: TargetColumn = "item_id",
    target_order_column: TargetOrder = None,
    answers_where: AnswerWhere = None,
    cut_off: CutOff = None,
    until: Until = None,
    min_label_count: MinLabelCount = 1,
    max_unknown_share: MaxUnknownShare = 0.1,
    insertion: Annotated[Insertion, typer.Option(rich_help_panel=MODEL)] = Insertion.SERIAL2,
    bottleneck: Annotated[
        int, typer.Option(min=1, help="Summed over branches.", rich_help_panel=MODEL)
    ] = 8,
    cardinality: Annotated[int, typer.Option(min=1, rich_help_panel=MODEL)] = 1,
    blocks: Blocks = "all",
    queries: Queries = 8,
    inner_skip: Annotated[
        bool, typer.Option(help="Published form of parallel2.", rich_help_panel=MODEL)
    ] = False,
    norms: Annotated[
        bool, typer.Option(help="Train patched blocks' second norm.", rich_help_panel=MODEL)
    ] = True,
    cls: Annotated[
        bool | None,
        typer.Option("--cls/--no-cls", help="Train [CLS].", rich_help_panel=MODEL),
    ] = None,
    epochs: Epochs = 12,
    batch_size: BatchSize = 128,
    lr: Rate = 1e-2,
    head_lr: Rate = 1e-2,
    item_dropout: Annotated[
        float,
        typer.Option(min=0, max=1, help="Mean share of items left out.", rich_help_panel=RUN),
    ] = 0.2,
    seed: Seed = 0,
    validation_share: ValidationShare = 0.1,
    test_share: TestShare = 0.1,
    patience: Patience = 3,
    overwrite: Overwrite = False,
) -> None:
    """Train one task's patch and head on a frozen backbone, and write its bundle."""
    from peterrec.model.files.backbone_folder import load_backbone
    from peterrec.model.training.finetune.finetune import FinetuneSettings
    from peterrec.service.jobs.jobs import FinetuneJob, run_finetune
    from peterrec.service.jobs.options import cut_in_time, parse_blocks
    from peterrec.service.jobs.progress_bar import ProgressBars

    loaded = load_backbone(backbone)
    settings = FinetuneSettings(
        kind=str(kind),
        insertion=insertion.value,
        bottleneck=bottleneck,
        cardinality=cardinality,
        blocks=parse_blocks(blocks, len(loaded.backbone.blocks)),
        has_inner_skip=inner_skip,
        has_norms=norms,
        has_cls=cls,
        queries=queries,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=lr,
        head_learning_rate=head_lr,
        item_dropout=item_dropout,
        seed=seed,
        validation_share=validation_share,
        test_share=test_share,
        patience=patience,
        min_label_count=min_label_count,
        max_unknown_share=max_unknown_share,
    )
    answers = _answers(
        kind,
        user_column,
        (labels, label_column, tag_separator),
        (targets, target_column, target_order_column),
        delimiter,
        answers_where,
    )
    source, answers = cut_in_time(
        interaction_source(interactions, user_column, item_column, order_column, delimiter, where),
        answers,
        cut_off,
        until,
    )
    job = FinetuneJob(source, answers, out, name or out.name.removesuffix(".bundle"), overwrite)
    with ProgressBars() as bars:
        task = run_finetune(loaded, job, settings, bars)
    data = task.record["data"]
    _print_metrics(f"{out}, {data['test_users']} test users", task.metrics)
    if "ece" in task.metrics:
        print(f"temperature {task.temperature:.3f}, fitted on the validation users")
    if data["without_history"]:
        print(f"{data['without_history']} users without a known history were left out")


def evaluate(
    backbone: BackboneFolder,
    bundle: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Bundle to judge.")],
    interactions: Interactions,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    order_column: OrderColumn = None,
    delimiter: Delimiter = ",",
    where: Where = None,
    labels: Labels = None,
    label_column: LabelColumn = None,
    tag_separator: TagSeparator = None,
    targets: Targets = None,
    target_column: TargetColumn = "item_id",
    target_order_column: TargetOrder = None,
    answers_where: AnswerWhere = None,
    cut_off: CutOff = None,
    until: Until = None,
    min_label_count: MinLabelCount = 1,
    max_unknown_share: MaxUnknownShare = 0.1,
    part: Annotated[
        PartChoice, typer.Option(help="test: the users fine-tuning kept apart.")
    ] = PartChoice.ALL,
    validation_share: ValidationShare = 0.1,
    test_share: TestShare = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a bundle again, on any users, through the plain forward."""
    from peterrec.service.jobs.jobs import EvaluateJob, run_evaluate
    from peterrec.service.jobs.options import cut_in_time

    answers = _answers(
        "classification",  # the bundle says its kind
        user_column,
        (labels, label_column, tag_separator),
        (targets, target_column, target_order_column),
        delimiter,
        answers_where,
    )
    source, answers = cut_in_time(
        interaction_source(interactions, user_column, item_column, order_column, delimiter, where),
        answers,
        cut_off,
        until,
    )
    job = EvaluateJob(
        bundle=bundle,
        interactions=source,
        answers=answers,
        part=part.value,
        min_label_count=min_label_count,
        max_unknown_share=max_unknown_share,
        validation_share=validation_share,
        test_share=test_share,
    )
    metrics, users = run_evaluate(backbone, job)
    if as_json:
        print(json.dumps({"users": users, "metrics": metrics}))
    else:
        _print_metrics(f"{bundle}, {users} users", metrics)


def interaction_source(
    path: Path,
    user: str,
    item: str,
    order: str | None,
    delimiter: str,
    where: list[str] | None,
    before: str | None = None,
) -> "InteractionSource":
    """Events as the options of the input panel describe them."""
    from peterrec.model.data.interactions import InteractionSource
    from peterrec.service.jobs.options import table_source

    table = table_source(path, delimiter, where or ())
    return InteractionSource(table, user, item, order, before=before)


def _answers(
    kind: str,
    user_column: str,
    labels: tuple[Path | None, str | None, str | None],
    targets: tuple[Path | None, str, str | None],
    delimiter: str,
    where: list[str] | None,
) -> "AnswerOptions":
    from peterrec.model.data.tables import Condition
    from peterrec.service.jobs.options import AnswerOptions

    return AnswerOptions(
        kind,
        user_column,
        *labels,
        *targets,
        delimiter,
        tuple(Condition.parse(text) for text in where or ()),
    )


def _on_existing(resume: bool, overwrite: bool) -> "OnExisting":
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    if resume:
        return "resume"
    return "overwrite" if overwrite else "refuse"


def _print_metrics(title: str, metrics: Mapping[str, float]) -> None:
    """Metrics, each beside that of the best answer that ignores the history."""
    prefix = "baseline_"
    has_baseline = any(name.startswith(prefix) for name in metrics)
    table = Table("metric", "value", *(["no history"] if has_baseline else []), title=title)
    for name, value in metrics.items():
        if not name.startswith(prefix):
            baseline = metrics.get(prefix + name)
            beside = [f"{baseline:.4f}" if baseline is not None else ""] if has_baseline else []
            table.add_row(name, f"{value:.4f}", *beside)
    Console(highlight=False).print(table)
