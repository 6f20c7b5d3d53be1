"""NextItNet (WSDM 2019): residual blocks of dilated convolutions over a user's items.

This is the plain reference. Tests compare every other forward of the project with it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from peterrec.model.errors import InvalidSpec
from peterrec.model.network.collate import positions_read
from peterrec.model.network.history_reader import ItemReader, find_items
from peterrec.model.network.patch import Patch, PatchWeights
from peterrec.model.spec import CLS, BackboneSpec, PatchGeometry

INIT_STD = 0.02


class DilatedConv(nn.Module):
    """A 1-d convolution over positions, zero-padded. ``weight [C, C, k]``, ``bias [C]``.

    Causal: ``out[t] = b + sum_j x[t - (k-1-j) d] W[j]``; non-causal: ``x[t + (j - (k-1)/2) d]``.
    """

    def __init__(self, channels: int, kernel_size: int, dilation: int, is_causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, kernel_size))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.trunc_normal_(self.weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
        reach = (kernel_size - 1) * dilation
        self.dilation = dilation
        self.padding = (reach, 0) if is_causal else (reach // 2, reach - reach // 2)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, C] -> [B, T, C]."""
        padded = functional.pad(x.transpose(1, 2), self.padding)  # [B, C, T + reach]
        out = functional.conv1d(padded, self.weight, self.bias, dilation=self.dilation)
        return out.transpose(1, 2)  # [B, C, T] -> [B, T, C]


class ResidualBlock(nn.Module):
    """``y = x + relu(LN2(conv2_2d(relu(LN1(conv1_d(x))))))``, with an optional patch."""

    def __init__(self, spec: BackboneSpec, block: int) -> None:
        super().__init__()
        dilation = spec.dilations[block]
        channels, eps = spec.channels, spec.layer_norm_eps
        self.block = block
        self.conv1 = DilatedConv(channels, spec.kernel_size, dilation, spec.is_causal)
        self.norm1 = nn.LayerNorm(channels, eps=eps)
        self.conv2 = DilatedConv(channels, spec.kernel_size, 2 * dilation, spec.is_causal)
        self.norm2 = nn.LayerNorm(channels, eps=eps)

    def forward(self, x: Tensor, valid: Tensor | None, patch: PatchWeights | None) -> Tensor:
        """x [B, T, C], valid [B, T, 1] or None -> [B, T, C], zero where not valid."""
        first = _mask(functional.relu(self.norm1(self._graft(self.conv1(x), x, 0, patch))), valid)
        second = self._graft(self.conv2(first), first, 1, patch)
        return x + _mask(functional.relu(self.second_norm(second, patch)), valid)

    def _graft(self, out: Tensor, source: Tensor, conv: int, patch: PatchWeights | None) -> Tensor:
        return out if patch is None else patch.join(out, source, self.block, conv)

    def second_norm(self, x: Tensor, patch: PatchWeights | None) -> Tensor:
        """LN2 of x [..., C], with the patch's weights where it trains them."""
        own = patch.norm(self.block) if patch is not None else None
        weight, bias = own or (self.norm2.weight, self.norm2.bias)
        return functional.layer_norm(x, self.norm2.normalized_shape, weight, bias, self.norm2.eps)


def _mask(x: Tensor, valid: Tensor | None) -> Tensor:
    return x if valid is None else x * valid


class Backbone(nn.Module):
    """The pretrained user model: item embedding and residual blocks."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.token_count, spec.channels)
        self.blocks = nn.ModuleList(ResidualBlock(spec, i) for i in range(len(spec.dilations)))
        nn.init.trunc_normal_(self.embedding.weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)

    def encode(
        self, x: Tensor, valid: Tensor | None = None, patch: PatchWeights | None = None
    ) -> Tensor:
        """Hidden states [B, T, C] of embedded rows x [B, T, C].

        valid [B, T] marks real positions; None takes every position, padding included.
        """
        mask = None if valid is None else valid.unsqueeze(2).to(x.dtype)  # [B, T] -> [B, T, 1]
        x = _mask(x, mask)
        for block in self.blocks:
            x = block(x, mask, patch)
        return x

    def embed(self, tokens: Tensor, patch: PatchWeights | None = None) -> Tensor:
        """Embeddings [B, T, C] of tokens [B, T]; a patch's own [CLS] replaces the shared one."""
        x: Tensor = self.embedding(tokens)
        if patch is None or patch.cls is None:
            return x
        return torch.where((tokens == CLS).unsqueeze(2), patch.cls, x)

    def hidden(self, tokens: Tensor, patch: PatchWeights | None = None) -> Tensor:
        """Hidden states [B, T, C] of collated tokens int64 [B, T]."""
        return self.encode(self.embed(tokens, patch), positions_read(tokens, self.spec), patch)

    def user_vectors(self, tokens: Tensor, patch: PatchWeights | None = None) -> Tensor:
        """User vectors [B, C]: the state at the last position, plus the first if non-causal.

        The item reader of a patch adds its change.
        """
        users = pool(self.hidden(tokens, patch), tokens, self.spec)
        reader = patch.reader if patch is not None else None
        return users if reader is None else users + self.read_items(tokens, reader)

    def read_items(self, tokens: Tensor, reader: ItemReader) -> Tensor:
        """Changes of user vectors [G·B, C] by readers of G tasks.

        Framed tokens [G·B, T] have B rows of each task in turn.
        """
        embedded = self.embedding(tokens)  # [G·B, T] -> [G·B, T, C]
        return reader(embedded, find_items(tokens), self.spec.layer_norm_eps)


def pool(hidden: Tensor, tokens: Tensor, spec: BackboneSpec) -> Tensor:
    """User vectors [B, C] of hidden [B, T, C]: last [CLS], plus the first one if non-causal."""
    last = hidden[:, -1]
    if spec.is_causal:
        return last
    first = positions_read(tokens, spec).int().argmax(1)  # [B, T] -> [B]: start of each row
    return last + hidden[torch.arange(len(hidden), device=hidden.device), first]


def new_patch(
    backbone: Backbone, geometry: PatchGeometry, generator: torch.Generator | None = None
) -> Patch:
    """An untrained patch for this backbone: its norms and [CLS] start as copies of the backbone's.

    Without an inner skip, the patched network computes the same as the plain one.
    """
    missing = [block for block in geometry.blocks if block >= len(backbone.blocks)]
    if missing:
        raise InvalidSpec(
            f"the patch names blocks {missing}, the backbone has {len(backbone.blocks)}."
        )
    patch = Patch(geometry, backbone.spec.channels, generator)
    with torch.no_grad():
        if patch.cls is not None:
            patch.cls.copy_(backbone.embedding.weight[CLS])
        if patch.norm_weight is not None and patch.norm_bias is not None:
            for row, block in enumerate(geometry.blocks):
                norm = backbone.blocks[block].get_submodule("norm2")
                patch.norm_weight[row].copy_(norm.get_parameter("weight"))
                patch.norm_bias[row].copy_(norm.get_parameter("bias"))
    return patch
