"""Join the processes that ``torchrun`` started together with this one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed as dist

from peterrec.model.training.data_parallel import ALONE, Workers
from peterrec.service.errors import ProcessLost


@dataclass(frozen=True, slots=True)
class Place:
    """The device that this process trains on, and the processes that train with it."""

    workers: Workers
    device: torch.device


@contextmanager
def place_of(device: str) -> Iterator[Place]:
    """Join the processes of ``torchrun`` for the length of the block; without it, train alone.

    Under ``torchrun`` each process gets a separate graphics card, if ``device`` is cuda.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield Place(ALONE, torch.device(device))
        return
    own = torch.device(device)
    if own.type == "cuda":
        own = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(own)
    with _process_group("nccl" if own.type == "cuda" else "gloo"):
        yield Place(Workers(dist.get_rank(), dist.get_world_size()), own)


@contextmanager
def _process_group(backend: str) -> Iterator[None]:
    """Join the other processes; ProcessLost if one of them ends or does not come."""
    try:
        dist.init_process_group(backend)
        try:
            yield
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ProcessLost(
            "another process of this training ended or cannot be reached.",
            hint="Its own message says why; then repeat the command with `resume`.",
        ) from error
