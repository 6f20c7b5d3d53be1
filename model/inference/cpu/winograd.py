"""Convolutions with fewer products: four outputs from six combinations of inputs.

Outputs that stand a dilation apart share inputs. Four of them, ``y_i = Σ_k g_k d_(i+k)`` of six
inputs ``d`` and three taps ``g``, are values of a polynomial product, so that six products do in
place of twelve (Winograd, F(4,3); Lavin and Gray, CVPR 2016): at each of the points 0, ±A, ±B and
infinity the inputs and the taps are evaluated, multiplied, and the outputs interpolated. With
A = 2/3 and B = 3/2, whose product is 1, rounding errors grow about twofold in float32.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peterrec.model.network.receptive_field import ConvPlan

A, B = 2 / 3, 3 / 2
"""The points, beside 0 and infinity."""

OUTPUTS, TAPS = 4, 3
PRODUCTS = OUTPUTS + TAPS - 1


@dataclass(frozen=True, slots=True)
class TiledWeight:
    """Weights of a convolution: ``combined`` [6, C, C] at the points, ``taps`` [k·C, C] as is."""

    combined: Tensor
    taps: Tensor


def tiled_weight(weight: Tensor) -> TiledWeight:
    """Of a convolution's weight [C out, C in, k]; ``combined`` is empty unless k is 3."""
    exact = weight.detach().double().permute(2, 1, 0)  # [k, C in, C out]
    taps = exact.flatten(0, 1).float().contiguous()
    if len(exact) != TAPS:
        return TiledWeight(taps.new_empty(0, *exact.shape[1:]), taps)
    return TiledWeight(torch.einsum("pk,kio->pio", _evaluation(), exact).float(), taps)


def _evaluation() -> Tensor:
    """float64 [6, 3]: taps to their values at the points, over the interpolation's divisors."""
    powers = [[1.0, x, x * x] for x in (0.0, A, -A, B, -B)]
    divisors = [1.0, *(5 * x**4 - 3 * (A * A + B * B) * x * x + 1 for x in (A, A, B, B))]
    rows = [[power / by for power in row] for row, by in zip(powers, divisors, strict=True)]
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


def tile_table(conv: ConvPlan, dilation: int) -> np.ndarray:
    """int32 [tiles, 4 + 6]: which outputs share which inputs, oldest first.

    Numbers are 1 + the place in ``conv.outputs`` and as in ``conv.taps``; 0: not there. Tiles are
    formed from the newest output on and stand in the order of their newest one, so that a shorter
    row lacks outputs at the table's end. With k other than 3, [tiles, 1 + k] with an output each.
    """
    taps = conv.taps
    if taps.shape[1] != TAPS:
        places = np.arange(1, len(taps) + 1)[::-1]
        return np.ascontiguousarray(np.column_stack([places, taps[::-1]]), dtype=np.int32)
    place = {int(offset): at for at, offset in enumerate(conv.outputs)}
    table, taken = [], set[int]()
    for newest in sorted(place):
        if newest in taken:
            continue
        chain = _chain(newest, dilation, place)
        taken.update(chain)
        outputs, inputs = [0] * OUTPUTS, [0] * PRODUCTS
        for back, offset in enumerate(chain):
            i = OUTPUTS - 1 - back
            outputs[i] = 1 + place[offset]
            inputs[i : i + TAPS] = taps[place[offset]].tolist()
        table.append(outputs + inputs)
    return np.array(table, dtype=np.int32)


def _chain(newest: int, dilation: int, place: dict[int, int]) -> list[int]:
    """Up to four offsets a dilation apart, newest first."""
    chain = [newest]
    while len(chain) < OUTPUTS and chain[-1] + dilation in place:
        chain.append(chain[-1] + dilation)
    return chain
