"""Patch insertions: one record each, read by every forward, training and serving alike.

A patched convolution with output ``c`` computes ``c + f(s)``, or ``c + s + f(s)`` with an inner
skip. ``f`` is the patch's bottleneck and its source ``s`` is the convolution's input or output. A
new insertion of this form is one line in ``INSERTIONS``, and
``tests/model/inference/test_every_forward.py`` then compares all implementations on it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from peterrec.model.errors import InvalidSpec

CONVS = 2
"""Convolutions of a residual block."""

PATCHED, READS_INPUT, ADDS_SOURCE = 1, 2, 4
"""Bits of a kernel mode: there is a patch; its source is the convolution's input; the source itself
is added too. A mode of 0 is a convolution without a patch."""

Source = Literal["input", "output"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Insertion:
    """Where a block carries bottlenecks and what they read.

    The last ``convs_per_block`` convolutions of a block are patched. ``source`` says which side of
    the convolution a bottleneck reads.
    """

    name: str
    convs_per_block: int
    source: Source

    def __post_init__(self) -> None:
        if self.source not in ("input", "output"):
            raise InvalidSpec(f"insertion {self.name}: source {self.source!r} is unknown.")
        if not 1 <= self.convs_per_block <= CONVS:
            raise InvalidSpec(
                f"insertion {self.name}: {self.convs_per_block} convolutions a block; 1 or {CONVS} "
                "are possible."
            )

    @property
    def may_skip(self) -> bool:
        """True if an inner skip is possible: it adds the convolution's input."""
        return self.source == "input"

    def pick(self, conv_in: T, conv_out: T) -> T:
        """The bottleneck's source among a convolution's input and output."""
        return conv_in if self.source == "input" else conv_out

    def kernel_mode(self, has_inner_skip: bool) -> int:
        """The bits by which compiled kernels know this insertion."""
        reads = READS_INPUT if self.source == "input" else 0
        return PATCHED | reads | (ADDS_SOURCE if has_inner_skip else 0)


INSERTIONS: dict[str, Insertion] = {
    insertion.name: insertion
    for insertion in (
        Insertion("serial2", convs_per_block=2, source="output"),
        Insertion("serial1", convs_per_block=1, source="output"),
        Insertion("parallel2", convs_per_block=2, source="input"),
    )
}
"""All insertions by name. In the paper, figure 3 (b) is the serial and (d) the parallel one."""

if TYPE_CHECKING:
    InsertionName = str
else:
    InsertionName = Literal[*INSERTIONS]  # schemas list the names; a type checker cannot read this
