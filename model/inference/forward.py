"""The mixed-task forward: rows of any tasks, lengths and patch geometries in one pass.

The shared convolutions run over all rows of a chunk, each row's patch is found by its slot, and the
cost of a row is proportional to its history's length. Tests compare it row by row with
``Backbone.user_vectors``.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from peterrec.model.inference.batch_plan import SlotRef
from peterrec.model.inference.item_tables import TableForward
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import PackedHistories, Tokens
from peterrec.model.spec import PatchGeometry


class MixedForward(Protocol):
    """User vectors for rows of different tasks. Used by one thread, the device's owner."""

    def user_vectors(
        self, histories: Sequence[Tokens], refs: Sequence[SlotRef], passing: Sequence[bool] = ()
    ) -> Tensor:
        """User vectors float32 [B, C]: history i through the backbone patched by slot i.

        A history that is ``passing`` is not expected again, so nothing of it is cached.
        """

    def user_vectors_of_all(self, histories: PackedHistories, refs: Sequence[SlotRef]) -> Tensor:
        """User vectors float32 [B, T, C] of every history by every patch; none is cached.

        They are bit by bit those of ``user_vectors``.
        """

    @property
    def compilations(self) -> int:
        """How many kernels the calling thread has compiled, or read from the disk."""

    def prepare(
        self, geometry: PatchGeometry, dtype: torch.dtype, progress: Callable[[], None]
    ) -> None:
        """Compile everything that rows with patches of one geometry, of this type, may run.

        May be called from any thread, while the device's owner runs batches.
        """

    def capture(self, ref: SlotRef) -> Iterator[None]:
        """Prepare the launches of batches with patches of a pool, in short steps."""

    def capture_next(self) -> bool:
        """Prepare the launches of a batch that ran without, in an idle moment; False: none."""


def mixed_forward(
    backbone: Backbone,
    dtype: torch.dtype = torch.float32,
    trunk_cache_bytes: int = 0,
    progress: Callable[[], None] = lambda: None,
    chunk_rows: int | None = None,
) -> MixedForward:
    """Create the forward for the device that the backbone is on; products read ``dtype``.

    ``progress`` is called after each chunk on a CPU; on a GPU a whole batch takes milliseconds.
    ``chunk_rows`` are the most rows of a chunk on a GPU, if not those that suit a server.

    On a GPU, all activations have this type. On a CPU, activations between blocks stay float32, and
    those below the patched blocks are cached for recent histories within ``trunk_cache_bytes``.
    """
    if backbone.embedding.weight.is_cuda:
        from peterrec.model.inference.gpu.forward import (
            CHUNK_ROWS,
            FusedForward,  # needs Triton, which comes with CUDA builds
        )

        return FusedForward(backbone, dtype, chunk_rows or CHUNK_ROWS)
    from peterrec.model.inference.cpu.forward import (
        PackedForward,  # compiles kernels that a GPU does without
    )

    return PackedForward(backbone, dtype, None, trunk_cache_bytes, progress)


def table_forward(
    device: torch.device, token_count: int
) -> TableForward[Any]:  # Any: as in BatchTables
    """The forward of tables for a device, and a backbone with so many token ids."""
    if device.type == "cuda":
        from peterrec.model.inference.gpu.table_kernel import (
            FusedTables,  # needs Triton, which comes with CUDA builds
        )

        return FusedTables(device, token_count)
    from peterrec.model.inference.cpu.table_kernel import (
        CompiledTables,  # compiles kernels that a GPU does without
    )

    return CompiledTables(token_count)
