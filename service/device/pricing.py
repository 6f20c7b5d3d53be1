"""What a row will take of a batch: its work and its bytes, before it runs."""

from typing import NamedTuple, Self

from peterrec.model.spec import BackboneSpec
from peterrec.patches.bundle.cost import FLOAT_BYTES, BundleCost
from peterrec.service.protocol.messages import ITEM_BYTES, Row

INDEX_BYTES = 8


class Price(NamedTuple):
    """What the rows of a bundle take, by their bytes; see ``BundleCost``, where it comes from.

    ``row`` includes [CLS], and every position if histories are padded to one length.
    """

    row: float = 1.0
    token: float = 0.0  # per byte of the items that the network reads
    item: float = 0.0  # per byte of all items
    ranking: float = 0.0
    candidate: float = 0.0  # per byte of the candidates
    size: int = 0
    outputs: int = 0

    @classmethod
    def of(cls, cost: BundleCost, outputs: int, backbone: BackboneSpec) -> Self:
        """Compute the price of a bundle's rows."""
        is_padded = backbone.padding == "embedded"
        positions = backbone.max_input_len if is_padded else 1
        return cls(
            row=cost.row_work + positions * cost.position_work,
            token=0.0 if is_padded else cost.position_work / ITEM_BYTES,
            item=cost.item_work / ITEM_BYTES,
            ranking=cost.ranking_work,
            candidate=cost.candidate_work / INDEX_BYTES,
            size=cost.row_bytes,
            outputs=outputs,
        )

    @classmethod
    def plain(cls, backbone: BackboneSpec) -> Self:
        """Return the price of rows that only the backbone computes."""
        is_padded = backbone.padding == "embedded"
        return cls(
            row=backbone.max_input_len if is_padded else 1.0,
            token=0.0 if is_padded else 1 / ITEM_BYTES,
            size=FLOAT_BYTES * backbone.channels,
            outputs=backbone.channels,
        )

    def times(self, factor: float) -> Self:
        """Return the price in a unit of work that is smaller by this factor."""
        return self._replace(
            row=factor * self.row,
            token=factor * self.token,
            item=factor * self.item,
            ranking=factor * self.ranking,
            candidate=factor * self.candidate,
        )

    def work(self, row: Row) -> float:
        """Return the work of a row, in positions of the backbone."""
        if row.left_out is not None:
            return self.row + (len(row.older) + len(row.tokens) + len(row.left_out)) * self.item
        work = self.row + len(row.tokens) * (self.token + self.item) + len(row.older) * self.item
        if row.candidates is None:
            return work + self.ranking
        return work + len(row.candidates) * self.candidate

    def bytes_of(self, row: Row) -> int:
        """Return the bytes that a row takes while it runs, beside its activations."""
        if row.left_out is None:
            return self.size
        return (1 + len(row.left_out) // ITEM_BYTES) * self.outputs * FLOAT_BYTES


def position_work(backbone: BackboneSpec) -> float:
    """Return the multiplications of a position, by which positions of backbones are compared."""
    return 2.0 * len(backbone.dilations) * backbone.kernel_size * backbone.channels**2


UNKNOWN = Price()
"""The price of a row whose bundle is not on the device: it is refused when its turn comes."""
