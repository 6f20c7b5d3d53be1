"""Kernels around the convolutions: the sequence of each entry, embedding, user vectors."""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from peterrec.model.spec import CLS, PAD, BackboneSpec

PER_PROGRAM = 16
"""Sequences, or entries, that one program computes."""

SPREAD = 64
"""Entries of a sequence that one program writes at a time."""


@triton.jit(do_not_specialize=["offsets_row", "counts_row", "rows"])  # type: ignore[untyped-decorator]  # Triton has no types
def _spread(  # type: ignore[no-untyped-def]  # Triton compiles it
    sequence_of_ptr,
    level_starts_ptr,
    offsets_ptr,
    counts_ptr,
    offsets_row,
    counts_row,
    rows,
    MOST: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
    SPREAD: tl.constexpr,
):
    sequence = tl.program_id(0) * PER_PROGRAM + tl.arange(0, PER_PROGRAM)
    level = tl.program_id(1)
    is_sequence = sequence < rows
    count = tl.load(counts_ptr + level * counts_row + sequence, mask=is_sequence, other=0)
    base = tl.load(offsets_ptr + level * offsets_row + sequence, mask=is_sequence, other=0)
    base += rows * tl.load(level_starts_ptr + level)
    for start in range(0, MOST, SPREAD):
        n = start + tl.arange(0, SPREAD)
        at = base[:, None] + n[None, :]
        owner = sequence[:, None] + tl.zeros((1, SPREAD), dtype=tl.int32)
        tl.store(sequence_of_ptr + at, owner, mask=n[None, :] < count[:, None])


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _enter(  # type: ignore[no-untyped-def]  # Triton compiles it
    out_ptr,
    sequence_of_ptr,
    bounds_ptr,
    offsets_ptr,
    positions_ptr,
    items_ptr,
    item_offsets_ptr,
    embedding_ptr,
    slots_ptr,
    cls_ptr,
    PAD: tl.constexpr,
    CLS: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    HAS_CLS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    first = tl.load(bounds_ptr) + tl.program_id(0) * ENTRIES
    stop = tl.load(bounds_ptr + 1)
    if first >= stop:
        return
    m = first + tl.arange(0, ENTRIES)
    is_entry = m < stop
    c = tl.arange(0, BLOCK_C)
    here = is_entry[:, None] & (c < C)[None, :]
    sequence = tl.load(sequence_of_ptr + m, mask=is_entry, other=0)
    back = tl.load(positions_ptr + m - tl.load(offsets_ptr + sequence), mask=is_entry, other=0)
    start = tl.load(item_offsets_ptr + sequence)
    items = tl.load(item_offsets_ptr + sequence + 1) - start
    is_item = is_entry & (back > 0) & (back <= items)
    token = tl.load(items_ptr + start + items - back, mask=is_item, other=PAD)
    is_cls = back == 0
    if not IS_CAUSAL:  # a row also begins with [CLS]
        is_cls = is_cls | (back == items + 1)
    token = tl.where(is_cls, CLS, token).to(tl.int64)
    x = tl.load(embedding_ptr + token[:, None] * C + c[None, :], mask=here, other=0.0)
    if HAS_CLS:
        slot = tl.load(slots_ptr + sequence).to(tl.int64)
        own_at = cls_ptr + slot[:, None] * C + c[None, :]
        own = tl.load(own_at, mask=here & is_cls[:, None], other=0.0)
        x = tl.where(is_cls[:, None], own.to(x.dtype), x)
    tl.store(out_ptr + m[:, None] * C + c[None, :], x, mask=here)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]  # Triton has no types
def _pool_user_vectors(  # type: ignore[no-untyped-def]  # Triton compiles it
    x_ptr,
    out_ptr,
    offsets_ptr,
    counts_ptr,
    rows,
    IS_CAUSAL: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
):
    sequence = tl.program_id(0) * PER_PROGRAM + tl.arange(0, PER_PROGRAM)
    count = tl.load(counts_ptr + sequence, mask=sequence < rows, other=0)
    is_sequence = count > 0
    c = tl.arange(0, BLOCK_C)
    here = is_sequence[:, None] & (c < C)[None, :]
    base = tl.load(offsets_ptr + sequence, mask=is_sequence, other=0)
    user = tl.load(x_ptr + base[:, None] * C + c[None, :], mask=here, other=0.0).to(tl.float32)
    if not IS_CAUSAL:
        oldest = (base + count - 1)[:, None] * C + c[None, :]
        user += tl.load(x_ptr + oldest, mask=here, other=0.0).to(tl.float32)
    tl.store(out_ptr + sequence[:, None] * C + c[None, :], user, mask=here)


def spread(
    sequence_of: Tensor, level_starts: Tensor, offsets: Tensor, counts: Tensor, most: int
) -> None:
    """Write each entry's sequence, int32; level i begins at number ``level_starts[i]`` · rows.

    offsets [levels, ≥ rows + 1] and counts [levels, rows] say which entries a sequence has; counts
    are at most ``most``.
    """
    level_count, rows = counts.shape
    _spread[(triton.cdiv(rows, PER_PROGRAM), level_count)](
        sequence_of,
        level_starts,
        offsets,
        counts,
        offsets.stride(0),
        counts.stride(0),
        rows,
        MOST=most,
        PER_PROGRAM=PER_PROGRAM,
        SPREAD=SPREAD,
        num_warps=1,
    )


@dataclass(frozen=True, slots=True)
class CollatedItems:
    """Histories: row i has ``items`` from ``item_offsets[i]`` on, without [CLS].

    ``positions`` [N] are those of level 0, counted back from the last one.
    """

    items: Tensor
    item_offsets: Tensor
    positions: Tensor


@dataclass(frozen=True, slots=True)
class EnteringRun:
    """Sequences to embed: entries [bounds) of level 0; ``cls`` [S, C] has patches' own [CLS]."""

    sequence_of: Tensor
    bounds: Tensor
    capacity: int
    offsets: Tensor
    slots: Tensor
    cls: Tensor | None


def enter(
    out: Tensor, embedding: Tensor, collated: CollatedItems, run: EnteringRun, spec: BackboneSpec
) -> None:
    """Embed the entries of a run into ``out`` [entries, C]."""
    _enter[(triton.cdiv(run.capacity, PER_PROGRAM),)](
        out,
        run.sequence_of,
        run.bounds,
        run.offsets,
        collated.positions,
        collated.items,
        collated.item_offsets,
        embedding,
        run.slots,
        run.cls if run.cls is not None else embedding,
        PAD=PAD,
        CLS=CLS,
        IS_CAUSAL=spec.is_causal,
        HAS_CLS=run.cls is not None,
        C=spec.channels,
        BLOCK_C=triton.next_power_of_2(spec.channels),
        ENTRIES=PER_PROGRAM,
        num_warps=4,
    )


def pool_user_vectors(
    x: Tensor, out: Tensor, offsets: Tensor, counts: Tensor, is_causal: bool
) -> None:
    """Write user vectors into ``out`` float32 [rows, C]; rows without entries stay as they are."""
    rows, channels = out.shape
    _pool_user_vectors[(triton.cdiv(rows, PER_PROGRAM),)](
        x,
        out,
        offsets,
        counts,
        rows,
        IS_CAUSAL=is_causal,
        C=channels,
        BLOCK_C=triton.next_power_of_2(channels),
        PER_PROGRAM=PER_PROGRAM,
        num_warps=4,
    )
