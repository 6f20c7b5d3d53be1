"""Join the processes that ``torchrun`` started together with this one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed as dist

from peterrec.model.training.data_parallel import ALONE, Workers


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
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Place(Workers(dist.get_rank(), dist.get_world_size()), own)
    finally:
        dist.destroy_process_group()
