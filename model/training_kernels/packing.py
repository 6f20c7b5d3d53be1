"""A batch without padding: the valid positions of all rows one after the other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.spec import PAD, BackboneSpec

ZERO_ROW = 1
"""Packed states begin with so many rows of zeros: what taps outside of a row read."""


@dataclass(frozen=True, slots=True)
class ConvTaps:
    """For each packed row, where its k taps read, and where its gradient's taps read: [(1+N)·k]."""

    forward: Tensor
    backward: Tensor


@dataclass(frozen=True, slots=True)
class Packing:
    """Where positions stand: packed row ``ZERO_ROW + n`` is position ``places[n]`` of B·T.

    ``first`` and ``last`` int64 [B] are the packed rows at which each of the batch's rows begins
    and ends. ``taps`` has an entry for each dilation of the network.
    """

    places: Tensor
    first: Tensor
    last: Tensor
    taps: dict[int, ConvTaps]


def pack(tokens: Tensor, spec: BackboneSpec) -> Packing:
    """Pack framed tokens int64 [B, T]; with embedded padding every position is valid."""
    valid = tokens != PAD
    if spec.padding == "embedded":
        valid = torch.ones_like(valid)
    lengths = valid.sum(1)  # [B, T] -> [B]
    ends = ZERO_ROW + lengths.cumsum(0)
    starts = ends - lengths
    zero = starts.new_zeros(1)  # the zero row is a row of its own that ends before it begins
    start_of = torch.cat([zero, starts.repeat_interleave(lengths)])  # [1 + N]
    end_of = torch.cat([zero, ends.repeat_interleave(lengths)])
    taps = {
        dilation: ConvTaps(
            _taps(start_of, end_of, _shifts(spec, dilation, tokens.device)),
            _taps(start_of, end_of, -_shifts(spec, dilation, tokens.device)),
        )
        for dilation in sorted(set(spec.conv_dilations))
    }
    return Packing(valid.flatten().nonzero().squeeze(1), starts, ends - 1, taps)


def _shifts(spec: BackboneSpec, dilation: int, device: torch.device) -> Tensor:
    """How far ahead each tap reads; negative is back."""
    back = spec.kernel_size - 1 if spec.is_causal else (spec.kernel_size - 1) // 2
    return (torch.arange(spec.kernel_size, device=device) - back) * dilation


def _taps(start_of: Tensor, end_of: Tensor, shifts: Tensor) -> Tensor:
    at = torch.arange(len(start_of), device=start_of.device).unsqueeze(1) + shifts  # [1 + N, k]
    is_inside = (at >= start_of.unsqueeze(1)) & (at < end_of.unsqueeze(1))
    return torch.where(is_inside, at, 0).flatten()
