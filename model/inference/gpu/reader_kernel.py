"""A patch's item reader on an NVIDIA device: one program pools one row's history.

It computes what ``model/network/history_reader.py`` defines, with an online softmax over tiles of
items. Arithmetic is float32 at any storage type.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from peterrec.model.inference.gpu.conv_kernel import gelu_tanh
from peterrec.model.network.patch import READER
from peterrec.model.spec import PAD, PatchGeometry

ITEMS_AT_ONCE = 32
"""Items of a tile."""

FEWEST = 16
"""Smallest size that a product may have along each axis."""


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _normalise(x, is_channel, eps, C: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton compiles it
    """Normalise rows [N, BLOCK_C]: subtract the mean, divide by the standard deviation."""
    mean = tl.sum(x, 1) / C
    centred = tl.where(is_channel[None, :], x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / C
    return centred * (1.0 / tl.sqrt(variance + eps))[:, None]


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _read_items(  # type: ignore[no-untyped-def]  # Triton compiles it
    users_ptr,
    sequences_ptr,
    origins_ptr,
    items_ptr,
    offsets_ptr,
    embedding_ptr,
    slots_ptr,
    query_ptr,
    down_ptr,
    down_bias_ptr,
    up_ptr,
    up_bias_ptr,
    eps,
    C: tl.constexpr,
    Q: tl.constexpr,
    H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PAD: tl.constexpr,
):
    sequence = tl.load(sequences_ptr) + tl.program_id(0)
    if sequence >= tl.load(sequences_ptr + 1):
        return
    origin = tl.load(origins_ptr + sequence)
    start = tl.load(offsets_ptr + origin)
    count = tl.load(offsets_ptr + origin + 1) - start
    slot = tl.load(slots_ptr + sequence).to(tl.int64)
    c, q = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_Q)
    h, t = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_T)
    is_channel, is_query, is_hidden = c < C, q < Q, h < H
    query_at = slot * C * Q + c[:, None] * Q + q[None, :]
    is_weight = is_channel[:, None] & is_query[None, :]
    query = tl.load(query_ptr + query_at, mask=is_weight, other=0.0).to(tl.float32)

    highest = tl.full((BLOCK_Q,), -1e30, dtype=tl.float32)
    whole = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    pooled = tl.zeros((BLOCK_Q, BLOCK_C), dtype=tl.float32)
    for begin in range(0, count, BLOCK_T):
        is_item = begin + t < count
        token = tl.load(items_ptr + start + begin + t, mask=is_item, other=PAD).to(tl.int64)
        is_item = token != PAD
        here = is_item[:, None] & is_channel[None, :]
        x = tl.load(embedding_ptr + token[:, None] * C + c[None, :], mask=here, other=0.0)
        items = _normalise(x.to(tl.float32), is_channel, eps, C)
        scores = tl.dot(items, query, input_precision="ieee")  # [T, Q]
        scores = tl.where(is_item[:, None], scores, -1e30)
        higher = tl.maximum(highest, tl.max(scores, 0))
        weights = tl.where(is_item[:, None], tl.exp(scores - higher[None, :]), 0.0)
        kept = tl.exp(highest - higher)
        whole = whole * kept + tl.sum(weights, 0)
        pooled = pooled * kept[:, None]
        pooled = tl.dot(tl.trans(weights), items, pooled, input_precision="ieee")  # [Q, C]
        highest = higher
    pooled = pooled / tl.where(whole > 0, whole, 1.0)[:, None]
    pooled = _normalise(pooled, is_channel, eps, C)

    bias_at = slot * H + h
    narrow = tl.load(down_bias_ptr + bias_at, mask=is_hidden, other=0.0).to(tl.float32)
    for k in range(0, Q):
        own = tl.sum(tl.where((q == k)[:, None], pooled, 0.0), 0)  # [C]
        down_at = (slot * Q * C + k * C + c[:, None]) * H + h[None, :]
        is_down = is_channel[:, None] & is_hidden[None, :]
        down = tl.load(down_ptr + down_at, mask=is_down, other=0.0).to(tl.float32)
        narrow += tl.sum(own[:, None] * down, 0)
    hidden = tl.where(is_hidden, gelu_tanh(narrow), 0.0)
    up_at = (slot * H + h[:, None]) * C + c[None, :]
    is_up = is_hidden[:, None] & is_channel[None, :]
    up = tl.load(up_ptr + up_at, mask=is_up, other=0.0).to(tl.float32)
    change = tl.sum(hidden[:, None] * up, 0)
    change += tl.load(up_bias_ptr + slot * C + c, mask=is_channel, other=0.0).to(tl.float32)
    at = users_ptr + sequence.to(tl.int64) * C + c
    tl.store(at, tl.load(at, mask=is_channel, other=0.0) + change, mask=is_channel)


@dataclass(frozen=True, slots=True)
class Reading:
    """What rows read: int32 tensors on the device.

    Items of history i are ``items[offsets[i] : offsets[i + 1]]``; PAD tokens are skipped.
    ``origins`` [rows] is the number of each row's history, ``sequences`` [2] are the first row that
    reads and the one after the last, and ``slots`` [rows] their patches.
    """

    items: Tensor
    offsets: Tensor
    origins: Tensor
    sequences: Tensor
    slots: Tensor


def read_items(
    users: Tensor,
    embedding: Tensor,
    reading: Reading,
    geometry: PatchGeometry,
    tensors: Mapping[str, Tensor],
    eps: float,
) -> None:
    """Add the readers' changes to the user vectors float32 [≥ rows, C] in place."""
    rows, channels = users.shape
    _read_items[(rows,)](
        users,
        reading.sequences,
        reading.origins,
        reading.items,
        reading.offsets,
        embedding,
        reading.slots,
        *(tensors[f"patch.{name}"] for name in READER),
        eps,
        C=channels,
        Q=geometry.queries,
        H=geometry.bottleneck,
        BLOCK_C=max(FEWEST, triton.next_power_of_2(channels)),
        BLOCK_Q=max(FEWEST, triton.next_power_of_2(geometry.queries)),
        BLOCK_H=triton.next_power_of_2(geometry.bottleneck),
        BLOCK_T=ITEMS_AT_ONCE,
        PAD=PAD,
        num_warps=4,
    )
