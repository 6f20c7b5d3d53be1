"""The mixed-task forward answers every row as the plain reference answers it alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from peterrec.model.inference.batch_plan import SlotRef
from peterrec.model.inference.cpu.forward import PackedForward
from peterrec.model.inference.forward import mixed_forward
from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.network.patch import PatchWeights
from peterrec.model.spec import CLS, BackboneSpec, HeadSpec, Padding, PatchGeometry
from tests.model.random_tasks import RandomTask, random_backbone, random_history, random_task

TOLERANCE = 1e-5

GEOMETRIES = [
    PatchGeometry("serial2", 4, (0, 1)),
    PatchGeometry("serial2", 8, (1,), has_norms=True, has_cls=True),
    PatchGeometry("serial1", 6, (0, 1), has_norms=True),
    PatchGeometry("parallel2", 4, (0, 1), has_inner_skip=True),
    PatchGeometry("parallel2", 4, (1,), has_cls=True),
    PatchGeometry("serial2", 1, ()),
    PatchGeometry("serial2", 20, (1,), has_norms=True),
    PatchGeometry("serial2", 5, (), queries=3),
    PatchGeometry("parallel2", 18, (0, 1), has_norms=True, has_cls=True, queries=17),
]

SPECS = [
    BackboneSpec(60, 16, (1, 4), kernel, is_causal, padding, max_len=20)
    for kernel in (3, 5)
    for is_causal in (True, False)
    for padding in ("exact", "embedded")
]
SPECS.append(BackboneSpec(60, 17, (2, 1), max_len=20))
SPECS.append(BackboneSpec(60, 16, (2, 4), max_len=20))  # reads every second position only


class Fleet:
    """Tasks of every geometry resident beside one backbone."""

    def __init__(self, spec: BackboneSpec, tasks_per_geometry: int, chunk_positions: int) -> None:
        backbone = random_backbone(spec)
        self.forward = PackedForward(
            backbone, torch.float32, chunk_positions, trunk_cache_bytes=8_000
        )
        self.tasks: list[RandomTask] = []
        self.refs: list[SlotRef] = []
        for number, geometry in enumerate(GEOMETRIES):
            pool = WeightPool(geometry.shapes(spec.channels), torch.device("cpu"))
            for seed in range(tasks_per_geometry):
                seed += number * tasks_per_geometry
                task = random_task(backbone, geometry, HeadSpec("classification", 3), seed)
                self.tasks.append(task)
                self.refs.append(SlotRef(geometry, pool, pool.write(task.patch.named())))

    def worst_error(self, rows: list[tuple[int, list[int]]]) -> float:
        """Largest error over the batch, relative to the size of each row's user vector."""
        found = self.run(rows)
        expected = torch.stack([self.tasks[task].user_vector(history) for task, history in rows])
        scale = expected.abs().amax(1, keepdim=True).clamp(min=1)
        return ((found - expected).abs() / scale).max().item()

    def run(self, rows: list[tuple[int, list[int]]]) -> Tensor:
        """User vectors of (task, history) rows in one forward."""
        histories = [np.array(history, dtype=np.int32) for _, history in rows]
        return self.forward.user_vectors(histories, [self.refs[task] for task, _ in rows])


FLEETS = {spec: Fleet(spec, tasks_per_geometry=2, chunk_positions=64) for spec in SPECS}
TASKS = 2 * len(GEOMETRIES)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_row_of_a_random_mix_equals_the_reference_alone(data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from(SPECS))
    item = st.integers(4, spec.token_count - 1)
    row = st.tuples(st.integers(0, TASKS - 1), st.lists(item, max_size=30))
    rows = data.draw(st.lists(row, min_size=1, max_size=24))
    assert FLEETS[spec].worst_error(rows) <= TOLERANCE


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_all_tasks_in_one_batch_equal_the_reference(spec: BackboneSpec) -> None:
    rows = [(task, random_history(spec, 3 * task, task)) for task in range(TASKS)]
    assert FLEETS[spec].worst_error(rows) <= TOLERANCE


@pytest.mark.parametrize("task", range(TASKS))
def test_many_rows_of_one_task_equal_the_reference(task: int) -> None:
    spec = SPECS[0]
    rows = [(task, random_history(spec, length, length)) for length in range(25)]
    assert FLEETS[spec].worst_error(rows) <= TOLERANCE


def test_the_order_of_rows_is_irrelevant() -> None:
    spec = SPECS[0]
    rows = [(task, random_history(spec, 2 * task, task)) for task in range(TASKS)]
    forwards = FLEETS[spec].run(rows)
    backwards = FLEETS[spec].run(rows[::-1])
    torch.testing.assert_close(forwards, backwards.flip(0), rtol=TOLERANCE, atol=TOLERANCE)


def test_a_released_slot_serves_the_next_bundle_written_into_it() -> None:
    spec, geometry = SPECS[0], GEOMETRIES[0]
    backbone = random_backbone(spec)
    pool = WeightPool(geometry.shapes(spec.channels), torch.device("cpu"))
    old, new = (random_task(backbone, geometry, HeadSpec("value", 1), seed) for seed in (1, 2))
    slot = pool.write(old.patch.named())
    pool.release(slot)
    ref = SlotRef(geometry, pool, pool.write(new.patch.named()))
    assert ref.slot == slot
    history = random_history(spec, 9, 0)
    found = mixed_forward(backbone).user_vectors([history], [ref])[0]
    torch.testing.assert_close(found, new.user_vector(history), rtol=TOLERANCE, atol=TOLERANCE)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_rows_that_share_a_history_equal_the_reference(data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from(SPECS))
    item = st.integers(4, spec.token_count - 1)
    histories = data.draw(st.lists(st.lists(item, max_size=25), min_size=1, max_size=3))
    row = st.tuples(st.integers(0, TASKS - 1), st.sampled_from(histories))
    rows = data.draw(st.lists(row, min_size=1, max_size=30))
    assert FLEETS[spec].worst_error(rows) <= TOLERANCE


def test_histories_that_differ_only_before_what_is_read_share_their_trunk() -> None:
    spec = SPECS[0]
    newest = random_history(spec, spec.max_len, 1)
    rows = [(2, [*random_history(spec, 5, seed), *newest]) for seed in range(4)]
    assert FLEETS[spec].worst_error(rows) <= TOLERANCE
    found = FLEETS[spec].run(rows)
    assert torch.equal(found, found[:1].expand_as(found))


@pytest.mark.slow
def test_bfloat16_storage_stays_close_to_the_reference() -> None:
    spec = BackboneSpec(60, 32, (1, 4, 2), max_len=20)
    backbone = random_backbone(spec)
    forward = mixed_forward(backbone, torch.bfloat16)
    for geometry in GEOMETRIES:
        pool = WeightPool(geometry.shapes(spec.channels), torch.device("cpu"), torch.bfloat16)
        task = random_task(backbone, geometry, HeadSpec("value", 1), seed=3)
        ref = SlotRef(geometry, pool, pool.write(task.patch.named()))
        history = random_history(spec, 12, 1)
        found = forward.user_vectors([history, history[:4]], [ref, ref])
        expected = torch.stack([task.user_vector(history), task.user_vector(history[:4])])
        assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 0.03


def test_in_bfloat16_what_lies_beside_the_products_is_not_rounded() -> None:
    backbone = random_backbone(BackboneSpec(60, 32, (1, 4, 2), max_len=20))
    for block in backbone.blocks:
        norm = block.get_submodule("norm2")
        norm.get_parameter("weight").zero_()
        norm.get_parameter("bias").fill_(0.1)
    geometry = PatchGeometry("serial2", 1, ())
    pool = WeightPool(geometry.shapes(32), torch.device("cpu"), torch.bfloat16)
    task = random_task(backbone, geometry, HeadSpec("value", 1), seed=1)
    refs = [SlotRef(geometry, pool, pool.write(task.patch.named()))] * 90
    histories = [random_history(backbone.spec, 20, row) for row in range(90)]
    found = mixed_forward(backbone, torch.bfloat16).user_vectors(histories, refs)
    expected = backbone.embedding.weight[CLS] + 0.1 + 0.1 + 0.1
    assert torch.equal(found, expected.expand_as(found))


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [4, 8, 16])
def test_rounding_in_bfloat16_does_not_add_up_from_block_to_block(blocks: int) -> None:
    geometry = PatchGeometry("serial2", 8, tuple(range(blocks)), has_norms=True)
    backbone = random_backbone(BackboneSpec(60, 64, (1, 4) * (blocks // 2), max_len=50))
    task = random_task(backbone, geometry, HeadSpec("value", 1), seed=3)
    pool = WeightPool(geometry.shapes(64), torch.device("cpu"), torch.bfloat16)
    ref = SlotRef(geometry, pool, pool.write(task.patch.named()))
    histories = [random_history(backbone.spec, 50, row) for row in range(20)]
    found = mixed_forward(backbone, torch.bfloat16).user_vectors(histories, [ref] * 20)
    expected = torch.stack([task.user_vector(history) for history in histories])
    error = ((found - expected).norm() / expected.norm()).item()
    assert error < 0.003


def test_a_history_asked_again_goes_on_from_its_trunk() -> None:
    spec, geometry = BackboneSpec(60, 16, (1, 4, 2), max_len=20), PatchGeometry("serial2", 4, (2,))
    backbone = random_backbone(spec)
    forward = PackedForward(backbone, torch.float32, trunk_cache_bytes=100_000)
    pool = WeightPool(geometry.shapes(spec.channels), torch.device("cpu"))
    tasks = [random_task(backbone, geometry, HeadSpec("value", 1), seed) for seed in range(3)]
    refs = [SlotRef(geometry, pool, pool.write(task.patch.named())) for task in tasks]
    histories = [random_history(spec, length, length) for length in (9, 20, 0)]
    expected = torch.stack([tasks[at].user_vector(histories[at]) for at in range(3)])
    first = forward.user_vectors(histories, refs)
    again = forward.user_vectors(histories, refs)
    torch.testing.assert_close(first, expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert torch.equal(again, first)
    assert forward.activation_cache.hits == 3


@pytest.mark.parametrize("padding", ["exact", "embedded"])
def test_nothing_of_a_passing_history_is_cached(padding: Padding) -> None:
    spec = BackboneSpec(60, 16, (1, 4, 2), max_len=20, padding=padding)
    geometry = PatchGeometry("serial2", 4, (2,))
    backbone = random_backbone(spec)
    forward = PackedForward(backbone, torch.float32, trunk_cache_bytes=100_000)
    pool = WeightPool(geometry.shapes(spec.channels), torch.device("cpu"))
    task = random_task(backbone, geometry, HeadSpec("value", 1), 1)
    ref = SlotRef(geometry, pool, pool.write(task.patch.named()))
    histories = [np.array(random_history(spec, n, n), np.int32) for n in (9, 30, 5)]
    plain = forward.user_vectors(histories[:1], [ref])
    kept = forward.activation_cache.size_bytes
    again = forward.user_vectors(histories, [ref] * 3, [True, True, False])
    assert forward.activation_cache.hits == 1
    assert kept < forward.activation_cache.size_bytes <= 2 * kept
    assert torch.equal(again[:1], plain)
    forward.user_vectors(histories[1:2], [ref], [True])
    assert forward.activation_cache.hits == 1


@pytest.mark.parametrize(
    "geometry",
    [
        PatchGeometry("serial2", 8, (0, 1, 2, 3)),
        PatchGeometry("serial2", 8, (3,), queries=8),
        PatchGeometry("serial2", 8, (), queries=5),
    ],
)
def test_an_answer_has_the_same_bits_whatever_it_is_batched_with(geometry: PatchGeometry) -> None:
    spec = BackboneSpec(60, 64, (1, 4, 1, 4), max_len=20)
    backbone = random_backbone(spec)
    forward = PackedForward(backbone, torch.float32)
    pool = WeightPool(geometry.shapes(spec.channels), torch.device("cpu"))
    tasks = [random_task(backbone, geometry, HeadSpec("value", 1), seed) for seed in range(40)]
    refs = [SlotRef(geometry, pool, pool.write(task.patch.named())) for task in tasks]
    histories = [random_history(spec, length % 21, length) for length in range(40)]
    together = forward.user_vectors(histories, refs)
    for row in range(40):
        alone = forward.user_vectors(histories[row : row + 1], refs[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_patches_may_be_kept_in_half_the_bytes_of_the_activations() -> None:
    spec, geometry = BackboneSpec(60, 16, (1, 4), max_len=20), PatchGeometry("serial2", 4, (0, 1))
    backbone = random_backbone(spec)
    pool = WeightPool(geometry.shapes(spec.channels), torch.device("cpu"), torch.bfloat16)
    task = random_task(backbone, geometry, HeadSpec("value", 1), seed=1)
    ref = SlotRef(geometry, pool, pool.write(task.patch.named()))
    rounded = {name: t.bfloat16().float() for name, t in task.patch.named().items()}
    history = random_history(spec, 12, 1)
    found = mixed_forward(backbone).user_vectors([history] * 90, [ref] * 90)
    exact = RandomTask(backbone, PatchWeights.from_named(geometry, rounded), task.head)
    expected = exact.user_vector(history).expand(90, -1)
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    alone = mixed_forward(backbone).user_vectors([history], [ref])
    torch.testing.assert_close(alone, expected[:1], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("token", [-1, SPECS[0].token_count])
def test_a_token_that_is_none_is_refused(token: int) -> None:
    with pytest.raises(IndexError, match="outside"):
        FLEETS[SPECS[0]].run([(0, [5, token, 7])])
