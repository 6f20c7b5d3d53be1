"""Ascending tokens as gaps in bytes of variable length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peterrec.model.network import item_gaps
from peterrec.model.network.item_gaps import LAST_TOKEN, GapsInvalid, pack_gaps, unpack_gaps
from peterrec.model.spec import FIRST_ITEM


@given(st.sets(st.integers(FIRST_ITEM, LAST_TOKEN), min_size=1, max_size=50))
def test_tokens_come_back_whatever_the_gaps(chosen: set[int]) -> None:
    tokens = np.array(sorted(chosen), np.int32)
    np.testing.assert_array_equal(unpack_gaps(pack_gaps(tokens), len(tokens)), tokens, strict=True)


def test_the_bytes_are_those_that_the_format_names() -> None:
    tokens = np.array([4, 5, 7, 7 + 128, 7 + 128 + 129, 7 + 128 + 129 + 1 + (1 << 21)])
    expected = [0, 0, 1, 127, 0x80, 1, 0x80, 0x80, 0x80, 1]
    assert pack_gaps(tokens).tolist() == expected
    assert pack_gaps(np.array([FIRST_ITEM + 300])).tolist() == [0xAC, 0x02]


def test_a_list_of_all_items_takes_a_byte_each() -> None:
    assert not pack_gaps(np.arange(FIRST_ITEM, 5_000)).any()
    assert len(pack_gaps(np.arange(FIRST_ITEM, 5_000))) == 5_000 - FIRST_ITEM


@given(st.binary(max_size=12))
def test_any_bytes_are_refused_or_are_the_only_form_of_their_tokens(data: bytes) -> None:
    packed = np.frombuffer(data, np.uint8)
    count = int((packed < 128).sum())
    try:
        tokens = unpack_gaps(packed, count)
    except GapsInvalid:
        return
    assert (np.diff(tokens) > 0).all()
    assert not len(tokens) or tokens[0] >= FIRST_ITEM
    assert pack_gaps(tokens).tolist() == packed.tolist()


def test_chunks_end_where_a_gap_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = FIRST_ITEM + np.arange(100, dtype=np.int32) * 40_000  # three bytes each but the first
    packed = pack_gaps(tokens)
    for chunk in (5, 6, 7, 64):
        monkeypatch.setattr(item_gaps, "CHUNK", chunk)
        np.testing.assert_array_equal(unpack_gaps(packed, 100), tokens)


def test_a_gap_that_is_longer_than_a_chunk_is_refused() -> None:
    with pytest.raises(GapsInvalid, match="ends inside a gap"):
        unpack_gaps(np.full(item_gaps.CHUNK + 9, 0x80, np.uint8), 0)
    with pytest.raises(GapsInvalid, match="lists 1 items where 2 have a row"):
        unpack_gaps(np.zeros(1, np.uint8), 2)
