"""Four outputs from six products: which share, and that they come out as the convolution's."""

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor

from peterrec.model.inference.cpu.conv_float32 import multiply_narrow, multiply_wide, packed_panels
from peterrec.model.inference.cpu.patch_kernel import width_of
from peterrec.model.inference.cpu.simd import LANES, float_pointer
from peterrec.model.inference.cpu.winograd import (
    OUTPUTS,
    PRODUCTS,
    A,
    B,
    tile_table,
    winograd_weight,
)
from peterrec.model.network.receptive_field import ConvPlan, plan
from peterrec.model.spec import BackboneSpec

LONG = BackboneSpec(60, 16, (1, 4, 1, 4), max_len=50)
SPECS = [
    LONG,
    BackboneSpec(60, 16, (1, 4, 1, 4), max_len=50, is_causal=False),
    BackboneSpec(60, 16, (2, 4), max_len=20),
]

POINTS = (0.0, A, -A, B, -B)


def _convolutions(spec: BackboneSpec) -> list[tuple[ConvPlan, int]]:
    blocks = zip(plan(spec, spec.max_input_len).blocks, spec.dilations, strict=True)
    return [
        pair
        for block, dilation in blocks
        for pair in ((block.first, dilation), (block.second, 2 * dilation))
    ]


@pytest.mark.parametrize("spec", SPECS)
def test_every_output_stands_in_one_tile_beside_its_own_taps(spec: BackboneSpec) -> None:
    for conv, dilation in _convolutions(spec):
        found: dict[int, list[int]] = {}
        for row in tile_table(conv, dilation).tolist():
            outputs, inputs = row[:OUTPUTS], row[OUTPUTS:]
            for i, output in enumerate(outputs):
                if output:
                    assert output not in found
                    found[output] = inputs[i : i + 3]
        assert found == {1 + i: taps for i, taps in enumerate(conv.taps.tolist())}


@pytest.mark.parametrize("spec", SPECS)
def test_a_shorter_row_lacks_the_oldest_outputs_of_a_tile_and_whole_tiles_at_the_end(
    spec: BackboneSpec,
) -> None:
    for conv, dilation in _convolutions(spec):
        table = tile_table(conv, dilation)[:, :OUTPUTS]
        newest = table[:, -1]
        assert (np.diff(newest) < 0).all()
        for outputs in table:
            there = outputs[outputs > 0]
            assert (np.diff(there) > 0).all()
            assert (outputs[-len(there) :] == there).all()


def test_most_outputs_of_a_long_history_share_their_products() -> None:
    needed = sum(3 * len(conv.outputs) for conv, _ in _convolutions(LONG)[:4])
    made = sum(PRODUCTS * len(tile_table(*each)) for each in _convolutions(LONG)[:4])
    assert made < 0.6 * needed


def test_other_kernel_sizes_have_an_output_a_tile() -> None:
    spec = BackboneSpec(60, 16, (1, 2), 5, max_len=20)
    conv = plan(spec, spec.max_input_len).blocks[0].first
    table = tile_table(conv, 1)
    assert table[:, 0].tolist() == list(range(len(conv.outputs), 0, -1))
    assert (table[:, 1:] == conv.taps[::-1]).all()
    assert winograd_weight(torch.randn(16, 16, 5)).transformed.numel() == 0


def _tiled(d: Tensor, weight: Tensor) -> Tensor:
    """Outputs [4, C] of inputs [6, C] by way of the transformed weights, in the inputs' type."""
    transformed = winograd_weight(weight).transformed.to(d.dtype)
    s = A * A + B * B
    at = [d[0] - s * d[2] + d[4]]
    for point, other in ((A, B), (-A, B), (B, A), (-B, A)):
        at.append(d[4] - other**2 * d[2] + point * (d[3] - other**2 * d[1]))
    at.append(d[1] - s * d[3] + d[5])
    products = torch.stack([v @ u for v, u in zip(at, transformed, strict=True)])
    powers = torch.tensor([[x**i for x in POINTS] for i in range(OUTPUTS)], dtype=d.dtype)
    out = powers @ products[:5]
    out[3] += products[5]
    return out


def _direct(d: Tensor, weight: Tensor) -> Tensor:
    taps = weight.double().permute(2, 1, 0)
    outputs = ([d[i + k].double() @ taps[k] for k in range(3)] for i in range(OUTPUTS))
    return torch.stack([sum(products, torch.zeros(())) for products in outputs])


def test_combined_weights_give_the_convolution() -> None:
    torch.manual_seed(0)
    d, weight = torch.randn(PRODUCTS, 64), torch.randn(64, 64, 3) / 14
    exact = _direct(d, weight)
    assert (_tiled(d.double(), weight) - exact).abs().max() < 1e-6  # weights are rounded once
    assert (_tiled(d, weight).double() - exact).abs().max() < 3e-6


@njit
def _multiply(x, wide, narrow, rows, y, z, count, inputs, width):
    x_, wide_, narrow_ = float_pointer(x), float_pointer(wide), float_pointer(narrow)
    multiply_wide(x_, wide_, rows, float_pointer(y), count, inputs, width)
    multiply_narrow(x_, narrow_, rows, float_pointer(z), count, inputs, width)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [16, 17, 64, 80])
@pytest.mark.parametrize("count", [1, 4, 7, 13])
@pytest.mark.parametrize("taps", [1, 3])
def test_wide_and_narrow_registers_give_the_same_bits(channels: int, count: int, taps: int) -> None:
    torch.manual_seed(count)
    x, weight = torch.randn(count, taps * channels), torch.randn(3 * channels, channels)
    wide, narrow = packed_panels(weight, 4 * LANES), packed_panels(weight, LANES)
    y, z = torch.full((2, count, channels), torch.nan)
    addresses = [each.data_ptr() for each in (x, wide, narrow)]
    _multiply(
        *addresses, len(weight), y.data_ptr(), z.data_ptr(), count, taps * channels,
        width_of(channels),
    )  # fmt: skip
    assert torch.equal(y, z)
    assert torch.allclose(y, x @ weight[-taps * channels :], atol=1e-4)
