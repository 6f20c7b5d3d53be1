"""Pinned memory from which a device copies numbers while the host goes on."""

import torch
from torch import Tensor

from peterrec.model.inference.batch_plan import Indices


class StagingBuffer:
    """A pinned buffer from which the device copies a chunk's or a batch's numbers."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._memory = torch.empty(0, dtype=torch.int32)
        self._numbers: Indices = self._memory.numpy()
        self._sent: torch.cuda.Event | None = None
        if self._is_cuda:
            self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]  # PyTorch's

    def free(self, size: int) -> Indices:
        """The buffer int32 [≥ size] to fill, after its earlier content has been copied."""
        if self._sent is not None:
            self._sent.synchronize()
        if len(self._memory) < size:
            self._memory = torch.empty(size, dtype=torch.int32, pin_memory=self._is_cuda)
            self._numbers = self._memory.numpy()
        return self._numbers

    def send(self, into: Tensor) -> None:
        """Start the copy of ``len(into)`` numbers on the current stream."""
        into.copy_(self._memory[: len(into)], non_blocking=True)
        if self._sent is not None:
            self._sent.record()
