"""The patch: a bottleneck joined to each patched convolution (PeterRec section 3.3).

``f(s) = gelu(s D + d) U + u`` with the tanh form of gelu. What ``s`` is and how ``f(s)`` is added
is the insertion's part (``model/insertions.py``). Weights of all patched convolutions are stacked,
so a bundle is a handful of tensors and a slot is one row of each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from peterrec.model.network.history_reader import ItemReader
from peterrec.model.spec import PatchGeometry


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """One folded bottleneck: ``down [C, H]``, ``down_bias [H]``, ``up [H, C]``, ``up_bias [C]``."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    def __call__(self, source: Tensor) -> Tensor:
        """``f(source)`` for source [..., C]."""
        hidden = source @ self.down + self.down_bias  # [..., C] -> [..., H]
        return functional.gelu(hidden, approximate="tanh") @ self.up + self.up_bias  # -> [..., C]


@dataclass(frozen=True, slots=True)
class PatchWeights:
    """A task's folded weights, stacked over P patched convolutions as ``PatchGeometry.shapes``."""

    geometry: PatchGeometry
    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    cls: Tensor | None = None
    query: Tensor | None = None
    read_down: Tensor | None = None
    read_down_bias: Tensor | None = None
    read_up: Tensor | None = None
    read_up_bias: Tensor | None = None

    @property
    def reader(self) -> ItemReader | None:
        """The patch's item reader, if it has one."""
        if self.query is None:
            return None
        return reader_of({name: tensor.unsqueeze(0) for name, tensor in self.named().items()})

    def at(self, block: int, conv: int) -> Bottleneck | None:
        """The bottleneck at convolution ``conv`` (0 or 1) of ``block``, if that one is patched."""
        index = self.geometry.conv_index(block, conv)
        if index is None:
            return None
        return Bottleneck(
            self.down[index], self.down_bias[index], self.up[index], self.up_bias[index]
        )

    def norm(self, block: int) -> tuple[Tensor, Tensor] | None:
        """Weight and bias [C] of the block's second LayerNorm, if this patch trains it."""
        if self.norm_weight is None or self.norm_bias is None or block not in self.geometry.blocks:
            return None
        at = self.geometry.blocks.index(block)
        return self.norm_weight[at], self.norm_bias[at]

    def join(self, conv_out: Tensor, conv_in: Tensor, block: int, conv: int) -> Tensor:
        """Join this task's patch to a convolution's output [..., C]."""
        bottleneck = self.at(block, conv)
        if bottleneck is None:
            return conv_out
        source = self.geometry.record.pick(conv_in, conv_out)
        joined = conv_out + bottleneck(source)
        return joined + source if self.geometry.has_inner_skip else joined

    def named(self) -> dict[str, Tensor]:
        """Tensors by their names in a bundle."""
        tensors = {f"patch.{name}": getattr(self, name) for name in WEIGHTS}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    @classmethod
    def from_named(cls, geometry: PatchGeometry, tensors: dict[str, Tensor]) -> Self:
        """Build weights from ``named`` tensors; names of other parts of a bundle are ignored."""
        own = {
            name.removeprefix("patch."): tensor
            for name, tensor in tensors.items()
            if name.startswith("patch.")
        }
        return cls(geometry=geometry, **own)


READER = ("query", "read_down", "read_down_bias", "read_up", "read_up_bias")
"""Names of a reader's weights in a patch, in the order of ``ItemReader``'s fields."""

WEIGHTS = tuple(field.name for field in fields(PatchWeights) if field.name != "geometry")


def reader_of(tensors: Mapping[str, Tensor]) -> ItemReader | None:
    """The item readers in stacked tensors of several patches, given by bundle name."""
    if "patch.query" not in tensors:
        return None
    return ItemReader(*(tensors[f"patch.{name}"] for name in READER))


class Patch(nn.Module):
    """Trainable patch weights: ``cardinality`` branches, each with its own random initialisation.

    The published code starts all branches equal, which keeps them equal for ever. The up-projection
    starts at zero, so an untrained patch without an inner skip leaves the backbone's function
    unchanged.
    """

    def __init__(
        self, geometry: PatchGeometry, channels: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.geometry = geometry
        p, g = geometry.patched_convs, geometry.cardinality
        width = geometry.bottleneck // g
        self.down = nn.Parameter(torch.empty(p, g, channels, width))
        self.down_bias = nn.Parameter(torch.zeros(p, g, width))
        self.up = nn.Parameter(torch.zeros(p, g, width, channels))
        self.up_bias = nn.Parameter(torch.zeros(p, g, channels))
        nn.init.normal_(self.down, std=channels**-0.5, generator=generator)
        norms = (len(geometry.blocks), channels) if geometry.has_norms else None
        self.norm_weight = nn.Parameter(torch.ones(norms)) if norms else None
        self.norm_bias = nn.Parameter(torch.zeros(norms)) if norms else None
        self.cls = nn.Parameter(torch.zeros(channels)) if geometry.has_cls else None
        reads = {} if geometry.queries == 0 else geometry.shapes(channels)
        for name in READER:
            shape = reads.get(f"patch.{name}")
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)) if shape else None)
        if geometry.queries:
            for name in ("query", "read_down"):
                weight = self.get_parameter(name)
                nn.init.normal_(weight, std=len(weight) ** -0.5, generator=generator)

    def weights(self) -> PatchWeights:
        """The folded weights, differentiable with respect to the branches."""
        return PatchWeights(
            self.geometry,
            down=self.down.transpose(1, 2).flatten(2),  # [P, g, C, h] -> [P, C, g·h]
            down_bias=self.down_bias.flatten(1),  # [P, g, h] -> [P, g·h]
            up=self.up.flatten(1, 2),  # [P, g, h, C] -> [P, g·h, C]
            up_bias=self.up_bias.sum(1),  # [P, g, C] -> [P, C]
            norm_weight=self.norm_weight,
            norm_bias=self.norm_bias,
            cls=self.cls,
            **{name: getattr(self, name) for name in READER},
        )

    def folded(self) -> dict[str, Tensor]:
        """Detached, contiguous tensors by their names in a bundle."""
        return {k: v.detach().clone().contiguous() for k, v in self.weights().named().items()}
