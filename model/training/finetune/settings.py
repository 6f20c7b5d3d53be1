"""The settings of a fine-tuning run; every option of fine-tuning is written here and only here."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from peterrec.model.errors import InvalidSpec
from peterrec.model.insertions import InsertionName
from peterrec.model.kinds import KINDS, KindName
from peterrec.model.spec import PatchGeometry
from peterrec.model.training.options import (
    STRICT,
    BatchSize,
    Epochs,
    ItemDropout,
    MinLabelCount,
    Patience,
    Seed,
    ValidationShare,
    option,
)

Part = Literal["blocks", "reader", "table"]
"""What a task may have beside its head: a patch in the residual blocks, a history reader, an item
table."""

PARTS: tuple[Part, ...] = get_args(Part)

AUTO, NONE = "auto", "none"
"""Values of ``parts``: the best combination by validation loss, and a head alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """How an encoder and a head are trained, for every encoder that ``peterrec compare`` knows."""

    __pydantic_config__ = STRICT

    epochs: Epochs = 12
    batch_size: BatchSize = 128
    learning_rate: Annotated[
        float,
        option("Adam's learning rate for the patch; it falls linearly to 0.", name="lr", ge=0),
    ] = 1e-2
    head_learning_rate: Annotated[
        float,
        option(
            "Adam's learning rate for the head; a ranking takes a tenth of it. "
            "It falls linearly to 0.",
            name="head_lr",
            ge=0,
        ),
    ] = 1e-2
    item_dropout: ItemDropout = 0.2
    seed: Seed = 0
    patience: Patience = 3


@dataclass(frozen=True, slots=True)
class FinetuneSettings(LoopSettings):
    """Everything that shapes a fine-tuning run; recorded with its result.

    Options of the panel ``Model`` say where the patch is and how wide; ``peterrec finetune-many``
    takes them once for all tasks. The other options belong to one task.
    """

    kind: Annotated[KindName, option("What the task answers with.", "Model")]
    insertion: Annotated[
        InsertionName, option("Where the patch joins a convolution (PeterRec, figure 3).", "Model")
    ] = "serial2"
    bottleneck: Annotated[
        int, option("Width of the patch's bottlenecks, summed over branches.", "Model", ge=1)
    ] = 8
    cardinality: Annotated[
        int, option("Branches of each bottleneck; must divide its width.", "Model", ge=1)
    ] = 1
    blocks: Annotated[
        tuple[int, ...] | None,
        option("Where the part blocks is: all, top:2, or numbers such as 0,1.", "Model"),
    ] = None
    has_inner_skip: Annotated[
        bool,
        option(
            "Add the bottleneck's input to its output, as the published parallel2 code does.",
            "Model",
            name="inner_skip",
        ),
    ] = False
    has_norms: Annotated[
        bool,
        option("Train the second layer norm of every patched block too.", "Model", name="norms"),
    ] = True
    has_cls: Annotated[
        bool | None,
        option(
            "Train the [CLS] embedding too; default: only if the first block is patched.",
            "Model",
            name="cls",
        ),
    ] = None
    queries: Annotated[
        int,
        option(
            "Attention queries of the reader, which pools the history's items.",
            "Model",
            ge=1,
        ),
    ] = 8
    parts: Annotated[
        str,
        option(
            "Parts beside the head: auto takes the best combination by validation loss; none, or "
            "a list of blocks, reader, table."
        ),
    ] = AUTO
    validation_share: ValidationShare = 0.1
    test_share: Annotated[
        float, option("Share of users kept apart to measure the result on.", ge=0, le=0.9)
    ] = 0.1
    min_label_count: MinLabelCount = 1
    max_unknown_share: Annotated[
        float,
        option("Fail if a larger share of items or users is unknown.", "Input", ge=0, le=1),
    ] = 0.1
    unit: Annotated[
        str | None,
        option("What the number of a value task counts, such as days; answers repeat it.", "Input"),
    ] = None
    trunk_variants: Annotated[
        int,
        option(
            "If only top blocks are patched, each history is trained on in this many forms, each "
            "without other items, and the blocks below are computed once for each form; 0 draws a "
            "new form in every epoch.",
            ge=0,
            is_public=False,
        ),
    ] = 4

    def __post_init__(self) -> None:
        self._require_parts()
        if self.unit is not None and KINDS[self.kind].outputs != "number":
            raise InvalidSpec(
                f"a {self.kind} task has no unit.", hint="Leave `unit` out, or use `kind` value."
            )

    @property
    def chosen_parts(self) -> tuple[Part, ...] | None:
        """The parts that were asked for, in the order of ``PARTS``; None if training chooses."""
        if self.parts == AUTO:
            return None
        named = [] if self.parts == NONE else [name.strip() for name in self.parts.split(",")]
        return tuple(part for part in PARTS if part in named)

    def geometry(self, block_count: int, parts: Collection[Part]) -> PatchGeometry:
        """The patch in a backbone of this many blocks, if it has these parts.

        ``has_cls`` None trains ``[CLS]`` only if the first block is patched: otherwise a task's own
        ``[CLS]`` would make it compute the blocks that tasks share anew.
        """
        blocks: tuple[int, ...] = ()
        if "blocks" in parts:
            blocks = tuple(range(block_count)) if self.blocks is None else self.blocks
        return PatchGeometry(
            insertion=self.insertion,
            bottleneck=self.bottleneck,
            blocks=blocks,
            cardinality=self.cardinality,
            has_inner_skip=self.has_inner_skip,
            has_norms=self.has_norms and bool(blocks),
            has_cls=(0 in blocks) if self.has_cls is None else self.has_cls and bool(blocks),
            queries=self.queries if "reader" in parts else 0,
        )

    def _require_parts(self) -> None:
        names = [name.strip() for name in self.parts.split(",")]
        unknown = [name for name in names if name not in PARTS]
        if unknown and self.parts not in (AUTO, NONE):
            raise InvalidSpec(
                f"`parts` {self.parts!r}: {unknown[0]!r} is no part.",
                hint=f"Give {AUTO}, {NONE}, or some of {', '.join(PARTS)} with commas.",
            )
        if self.blocks == ():
            raise InvalidSpec(
                "`blocks` names no block.",
                hint="`parts` without blocks, such as reader, leaves them unpatched.",
            )
