"""Settings of a comparison: plain values that are stored as JSON."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from peterrec.model.documents import Document
from peterrec.model.errors import ComparisonSettingsInvalid
from peterrec.model.spec import Insertion
from peterrec.model.training.pretrain.pretrain import PretrainSettings

PROTOCOL = 2
"""Version of the protocol, part of every run's key.

It is increased when a change of the code makes older results incomparable: 2 orders all ties by a
hash and stores predictions as safetensors.
"""

NONCAUSAL = "-noncausal"
"""Ending of a method's name that selects the non-causal backbone."""

DEFAULT_METHODS = (
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

Depth = int | Literal["all", "side", "none"]
"""Number of top blocks that carry a patch.

``side`` is a network outside the frozen backbone, ``none`` a history reader without a patch.
"""

Extras = Literal["auto", "none", "norms", "cls", "both"]
"""What a patch trains in addition to its bottlenecks: second norms of patched blocks, ``[CLS]``.

``auto`` trains the norms, and ``[CLS]`` if the lowest block is patched.
"""


@dataclass(frozen=True, slots=True)
class Axes:
    """Properties of a patch that are varied; PeterRec is run for every combination."""

    insertions: tuple[Insertion, ...] = ("serial2", "serial1", "parallel2")
    bottlenecks: tuple[int, ...] = (8,)
    cardinalities: tuple[int, ...] = (1,)
    depths: tuple[Depth, ...] = ("all",)
    extras: tuple[Extras, ...] = ("auto",)
    queries: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class ComparisonSettings:
    """All settings of a comparison; they are recorded with its results.

    ``label_shares`` are shares of the training users whose answers are used. ``rate_trials``
    learning rates are tried for each method with the first seed, and the one with the lowest
    validation loss is used. ``item_dropout`` is the mean share of a history's items that training
    leaves out.
    """

    methods: tuple[str, ...] = DEFAULT_METHODS
    tasks: tuple[str, ...] = ()
    axes: Axes = field(default_factory=Axes)
    label_shares: tuple[float, ...] = (1.0,)
    seeds: int = 3
    first_seed: int = 0
    rate_trials: int = 3
    epochs: int = 12
    patience: int = 3
    batch_size: int = 128
    item_dropout: float = 0.5
    ranking_item_dropout: float = 0.2
    min_label_count: int = 5
    pretrain_on: PretrainOn = "train"
    pretraining: PretrainSettings = field(
        default_factory=lambda: PretrainSettings(max_len=100, epochs=4)
    )

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
