"""The Winograd transform F(4,3): four outputs of a convolution from six products.

Outputs that are a dilation apart share inputs. Four of them, ``y_i = Σ_k g_k d_(i+k)`` of six
inputs ``d`` and three taps ``g``, follow from a product of polynomials, so six products replace
twelve (Lavin and Gray, CVPR 2016). Inputs and taps are evaluated at the points 0, ±A, ±B and
infinity and multiplied there, and the outputs are interpolated. With A = 2/3 and B = 3/2, whose
product is 1, rounding errors grow about twofold in float32.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peterrec.model.network.receptive_field import ConvPlan

A, B = 2 / 3, 3 / 2
"""The points other than 0 and infinity, each with both signs."""

OUTPUTS, TAPS = 4, 3
PRODUCTS = OUTPUTS + TAPS - 1


@dataclass(frozen=True, slots=True)
class WinogradWeight:
    """A convolution's weight: ``transformed`` [6, C, C] at the points, ``taps`` [k·C, C] plain."""

    transformed: Tensor
    taps: Tensor


def winograd_weight(weight: Tensor) -> WinogradWeight:
    """Transform a weight [C out, C in, k]; ``transformed`` is empty unless k is 3."""
    exact = weight.detach().double().permute(2, 1, 0)  # [k, C in, C out]
    taps = exact.flatten(0, 1).float().contiguous()
    if len(exact) != TAPS:
        return WinogradWeight(taps.new_empty(0, *exact.shape[1:]), taps)
    return WinogradWeight(torch.einsum("pk,kio->pio", _evaluation(), exact).float(), taps)


def _evaluation() -> Tensor:
    """float64 [6, 3]: maps taps to their values at the points over the interpolation's divisors."""
    powers = [[1.0, x, x * x] for x in (0.0, A, -A, B, -B)]
    divisors = [1.0, *(5 * x**4 - 3 * (A * A + B * B) * x * x + 1 for x in (A, A, B, B))]
    rows = [[power / by for power in row] for row, by in zip(powers, divisors, strict=True)]
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


def tile_table(conv: ConvPlan, dilation: int) -> np.ndarray:
    """int32 [tiles, 4 + 6]: four outputs and the six inputs that they share, oldest first.

    Outputs are 1 + their place in ``conv.outputs``, inputs are numbered as in ``conv.taps``; 0 is
    missing. Tiles are formed from the newest output on and sorted by their newest one: outputs
    that a shorter row lacks are at the table's end. If k is not 3, the table is
    [tiles, 1 + k] with one output each.
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
    """Up to four positions a dilation apart, newest first."""
    chain = [newest]
    while len(chain) < OUTPUTS and chain[-1] + dilation in place:
        chain.append(chain[-1] + dilation)
    return chain
