"""The bare forward on one CPU core or on a GPU, compared with simpler forwards and peak rates.

``vs_loop`` compares with the plain padded forward, which runs once per distinct task. ``vs_bmm``
compares with one padded float32 forward whose patches are gathered and applied by ``torch.bmm``.
``gemm_share`` is the useful arithmetic per second, divided by the rate of a large matrix product on
the same core. ``table`` is the time of rows with an item table, heads included, divided by that of
the same rows without.
"""

import argparse
from statistics import median

import numpy as np
import torch
from torch import Tensor

from bench.forward_contenders import (
    LONGEST,
    Batch,
    GatheredForward,
    require_equal,
    useful_operations,
    zipf_lengths,
)
from bench.forward_fixture import (
    ResidentHeads,
    paired_ratio,
    paired_seconds,
    random_histories,
    resident_tasks,
)
from bench.forward_gpu import measure_gpu
from bench.random_fleet import FleetShape
from bench.report import Report

LARGE = 2048
"""Number of rows and columns of the large matrix product's operands."""

SMALLEST_OF_WIDTHS = {"vs_loop", "vs_bmm_fp32", "vs_bmm_bf16", "ragged"}
LARGEST_OF_WIDTHS = {"table", "table_large", "table_bf16"}
"""Figures that are reported for the number of channels with the worst value."""

LONG_HISTORY = 10_000
"""Items of the longest history of a request."""

OF_WIDEST = {
    *("gemm_share_fp32", "gemm_share_bf16", "floor_share", "batch1_ms", "gpu_mixed"),
    *("vs_eager", "vs_compile", "vs_graph"),
}
"""Figures that are reported for the widest backbone."""


def main(arguments: list[str]) -> None:
    """``python -m bench forward``."""
    parser = argparse.ArgumentParser(prog="python -m bench forward", description=__doc__)
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda with its own figures")
    parser.add_argument("--large-rows", type=int, default=2048, help="rows that fill a GPU")
    parser.add_argument("--repeats", type=int, default=7)
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """Measure on one thread. All contenders compute the same rows, and results are compared."""
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    rows: list[list[str]] = []
    for channels in options.channels:
        shape = FleetShape(options.tasks, channels)
        found = measure(shape, options) if options.device == "cpu" else measure_gpu(shape, options)
        rows += [[str(channels), name, f"{value:.3g}"] for name, value in found.items()]
        figures |= {f"{name}_c{channels}": value for name, value in found.items()}
    for name in {name.rpartition("_c")[0] for name in figures} & SMALLEST_OF_WIDTHS:
        figures[name] = min(figures[f"{name}_c{channels}"] for channels in options.channels)
    for name in {name.rpartition("_c")[0] for name in figures} & LARGEST_OF_WIDTHS:
        figures[name] = max(figures[f"{name}_c{channels}"] for channels in options.channels)
    widest = max(options.channels)
    figures |= {n: figures[f"{n}_c{widest}"] for n in OF_WIDEST if f"{n}_c{widest}" in figures}
    settings = {**vars(options), "threads": 1}
    if options.device != "cpu":
        settings["card"] = torch.cuda.get_device_name()
    return Report("forward", figures, settings, ("channels", "figure", "ratio"), rows)


def measure(shape: FleetShape, options: argparse.Namespace) -> dict[str, float]:
    """Measure all figures of one backbone and task size."""
    exact, narrow = resident_tasks(shape), resident_tasks(shape, torch.bfloat16)
    chosen = np.random.default_rng(3).integers(0, shape.tasks, options.rows).tolist()
    full = random_histories(shape, np.full(options.rows, LONGEST))
    short = random_histories(shape, zipf_lengths(options.rows))
    gathered = GatheredForward(exact)
    batch = Batch(exact, chosen)
    require_equal(batch.mixed(full), gathered.user_vectors(full, batch.refs))
    seconds = paired_seconds(
        {
            "fp32": lambda: batch.mixed(full),
            "bf16": lambda: Batch(narrow, chosen).mixed(full),
            "ragged": lambda: batch.mixed(short),
            "loop": lambda: batch.loop(full),
            "bmm": lambda: gathered.user_vectors(full, batch.refs),
            "large_fp32": LargeProduct(torch.float32),
            "large_bf16": LargeProduct(torch.bfloat16),
        },
        options.repeats,
    )
    useful = options.rows * useful_operations(shape)
    figures = {
        "vs_loop": paired_ratio(seconds, "loop", "fp32"),
        "vs_bmm_fp32": paired_ratio(seconds, "bmm", "fp32"),
        "vs_bmm_bf16": paired_ratio(seconds, "bmm", "bf16"),
        "ragged": paired_ratio(seconds, "fp32", "ragged"),
        "rows_per_s_fp32": options.rows / median(seconds["fp32"]),
        "rows_per_s_bf16": options.rows / median(seconds["bf16"]),
    }
    for name in ("fp32", "bf16"):
        rate = 2 * LARGE**3 / median(seconds[f"large_{name}"])
        figures[f"gemm_share_{name}"] = useful / median(seconds[name]) / rate
    for tasks, name in ((exact, "table"), (narrow, "table_bf16")):
        heads = ResidentHeads.of(shape, tasks)
        figures[name] = paired_ratio(
            heads.table_cost(chosen, full, options.repeats), "with", "without"
        )
    return figures | {"table_us_per_1000_items": _long_history(heads, shape, options)}


def _long_history(heads: ResidentHeads, shape: FleetShape, options: argparse.Namespace) -> float:
    """Microseconds that a table takes for a thousand items of a very long history."""
    history = random_histories(shape, np.full(1, LONG_HISTORY))
    seconds = heads.table_cost([0], history, 3 * options.repeats)
    differences = (a - b for a, b in zip(seconds["with"], seconds["without"], strict=True))
    return 1e6 * median(differences) * 1000 / LONG_HISTORY


class LargeProduct:
    """A large matrix product with the fastest library that PyTorch offers.

    If available, this is oneDNN with a weight that was reordered beforehand: PyTorch's default for
    float32 (MKL) reaches less than half of oneDNN's rate on processors that are not from Intel. On
    a processor without bfloat16 products the product is computed in float32, like our forward.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]  # torch's
        if not self._has_onednn or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            dtype = torch.float32
        self._x, self._weight = (torch.randn(LARGE, LARGE).to(dtype) for _ in range(2))
        if self._has_onednn:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, LARGE)

    def __call__(self) -> Tensor:
        if not self._has_onednn:
            return self._x @ self._weight
        linear = torch.ops.mkldnn._linear_pointwise
        product: Tensor = linear(self._x, self._weight, None, "none", [], "")
        return product
