"""Products with a fixed weight on a CPU.

On processors that are not Intel's, PyTorch's default float32 product (MKL) runs at less than half
the rate of oneDNN's, which PyTorch carries too: 103 against 232 GFLOP/s on one Zen 5 core.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Linear = Callable[[Tensor], Tensor]

ROWS_HINT = 1600
"""Rows that oneDNN packs weights for; others give the same result, a little slower."""


def packed_linear(weight: Tensor, bias: Tensor) -> Linear:
    """``x W^T + b`` for a fixed weight [out, in]: x [N, in] -> [N, out], in the weight's dtype.

    A float32 bias is added before the sum is rounded where oneDNN is there.
    """
    if weight.device.type == "cpu" and _has_onednn():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS_HINT)
        linear = torch.ops.mkldnn._linear_pointwise.default
        return lambda x: linear(x, packed, bias, "none", [], "")
    transposed, rounded = weight.T.contiguous(), bias.to(weight.dtype)
    return lambda x: torch.addmm(rounded, x, transposed)


def _has_onednn() -> bool:
    is_there = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]  # torch's
    return is_there and hasattr(torch.ops.mkldnn, "_linear_pointwise")
