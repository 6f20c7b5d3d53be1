"""Products of operands rounded to bfloat16, as a processor with matrix units runs the forward.

Where there are none, the same products are taken number by number.
"""

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor

from peterrec.model.inference.batch_plan import SlotRef
from peterrec.model.inference.cpu.amx import HAS_MATRIX_UNITS, begin_tiles, end_tiles, may_use_tiles
from peterrec.model.inference.cpu.conv_bfloat16 import (
    multiply_by_number,
    multiply_in_tiles,
    packed_pairs,
    whole_tiles,
)
from peterrec.model.inference.cpu.forward import PackedForward
from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.network.backbone import Backbone
from peterrec.model.spec import BackboneSpec, HeadSpec, PatchGeometry
from tests.model.random_tasks import RandomTask, random_backbone, random_history, random_task

pytestmark = pytest.mark.skipif(
    HAS_MATRIX_UNITS and not may_use_tiles(), reason="the system does not let us use its units"
)

multiply = multiply_in_tiles if HAS_MATRIX_UNITS else multiply_by_number


@njit
def _product(
    x, x_step, count, rest, weight, other, depth, columns, start, y, y_step, kept
):  # fmt: skip
    if HAS_MATRIX_UNITS:
        begin_tiles(kept)
    multiply(x, x_step, count, rest, weight, other, depth, columns, start, 0, y, y_step)
    if HAS_MATRIX_UNITS:
        end_tiles(kept)


def _parts(exact: Tensor) -> tuple[Tensor, Tensor]:
    rounded = exact.bfloat16().float()
    return rounded, exact - rounded


@pytest.mark.parametrize("channels", [16, 17, 64, 80])
@pytest.mark.parametrize("count", [1, 16, 17, 33])
@pytest.mark.parametrize("parts", [1, 2])
def test_products_are_those_of_the_rounded_operands(channels: int, count: int, parts: int) -> None:
    torch.manual_seed(count)
    taps, wide = 3, whole_tiles(channels)
    x, weight = torch.randn(count, taps, channels), torch.randn(taps, channels, channels)
    bias = torch.randn(wide)
    padded = torch.zeros(whole_tiles(count), 2, taps, wide)
    for part, values in enumerate(_parts(x)):
        padded[:count, part, :, :channels] = values
    operands = padded.bfloat16()
    pairs, rest = (packed_pairs(part) for part in _parts(weight))
    y, kept = torch.full((whole_tiles(count), wide), torch.nan), torch.zeros(16)
    _product(
        operands.data_ptr(), 4 * taps * wide, count, 2 * taps * wide * (parts - 1),
        pairs.data_ptr(), rest.data_ptr() if parts > 1 else 0, taps * wide // 32, wide,
        bias.data_ptr(), y.data_ptr(), 4 * wide, kept.data_ptr(),
    )  # fmt: skip
    x, weight = (_parts(t)[0] if parts == 1 else t for t in (x, weight))
    exact = torch.einsum("ntc,tcd->nd", x.double(), weight.double()) + bias[:channels]
    worst = (y[:count, :channels] - exact).abs().max() / exact.abs().max()
    assert worst < (1e-6 if parts == 1 else 3e-5)  # of the products of two rests none is taken


def _forward(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> PackedForward:
    monkeypatch.setattr("peterrec.model.inference.cpu.forward.may_use_tiles", lambda: True)
    return PackedForward(backbone, torch.bfloat16, chunk_positions=64)


def _refs(tasks: list[RandomTask], channels: int, dtype: torch.dtype) -> list[SlotRef]:
    pools: dict[PatchGeometry, WeightPool] = {}
    refs = []
    for task in tasks:
        geometry = task.patch.geometry
        if geometry not in pools:
            pools[geometry] = WeightPool(geometry.shapes(channels), torch.device("cpu"), dtype)
        pool = pools[geometry]
        refs.append(SlotRef(geometry, pool, pool.write(task.patch.named())))
    return refs


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        BackboneSpec(60, 32, (1, 4, 1), max_len=50),
        BackboneSpec(60, 17, (2, 1), max_len=20, is_causal=False),
        BackboneSpec(60, 48, (1, 4), 5, max_len=20),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_kind_of_patch_stays_close_to_the_reference(
    spec: BackboneSpec, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = random_backbone(spec)
    geometries = [
        PatchGeometry("serial2", 4, (0, 1)),
        PatchGeometry("serial2", 40, (1,), has_norms=True, has_cls=True),
        PatchGeometry("serial1", 6, (0, 1), has_norms=True),
        PatchGeometry("parallel2", 33, (0, 1), has_inner_skip=True),
        PatchGeometry("parallel2", 4, (1,)),
        PatchGeometry("serial2", 1, ()),
    ]
    head = HeadSpec("value", 1)
    tasks = [random_task(backbone, geometry, head, 3) for geometry in geometries for _ in range(3)]
    lengths = (3, 12, spec.max_len)
    histories = [random_history(spec, length, length) for length in lengths] * len(geometries)
    found = _forward(backbone, monkeypatch).user_vectors(
        histories, _refs(tasks, spec.channels, dtype)
    )
    for row, (task, history) in enumerate(zip(tasks, histories, strict=True)):
        expected = task.user_vector(history)
        assert (found[row] - expected).norm() / expected.norm() < 0.01


def test_an_answer_has_the_same_bits_whatever_it_is_batched_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, geometry = (
        BackboneSpec(60, 32, (1, 4, 1), max_len=20),
        PatchGeometry("serial2", 8, (0, 1, 2)),
    )
    backbone = random_backbone(spec)
    forward = _forward(backbone, monkeypatch)
    tasks = [random_task(backbone, geometry, HeadSpec("value", 1), seed) for seed in range(20)]
    refs = _refs(tasks, 32, torch.bfloat16)
    histories = [random_history(spec, length % 21, length) for length in range(20)]
    together = forward.user_vectors(histories, refs)
    for row in range(20):
        alone = forward.user_vectors(histories[row : row + 1], refs[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_what_is_no_number_stays_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, geometry = (
        BackboneSpec(60, 32, (1, 4, 1), max_len=20),
        PatchGeometry("serial2", 8, (0, 1, 2)),
    )
    backbone = random_backbone(spec)
    forward = _forward(backbone, monkeypatch)
    tasks = [random_task(backbone, geometry, HeadSpec("value", 1), seed) for seed in range(5)]
    refs = _refs(tasks, 32, torch.bfloat16)
    histories = [random_history(spec, 9 + row, row) for row in range(5)]
    before = forward.user_vectors(histories, refs)
    broken = {name: torch.full_like(t, torch.nan) for name, t in tasks[2].patch.named().items()}
    refs[2] = SlotRef(geometry, refs[2].pool, refs[2].pool.write(broken))
    after = forward.user_vectors(histories, refs)
    assert after[2].isnan().any()
    others = [0, 1, 3, 4]
    assert torch.equal(after[others], before[others])


def test_without_matrix_units_products_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, geometry = BackboneSpec(60, 32, (1, 4), max_len=20), PatchGeometry("serial2", 8, (0, 1))
    backbone = random_backbone(spec)
    monkeypatch.setattr("peterrec.model.inference.cpu.forward.may_use_tiles", lambda: False)
    refs = _refs([random_task(backbone, geometry, HeadSpec("value", 1), 1)], 32, torch.bfloat16)
    history = [np.array(random_history(spec, 12, 1), dtype=np.int32)]
    narrow, exact = (
        PackedForward(backbone, dtype).user_vectors(history, refs)
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert torch.equal(narrow, exact)


@pytest.mark.skipif(not HAS_MATRIX_UNITS, reason="needs matrix units")
def test_the_units_serve_another_library_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, geometry = BackboneSpec(60, 32, (1, 4), max_len=20), PatchGeometry("serial2", 8, (0, 1))
    backbone = random_backbone(spec)
    forward = _forward(backbone, monkeypatch)
    refs = _refs([random_task(backbone, geometry, HeadSpec("value", 1), 1)], 32, torch.bfloat16)
    history = [random_history(spec, 12, 1)]
    x, weight = torch.randn(40, 100).bfloat16(), torch.randn(100, 30).bfloat16()
    theirs, ours = x @ weight, forward.user_vectors(history, refs)
    for _ in range(3):
        assert torch.equal(x @ weight, theirs)
        assert torch.equal(forward.user_vectors(history, refs), ours)
