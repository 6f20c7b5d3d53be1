"""An item table adds to the logits what its integers say about all items of a history."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peterrec.model.network.item_table import ItemTable, normalization, quantization_scale, rounded
from peterrec.model.spec import FIRST_ITEM, UNK, TableSpec

TABLE = ItemTable(
    TableSpec(items=3, counting="count", exponent=0.5),
    items=torch.tensor([4, 6, 9]),
    codes=torch.tensor([[10, -20], [3, 0], [-127, 127]], dtype=torch.int8),
    scale=torch.tensor([0.5, 0.25]),
)


def random_weights(items=30, outputs=3, seed=0):
    return torch.randn(items, outputs, generator=torch.Generator().manual_seed(seed))


def by_hand(table, history):
    """The equation of ``model/network/item_table.py``, item by item, in float64."""
    rows = {int(token): row for row, token in enumerate(table.items)}
    items = [token for token in history if token >= FIRST_ITEM]
    if table.spec.counting == "presence":
        items = sorted(set(items))
    total = np.zeros(len(table.scale))
    for token in items:
        if token in rows:
            total += table.scale.numpy() * table.codes[rows[token]].numpy().astype(np.float64)
    return total / max(1, len(items)) ** table.spec.exponent


def test_two_items_of_a_small_table_are_summed_and_divided_by_the_root_of_their_number():
    found = TABLE.logits([[4, 6]])
    expected = [[0.5 * 13 / 2**0.5, 0.25 * -20 / 2**0.5]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_items_without_a_row_count_and_unknown_ones_do_not():
    alone, with_others, with_unknown = TABLE.logits([[9], [9, 5, 5, 7], [9, UNK, UNK, UNK]])
    torch.testing.assert_close(with_others, alone / 2)
    assert torch.equal(with_unknown, alone)


def test_an_empty_history_adds_nothing():
    assert torch.equal(TABLE.logits([[], [UNK], [4]])[:2], torch.zeros(2, 2))


@pytest.mark.parametrize(("counting", "factor"), [("presence", 1), ("count", 4 / 4**0.5)])
def test_a_repeated_item_counts_once_or_each_time(counting, factor):
    table = ItemTable.quantized(random_weights(), TableSpec(30, counting=counting))
    torch.testing.assert_close(table.logits([[8] * 4]), factor * table.logits([[8]]))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("counting", ["presence", "count"])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_every_form_gives_what_numpy_gives_item_by_item(bits, counting, exponent):
    weight = random_weights() * (torch.arange(30) % 3 > 0).unsqueeze(1)
    table = ItemTable.quantized(weight, TableSpec(30, bits, counting, exponent))
    random = np.random.default_rng(1)
    histories = [random.integers(0, 34, length) for length in (0, 1, 7, 300)]
    expected = np.stack([by_hand(table, history) for history in histories])
    np.testing.assert_allclose(table.logits(histories).numpy(), expected, rtol=1e-6, atol=1e-6)


def test_the_longest_history_of_the_largest_weights_is_summed_exactly_in_any_order():
    items = 10_000
    codes = torch.full((items, 1), 127, dtype=torch.int8)
    codes[::3] = -126
    spec = TableSpec(items, exponent=0.0)
    table = ItemTable(spec, torch.arange(items) + FIRST_ITEM, codes, torch.ones(1))
    history = np.random.default_rng(0).permutation(items) + FIRST_ITEM
    exact = float(codes.to(torch.int64).sum())
    assert table.logits([history]).item() == exact
    assert codes[torch.from_numpy(history - FIRST_ITEM)].to(torch.float32).cumsum(0)[-1] == exact
    assert abs(codes.to(torch.int64)).sum() < 1 << 24


def test_the_order_of_the_items_and_the_other_rows_change_no_bit():
    table = ItemTable.quantized(random_weights(), TableSpec(30))
    history = np.random.default_rng(2).integers(4, 34, 50)
    alone = table.logits([history])[0]
    assert torch.equal(table.logits([[5], history[::-1], []])[1], alone)


def test_removing_an_item_removes_exactly_its_summand_while_the_number_is_not_read():
    table = ItemTable.quantized(random_weights(), TableSpec(30, exponent=0.0))
    sums, _ = table.sums([[5, 9, 20], [5, 20]])
    row = table.items.tolist().index(9)
    assert torch.equal(sums[0] - sums[1], table.codes[row].to(torch.int32))


@given(st.integers(0, 2**31), st.sampled_from([4, 8]))
def test_eight_bits_are_off_by_half_a_step_and_four_bits_never_worse_than_plain_rounding(
    seed, bits
):
    weight = random_weights(seed=seed)
    spec = TableSpec(30, bits)
    scale = quantization_scale(weight, spec)
    codes = rounded(weight, scale, spec)
    assert codes.abs().max() <= spec.largest
    error = (codes * scale - weight).square().sum(0)
    full = weight.abs().amax(0) / spec.largest
    plain = (rounded(weight, full, spec) * full - weight).square().sum(0)
    assert (error <= plain * 1.0001).all()
    if bits == 8:
        assert ((codes * scale - weight).abs() <= scale * 0.5001).all()


def test_each_output_has_its_own_scale_and_an_output_of_zeros_has_none():
    weight = torch.tensor([[1.0, 1e-6, 0.0], [-0.5, 2e-6, 0.0]])
    for bits in (4, 8):
        table = ItemTable.quantized(weight, TableSpec(2, bits))
        assert table.scale[2] == 0
        torch.testing.assert_close(table.weights(), weight, rtol=0.2, atol=0)


def test_rows_of_zeros_are_left_out_and_an_empty_table_keeps_one():
    weight = random_weights()
    weight[[0, 4, 29]] = 0
    table = ItemTable.quantized(weight, TableSpec(30))
    assert table.spec.items == len(table.items) == 27
    assert not {4, 8, 33} & set(table.items.tolist())
    assert ItemTable.quantized(torch.zeros(5, 2), TableSpec(5)).spec.items == 1


def test_the_normalisation_is_rounded_once_and_is_one_without_items():
    counts = torch.tensor([0, 1, 2, 10_000])
    found = normalization(counts, 0.3)
    expected = np.array([1.0, 1.0, 2.0**-0.3, 10_000.0**-0.3]).astype(np.float32)
    np.testing.assert_array_equal(found.numpy(), expected)
