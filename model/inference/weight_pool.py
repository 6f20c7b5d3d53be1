"""Device storage for many small tensors of equal shapes, stacked over slots."""

import contextlib
import mmap
from collections.abc import Mapping

import torch
from torch import Tensor

from peterrec.model.inference.steps import COPIED_AT_ONCE, Steps, finish

RESERVED_BYTES = 1 << 30
"""Address space that a pool reserves on a CPU; a page takes memory only once it is written."""

LARGE_PAGE = 2 << 20
"""Bytes of a huge page on x86."""

MADV_COLLAPSE = 25
"""An madvise option of Linux 6.1 and later that Python's mmap does not name."""

FEWEST_SLOTS, MOST_SLOTS = 16, 65_536
"""Bounds of a pool's first capacity; it doubles when it is full."""


KEPT_EXACT = frozenset({"patch.norm_weight", "patch.norm_bias"})
"""Tensors stored in float32 in every pool. Rounding the norms changes answers four times as much as
rounding all other weights of a patch, and they are a twentieth of it (``bench numerics``)."""


class WeightPool:
    """Slots for tensors ``[S, *shape]`` by name. Written by the device thread between batches.

    ``capacity`` is the number of slots at first; by default as many as the reserve holds. Tensors
    have ``dtype``, except those in ``KEPT_EXACT``. ``generation`` changes when the tensors move to
    make room. On a GPU, a separate stream copies the weights, so that neither the thread nor a
    running forward waits for them.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        capacity: int | None = None,
    ) -> None:
        dtypes = {name: torch.float32 if name in KEPT_EXACT else dtype for name in shapes}
        self.dtype = dtype
        self.slot_bytes = sum(
            dtypes[name].itemsize * torch.Size(shape).numel() for name, shape in shapes.items()
        )
        wanted = RESERVED_BYTES // max(1, self.slot_bytes) if device.type == "cpu" else FEWEST_SLOTS
        capacity = capacity or max(FEWEST_SLOTS, min(wanted, MOST_SLOTS))
        self.tensors: dict[str, Tensor] = {}
        self._pages: dict[str, HugePages] = {}
        for name, shape in shapes.items():
            self._reserve(name, (capacity, *shape), device, dtypes[name])
        self.generation = 0
        self._capacity = capacity
        self._free: list[int] = []
        self._used = 0
        self._stream = new_stream(device)
        self._is_writing = False

    def write(self, weights: Mapping[str, Tensor]) -> int:
        """Copy one tensor per name into a free slot and return the slot's number."""
        return finish(self.write_steps(weights))

    def write_steps(self, weights: Mapping[str, Tensor]) -> Steps[int]:
        """``write`` in steps; other slots may be written meanwhile."""
        slot = self._free.pop() if self._free else self._next()
        try:
            if self._stream is not None:
                self._write_on_stream(slot, weights, self._stream)
                return slot
            for name in self.tensors:
                yield from self._copy(name, slot, weights[name].reshape(-1))
            for name, pages in self._pages.items():
                tensor = self.tensors[name]
                while pages.enlarge(self._used * tensor.stride(0) * tensor.element_size()):
                    yield
        except BaseException:  # also if no further step is taken
            self._free.append(slot)
            raise
        return slot

    def zeros(self) -> dict[str, Tensor]:
        """Weights that are all zero, for a slot that no answer depends on."""
        return {name: torch.zeros(tensor.shape[1:]) for name, tensor in self.tensors.items()}

    def _copy(self, name: str, slot: int, source: Tensor) -> Steps[None]:
        for start in range(0, len(source), COPIED_AT_ONCE):
            part = slice(start, start + COPIED_AT_ONCE)
            # the pool's tensor is looked up each time, as it moves when the pool grows
            self.tensors[name][slot].view(-1)[part].copy_(source[part])
            if part.stop < len(source):
                yield

    def await_writes(self) -> None:
        """Order later work on the current stream after the writes so far; never blocks."""
        if self._stream is not None and self._is_writing:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            self._is_writing = False

    def release(self, slot: int) -> None:
        """Free a slot; no row may be waiting for it."""
        self._free.append(slot)

    def _write_on_stream(
        self, slot: int, weights: Mapping[str, Tensor], stream: torch.cuda.Stream
    ) -> None:
        """Copy from pinned memory after earlier work, which may still read the slot."""
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            for name, tensor in self.tensors.items():
                source = weights[name].cpu().to(tensor.dtype).pin_memory()
                tensor[slot].copy_(source, non_blocking=True)
        self._is_writing = True

    def _next(self) -> int:
        if self._used == self._capacity:
            self._grow()
        self._used += 1
        return self._used - 1

    def _grow(self) -> None:
        self.await_writes()
        for name, old in list(self.tensors.items()):
            self._reserve(name, (2 * len(old), *old.shape[1:]), old.device, old.dtype)
            self.tensors[name][: len(old)] = old
        self._capacity *= 2
        self.generation += 1

    def _reserve(
        self, name: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> None:
        """Allocate uninitialised slots; on Linux with huge pages."""
        size = torch.Size(shape).numel() * dtype.itemsize
        if device.type != "cpu" or size < LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
            self.tensors[name] = torch.empty(shape, device=device, dtype=dtype)
            return
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.tensors[name] = torch.frombuffer(memory, dtype=dtype).view(shape)
        self._pages[name] = HugePages(memory, -self.tensors[name].data_ptr() % LARGE_PAGE)


def new_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A CUDA stream other than the current one; None on a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # PyTorch's


class HugePages:
    """Memory whose small pages are collapsed to huge ones as they fill.

    Rows of thousands of tasks then need fewer entries of the page table cache. If the pages were
    huge from the start, the last page of each tensor would be half empty, which is kilobytes per
    task.
    """

    def __init__(self, memory: mmap.mmap, start: int) -> None:
        self._memory = memory
        self._large_until = start

    def enlarge(self, used: int) -> bool:
        """Collapse pages below ``used`` bytes to a huge one; False if there are too few for it."""
        if self._large_until + LARGE_PAGE > used:
            return False
        with contextlib.suppress(OSError):  # a kernel without huge pages
            self._memory.madvise(mmap.MADV_HUGEPAGE, self._large_until, LARGE_PAGE)
            self._memory.madvise(MADV_COLLAPSE, self._large_until, LARGE_PAGE)
        self._large_until += LARGE_PAGE
        return True
