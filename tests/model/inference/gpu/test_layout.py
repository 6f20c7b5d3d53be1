"""Levels hold the receptive field of a shorter sequence as the first entries of a full one's."""

import numpy as np
import pytest

from peterrec.model.inference.gpu.layout import levels
from peterrec.model.network.receptive_field import plan
from peterrec.model.spec import BackboneSpec

SPECS = [
    BackboneSpec(10, 8),
    BackboneSpec(10, 8, (2, 4, 2), max_len=20),
    BackboneSpec(10, 8, (1, 4), kernel_size=5, is_causal=False, max_len=9),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_sequence_has_as_many_entries_as_its_own_cone(spec: BackboneSpec) -> None:
    table = levels(spec)
    for length in range(spec.input_len(0), spec.max_input_len + 1):
        needed = plan(spec, length)
        assert table.counts[0, length] == len(needed.inputs)
        for own, block in zip(table.blocks, needed.blocks, strict=True):
            assert table.counts[own.first.target, length] == len(block.first.outputs)
            assert table.counts[own.second.target, length] == len(block.second.outputs)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_taps_and_residuals_name_what_the_cone_names_counted_from_the_newest(
    spec: BackboneSpec,
) -> None:
    table, needed = levels(spec), plan(spec, spec.max_input_len)
    entering = needed.inputs[::-1]
    np.testing.assert_array_equal(table.entering, entering)
    first, planned = table.blocks[0].first, needed.blocks[0].first
    outputs = planned.outputs[::-1]
    np.testing.assert_array_equal(entering[first.taps[:, first.centre]], outputs)
    second = needed.blocks[0].second.outputs[::-1]
    np.testing.assert_array_equal(entering[table.blocks[0].residual], second)


def test_convolutions_of_equal_reach_share_a_level() -> None:
    assert len(levels(BackboneSpec(10, 8)).counts) == 7
