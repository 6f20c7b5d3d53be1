"""The bare forward on a GPU, compared with peak rates, a loop over tasks and a gathered forward.

All contenders start from histories and slots on the host, so their times include planning. Times
*on the device* are the exception: they are measured between two CUDA events that are queued while
the device sleeps. The host is then far ahead, and its time is not included.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor

from bench.forward_contenders import (
    LONGEST,
    Batch,
    GatheredForward,
    Network,
    require_equal,
    useful_operations,
    zipf_lengths,
)
from bench.forward_fixture import (
    ResidentHeads,
    ResidentTasks,
    paired_ratio,
    paired_seconds,
    random_histories,
    resident_tasks,
)
from bench.random_fleet import FleetShape
from peterrec.model.network.collate import Tokens

LARGE = 8192
COPIED_BYTES = 1 << 30
HEAD_START_CYCLES = 40_000_000
"""Clock cycles that the device sleeps before a measurement: about 20 ms."""

READER_QUERIES, CARD_TASKS = 8, 100

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def measure_gpu(shape: FleetShape, options: argparse.Namespace) -> dict[str, float]:
    """Measure all figures of one backbone and task size."""
    torch.backends.cudnn.allow_tf32 = False  # TF32 would cost the loop's convolutions three digits
    narrow = resident_tasks(shape, torch.bfloat16, device=options.device)
    figures = _exact(shape, options)
    for rows, suffix in ((options.rows, ""), (options.large_rows, "_large")):
        batch, histories = _batch(narrow, shape, rows), _histories(shape, rows)
        figures |= _against_itself(batch, histories, options.repeats, suffix)
        figures |= _against_gathered(batch, histories, options.repeats, suffix)
    heads = ResidentHeads.of(shape, narrow)
    for rows, suffix in ((options.rows, ""), (options.large_rows, "_large")):
        figures |= _with_tables(heads, shape, rows, options.repeats, suffix)
    return figures | _on_device(narrow, shape, options) | _reading(narrow, shape, options)


def _exact(shape: FleetShape, options: argparse.Namespace) -> dict[str, float]:
    """Measure float32: compare with the plain loop and with histories of mixed lengths."""
    batch = _batch(resident_tasks(shape, device=options.device), shape, options.rows)
    full = _histories(shape, options.rows)
    short = random_histories(shape, zipf_lengths(options.rows))
    for histories in (full, short):
        require_equal(batch.mixed(histories), batch.loop(histories))
    seconds = paired_seconds(
        {
            "fp32": lambda: batch.mixed(full),
            "ragged": lambda: batch.mixed(short),
            "loop": lambda: batch.loop(full),
        },
        options.repeats,
    )
    return {
        "vs_loop": paired_ratio(seconds, "loop", "fp32"),
        "ragged_fp32": paired_ratio(seconds, "fp32", "ragged"),
        "rows_per_s_fp32": options.rows / median(seconds["fp32"]),
    }


def _with_tables(
    heads: ResidentHeads, shape: FleetShape, rows: int, repeats: int, suffix: str
) -> dict[str, float]:
    """Compare rows with an item table with the same rows without: forward, heads and planning."""
    batch, histories = _batch(heads.tasks, shape, rows), _histories(shape, rows)
    heads.table_cost(batch.chosen, histories, 1)  # captures the graphs
    seconds = heads.table_cost(batch.chosen, histories, 7 * repeats)
    return {f"table{suffix}": paired_ratio(seconds, "with", "without")}


def _against_gathered(
    batch: Batch, histories: list[Tokens], repeats: int, suffix: str
) -> dict[str, float]:
    """Compare bfloat16 with the gathered forward: eager, compiled, and as a CUDA graph."""
    gathered = GatheredForward(batch.tasks, torch.bfloat16)
    run = partial(gathered.user_vectors, histories, batch.refs)
    networks = {
        "eager": gathered.network,
        "compile": torch.compile(gathered.network, dynamic=False),
        "graph": captured(gathered, histories, batch),
    }
    for network in networks.values():
        require_equal(batch.mixed(histories), run(network), TOLERANCE[torch.bfloat16])
    others = {name: partial(run, network) for name, network in networks.items()}
    seconds = paired_seconds({"ours": lambda: batch.mixed(histories), **others}, 3 * repeats)
    return {f"vs_{name}{suffix}": paired_ratio(seconds, name, "ours") for name in networks}


def _against_itself(
    batch: Batch, histories: list[Tokens], repeats: int, suffix: str
) -> dict[str, float]:
    """Compare bfloat16 rows of different tasks with rows of one task and with shorter rows."""
    one = Batch(batch.tasks, [batch.chosen[0]] * len(batch.chosen))
    lengths = zipf_lengths(len(histories)).tolist()
    short: list[Tokens] = [h[-n:] for h, n in zip(histories, lengths, strict=True)]
    contenders: Mapping[str, Callable[[], object]] = {
        "ours": lambda: batch.mixed(histories),
        "one": lambda: one.mixed(histories),
        "ragged": lambda: batch.mixed(short),
    }
    paired_seconds(contenders, 1)  # a shape is captured as a CUDA graph at its second run
    seconds = paired_seconds(contenders, 7 * repeats)
    on_device = device_seconds(contenders, 3 * repeats)
    return {
        f"gpu_mixed{suffix}": paired_ratio(seconds, "one", "ours"),
        f"device_mixed{suffix}": paired_ratio(on_device, "one", "ours"),
        f"ragged{suffix}": paired_ratio(seconds, "ours", "ragged"),
        f"device_ragged{suffix}": paired_ratio(on_device, "ours", "ragged"),
        f"rows_per_s_bf16{suffix}": len(histories) / median(seconds["ours"]),
        f"device_ms{suffix}": 1e3 * median(on_device["ours"]),
    }


def _on_device(
    tasks: ResidentTasks, shape: FleetShape, options: argparse.Namespace
) -> dict[str, float]:
    """Measure times on the device, and the card's rates of products and copies."""
    rows, operations = options.large_rows, useful_operations(shape)
    many, histories = _batch(tasks, shape, rows), _histories(shape, rows)
    alone, history = Batch(tasks, [0]), histories[:1]
    repeats = 3 * options.repeats
    times = device_seconds(
        {
            "many": lambda: many.mixed(histories),
            "alone": lambda: alone.mixed(history),
        },
        repeats,
    )
    wall = paired_seconds({"alone": lambda: alone.mixed(history)}, repeats)["alone"]
    rate, bandwidth = matrix_rate(repeats), copy_bandwidth(repeats)
    floor = max(rows * operations / rate, _fewest_bytes(tasks, many.chosen) / bandwidth)
    seconds = median(times["many"])
    return {
        "floor_share": floor / seconds,
        "tflops_large": rows * operations / seconds / 1e12,
        "matrix_tflops": rate / 1e12,
        "copy_gb_per_s": bandwidth / 1e9,
        "batch1_ms": 1e3 * median(times["alone"]),
        "batch1_wall_ms": 1e3 * median(wall),
    }


def _reading(
    tasks: ResidentTasks, shape: FleetShape, options: argparse.Namespace
) -> dict[str, float]:
    """Measure history readers: in addition to every patch of the large batch, and alone.

    "Alone" means that many tasks are computed for one history and each has only a reader.
    """
    both = replace(shape, queries=READER_QUERIES)
    histories = _histories(shape, options.large_rows)
    many = _batch(tasks, shape, options.large_rows)
    reading = Batch(resident_tasks(both, torch.bfloat16, device=options.device), many.chosen)
    alone = replace(both, tasks=CARD_TASKS, blocks=())
    card = Batch(
        resident_tasks(alone, torch.bfloat16, device=options.device), list(range(CARD_TASKS))
    )
    times = device_seconds(
        {
            "many": lambda: many.mixed(histories),
            "reading": lambda: reading.mixed(histories),
            "card": lambda: card.mixed(histories[:1] * CARD_TASKS),
        },
        3 * options.repeats,
    )
    return {
        "reading_large": paired_ratio(times, "reading", "many"),
        "readers_card_ms": 1e3 * median(times["card"]),
    }


def captured(gathered: GatheredForward, histories: list[Tokens], batch: Batch) -> Network:
    """Capture the gathered forward as a CUDA graph for this number of rows of this length."""
    tokens = torch.zeros(
        len(histories), gathered.spec.max_input_len, dtype=torch.int64, device="cuda"
    )
    slots = torch.zeros(len(histories), dtype=torch.int64, device="cuda")
    with torch.inference_mode():
        gathered.user_vectors(histories, batch.refs)  # libraries initialise before the capture
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = gathered.network(tokens, slots)

    def replay(new_tokens: Tensor, new_slots: Tensor) -> Tensor:
        tokens.copy_(new_tokens)
        slots.copy_(new_slots)
        graph.replay()
        return out.clone()

    return replay


def device_seconds(
    contenders: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Measure seconds on the device; contenders run alternately and must not wait for it."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(-2, repeats):  # a shape is captured at its second run
        for name, work in contenders.items():
            start, end = (_timed_event() for _ in range(2))
            torch.cuda.synchronize()
            torch.cuda._sleep(HEAD_START_CYCLES)  # type: ignore[no-untyped-call]  # PyTorch's
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            if repeat >= 0:
                seconds[name].append(start.elapsed_time(end) / 1e3)
    return seconds


def _timed_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # PyTorch's


def matrix_rate(repeats: int) -> float:
    """Measure the operations per second of a large bfloat16 matrix product in PyTorch."""
    a, b = (torch.randn(LARGE, LARGE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = device_seconds({"product": lambda: a @ b}, repeats)["product"]
    return 2 * LARGE**3 / median(seconds)


def copy_bandwidth(repeats: int) -> float:
    """Measure the bytes that a large copy on the device reads and writes per second."""
    source = torch.randint(0, 255, (COPIED_BYTES,), device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = device_seconds({"copy": lambda: target.copy_(source)}, repeats)["copy"]
    return 2 * COPIED_BYTES / median(seconds)


def _fewest_bytes(tasks: ResidentTasks, chosen: Sequence[int]) -> float:
    """Count the least bytes that a forward moves: weights, patches, items, user vectors, once."""
    spec, pool = tasks.backbone.spec, tasks.refs[0].pool
    weights = sum(p.numel() for p in tasks.backbone.blocks.parameters()) * pool.dtype.itemsize
    embedded = len(chosen) * spec.max_input_len * spec.channels * pool.dtype.itemsize
    written = len(chosen) * spec.channels * 4
    return weights + len(set(chosen)) * pool.slot_bytes + embedded + written


def _batch(tasks: ResidentTasks, shape: FleetShape, rows: int) -> Batch:
    """Make a batch of rows whose tasks are drawn uniformly."""
    return Batch(tasks, np.random.default_rng(3).integers(0, shape.tasks, rows).tolist())


def _histories(shape: FleetShape, rows: int) -> list[Tokens]:
    return random_histories(shape, np.full(rows, LONGEST))
