"""What a bundle costs those who share its server, computed from its manifest alone."""

from dataclasses import dataclass
from math import prod

from peterrec.model.spec import BackboneSpec
from peterrec.patches.bundle.format import BundleLimits
from peterrec.patches.bundle.manifest import Manifest
from peterrec.patches.errors import Findings, ReasonCode

CONVOLUTIONS_PER_BLOCK = 2

ROW_POSITIONS = 5.0
"""What a history costs beside its positions: plans and messages, in positions. Measured as 3 to 6,
with 256 and with 64 channels."""

GATHERED_WORK, RANKED_WORK, TABLE_WORK = 100.0, 16.0, 30.0
"""The time of a weight of a head, relative to that of a weight of a convolution. A head's weights
are read from memory for each row, those of a ranking for all rows of a batch at once. The last is
that of a weight of an item table, for each item of a history."""

TABLE_ITEM_WORK = 1500.0
"""The time of finding an item's row in a table, relative to that of a weight of a convolution."""

FLOAT_BYTES = 4

NUMBER_CHARACTERS = 24
"""Characters of a score in an answer, with its punctuation: float64 has up to 17 digits."""


@dataclass(frozen=True, slots=True)
class BundleCost:
    """The work and the bytes that one history takes.

    Work is counted in positions of the backbone: 1 is the time that it takes for one. A history
    takes ``row_work``, and ``position_work`` for each of its items and [CLS], and with an item
    table ``item_work`` for each item, also for those that the network does not read. A ranking of
    some candidates takes ``candidate_work`` for each of them instead of ``ranking_work``.

    ``patch_work`` is the multiplications of the patch relative to those of the backbone's
    convolutions. ``answer_bytes`` is the size of an answer that lists every output, and
    ``row_bytes`` is the memory that the head takes for a history while a batch runs.
    """

    patch_work: float
    answer_bytes: int
    row_work: float
    ranking_work: float
    candidate_work: float
    item_work: float
    row_bytes: int

    @property
    def position_work(self) -> float:
        """The work of one position, through the backbone and the patch."""
        return 1.0 + self.patch_work

    def history_work(self, items: int) -> float:
        """Return the work of a history of so many items, all of which the network reads."""
        return self.row_work + self.ranking_work + (1 + items) * self.position_work

    @classmethod
    def of(cls, manifest: Manifest, backbone: BackboneSpec) -> "BundleCost":
        """Compute the cost of a bundle on a backbone."""
        shapes = manifest.patch.geometry().shapes(backbone.channels).values()
        convolutions = CONVOLUTIONS_PER_BLOCK * len(backbone.dilations)
        work_of_backbone = convolutions * backbone.kernel_size * backbone.channels**2
        outputs, channels = manifest.head.outputs, backbone.channels
        is_ranking = manifest.described_kind.has_catalog
        candidate = GATHERED_WORK * channels / work_of_backbone
        ranking = RANKED_WORK * outputs * channels / work_of_backbone
        width = channels if is_ranking else outputs
        item = (TABLE_ITEM_WORK + TABLE_WORK * width) / work_of_backbone
        return cls(
            patch_work=sum(prod(shape) for shape in shapes) / work_of_backbone,
            answer_bytes=_answer_bytes(manifest),
            row_work=ROW_POSITIONS + (0.0 if is_ranking else outputs * candidate),
            ranking_work=ranking if is_ranking else 0.0,
            candidate_work=candidate if is_ranking else 0.0,
            item_work=item if manifest.table is not None else 0.0,
            row_bytes=FLOAT_BYTES * (channels if is_ranking else outputs * (channels + 2)),
        )


def check_cost(
    manifest: Manifest, backbone: BackboneSpec, limits: BundleLimits, findings: Findings
) -> None:
    """Refuse a bundle that would hold up the others: they run in the same batches."""
    cost = BundleCost.of(manifest, backbone)
    if cost.patch_work > limits.max_patch_work:
        findings.add(
            ReasonCode.PATCH_TOO_COSTLY,
            f"the patch takes {cost.patch_work:.3g} times the work of the backbone, "
            f"at most {limits.max_patch_work:g} times is served",
            "Train with a smaller `bottleneck`, or raise PETERREC_PATCH_WORK_LIMIT.",
        )
    if cost.answer_bytes > limits.max_answer_bytes:
        findings.add(
            ReasonCode.ANSWER_TOO_LARGE,
            f"an answer for one history takes about {cost.answer_bytes} bytes, "
            f"at most {limits.max_answer_bytes} are served",
            "Make it a ranking, which answers the best outputs only, or raise "
            "PETERREC_ANSWER_LIMIT_BYTES.",
        )


def _answer_bytes(manifest: Manifest) -> int:
    """Return the bytes of an answer with all outputs; a ranking returns only the best ones."""
    if manifest.described_kind.has_catalog:
        return 0
    names = sum(len(label.encode()) for label in manifest.head.labels or ())
    return names + manifest.head.title_bytes + NUMBER_CHARACTERS * manifest.head.outputs
