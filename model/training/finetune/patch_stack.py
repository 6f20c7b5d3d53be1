"""The weights of several tasks' patches in stacked tensors, whose first axis is the task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from peterrec.model.network.history_reader import ItemReader
from peterrec.model.network.patch import READER, PatchWeights, reader_of
from peterrec.model.spec import PatchGeometry


@dataclass(frozen=True, slots=True)
class PatchStack:
    """Folded patches of G tasks with one geometry; shapes are [G] + those of ``PatchWeights``."""

    geometry: PatchGeometry
    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    cls: Tensor | None = None
    reader: ItemReader | None = None

    @classmethod
    def of_one(cls, patch: PatchWeights) -> Self:
        """A stack of a single patch."""
        own = {name: tensor.unsqueeze(0) for name, tensor in patch.named().items()}
        folded = {name.removeprefix("patch."): tensor for name, tensor in own.items()}
        inside = {name: tensor for name, tensor in folded.items() if name not in READER}
        return cls(patch.geometry, **inside, reader=reader_of(own))

    @classmethod
    def of_branches(cls, geometry: PatchGeometry, tensors: Mapping[str, Tensor]) -> Self:
        """Fold the branches of stacked ``Patch`` parameters, [G, P, g, ...]; differentiable."""
        return cls(
            geometry,
            down=tensors["down"].transpose(2, 3).flatten(3),  # [G, P, g, C, h] -> [G, P, C, g·h]
            down_bias=tensors["down_bias"].flatten(2),  # [G, P, g, h] -> [G, P, g·h]
            up=tensors["up"].flatten(2, 3),  # [G, P, g, h, C] -> [G, P, g·h, C]
            up_bias=tensors["up_bias"].sum(2),  # [G, P, g, C] -> [G, P, C]
            norm_weight=tensors.get("norm_weight"),
            norm_bias=tensors.get("norm_bias"),
            cls=tensors.get("cls"),
            reader=reader_of({f"patch.{name}": tensor for name, tensor in tensors.items()}),
        )

    def join(self, conv_out: Tensor, conv_in: Tensor, block: int, conv: int) -> Tensor:
        """Join every task's patch to its own rows of a convolution's output [G·B, M, C]."""
        at = self.geometry.conv_index(block, conv)
        if at is None:
            return conv_out
        source = self.geometry.record.pick(conv_in, conv_out)
        rows = (len(self.down), -1, conv_out.shape[2])  # [G·B, M, C] -> [G, B·M, C]
        bias = self.down_bias[:, at].unsqueeze(1)
        wide = torch.baddbmm(bias, source.reshape(rows), self.down[:, at])
        hidden = functional.gelu(wide, approximate="tanh")  # [G, B·M, H]
        out = conv_out.reshape(rows) + self.up_bias[:, at].unsqueeze(1)
        joined = torch.baddbmm(out, hidden, self.up[:, at]).view_as(conv_out)
        return joined + source if self.geometry.has_inner_skip else joined

    def second_norm(self, x: Tensor, norm: torch.nn.LayerNorm, block: int) -> Tensor:
        """LN2 of x [G·B, M, C], each task's own where the patches train it."""
        at = self.geometry.norm_index(block, 1)
        if at is None or self.norm_weight is None or self.norm_bias is None:
            normal: Tensor = norm(x)
            return normal
        if len(self.norm_weight) == 1:  # one operation instead of two
            own = self.norm_weight[0, at], self.norm_bias[0, at]
            return functional.layer_norm(x, norm.normalized_shape, *own, norm.eps)
        normal = functional.layer_norm(x, norm.normalized_shape, None, None, norm.eps)
        rows = normal.view(len(self.norm_weight), -1, x.shape[2])  # [G·B, M, C] -> [G, B·M, C]
        scale, shift = self.norm_weight[:, at].unsqueeze(1), self.norm_bias[:, at].unsqueeze(1)
        return torch.addcmul(shift, rows, scale).view_as(x)
