"""The item table of a bundle: how its integers are stored, and the rules that they obey."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from peterrec.model.network.item_gaps import GapsInvalid, unpack_gaps
from peterrec.model.spec import FIRST_ITEM, TableSpec
from peterrec.patches.bundle.header import Array, Tensors

NIBBLE = 0x0F

Codes = NDArray[np.int8]


def stored_dtype(spec: TableSpec) -> str:
    """The dtype of ``table.weight`` in a bundle: whole bytes, or pairs of four bits."""
    return "I8" if spec.bits == 8 else "U8"


def pack_codes(codes: Codes, spec: TableSpec) -> Array:
    """``table.weight`` of integers [N, K]; with four bits, output 2j is the low half of byte j."""
    if spec.bits == 8:
        return codes
    rows, outputs = codes.shape
    halves = np.zeros((rows, 2 * spec.row_bytes(outputs)), np.uint8)
    halves[:, :outputs] = codes.view(np.uint8) & NIBBLE
    return halves[:, ::2] | halves[:, 1::2] << 4


def unpack_codes(weight: Array, outputs: int, spec: TableSpec) -> Codes:
    """The integers int8 [N, K] of ``table.weight``; K is ``outputs``."""
    if spec.bits == 8:
        return weight
    halves = np.stack([weight & NIBBLE, weight >> 4], axis=2)  # [N, bytes] -> [N, bytes, 2]
    signed = (halves.view(np.int8) ^ 8) - 8  # bit 3 is the sign
    return signed.reshape(len(weight), -1)[:, :outputs]


def listed_items(tensors: Tensors, spec: TableSpec) -> Array:
    """The tokens int32 [N] that ``table.items`` lists; GapsInvalid if it is no such list.

    It has the gaps between them. Bundles of before have the tokens themselves.
    """
    stored = tensors["table.items"]
    return stored if stored.dtype == np.int32 else unpack_gaps(stored, spec.items)


def table_problems(tensors: Tensors, outputs: int, spec: TableSpec) -> Iterator[str]:
    """Every rule that a table's tensors break; those that are missing are not looked at."""
    weight, scale = tensors.get("table.weight"), tensors.get("table.scale")
    if "table.items" in tensors:
        yield from _item_problems(tensors, spec)
    if weight is not None:
        yield from _weight_problems(weight, outputs, spec)
    if scale is not None and (scale < 0).any():
        yield "table.scale: has a scale below 0"


def is_shown(tensors: Tensors, spec: TableSpec, max_len: int) -> bool:
    """True if a probe has an item of the table that the network can't see.

    Such a probe shows that a server adds the table, and that it reads whole histories for it. Items
    whose weights are all 0 show nothing.
    """
    histories = tensors["probe.histories"]  # [n, length]
    told = listed_items(tensors, spec)[tensors["table.weight"].any(1)]
    is_told = np.isin(histories[:, : histories.shape[1] - max_len], told)
    return bool(is_told.any() and tensors["table.scale"].any())


def _item_problems(tensors: Tensors, spec: TableSpec) -> Iterator[str]:
    try:
        items = listed_items(tensors, spec)
    except GapsInvalid as error:
        yield f"table.items: {error}"
        return
    if items[0] < FIRST_ITEM:
        yield f"table.items: begins with token {items[0]}, items begin at {FIRST_ITEM}"
    if not (items[:-1] < items[1:]).all():
        yield "table.items: tokens do not ascend (an item occurs twice or is out of order)"


def _weight_problems(weight: Array, outputs: int, spec: TableSpec) -> Iterator[str]:
    lowest = -spec.largest - 1
    if spec.bits == 8:
        is_beyond = bool((weight == lowest).any())
    else:
        low, high = weight & NIBBLE, weight >> 4
        is_beyond = bool(((low == 8) | (high == 8)).any())
        if outputs % 2 and high[:, -1].any():
            yield "table.weight: the unused half of a row's last byte is not 0"
    if is_beyond:
        yield f"table.weight: has {lowest}, the range is -{spec.largest} to {spec.largest}"
