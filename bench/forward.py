"""The bare forward on a CPU core: against a loop over tasks, a gathered product, and the core.

``vs_loop``: the plain padded forward, once per distinct task. ``vs_bmm``: one padded float32
forward whose patches are gathered and applied with ``torch.bmm``. ``gemm_share``: useful
arithmetic per second over the best rate of a large matrix product on the same core.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench.forward_fixture import (
    ResidentTasks,
    paired_ratio,
    paired_seconds,
    random_histories,
    resident_tasks,
)
from bench.random_fleet import FleetShape
from bench.report import Report
from model.backbone import Backbone, ResidualBlock
from model.cone import plan
from model.framing import Tokens, frame_histories
from model.kernels.cpu import packed_linear
from model.lanes import SlotRef
from model.patch import PatchWeights
from model.spec import BackboneSpec

LARGE = 2048
MEAN_LENGTH, LONGEST = 12, 50

SMALLEST_OF_WIDTHS = {"vs_loop", "vs_bmm_fp32", "vs_bmm_bf16", "ragged"}
"""Figures quoted for the width where they are worst."""


def main(arguments: list[str]) -> None:
    """``python -m bench forward``."""
    parser = argparse.ArgumentParser(prog="python -m bench forward", description=__doc__)
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--device", default="cpu", help="on cuda: vs_loop and ragged only")
    parser.add_argument("--repeats", type=int, default=7)
    run(parser.parse_args(arguments)).show()


def run(options: argparse.Namespace) -> Report:
    """One thread; every contender answers the same rows, checked against each other."""
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    rows: list[list[str]] = []
    for channels in options.channels:
        shape = FleetShape(options.tasks, channels)
        found = measure(shape, options) if options.device == "cpu" else on_gpu(shape, options)
        rows += [[str(channels), name, f"{value:.2f}"] for name, value in found.items()]
        figures |= {f"{name}_c{channels}": value for name, value in found.items()}
    for name in {name.rpartition("_c")[0] for name in figures} & SMALLEST_OF_WIDTHS:
        figures[name] = min(figures[f"{name}_c{channels}"] for channels in options.channels)
    if options.device == "cpu":
        for name in ("gemm_share_fp32", "gemm_share_bf16"):  # of the widest
            figures[name] = figures[f"{name}_c{max(options.channels)}"]
    settings = {**vars(options), "threads": 1}
    return Report("forward", figures, settings, ("channels", "figure", "ratio"), rows)


def on_gpu(shape: FleetShape, options: argparse.Namespace) -> dict[str, float]:
    """What is compared on a GPU; the plain loop runs there too."""
    torch.backends.cudnn.allow_tf32 = False  # the loop's convolutions would lose three digits
    tasks = resident_tasks(shape, device=options.device)
    narrow = resident_tasks(shape, torch.bfloat16, device=options.device)
    chosen = np.random.default_rng(3).integers(0, shape.tasks, options.rows).tolist()
    full = random_histories(shape, np.full(options.rows, LONGEST))
    short = random_histories(shape, zipf_lengths(options.rows))
    batch = Batch(tasks, chosen)
    _require_equal(batch.mixed(full), batch.loop(full))
    seconds = paired_seconds(
        {
            "fp32": lambda: batch.mixed(full),
            "bf16": lambda: Batch(narrow, chosen).mixed(full),
            "ragged": lambda: batch.mixed(short),
            "loop": lambda: batch.loop(full),
        },
        options.repeats,
    )
    return {
        "vs_loop": paired_ratio(seconds, "loop", "fp32"),
        "ragged": paired_ratio(seconds, "fp32", "ragged"),
        "rows_per_s_fp32": options.rows / median(seconds["fp32"]),
        "rows_per_s_bf16": options.rows / median(seconds["bf16"]),
    }


def measure(shape: FleetShape, options: argparse.Namespace) -> dict[str, float]:
    """All figures of one size."""
    exact, narrow = resident_tasks(shape), resident_tasks(shape, torch.bfloat16)
    chosen = np.random.default_rng(3).integers(0, shape.tasks, options.rows).tolist()
    full = random_histories(shape, np.full(options.rows, LONGEST))
    short = random_histories(shape, zipf_lengths(options.rows))
    gathered = GatheredForward.of(exact)
    batch = Batch(exact, chosen)
    _require_equal(batch.mixed(full), gathered.user_vectors(full, batch.refs))
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
    return figures


def zipf_lengths(rows: int) -> np.ndarray:
    """Lengths from 1 to 50 with a mean of about 12, most of them short."""
    lengths = np.arange(1, LONGEST + 1)
    weights = 1 / lengths**0.7
    drawn = np.random.default_rng(5).choice(lengths, rows, p=weights / weights.sum())
    scaled: np.ndarray = np.round(drawn * MEAN_LENGTH / drawn.mean()).clip(1, LONGEST).astype(int)
    return scaled


def useful_operations(shape: FleetShape) -> float:
    """Multiplications and additions of one row of 50 items: products only, cone positions only."""
    spec_positions = plan(BackboneSpec(shape.items, shape.channels), LONGEST + 1).conv_positions
    conv = 2 * 3 * shape.channels**2
    patch = 2 * 2 * shape.channels * shape.geometry.bottleneck
    return float(spec_positions * (conv + patch))


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of chosen tasks."""

    tasks: ResidentTasks
    chosen: Sequence[int]

    @property
    def refs(self) -> list[SlotRef]:
        """A slot for every row."""
        return [self.tasks.refs[task] for task in self.chosen]

    def mixed(self, histories: list[Tokens]) -> Tensor:
        """All rows in one forward."""
        return self.tasks.forward.user_vectors(histories, self.refs)

    @torch.inference_mode()
    def loop(self, histories: list[Tokens]) -> Tensor:
        """The plain padded forward once per distinct task; user vectors [B, C]."""
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for row, task in enumerate(self.chosen):
            groups[task].append(row)
        backbone = self.tasks.backbone
        device = backbone.embedding.weight.device
        out = torch.empty(len(histories), backbone.spec.channels, device=device)
        for task, members in groups.items():
            ref = self.tasks.refs[task]
            named = {name: tensor[ref.slot] for name, tensor in ref.slab.tensors.items()}
            tokens = frame_histories([histories[row] for row in members], backbone.spec)
            patch = PatchWeights.from_named(ref.geometry, named)
            out[members] = backbone.user_vectors(tokens.to(device), patch)
        return out


@dataclass(frozen=True, slots=True)
class GatheredForward:
    """What a good engineer writes first: one padded forward, patches gathered, ``torch.bmm``."""

    backbone: Backbone
    convs: Sequence[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, tasks: ResidentTasks) -> "GatheredForward":
        """Convolutions as products over three concatenated taps."""
        convs = []
        for block in tasks.backbone.blocks:
            assert isinstance(block, ResidualBlock)
            for conv in (block.conv1, block.conv2):
                convs.append((conv.weight.transpose(1, 2).flatten(1).contiguous(), conv.bias))
        return cls(tasks.backbone, convs)

    @torch.inference_mode()
    def user_vectors(self, histories: list[Tokens], refs: Sequence[SlotRef]) -> Tensor:
        """User vectors [B, C]; all rows have one length here, so nothing is masked."""
        spec, tensors = self.backbone.spec, refs[0].slab.tensors
        slots = torch.tensor([ref.slot for ref in refs])
        x = self.backbone.embedding(frame_histories(histories, spec))  # [B, T, C]
        length = x.shape[1]
        norms = [n for b in self.backbone.blocks for n in (b.norm1, b.norm2)]
        for block in range(0, len(self.convs), 2):
            y = x
            for at in (block, block + 1):
                reach = spec.conv_dilations[at]
                padded = functional.pad(y, (0, 0, 2 * reach, 0))
                taps = [padded[:, t * reach : t * reach + length] for t in range(3)]
                y = functional.linear(torch.cat(taps, 2), *self.convs[at])
                down, up = tensors["patch.down"][slots, at], tensors["patch.up"][slots, at]
                h = torch.bmm(y, down) + tensors["patch.down_bias"][slots, at].unsqueeze(1)
                h = functional.gelu(h, approximate="tanh")
                y = y + torch.bmm(h, up) + tensors["patch.up_bias"][slots, at].unsqueeze(1)
                y = torch.relu(norms[at](y))  # type: ignore[operator]  # a LayerNorm
            x = x + y
        last: Tensor = x[:, -1]
        return last


class LargeProduct:
    """A large matrix product by the library that the forward itself uses."""

    def __init__(self, dtype: torch.dtype) -> None:
        weight = torch.randn(LARGE, LARGE).to(dtype)
        self._x = torch.randn(LARGE, LARGE).to(dtype)
        self._product = packed_linear(weight, torch.zeros(LARGE, dtype=dtype))

    def __call__(self) -> Tensor:
        return self._product(self._x)


def _require_equal(ours: Tensor, theirs: Tensor) -> None:
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    if error > 1e-4:
        raise SystemExit(f"the contenders disagree: relative error {error:.2g}")
