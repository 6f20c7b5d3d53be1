"""The forwards that the mixed forward is compared with, and the rows that all of them compute."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench.forward_fixture import ResidentTasks
from bench.random_fleet import FleetShape
from peterrec.model.inference.batch_plan import SlotRef
from peterrec.model.network.backbone import ResidualBlock
from peterrec.model.network.collate import Tokens, frame_histories
from peterrec.model.network.patch import PatchWeights
from peterrec.model.network.receptive_field import plan
from peterrec.model.spec import BackboneSpec

MEAN_LENGTH, LONGEST = 12, 50


def zipf_lengths(rows: int) -> np.ndarray:
    """Draw lengths from 1 to 50 with a mean of about 12; most of them are short."""
    lengths = np.arange(1, LONGEST + 1)
    weights = 1 / lengths**0.7
    drawn = np.random.default_rng(5).choice(lengths, rows, p=weights / weights.sum())
    scaled: np.ndarray = np.round(drawn * MEAN_LENGTH / drawn.mean()).clip(1, LONGEST).astype(int)
    return scaled


def useful_operations(shape: FleetShape) -> float:
    """Count the multiplications and additions in the products of one row of 50 items."""
    spec_positions = plan(BackboneSpec(shape.items, shape.channels), LONGEST + 1).conv_positions
    conv = 2 * 3 * shape.channels**2
    patch = 2 * 2 * shape.channels * shape.geometry.bottleneck
    return float(spec_positions * (conv + patch))


def require_equal(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    """Stop the measurement if user vectors differ by more than ``tolerance`` · largest value."""
    error = ((ours.float() - theirs.float()).abs().max() / theirs.abs().max()).item()
    if not error <= tolerance:
        raise SystemExit(f"the contenders disagree: relative error {error:.2g}")


@dataclass(frozen=True, slots=True)
class Batch:
    """The tasks of a batch: ``chosen`` has the task number of each row."""

    tasks: ResidentTasks
    chosen: Sequence[int]

    @property
    def refs(self) -> list[SlotRef]:
        """The slot of each row."""
        return [self.tasks.refs[task] for task in self.chosen]

    def mixed(self, histories: list[Tokens]) -> Tensor:
        """Compute the user vectors [B, C] of all rows in one mixed forward."""
        return self.tasks.forward.user_vectors(histories, self.refs)

    @torch.inference_mode()
    def loop(self, histories: list[Tokens]) -> Tensor:
        """Compute user vectors [B, C] with one plain padded forward per distinct task."""
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for row, task in enumerate(self.chosen):
            groups[task].append(row)
        backbone = self.tasks.backbone
        device = backbone.embedding.weight.device
        out = torch.empty(len(histories), backbone.spec.channels, device=device)
        for task, members in groups.items():
            ref = self.tasks.refs[task]
            named = {name: tensor[ref.slot] for name, tensor in ref.pool.tensors.items()}
            tokens = frame_histories([histories[row] for row in members], backbone.spec)
            patch = PatchWeights.from_named(ref.geometry, named)
            out[members] = backbone.user_vectors(tokens.to(device), patch)
        return out


Network = Callable[[Tensor, Tensor], Tensor]
"""A function from tokens int64 [B, T] and slots int64 [B] to user vectors [B, C]."""


class GatheredForward:
    """A straightforward mixed forward: one padded batch, gathered patches, ``torch.bmm``.

    All rows must have the same length, because nothing is masked.
    """

    def __init__(self, tasks: ResidentTasks, dtype: torch.dtype = torch.float32) -> None:
        backbone = tasks.backbone
        self.spec, self.device = backbone.spec, backbone.embedding.weight.device
        self._embedding = backbone.embedding.weight.detach().to(dtype)
        self._patches = {n: t.to(dtype) for n, t in tasks.refs[0].pool.tensors.items()}
        self._convs, self._norms = [], []
        for block in backbone.blocks:
            assert isinstance(block, ResidualBlock)
            for conv, norm in ((block.conv1, block.norm1), (block.conv2, block.norm2)):
                weight = conv.weight.detach().transpose(1, 2).flatten(1)  # [C, C, k] -> [C, k·C]
                self._convs.append((weight.to(dtype).contiguous(), conv.bias.detach().to(dtype)))
                self._norms.append((norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)))

    def network(self, tokens: Tensor, slots: Tensor) -> Tensor:
        """A ``Network`` that computes convolutions as products over three concatenated taps."""
        x = functional.embedding(tokens, self._embedding)  # [B, T, C]
        for block in range(0, len(self._convs), 2):
            y = self._half(self._half(x, slots, block), slots, block + 1)
            x = x + y
        last: Tensor = x[:, -1]
        return last

    def _half(self, x: Tensor, slots: Tensor, at: int) -> Tensor:
        """Apply one convolution, its patch, LayerNorm and ReLU: [B, T, C] -> [B, T, C]."""
        reach, length, patches = self.spec.conv_dilations[at], x.shape[1], self._patches
        padded = functional.pad(x, (0, 0, 2 * reach, 0))
        taps = [padded[:, t * reach : t * reach + length] for t in range(3)]
        y = functional.linear(torch.cat(taps, 2), *self._convs[at])
        down, up = patches["patch.down"][slots, at], patches["patch.up"][slots, at]
        h = torch.bmm(y, down) + patches["patch.down_bias"][slots, at].unsqueeze(1)
        h = functional.gelu(h, approximate="tanh")
        y = y + torch.bmm(h, up) + patches["patch.up_bias"][slots, at].unsqueeze(1)
        weight, bias = self._norms[at]
        eps = self.spec.layer_norm_eps
        return torch.relu(functional.layer_norm(y, weight.shape, weight, bias, eps))

    @torch.inference_mode()
    def user_vectors(
        self, histories: list[Tokens], refs: Sequence[SlotRef], network: Network | None = None
    ) -> Tensor:
        """Compute user vectors [B, C] with ``network``, or by default with ``self.network``."""
        slots = torch.tensor([ref.slot for ref in refs], device=self.device)
        tokens = frame_histories(histories, self.spec).to(self.device)
        return (network or self.network)(tokens, slots)
