"""The Triton kernels equal the reference on random mixes: on a GPU, else interpreted."""

import os
from collections.abc import Sequence

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from peterrec.model.inference.batch_plan import SlotRef
from peterrec.model.inference.gpu import conv_kernel
from peterrec.model.inference.gpu.forward import FusedForward
from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.spec import BackboneSpec, HeadSpec, PatchGeometry
from tests.model.random_tasks import RandomTask, random_backbone, random_history, random_task

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = 2e-5
HALF_TOLERANCE, BFLOAT16_TOLERANCE = 0.01, 0.08

GEOMETRIES = [
    PatchGeometry("serial2", 5, (0, 1, 2)),
    PatchGeometry("serial2", 8, (2,), has_norms=True, has_cls=True),
    PatchGeometry("serial1", 6, (1, 2), has_norms=True),
    PatchGeometry("parallel2", 4, (0, 1, 2), has_inner_skip=True),
    PatchGeometry("parallel2", 4, (0, 2), has_norms=True),
    PatchGeometry("serial2", 40, (1, 2)),
    PatchGeometry("serial2", 32, (0,)),
    PatchGeometry("serial2", 1, ()),
    PatchGeometry("serial2", 5, (), queries=3),
    PatchGeometry("parallel2", 18, (0, 2), has_norms=True, queries=17),
]


class Mix:
    """Two tasks of every geometry beside one backbone, run by the fused kernels."""

    def __init__(
        self,
        spec: BackboneSpec,
        geometries: Sequence[PatchGeometry] = GEOMETRIES,
        dtype: torch.dtype = torch.float32,
        chunk_rows: int = 64,
    ) -> None:
        self.backbone = random_backbone(spec)
        self.dtype = dtype
        self.forward = FusedForward(random_backbone(spec).to(DEVICE), dtype, chunk_rows)
        self.pools = {
            geometry: WeightPool(geometry.shapes(spec.channels), DEVICE, dtype, capacity=2)
            for geometry in geometries
        }
        self.tasks: list[RandomTask] = []
        self.refs: list[SlotRef] = []
        for geometry in geometries:
            self.add(geometry)
            self.add(geometry)

    def add(self, geometry: PatchGeometry) -> int:
        """Another task; its number."""
        task = random_task(self.backbone, geometry, HeadSpec("value", 1), len(self.tasks))
        pool = self.pools[geometry]
        self.tasks.append(task)
        self.refs.append(SlotRef(geometry, pool, pool.write(task.patch.named())))
        return len(self.tasks) - 1

    def worst_error(self, rows: list[tuple[int, list[int]]]) -> float:
        histories = [history for _, history in rows]
        found = self.forward.user_vectors(histories, [self.refs[task] for task, _ in rows]).cpu()
        expected = torch.stack([self.tasks[task].user_vector(history) for task, history in rows])
        return ((found - expected).abs() / expected.abs().amax().clamp(min=1)).max().item()

    def random_rows(self, lengths: list[int]) -> list[tuple[int, list[int]]]:
        """One row of each task after the other, of these lengths."""
        spec, tasks = self.forward.spec, len(self.tasks)
        return [(n % tasks, random_history(spec, length, n)) for n, length in enumerate(lengths)]


LENGTHS = [0, 1, 3, 20, 25, 7, 12, 2, 20, 5, 16, 9, 11, 4, 18, 6]
FEW = GEOMETRIES[:2]
SMALL = BackboneSpec(60, 16, (1, 4, 2), max_len=20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        BackboneSpec(60, 16, (1, 4, 2), max_len=20),
        BackboneSpec(60, 24, (1, 4, 2), kernel_size=5, max_len=20),
        BackboneSpec(60, 16, (1, 4, 2), is_causal=False, max_len=20),
        BackboneSpec(60, 16, (1, 4, 2), padding="embedded", max_len=20),
        BackboneSpec(60, 16, (2, 4, 2), max_len=20),
    ],
    ids=str,
)
def test_a_mix_of_all_geometries_and_lengths_equals_the_reference(spec: BackboneSpec) -> None:
    mix = Mix(spec)
    assert mix.worst_error(mix.random_rows(LENGTHS)) <= TOLERANCE


def test_tiles_that_hold_many_sequences_equal_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conv_kernel, "FULL_WAVE", 1)
    monkeypatch.setattr(conv_kernel, "SEQUENCES_PER_TILE", 1000)
    mix = Mix(SMALL, dtype=torch.float16)  # of the small numbers, what an interpreted dot takes
    assert mix.worst_error(mix.random_rows(LENGTHS)) <= HALF_TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [64, 256])
def test_bfloat16_stays_close_to_the_reference(channels: int) -> None:
    mix = Mix(BackboneSpec(60, channels, (1, 4, 2), max_len=20), dtype=torch.bfloat16)
    rows = mix.random_rows(LENGTHS * 40)
    assert mix.worst_error(rows) <= BFLOAT16_TOLERANCE
    assert mix.worst_error(rows) <= BFLOAT16_TOLERANCE  # captured
    assert mix.worst_error(rows) <= BFLOAT16_TOLERANCE  # replayed


@pytest.mark.slow
def test_a_row_alone_equals_the_reference() -> None:
    mix = Mix(SMALL)
    for row in mix.random_rows([7] * len(mix.tasks)):
        assert mix.worst_error([row]) <= TOLERANCE


def test_rows_that_share_a_history_equal_the_reference() -> None:
    history, mix = random_history(SMALL, 11, 3), Mix(SMALL)
    assert mix.worst_error([(task, history) for task in range(len(mix.tasks))]) <= TOLERANCE


def test_more_rows_than_a_chunk_holds_equal_the_reference() -> None:
    mix = Mix(SMALL, FEW, chunk_rows=3)
    rows = mix.random_rows(LENGTHS[:5])
    assert mix.worst_error([*rows, *reversed(rows)]) <= TOLERANCE


def test_a_shape_that_comes_again_answers_the_rows_it_has_then() -> None:
    mix = Mix(SMALL, FEW)
    rows = mix.random_rows(LENGTHS[:4])
    mix.worst_error(rows)  # compiles; the next time launches are captured, then replayed
    assert mix.worst_error(rows[::-1]) <= TOLERANCE
    assert mix.worst_error(mix.random_rows(LENGTHS[4:8])) <= TOLERANCE
    assert mix.worst_error(rows[:-1]) <= TOLERANCE


def test_a_pool_that_grows_between_batches_is_read_where_it_lies_then() -> None:
    mix = Mix(SMALL, FEW)
    rows = mix.random_rows(LENGTHS[:4])
    mix.worst_error(rows)
    mix.worst_error(rows)
    new = mix.add(GEOMETRIES[0])
    assert mix.pools[GEOMETRIES[0]].generation == 1
    assert mix.worst_error([(new, rows[0][1]), *rows[1:]]) <= TOLERANCE


def test_a_slot_written_again_is_read_as_it_is_then() -> None:
    mix, geometry = Mix(SMALL, FEW), GEOMETRIES[0]
    rows = mix.random_rows(LENGTHS[:4])
    mix.worst_error(rows)
    mix.worst_error(rows)
    mix.pools[geometry].release(mix.refs[0].slot)
    new = mix.add(geometry)
    assert mix.refs[new].slot == mix.refs[0].slot
    assert mix.worst_error([(new, rows[0][1]), *rows[1:]]) <= TOLERANCE


def test_no_rows_have_no_user_vectors() -> None:
    assert Mix(SMALL, FEW).forward.user_vectors([], []).shape == (0, SMALL.channels)


@pytest.mark.parametrize("token", [-1, SMALL.token_count])
def test_a_token_that_is_none_is_refused(token: int) -> None:
    with pytest.raises(IndexError, match="outside"):
        Mix(SMALL, FEW).worst_error([(0, [5, token, 7])])


def test_rows_after_a_batch_that_was_refused_equal_the_reference() -> None:
    mix = Mix(SMALL, FEW, chunk_rows=2)
    rows = mix.random_rows(LENGTHS[:4])
    with pytest.raises(IndexError, match="outside"):
        mix.worst_error([*rows, (3, [SMALL.token_count])])
    assert mix.worst_error(rows) <= TOLERANCE
