"""Item ids as callers know them → tokens and catalog indices."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peterrec.model.spec import FIRST_ITEM, UNK
from peterrec.patches.bundle.bundle import Catalog
from peterrec.service.predict.item_ids import ItemVocabulary, MappedHistory, map_selection

VOCABULARY = ItemVocabulary(["a", "7", "007", "-3", "b"], max_len=3)
A, SEVEN, PADDED_SEVEN, MINUS_THREE, B = range(FIRST_ITEM, FIRST_ITEM + 5)
FILMS = Catalog.pack(["a", "b", "7", "d"])


def tokens(mapped: MappedHistory) -> list[int]:
    values = array("i")
    values.frombytes(mapped.tokens)
    return values.tolist()


def indices(packed: bytes | None) -> list[int]:
    assert packed is not None
    values = array("q")
    values.frombytes(packed)
    return values.tolist()


def test_strings_and_ints_name_the_same_item():
    assert tokens(VOCABULARY.map_history(["a", "7", 7], "drop")) == [A, SEVEN, SEVEN]


def test_an_int_means_its_decimal_string_and_no_other_spelling():
    assert tokens(VOCABULARY.map_history([7, "007", -3], "drop")) == [
        SEVEN,
        PADDED_SEVEN,
        MINUS_THREE,
    ]


@pytest.mark.parametrize("number", [-(2**63), -4, -1, 0, 8, 9, 10**6, 2**63 - 1, 2**63, 2**70])
def test_a_number_that_no_item_has_is_unknown(number):
    mapped = VOCABULARY.map_history([7, number], "drop")
    assert (tokens(mapped), mapped.unknown) == ([SEVEN], [number])


@pytest.mark.parametrize("number", [-3, 0, 5, 79, 80, 10**12, 2**63])
def test_a_number_is_found_whatever_its_size(number):
    numbers = ["5", "79", "-3", "0", str(number)]
    vocabulary = ItemVocabulary(dict.fromkeys(numbers), max_len=3)
    for history in ([5, number], [str(5), number]):
        assert tokens(vocabulary.map_history(history, "drop")) == [
            FIRST_ITEM,
            FIRST_ITEM + list(dict.fromkeys(numbers)).index(str(number)),
        ]


def test_unknown_items_are_left_out_and_told():
    mapped = VOCABULARY.map_history(["x", "a", 99, "x"], "drop")
    assert tokens(mapped) == [A]
    assert (mapped.used_items, mapped.unknown_items, mapped.unknown) == (1, 3, ["x", 99])
    assert not mapped.is_truncated
    assert not mapped.is_cold


def test_unknown_items_can_be_mapped_to_unk():
    mapped = VOCABULARY.map_history(["x", "a"], "map")
    assert tokens(mapped) == [UNK, A]
    assert (mapped.used_items, mapped.unknown_items) == (2, 1)
    assert tokens(VOCABULARY.map_history([8, 7], "map")) == [UNK, SEVEN]


def test_only_the_newest_known_items_are_used():
    mapped = VOCABULARY.map_history(["a", "b", "7", "x", "a"], "drop")
    assert tokens(mapped) == [B, SEVEN, A]
    assert mapped.is_truncated


def test_a_history_of_exactly_max_len_is_not_truncated():
    assert not VOCABULARY.map_history(["a", "b", "7"], "drop").is_truncated


@pytest.mark.parametrize(
    ("history", "policy"), [([], "drop"), (["x"], "drop"), (["x"], "map"), (["x"], "error")]
)
def test_a_history_without_a_known_item_is_cold(history, policy):
    assert VOCABULARY.map_history(history, policy).is_cold


def test_at_most_ten_unknown_ids_are_named():
    mapped = VOCABULARY.map_history([f"x{n}" for n in range(30)], "drop")
    assert (mapped.unknown_items, mapped.unknown) == (30, [f"x{n}" for n in range(10)])


@given(st.lists(st.sampled_from(["a", "b", "7", 7, "007", -3, "x", 99]), max_size=12))
def test_what_is_used_and_unknown_adds_up(history):
    mapped = VOCABULARY.map_history(history, "drop")
    known = len(history) - mapped.unknown_items
    assert mapped.used_items == min(known, 3)
    assert mapped.is_truncated is (known > 3)
    assert len(tokens(mapped)) == mapped.used_items


def test_excluded_items_become_sorted_catalog_indices_once():
    selection = map_selection(FILMS, ["d", 7, "7", "not there"], None)
    assert indices(selection.excluded) == [2, 3]
    assert selection.candidates is None
    assert selection.filtered == 2


def test_candidates_limit_what_counts_as_filtered():
    selection = map_selection(FILMS, ["a", "d"], ["a", "b", "zzz"])
    assert indices(selection.candidates) == [0, 1]
    assert selection.filtered == 1
    assert selection.unknown_candidates == ["zzz"]


def test_no_known_candidate_is_not_every_candidate():
    assert map_selection(FILMS, [], ["zzz"]).candidates == b""


def test_tokens_that_are_too_old_for_the_network_are_kept_apart():
    mapped = VOCABULARY.map_history(["b", "x", "a", 7, "007", "a"], "drop")
    assert tokens(mapped) == [SEVEN, PADDED_SEVEN, A]
    assert array("i", mapped.older).tolist() == [B, A]
    assert (mapped.used_items, mapped.is_truncated) == (3, True)
    assert (mapped.whole.used_items, mapped.whole.is_truncated) == (5, False)


def test_a_history_that_the_network_reads_whole_has_no_older_tokens():
    assert VOCABULARY.map_history(["b", "a", 7], "drop").older == b""
