"""Rows of tokens for histories."""

import numpy as np
import pytest

from peterrec.model.network.collate import filled, frame_histories, items_of, positions_read
from peterrec.model.spec import CLS, PAD, UNK, BackboneSpec, Padding


def spec_of(is_causal: bool, padding: Padding) -> BackboneSpec:
    return BackboneSpec(
        item_count=20, dilations=(1,), is_causal=is_causal, padding=padding, max_len=4
    )


HISTORIES = [[10, 11], [5, 6, 7, 8, 9], []]


def test_a_causal_row_ends_in_cls_and_is_as_long_as_the_longest() -> None:
    assert frame_histories(HISTORIES, spec_of(True, "exact")).tolist() == [
        [PAD, PAD, 10, 11, CLS],
        [6, 7, 8, 9, CLS],
        [PAD, PAD, PAD, PAD, CLS],
    ]
    assert frame_histories(HISTORIES[:1], spec_of(True, "exact")).tolist() == [[10, 11, CLS]]


def test_a_non_causal_row_is_enclosed_in_cls() -> None:
    assert frame_histories(HISTORIES, spec_of(False, "exact")).tolist() == [
        [PAD, PAD, CLS, 10, 11, CLS],
        [CLS, 6, 7, 8, 9, CLS],
        [PAD, PAD, PAD, PAD, CLS, CLS],
    ]


def test_an_embedded_causal_row_always_has_the_full_length() -> None:
    assert frame_histories([[10], []], spec_of(True, "embedded")).tolist() == [
        [PAD, PAD, PAD, 10, CLS],
        [PAD, PAD, PAD, PAD, CLS],
    ]


def test_an_embedded_non_causal_row_has_cls_before_its_padding() -> None:
    assert frame_histories([[10], [5, 6, 7, 8, 9]], spec_of(False, "embedded")).tolist() == [
        [CLS, PAD, PAD, PAD, 10, CLS],
        [CLS, 6, 7, 8, 9, CLS],
    ]


@pytest.mark.parametrize("padding", ["exact", "embedded"])
def test_no_histories_give_no_rows(padding: Padding) -> None:
    assert frame_histories([], spec_of(True, padding)).shape[0] == 0


def test_arrays_frame_like_lists() -> None:
    arrays = [np.array(history, dtype=np.int32) for history in HISTORIES]
    collated = frame_histories(arrays, spec_of(True, "exact"))
    assert collated.tolist() == frame_histories(HISTORIES, spec_of(True, "exact")).tolist()


def test_unknown_items_keep_their_place() -> None:
    assert frame_histories([[10, UNK]], spec_of(True, "exact")).tolist() == [[10, UNK, CLS]]


def test_embedded_padding_fills_a_history_and_its_items_are_found_again() -> None:
    spec = spec_of(True, "embedded")
    rows = filled([[10, 11], [5, 6, 7, 8, 9], []], spec)
    assert [list(row) for row in rows] == [[PAD, PAD, 10, 11], [6, 7, 8, 9], [PAD] * 4]
    assert [items_of(np.asarray(row)).tolist() for row in rows] == [[10, 11], [6, 7, 8, 9], []]


def test_exact_padding_leaves_histories_as_they_are() -> None:
    assert filled(HISTORIES, spec_of(True, "exact")) is HISTORIES


@pytest.mark.parametrize(("padding", "first"), [("exact", [False, True]), ("embedded", [True] * 2)])
def test_embedded_padding_is_read_and_exact_padding_is_not(
    padding: Padding, first: list[bool]
) -> None:
    spec = spec_of(True, padding)
    read = positions_read(frame_histories([[10, 11, 12], [5, 6, 7, 8]], spec), spec)
    assert read[0, :2].tolist() == first
    assert read[1].all()
