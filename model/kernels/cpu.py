"""CPU forms of the mixed forward's arithmetic, each measured against PyTorch's default.

On processors that are not Intel's, PyTorch's default float32 product (MKL) runs at less than half
the rate of oneDNN's, which PyTorch carries too: 103 against 232 GFLOP/s on one Zen 5 core.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Linear = Callable[[Tensor], Tensor]

ROWS_HINT = 1600
"""Rows that oneDNN packs weights for; others give the same result, a little slower."""

NARROW_BOTTLENECK = 16
"""Below this width the transposed product is faster: 28 against 77 µs at C=64, H=8, 32 rows."""

FEW_NUMBERS = 4096

GELU_LINEAR = 1.5957691216057308  # 2·sqrt(2/π)
GELU_CUBIC = 0.044715 * GELU_LINEAR


def packed_linear(weight: Tensor, bias: Tensor) -> Linear:
    """``x W^T + b`` for a fixed weight [out, in]: x [N, in] -> [N, out], all of one dtype."""
    if weight.device.type == "cpu" and _has_onednn():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS_HINT)
        linear = torch.ops.mkldnn._linear_pointwise
        return lambda x: linear(x, packed, bias, "none", [], "")
    transposed = weight.T.contiguous()
    return lambda x: torch.addmm(bias, x, transposed)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of gelu, perhaps in place, as ``x·sigmoid(2·sqrt(2/π)·(x + 0.044715·x³))``.

    The same function; PyTorch's sigmoid is eight times as fast as its tanh on a CPU, which few
    numbers do not repay.
    """
    if x.numel() < FEW_NUMBERS:
        return functional.gelu(x, approximate="tanh")
    gate = (x * x).mul_(GELU_CUBIC).add_(GELU_LINEAR).mul_(x).sigmoid_()
    return x.mul_(gate)


def bottleneck_hidden(source: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    """Each row's own ``gelu(s D + d)``: source [b, N, C], down [b, C, H] -> [b, N, H]."""
    if down.shape[2] < NARROW_BOTTLENECK:
        wide = torch.baddbmm(
            down_bias.unsqueeze(2), down.transpose(1, 2), source.transpose(1, 2)
        )  # [b, H, C] @ [b, C, N] -> [b, H, N]
        return gelu_tanh(wide).transpose(1, 2)
    return gelu_tanh(torch.baddbmm(down_bias.unsqueeze(1), source, down))


def _has_onednn() -> bool:
    is_there = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]  # torch's
    return is_there and hasattr(torch.ops.mkldnn, "_linear_pointwise")
