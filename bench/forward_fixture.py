"""Random tasks on a random backbone, for measurements of the bare forward."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bench.random_fleet import FleetShape, make_backbone, make_patch
from peterrec.model.inference.batch_plan import SlotRef
from peterrec.model.inference.forward import MixedForward, mixed_forward
from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import Tokens
from peterrec.model.spec import FIRST_ITEM


@dataclass(frozen=True, slots=True)
class ResidentTasks:
    """A mixed forward with loaded tasks, and the slot of each task."""

    backbone: Backbone
    forward: MixedForward
    refs: list[SlotRef]


def resident_tasks(
    shape: FleetShape,
    dtype: torch.dtype = torch.float32,
    trunk_cache_bytes: int = 0,
    device: str = "cpu",
) -> ResidentTasks:
    """Make a random backbone and load random patches for every task of ``shape``."""
    with tempfile.TemporaryDirectory() as folder:
        backbone = make_backbone(shape, Path(folder)).backbone.to(device)
    pool = WeightPool(shape.geometry.shapes(shape.channels), torch.device(device), dtype)
    slots = [pool.write(make_patch(shape, task).named()) for task in range(shape.tasks)]
    refs = [SlotRef(shape.geometry, pool, slot) for slot in slots]
    return ResidentTasks(backbone, mixed_forward(backbone, dtype, trunk_cache_bytes), refs)


def random_histories(shape: FleetShape, lengths: np.ndarray, seed: int = 0) -> list[Tokens]:
    """Make one history of random items for each length."""
    random = np.random.default_rng(seed)
    stop = FIRST_ITEM + shape.items
    return [random.integers(FIRST_ITEM, stop, n, dtype=np.int32) for n in lengths.tolist()]


def paired_seconds(
    contenders: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Measure the seconds of each contender, after one run to warm up.

    Contenders run alternately, so noise affects all of them equally.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, work in contenders.items():
            started = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def paired_ratio(seconds: Mapping[str, list[float]], slower: str, faster: str) -> float:
    """Divide one contender's time by another's in each repeat; return the median."""
    return median(a / b for a, b in zip(seconds[slower], seconds[faster], strict=True))
