"""The cone holds exactly the positions that reach the last one."""

from dataclasses import replace

import numpy as np
import pytest

from peterrec.model.network.receptive_field import Plan, plan, read_items
from peterrec.model.spec import BackboneSpec

PUBLISHED = BackboneSpec(10, 8)


def conv_positions(cone: Plan) -> list[tuple[int, int]]:
    return [(len(b.first.outputs), len(b.second.outputs)) for b in cone.blocks]


def test_the_published_network_reads_121_positions() -> None:
    assert len(plan(PUBLISHED, 200).inputs) == 121


def test_the_cone_of_a_long_row_has_the_known_sizes_bottom_to_top() -> None:
    expected = [(119, 115), (107, 91), (89, 85), (77, 61), (59, 55), (47, 31), (15, 7), (3, 1)]
    assert conv_positions(plan(PUBLISHED, 200)) == expected


@pytest.mark.parametrize(("length", "positions"), [(20, 259), (50, 604), (100, 921)])
def test_the_cone_computes_so_many_conv_positions(length: int, positions: int) -> None:
    assert plan(PUBLISHED, length).conv_positions == positions


def test_a_causal_user_vector_depends_on_the_items_of_its_receptive_field() -> None:
    published = BackboneSpec(item_count=9, max_len=500)
    assert read_items(published) == 120
    assert read_items(replace(published, max_len=50)) == 50
    assert read_items(replace(published, is_causal=False)) == 500


def test_non_causal_rows_keep_every_position() -> None:
    cone = plan(BackboneSpec(10, 8, (1, 4), is_causal=False), 7)
    assert conv_positions(cone) == [(7, 7), (7, 7)]


def test_a_tap_before_the_first_position_reads_the_zero_row() -> None:
    first = plan(BackboneSpec(10, 8, (1,)), 1).blocks[0].first
    np.testing.assert_array_equal(first.taps, [[0, 0, 1]])


def test_the_centre_tap_is_the_outputs_own_position() -> None:
    for spec in (PUBLISHED, BackboneSpec(10, 8, (2,), kernel_size=5, is_causal=False)):
        block = plan(spec, 9).blocks[0]
        middle = block.first.outputs
        inputs = plan(spec, 9).inputs
        np.testing.assert_array_equal(inputs[block.first.taps[:, block.first.centre] - 1], middle)
