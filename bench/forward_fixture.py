"""Random tasks on a random backbone, for measurements of the forward and of heads."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bench.random_fleet import FleetShape, make_backbone, make_head, make_patch, make_table
from peterrec.model.inference.batch_plan import SlotRef
from peterrec.model.inference.forward import MixedForward, mixed_forward
from peterrec.model.inference.heads import HeadRef, MixedHeads, RowScores, Selection
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


@dataclass(frozen=True, slots=True)
class ResidentHeads:
    """Heads of the tasks of a forward, each with an item table of the whole vocabulary or none."""

    tasks: ResidentTasks
    heads: MixedHeads
    refs: list[HeadRef]

    @classmethod
    def of(cls, shape: FleetShape, tasks: ResidentTasks, *, tables: bool = True) -> "ResidentHeads":
        """Load random heads, and tables, for every task of ``shape``."""
        embedding = tasks.backbone.embedding.weight
        heads = MixedHeads(shape.channels, embedding.device, len(embedding))
        made = (
            (make_head(shape, task), make_table(shape, task) if tables else None)
            for task in range(shape.tasks)
        )
        refs = [heads.add(head.spec, head.named(), 1.0, table) for head, table in made]
        return cls(tasks, heads, refs)

    def answers(
        self, chosen: Sequence[int], heads: Sequence[HeadRef], histories: list[Tokens]
    ) -> list[RowScores]:
        """Run the forward of the ``chosen`` tasks, one per history, and their heads."""
        users = self.tasks.forward.user_vectors(histories, [self.tasks.refs[n] for n in chosen])
        refs = [heads[n] for n in chosen]
        return self.heads.scores(users, refs, [Selection()] * len(chosen), histories)

    def table_cost(
        self, chosen: Sequence[int], histories: list[Tokens], repeats: int
    ) -> dict[str, list[float]]:
        """Measure the seconds of rows ``with`` tables and ``without``."""
        bare = [ref._replace(table=None) for ref in self.refs]
        return paired_seconds(
            {
                "with": partial(self.answers, chosen, self.refs, histories),
                "without": partial(self.answers, chosen, bare, histories),
            },
            repeats,
        )


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
