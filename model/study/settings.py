"""Settings of a comparison: plain values that are stored as JSON."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge

from peterrec.model.documents import Document
from peterrec.model.errors import ComparisonSettingsInvalid
from peterrec.model.insertions import INSERTIONS, InsertionName
from peterrec.model.training.options import BatchSize, Epochs, Patience, option
from peterrec.model.training.pretrain.settings import PretrainSettings

PROTOCOL = 3
"""Version of the protocol, part of every run's key.

It is increased when a change of the code makes older results incomparable: 2 orders all ties by a
hash and stores predictions as safetensors; 3 calibrates every method on the validation users, and
the two towers read whole histories.
"""

NONCAUSAL = "-noncausal"
"""Ending of a method's name that selects the non-causal backbone."""

DEFAULT_METHODS = (
    "linear",
    "popular",
    "item-knn",
    "ease",
    "auto",
    "table",
    "peterrec",
    "reader",
    "fineall",
    "finelast",
    "finecls",
    "peterzero",
    "random",
    "mtl",
    "dssm",
    "peterrec-noncausal",
    "fineall-noncausal",
)

PretrainOn = Literal["train", "all"]

Count = Annotated[int, Ge(0)]

PatchedDepth = int | Literal["all", "side"]

Depth = PatchedDepth | Literal["none"]
"""Number of top blocks that carry a patch.

``side`` is a network outside the frozen backbone, ``none`` a history reader without a patch.
"""

Extras = Literal["auto", "none", "norms", "cls", "both"]
"""What a patch trains in addition to its bottlenecks: second norms of patched blocks, ``[CLS]``.

``auto`` trains the norms, and ``[CLS]`` if the lowest block is patched.
"""


@dataclass(frozen=True, slots=True)
class CutSettings:
    """How users are split, and which of a user's events are inputs and targets."""

    validation_share: Annotated[
        float,
        option("Share of users kept apart to choose epochs with.", "Input", ge=0.01, le=0.5),
    ] = 0.1
    test_share: Annotated[
        float,
        option("Share of users kept apart to measure results on.", "Input", ge=0.01, le=0.5),
    ] = 0.2
    seeds: Annotated[
        tuple[Count, ...],
        option(
            "Seeds of splits of the users; a table is over all of them.", "Input", name="split_seed"
        ),
    ] = (0,)
    most_targets: Annotated[
        int, option("Targets of a user that are used, the first ones.", "Input", ge=1)
    ] = 5
    min_history: Annotated[
        int,
        option("Between domains: inputs of a user before the first target.", "Input", ge=0),
    ] = 0


@dataclass(frozen=True, slots=True)
class Axes:
    """Properties of a patch that are varied; PeterRec is run for every combination."""

    insertions: Annotated[
        tuple[InsertionName, ...],
        option("Where the patch joins a convolution, in turn.", "Methods"),
    ] = tuple(INSERTIONS)
    bottlenecks: Annotated[
        tuple[Count, ...],
        option("Widths of the patch's bottlenecks, summed over branches.", "Methods"),
    ] = (8,)
    cardinalities: Annotated[
        tuple[Count, ...], option("Numbers of branches of each bottleneck.", "Methods")
    ] = (1,)
    depths: Annotated[
        tuple[PatchedDepth, ...],
        option("Patched top blocks: numbers, all, or side for a side network.", "Methods"),
    ] = ("all",)
    extras: Annotated[
        tuple[Extras, ...],
        option(
            "What a patch trains in addition: auto, none, norms, cls or both; auto is the norms, "
            "and [CLS] if the first block is patched.",
            "Methods",
        ),
    ] = ("auto",)
    queries: Annotated[
        tuple[Count, ...],
        option("Attention queries of the patch's history reader; 0 turns it off.", "Methods"),
    ] = (0,)


@dataclass(frozen=True, slots=True)
class ComparisonSettings:
    """All settings of a comparison; they are recorded with its results.

    ``label_shares`` are shares of the training users whose answers are used. ``rate_trials``
    learning rates are tried for each method with the first seed, and the one with the lowest
    validation loss is used; a baseline tries all of its strengths. ``item_dropout`` is the mean
    share of a history's items that training leaves out.
    """

    methods: Annotated[
        tuple[str, ...], option("Methods to compare (docs/compare.md lists them).", "Methods")
    ] = DEFAULT_METHODS
    tasks: Annotated[
        tuple[str, ...], option("Tasks to train, by name; default: all.", "Methods")
    ] = ()
    axes: Annotated[Axes, option("What is varied of a patch.", "Methods", is_public=False)] = field(
        default_factory=Axes
    )
    label_shares: Annotated[
        tuple[float, ...],
        option(
            "Shares of the training users whose answers are used.", "Methods", name="label_share"
        ),
    ] = (1.0,)
    seeds: Annotated[int, option("Random seeds to train each method with.", ge=1)] = 3
    first_seed: Annotated[int, option("First random seed.", name="seed", ge=0)] = 0
    rate_trials: Annotated[
        int,
        option("Learning rates to try for each method.", name="lr_trials", ge=1, le=5),
    ] = 3
    epochs: Epochs = 12
    patience: Patience = 3
    batch_size: BatchSize = 128
    item_dropout: Annotated[
        float,
        option(
            "Mean share of items left out of each history while training, for every task but "
            "rankings.",
            ge=0,
            le=1,
        ),
    ] = 0.5
    ranking_item_dropout: Annotated[
        float,
        option("Mean share of items left out for ranking tasks.", ge=0, le=1, is_public=False),
    ] = 0.2
    min_label_count: Annotated[
        int, option("Drop classes with fewer training users.", "Input", ge=1)
    ] = 5
    pretrain_on: Annotated[
        PretrainOn,
        option("Users whose histories pretraining reads: all includes test users.", "Input"),
    ] = "train"
    pretraining: Annotated[
        PretrainSettings, option("Settings of pretraining.", "Model", is_public=False)
    ] = field(default_factory=lambda: PretrainSettings(max_len=100, epochs=4))

    def __post_init__(self) -> None:
        _require(self.seeds >= 1, f"seeds is {self.seeds}, at least 1 is needed")
        _require(1 <= self.rate_trials <= 5, f"lr trials are {self.rate_trials}, not 1 to 5")
        _require(
            all(0 < share <= 1 for share in self.label_shares),
            f"label shares {self.label_shares} must be above 0 and at most 1",
        )
        _require(
            all(depth in ("all", "side", "none") or int(depth) >= 1 for depth in self.axes.depths),
            f"depths {self.axes.depths} must be numbers of blocks, all or side",
        )

    def to_json(self) -> Document:
        """All fields as JSON values."""
        return asdict(self)


def _require(is_valid: bool, message: str) -> None:
    if not is_valid:
        raise ComparisonSettingsInvalid(f"{message}.", hint="See docs/compare.md.")
