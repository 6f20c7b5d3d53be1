"""The settings of a pretraining run; every option of pretraining is written here and only here."""

from dataclasses import dataclass
from typing import Annotated, Literal

from peterrec.model.spec import BackboneSpec
from peterrec.model.training.options import (
    STRICT,
    BatchSize,
    Epochs,
    ItemDropout,
    LossName,
    Patience,
    Seed,
    option,
)

Start = Literal["spectral", "random"]
"""How item embeddings start (``model/training/pretrain/spectral.py``)."""

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """Everything that shapes a pretraining run; saved with the backbone."""

    __pydantic_config__ = STRICT

    channels: Annotated[int, option("Width of item embeddings and blocks.", "Model", ge=1)] = 64
    dilations: Annotated[
        tuple[int, ...],
        option("Dilation of each residual block's first convolution, e.g. 1,4,1,4.", "Model"),
    ] = (1, 4, 1, 4, 1, 4, 1, 4)
    kernel_size: Annotated[int, option("Taps of every convolution.", "Model", ge=2)] = 3
    is_causal: Annotated[
        bool,
        option(
            "Predict the next item from earlier ones; otherwise hidden items from both sides.",
            "Model",
            name="causal",
        ),
    ] = True
    max_len: Annotated[
        int, option("Newest items of a history that the network reads.", "Model", ge=1)
    ] = 50
    epochs: Epochs = 5
    batch_size: BatchSize = 64
    learning_rate: Annotated[
        float,
        option(
            "Adam's highest learning rate; it rises over the first 2 % of steps and falls to 0.",
            name="lr",
            ge=0,
        ),
    ] = 3e-3
    seed: Seed = 0
    validation_share: Annotated[
        float,
        option(
            "Share of users kept apart to choose the best epoch with; 0: each user's newest item.",
            ge=0,
            le=0.9,
        ),
    ] = 0.05
    patience: Patience = 2
    min_count: Annotated[
        int, option("Leave out items with fewer events in the training users' histories.", ge=1)
    ] = 1
    leave_out_last: Annotated[
        int,
        option(
            "Newest events of each user that are not read: 2 for the test of evaluate-backbone.",
            ge=0,
        ),
    ] = 0
    loss: Annotated[
        LossName | Literal["auto"],
        option("Softmax over all items (full) or over sampled ones; auto: full up to 5,000 items."),
    ] = "auto"
    dropout: Annotated[
        float,
        option(
            "Share of each block's outputs that a step sets to 0, and half as many of embeddings.",
            ge=0,
            le=0.9,
        ),
    ] = 0.0
    item_dropout: ItemDropout = 0.0
    start: Annotated[
        Start,
        option("Start of item embeddings: user-item singular vectors (spectral), or random."),
    ] = "spectral"
    contrast_weight: Annotated[
        float,
        option(
            "Weight of the contrastive loss of user vectors; 0 leaves it out, as the paper does.",
            ge=0,
        ),
    ] = 0.5
    precision: Annotated[
        Precision,
        option(
            "Precision of activations and matrix products; weights and losses are float32 always."
        ),
    ] = "float32"

    def backbone_spec(self, item_count: int) -> BackboneSpec:
        """The architecture for this number of items."""
        return BackboneSpec(
            item_count=item_count,
            channels=self.channels,
            dilations=self.dilations,
            kernel_size=self.kernel_size,
            is_causal=self.is_causal,
            max_len=self.max_len,
        )
