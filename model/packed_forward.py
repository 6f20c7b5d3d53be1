"""The mixed-task forward on a CPU: lanes of any length one after the other, nothing padded.

The product of each convolution runs over all lanes of a chunk at once; what lies between two
products is one kernel (``model/kernels/packed_kernels.py``). Chunks run on as many threads as
PyTorch was given when the forward was made.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.backbone import Backbone
from model.framing import Tokens
from model.kernels.packed_blocks import PackedBlocks
from model.lanes import SlotRef
from model.packed_plan import ChunkPlanner
from model.trunk_states import TrunkStates

CHUNK_POSITIONS = 1_600
"""Positions per chunk: the activations of one convolution then stay in the second cache."""


class PackedForward:
    """User vectors on a CPU. Used by one thread."""

    def __init__(
        self,
        backbone: Backbone,
        dtype: torch.dtype,
        chunk_positions: int | None = None,
        trunk_cache_bytes: int = 0,
    ) -> None:
        self._blocks = PackedBlocks(backbone, dtype)
        self.trunk_states = TrunkStates(trunk_cache_bytes)
        positions = chunk_positions or CHUNK_POSITIONS
        self._planner = ChunkPlanner(backbone.spec, self._blocks.counts, positions)

    @torch.inference_mode()
    def user_vectors(self, histories: Sequence[Tokens], refs: Sequence[SlotRef]) -> Tensor:
        """User vectors float32 [B, C]: history i through the backbone patched by slot i."""
        out = torch.empty(len(histories), self._blocks.spec.channels)
        for chunk in self._planner.plan(histories, refs, self.trunk_states):
            vectors, kept = self._blocks.run(chunk)
            out[chunk.lanes.rows] = vectors.float()
            for state in kept:
                self.trunk_states.put(state.key, state.states)
        return out
