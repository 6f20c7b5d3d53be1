"""What batches need is compiled and captured before; keys are planned without a GPU."""

import os

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from peterrec.model.inference.batch_plan import RowPatches, SlotRef
from peterrec.model.inference.gpu.forward import Batch, FusedForward
from peterrec.model.inference.gpu.layout import GraphKey, graph_key
from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.spec import BackboneSpec, PatchGeometry
from tests.model.inference.gpu.test_blocks import GEOMETRIES, Mix
from tests.model.random_tasks import random_backbone, random_history

CPU = torch.device("cpu")
SPEC = BackboneSpec(60, 16, (1, 4, 2), max_len=20)
CHUNK_ROWS = 32


def key_of(forward: FusedForward, refs: list[SlotRef], histories: list[list[int]]) -> GraphKey:
    rows = np.arange(len(refs), dtype=np.int32)
    patches = RowPatches.of(refs, len(forward.spec.dilations))
    batch = Batch(histories, forward._history_of(histories, patches), patches)
    return graph_key(forward._numbers(rows, batch), forward._network.table)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("is_causal", [True, False])
def test_every_batch_of_one_geometry_has_a_key_that_is_captured_before(
    geometry: PatchGeometry, is_causal: bool
) -> None:
    spec = BackboneSpec(60, 16, (1, 4, 2), max_len=20, is_causal=is_causal)
    forward = FusedForward(random_backbone(spec), torch.float32, CHUNK_ROWS)
    pool = WeightPool(geometry.shapes(16), CPU, capacity=2)
    ref = SlotRef(geometry, pool, 0)
    captured = {
        key_of(forward, [ref] * rows, [random_history(spec, length, row) for row in range(rows)])
        for rows, length in forward._sizes()
    }
    random = np.random.default_rng(1)
    for seed in range(200):
        lengths = random.integers(0, random.integers(1, 40), random.integers(1, CHUNK_ROWS + 1))
        same = random.integers(1, 4)
        numbered = enumerate(lengths.tolist())
        histories = [random_history(spec, n, seed + at // int(same)) for at, n in numbered]
        assert key_of(forward, [ref] * len(lengths), histories) in captured


def test_steps_of_a_capture_leave_answers_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    mix = Mix(SPEC, GEOMETRIES[:2], chunk_rows=2)
    rows = mix.random_rows([3, 9])
    before = mix.forward.user_vectors([h for _, h in rows], [mix.refs[task] for task, _ in rows])
    for ref in mix.refs[::2]:
        for _ in mix.forward.capture(ref):
            pass
    after = mix.forward.user_vectors([h for _, h in rows], [mix.refs[task] for task, _ in rows])
    assert torch.equal(before, after)


def test_a_capture_ends_when_the_pool_moves() -> None:
    mix = Mix(SPEC, GEOMETRIES[:1], chunk_rows=2)
    steps = mix.forward.capture(mix.refs[0])
    next(steps)
    mix.add(GEOMETRIES[0])
    assert list(steps) == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_batch_compiles_anything_once_its_geometries_are_prepared(dtype: torch.dtype) -> None:
    mix = Mix(SPEC, GEOMETRIES, dtype=dtype, chunk_rows=CHUNK_ROWS)
    for geometry in GEOMETRIES:
        mix.forward.prepare(geometry, dtype, lambda: None)
    for ref in mix.refs[::2]:
        for _ in mix.forward.capture(ref):
            pass
    before = mix.forward.compilations
    assert before > 0
    random = np.random.default_rng(1)
    for seed in range(300):
        tasks = random.integers(0, len(mix.refs), random.integers(1, 3 * CHUNK_ROWS))
        tasks = tasks if seed % 2 else np.full_like(tasks, tasks[0])
        histories = [random_history(SPEC, int(random.integers(0, 30)), seed) for _ in tasks]
        mix.forward.user_vectors(histories, [mix.refs[task] for task in tasks.tolist()])
    assert mix.forward.compilations == before


@pytest.mark.gpu
def test_another_thread_compiles_while_batches_run() -> None:
    from concurrent.futures import ThreadPoolExecutor

    mix = Mix(SPEC, GEOMETRIES[:2], chunk_rows=CHUNK_ROWS)
    rows = mix.random_rows([3, 9, 20, 0])
    with ThreadPoolExecutor(1) as thread:
        compiling = thread.submit(mix.forward.prepare, GEOMETRIES[3], torch.float32, lambda: None)
        while not compiling.done():
            assert mix.worst_error(rows) <= 2e-5
        compiling.result()


@pytest.mark.parametrize("geometry", [GEOMETRIES[0], GEOMETRIES[1], GEOMETRIES[8]], ids=str)
def test_single_rows_of_any_task_and_history_equal_the_reference(geometry: PatchGeometry) -> None:
    mix = Mix(SPEC, [geometry], chunk_rows=4)
    for length in (3, 25, 0, 3):
        for task in (0, 1, 0):
            rows = [(task, random_history(SPEC, length, length + task))]
            assert mix.worst_error(rows) <= 2e-5
    mix.add(geometry)  # the pool moves
    assert mix.worst_error([(2, random_history(SPEC, 3, 1))]) <= 2e-5
    assert mix.worst_error([(0, random_history(SPEC, 3, 2))]) <= 2e-5
    with pytest.raises(IndexError, match="outside"):
        mix.forward.user_vectors([[SPEC.token_count]] * 1, [mix.refs[0]])
