"""The mixed-task forward: rows of any tasks, lengths and patch geometries in one pass.

The shared convolutions run over all rows of a chunk, each row's patch is found by its slot, and the
cost of a row is proportional to its history's length. Tests compare it row by row with
``Backbone.user_vectors``.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from peterrec.model.inference.batch_plan import SlotRef
from peterrec.model.inference.item_tables import TableForward
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import Tokens


class MixedForward(Protocol):
    """User vectors for rows of different tasks. Used by one thread, the device's owner."""

    def user_vectors(
        self, histories: Sequence[Tokens], refs: Sequence[SlotRef], passing: Sequence[bool] = ()
    ) -> Tensor:
        """User vectors float32 [B, C]: history i through the backbone patched by slot i.

        A history that is ``passing`` is not expected again, so nothing of it is cached.
        """


def mixed_forward(
    backbone: Backbone, dtype: torch.dtype = torch.float32, trunk_cache_bytes: int = 0
) -> MixedForward:
    """Create the forward for the device that the backbone is on; products read ``dtype``.

    On a GPU, all activations have this type. On a CPU, activations between blocks stay float32, and
    those below the patched blocks are cached for recent histories within ``trunk_cache_bytes``.
    """
    if backbone.embedding.weight.is_cuda:
        from peterrec.model.inference.gpu.forward import (
            FusedForward,  # needs Triton, which comes with CUDA builds
        )

        return FusedForward(backbone, dtype)
    from peterrec.model.inference.cpu.forward import (
        PackedForward,  # compiles kernels that a GPU does without
    )

    return PackedForward(backbone, dtype, trunk_cache_bytes=trunk_cache_bytes)


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
