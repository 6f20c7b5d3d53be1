"""How a bundle's answers were distributed in its training, as processes pass it on: 100 bytes."""

from typing import Self

import msgspec

from peterrec.patches.bundle.manifest import Manifest

MOST_OUTPUTS = 32
"""Groups of outputs that are compared at most. With more, the rarest outputs are one group: a group
needs some users of the training to compare with."""


class AnswerPrior(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a bundle's answers were distributed over users that its training held out.

    ``outputs`` counts the answers by group of outputs, empty if they are not compared by output;
    ``groups`` has the group of each output, empty if each is its own. ``bounds`` divide the scores
    of answers into groups, which ``scores`` counts.
    """

    users: int
    outputs: tuple[int, ...]
    groups: bytes
    bounds: tuple[float, ...]
    scores: tuple[int, ...]

    @classmethod
    def packed(cls, manifest: Manifest) -> bytes:
        """Encode that of a bundle; empty if it has none."""
        known = manifest.prior
        if known is None:
            return b""
        outputs, groups = _grouped(known.outputs)
        return _encode(cls(known.users, outputs, groups, known.bounds, known.scores))

    @classmethod
    def unpacked(cls, packed: bytes) -> Self | None:
        """Decode what ``packed`` returned."""
        return msgspec.msgpack.decode(packed, type=cls) if packed else None

    def group_of(self, output: int) -> int:
        """Return the group that an output is counted in."""
        return self.groups[output] if self.groups else output


_encode = msgspec.msgpack.Encoder().encode


def _grouped(counts: tuple[int, ...]) -> tuple[tuple[int, ...], bytes]:
    """Join the rarest outputs, if there are many; returns the counts and each output's group."""
    if len(counts) <= MOST_OUTPUTS:
        return counts, b""
    ranked = sorted(range(len(counts)), key=lambda output: -counts[output])
    groups = bytearray(len(counts))
    for rank, output in enumerate(ranked):
        groups[output] = min(rank, MOST_OUTPUTS - 1)
    sums = [0] * MOST_OUTPUTS
    for output, count in enumerate(counts):
        sums[groups[output]] += count
    return tuple(sums), bytes(groups)
