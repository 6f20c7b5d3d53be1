"""The settings of a pretraining run."""

from dataclasses import dataclass
from typing import Literal

import torch

from peterrec.model.spec import BackboneSpec
from peterrec.model.training.softmax import LossName

Start = Literal["spectral", "random"]

Precision = Literal["float32", "bfloat16"]

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """Everything that shapes a pretraining run; saved with the backbone.

    ``start`` is where the item embedding begins: ``spectral``
    (``model/training/pretrain/spectral.py``) or
    ``random``. ``contrast_weight`` times the contrastive loss of user vectors is added to the
    items' loss; 0 leaves it out, as the paper does. ``precision`` is that of the blocks' states and
    of all products; weights, their moments and the losses are float32.
    """

    channels: int = 64
    dilations: tuple[int, ...] = (1, 4, 1, 4, 1, 4, 1, 4)
    kernel_size: int = 3
    is_causal: bool = True
    max_len: int = 50
    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 0
    validation_share: float = 0.05
    patience: int = 2
    min_count: int = 1
    loss: LossName | Literal["auto"] = "auto"
    start: Start = "spectral"
    contrast_weight: float = 0.5
    precision: Precision = "float32"

    def backbone_spec(self, item_count: int) -> BackboneSpec:
        """The architecture for so many items."""
        return BackboneSpec(
            item_count=item_count,
            channels=self.channels,
            dilations=self.dilations,
            kernel_size=self.kernel_size,
            is_causal=self.is_causal,
            max_len=self.max_len,
        )
