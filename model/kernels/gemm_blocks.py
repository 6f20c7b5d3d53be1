"""Residual blocks as PyTorch products over gathered taps: any device, chosen on a CPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.backbone import Backbone, DilatedConv, ResidualBlock
from model.device_plan import DeviceBlock, DeviceConv
from model.kernels.cpu import Linear, bottleneck_hidden, packed_linear
from model.lanes import Group


@dataclass(frozen=True, slots=True)
class PackedConv:
    """A convolution as a product over its concatenated taps, and its LayerNorm."""

    linear: Linear
    norm_weight: Tensor
    norm_bias: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """One convolution of one chunk, as the patches see it."""

    block: int
    conv: int
    groups: Sequence[Group]


class GemmBlocks:
    """A backbone's blocks, packed once."""

    def __init__(self, backbone: Backbone, dtype: torch.dtype) -> None:
        device = backbone.embedding.weight.device
        self._spec = backbone.spec
        self._ones = torch.ones(backbone.spec.channels, device=device)
        self._zeros = torch.zeros(backbone.spec.channels, device=device)
        self._convs = [_pack_block(block, dtype) for block in backbone.blocks]

    def run(
        self, x: Tensor, number: int, at: DeviceBlock, lengths: Tensor | None, groups: list[Group]
    ) -> Tensor:
        """Block ``number`` of x [B, 1 + N_in, C] -> [B, 1 + N_out, C]; entry 0 stays zero.

        ``lengths`` int32 [B] are the rows' real tokens; None if no row is padded.
        """
        first, second = self._convs[number]
        middle = self._conv(x, at.first, first, Step(number, 0, groups))
        _mask(middle, at.first, lengths)
        out = self._conv(middle, at.second, second, Step(number, 1, groups))
        _mask(out, at.second, lengths)
        out[:, 1:] += x.index_select(1, at.residual)
        return out

    def _conv(self, x: Tensor, at: DeviceConv, conv: PackedConv, step: Step) -> Tensor:
        """relu(LN(patched convolution)) of x [B, 1 + N_in, C] -> [B, 1 + N_out, C]."""
        rows, (count, taps), channels = len(x), at.taps.shape, self._spec.channels
        gathered = x.index_select(1, at.taps.view(-1))  # [B, N_out·k, C]
        y = conv.linear(gathered.view(rows * count, taps * channels)).view(rows, count, channels)
        source = gathered.view(rows, count, taps, channels)[:, :, at.centre]
        for group in step.groups:
            _graft(y, source, group, step)
        out = x.new_empty(rows, 1 + count, channels)
        out[:, 0] = 0
        self._normalize(y, conv, step, out[:, 1:])
        return out

    def _normalize(self, y: Tensor, conv: PackedConv, step: Step, out: Tensor) -> None:
        """relu(LN(y)) into out [B, N, C], with a row's own LayerNorm where its patch has one.

        Norms are computed in float32 whatever the storage: faster here, and more exact.
        """
        y = y.float()
        shape, eps = (self._spec.channels,), self._spec.layer_norm_eps
        indices = [g.geometry.norm_index(step.block, step.conv) for g in step.groups]
        own = [(g, at) for g, at in zip(step.groups, indices, strict=True) if at is not None]
        if sum(group.stop - group.start for group, _ in own) < len(y):
            normed = torch.layer_norm(y, shape, conv.norm_weight, conv.norm_bias, eps)
            _rectify(normed, out)
        for group, at in own:
            rows = slice(group.start, group.stop)
            weight = group.weights("patch.norm_weight", at).unsqueeze(1)  # [b, 1, C]
            bias = group.weights("patch.norm_bias", at).unsqueeze(1)
            normed = torch.layer_norm(y[rows], shape, self._ones, self._zeros, eps)
            _rectify(torch.addcmul(bias.float(), normed, weight.float()), out[rows])


def _pack_block(block: torch.nn.Module, dtype: torch.dtype) -> tuple[PackedConv, PackedConv]:
    assert isinstance(block, ResidualBlock)
    return _pack(block.conv1, block.norm1, dtype), _pack(block.conv2, block.norm2, dtype)


def _pack(conv: DilatedConv, norm: torch.nn.LayerNorm, dtype: torch.dtype) -> PackedConv:
    weight = conv.weight.detach().transpose(1, 2).flatten(1)  # [C, C, k] -> [C, k·C]
    linear = packed_linear(weight.to(dtype), conv.bias.detach().to(dtype))
    return PackedConv(linear, norm.weight.detach(), norm.bias.detach())


def _mask(x: Tensor, at: DeviceConv, lengths: Tensor | None) -> None:
    """Zero the padded positions of x [B, 1 + N, C] in place."""
    if lengths is not None:
        is_real = at.offsets < lengths.unsqueeze(1)  # [B, N]
        x[:, 1:] *= is_real.unsqueeze(2)


def _rectify(x: Tensor, out: Tensor) -> None:
    """relu(x) into out, whose storage may be narrower."""
    if x.dtype == out.dtype:
        torch.clamp_min(x, 0, out=out)
    else:
        out.copy_(x.relu_())


def _graft(y: Tensor, source: Tensor, group: Group, step: Step) -> None:
    """Add each row's patch to y [B, N, C] in place, for the rows of one slab."""
    geometry = group.geometry
    index = geometry.conv_index(step.block, step.conv)
    if index is None:
        return
    rows = slice(group.start, group.stop)
    read = source[rows] if geometry.insertion == "parallel2" else y[rows]
    down, down_bias, up, up_bias = (
        group.weights(name, index)
        for name in ("patch.down", "patch.down_bias", "patch.up", "patch.up_bias")
    )  # [b, C, H], [b, H], [b, H, C], [b, C]
    hidden = bottleneck_hidden(read, down, down_bias)  # [b, N, H]
    y[rows].baddbmm_(hidden, up).add_(up_bias.unsqueeze(1))
    if geometry.has_inner_skip:
        y[rows] += read
