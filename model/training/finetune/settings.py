"""The settings of a fine-tuning run."""

from dataclasses import dataclass

from peterrec.model.insertions import InsertionName
from peterrec.model.network.backbone import Backbone
from peterrec.model.spec import HeadKind, PatchGeometry


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How a task is trained, whatever it is that learns.

    ``variants`` thinned forms of each history are met in turn; 0 thins anew in every epoch.
    """

    epochs: int = 12
    batch_size: int = 128
    learning_rate: float = 1e-2
    head_learning_rate: float = 1e-2
    item_dropout: float = 0.2
    seed: int = 0
    patience: int = 3
    variants: int = 0


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """Everything that shapes a fine-tuning run; recorded with its result.

    ``blocks`` are the patched blocks, None for all; with ``queries`` the patch also reads the
    history's items beside the network (``model/network/history_reader.py``) and may do without any
    block.
    ``has_cls`` None trains ``[CLS]`` if the first block is patched: otherwise a ``[CLS]`` of its
    own would cost the trunk that tasks share. ``item_dropout`` is the mean share of items left out
    of a history while training. If only top blocks are patched, ``trunk_variants`` so thinned forms
    of each history are met in turn, and what the blocks below give for them is computed once; 0
    thins anew in every epoch.
    """

    kind: HeadKind
    insertion: InsertionName = "serial2"
    bottleneck: int = 8
    cardinality: int = 1
    blocks: tuple[int, ...] | None = None
    has_inner_skip: bool = False
    has_norms: bool = True
    has_cls: bool | None = None
    queries: int = 8
    epochs: int = 12
    batch_size: int = 128
    learning_rate: float = 1e-2
    head_learning_rate: float = 1e-2
    item_dropout: float = 0.2
    seed: int = 0
    validation_share: float = 0.1
    test_share: float = 0.1
    patience: int = 3
    min_label_count: int = 1
    max_unknown_share: float = 0.1
    trunk_variants: int = 4

    def geometry(self, backbone: Backbone) -> PatchGeometry:
        """Where the patch sits in this backbone."""
        blocks = tuple(range(len(backbone.blocks))) if self.blocks is None else self.blocks
        return PatchGeometry(
            insertion=self.insertion,
            bottleneck=self.bottleneck,
            blocks=blocks,
            cardinality=self.cardinality,
            has_inner_skip=self.has_inner_skip,
            has_norms=self.has_norms and bool(blocks),
            has_cls=(0 in blocks) if self.has_cls is None else self.has_cls,
            queries=self.queries,
        )

    def loop(self, variants: int = 0) -> LoopSettings:
        """The part that says how to train, with so many variants of each history."""
        return LoopSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            head_learning_rate=self.head_learning_rate,
            item_dropout=self.item_dropout,
            seed=self.seed,
            patience=self.patience,
            variants=variants,
        )
