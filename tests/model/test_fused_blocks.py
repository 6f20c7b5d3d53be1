"""The Triton kernel equals the reference on random mixes: on a GPU, else interpreted."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from model.fused_forward import FusedForward
from model.lanes import SlotRef
from model.slab import Slab
from model.spec import BackboneSpec, HeadSpec, PatchGeometry
from tests.model.random_tasks import RandomTask, random_backbone, random_history, random_task

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = 2e-5

GEOMETRIES = [
    PatchGeometry("serial2", 5, (0, 1, 2)),
    PatchGeometry("serial2", 8, (2,), has_norms=True, has_cls=True),
    PatchGeometry("serial1", 6, (1, 2), has_norms=True),
    PatchGeometry("parallel2", 4, (0, 1, 2), has_inner_skip=True),
    PatchGeometry("parallel2", 4, (0, 2), has_norms=True),
    PatchGeometry("serial2", 1, ()),
]


class Mix:
    """Two tasks of every geometry beside one backbone, run by the fused kernel."""

    def __init__(self, spec: BackboneSpec) -> None:
        backbone = random_backbone(spec)
        on_device = random_backbone(spec).to(DEVICE)
        self.forward = FusedForward(on_device)
        self.tasks: list[RandomTask] = []
        self.refs: list[SlotRef] = []
        for geometry in GEOMETRIES:
            slab = Slab(geometry.shapes(spec.channels), DEVICE, capacity=4)
            for _ in range(2):
                seed = len(self.tasks)
                task = random_task(backbone, geometry, HeadSpec("value", 1), seed)
                self.tasks.append(task)
                self.refs.append(SlotRef(geometry, slab, slab.write(task.patch.named())))

    def worst_error(self, rows: list[tuple[int, list[int]]]) -> float:
        histories = [history for _, history in rows]
        found = self.forward.user_vectors(histories, [self.refs[task] for task, _ in rows]).cpu()
        expected = torch.stack([self.tasks[task].user_vector(history) for task, history in rows])
        return ((found - expected).abs() / expected.abs().amax().clamp(min=1)).max().item()


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
    lengths = [0, 1, 3, 20, 25, 7, 12, 2, 20, 5, 16, 9]
    rows = [
        (task, random_history(spec, length, task))
        for task, length in enumerate(lengths[: len(mix.tasks)])
    ]
    assert mix.worst_error(rows) <= TOLERANCE


def test_rows_that_share_a_history_equal_the_reference() -> None:
    spec = BackboneSpec(60, 16, (1, 4, 2), max_len=20)
    history = random_history(spec, 11, 3)
    mix = Mix(spec)
    assert mix.worst_error([(task, history) for task in range(len(mix.tasks))]) <= TOLERANCE
