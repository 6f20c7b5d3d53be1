"""The mixed-task forward on a CPU: packed sequences of any length, without padding.

A chunk of sequences goes through a segment of blocks in one call
(``model/inference/cpu/blocks.py``).
Chunks run on as many threads as PyTorch was given when the forward was made.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from peterrec.model.inference.activation_cache import ActivationCache
from peterrec.model.inference.batch_plan import SlotRef
from peterrec.model.inference.cpu.amx import may_use_tiles
from peterrec.model.inference.cpu.blocks import PackedBlocks
from peterrec.model.inference.cpu.chunks import Activation, Chunk, ChunkPlanner
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import Tokens, filled

CHUNK_POSITIONS = 1_600
"""Positions per chunk; the activations of one convolution then stay in the second-level cache."""


class PackedForward:
    """User vectors on a CPU. Used by one thread, which runs chunks on a pool of threads."""

    def __init__(
        self,
        backbone: Backbone,
        dtype: torch.dtype,
        chunk_positions: int | None = None,
        trunk_cache_bytes: int = 0,
    ) -> None:
        threads = torch.get_num_threads()
        is_rounded = dtype == torch.bfloat16 and may_use_tiles()
        self._blocks = PackedBlocks(backbone, is_rounded)
        self.activation_cache = ActivationCache(trunk_cache_bytes)
        positions = chunk_positions or CHUNK_POSITIONS
        self._planner = ChunkPlanner(backbone.spec, self._blocks.counts, positions, threads)
        self._pool = ThreadPoolExecutor(threads, "forward") if threads > 1 else None

    def user_vectors(self, histories: Sequence[Tokens], refs: Sequence[SlotRef]) -> Tensor:
        """User vectors float32 [B, C]: history i through the backbone patched by slot i."""
        histories = filled(histories, self._blocks.spec)
        chunks = self._planner.plan(histories, refs, self.activation_cache)
        done = self._run_all(chunks)
        for _, kept in done:
            for state in kept:
                self.activation_cache.put(state.key, state.states)
        if len(chunks) == 1 and chunks[0].sequences.rows.tolist() == list(range(len(histories))):
            return done[0][0]
        out = torch.empty(len(histories), self._blocks.spec.channels)
        for chunk, (vectors, _) in zip(chunks, done, strict=True):
            out[chunk.sequences.rows] = vectors
        return out

    def _run_all(self, chunks: Sequence[Chunk]) -> list[tuple[Tensor, list[Activation]]]:
        """Run each chunk on one thread: products this small are not worth sharing."""
        if self._pool is None:
            return [self._blocks.run(chunk) for chunk in chunks]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            run = self._pool.map if len(chunks) > 1 else map
            return list(run(self._blocks.run, chunks))
        finally:
            torch.set_num_threads(threads)
