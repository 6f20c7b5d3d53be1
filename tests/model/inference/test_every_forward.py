"""Every forward computes every insertion and item table, against the equations by hand.

An insertion that is added to ``INSERTIONS`` is compared here without further work, and so is a toy
that only these tests register. A forward that computes another one fails under its own name.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from peterrec.model.inference.batch_plan import SlotRef
from peterrec.model.inference.cpu.forward import PackedForward
from peterrec.model.inference.forward import MixedForward
from peterrec.model.inference.gpu.forward import FusedForward
from peterrec.model.inference.gpu.table_kernel import FusedTables
from peterrec.model.inference.heads import MixedHeads, RowScores, Selection
from peterrec.model.inference.weight_pool import WeightPool
from peterrec.model.insertions import INSERTIONS, Insertion
from peterrec.model.kinds import KINDS
from peterrec.model.network.backbone import Backbone, DilatedConv, ResidualBlock
from peterrec.model.network.collate import frame_histories
from peterrec.model.network.item_table import ItemTable
from peterrec.model.network.patch import PatchWeights
from peterrec.model.spec import (
    CLS,
    FIRST_ITEM,
    PAD,
    UNK,
    BackboneSpec,
    HeadSpec,
    Padding,
    PatchGeometry,
    TableSpec,
)
from peterrec.model.training.finetune.activation_cache import ActivationCache
from peterrec.model.training.finetune.forward import FieldBlocks, user_vectors
from peterrec.model.training.finetune.patch_stack import PatchStack
from peterrec.model.training.pretrain.packed_blocks import pack, packed_states
from peterrec.model.training.pretrain.step import packed_users
from tests.model.random_tasks import (
    RandomTask,
    packed,
    random_backbone,
    random_history,
    random_table,
    random_task,
)

CPU = torch.device("cpu")
GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOY = Insertion("toy_parallel1", convs_per_block=1, source="input")

PLACES = {
    "serial2": ("output", "output"),
    "serial1": (None, "output"),
    "parallel2": ("input", "input"),
    TOY.name: (None, "input"),
}
"""What the bottlenecks at a block's two convolutions read, stated a second time on purpose."""

SKIPPING = "parallel2 with inner skip"
NAMES = [*INSERTIONS, TOY.name, SKIPPING]


@pytest.fixture(autouse=True)
def _toy_insertion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INSERTIONS, TOY.name, TOY)


@dataclass(frozen=True)
class Case:
    """Two tasks on one backbone and the histories that each of them reads."""

    backbone: Backbone
    patches: list[PatchWeights]
    histories: list[list[int]]

    @property
    def geometry(self) -> PatchGeometry:
        return self.patches[0].geometry

    @property
    def tokens(self) -> Tensor:
        return frame_histories(self.histories, self.backbone.spec)

    def rows(self) -> Iterator[tuple[PatchWeights, list[int]]]:
        """The rows of the first task, then those of the second."""
        yield from product(self.patches, self.histories)


def make_case(
    name: str,
    is_causal: bool,
    padding: Padding,
    has_reader: bool,
    has_extras: bool,
    blocks: tuple[int, ...] = (0, 1),
) -> Case:
    """Two random tasks; only patches that include the lowest block can have their own [CLS]."""
    spec = BackboneSpec(30, 16, (1, 2), is_causal=is_causal, padding=padding, max_len=6)
    skips = name == SKIPPING
    geometry = PatchGeometry(
        "parallel2" if skips else name,
        bottleneck=5,
        blocks=blocks,
        has_inner_skip=skips,
        has_norms=has_extras,
        has_cls=has_extras and 0 in blocks,
        queries=3 if has_reader else 0,
    )
    backbone, head = random_backbone(spec), HeadSpec("value", 1)
    patches = [random_task(backbone, geometry, head, seed).patch for seed in (1, 2)]
    return Case(backbone, patches, [random_history(spec, n, n) for n in (3, 0, 8)])


def by_hand(backbone: Backbone, patch: PatchWeights | None, history: Sequence[int]) -> Tensor:
    """User vector [C] of a history by the equations: no batch, no plan, no shared code."""
    spec = backbone.spec
    newest = list(history[-spec.max_len :])
    fill = [PAD] * (spec.max_len - len(newest)) if spec.padding == "embedded" else []
    tokens = [*([] if spec.is_causal else [CLS]), *fill, *newest, CLS]
    x = torch.stack([backbone.embedding.weight[token] for token in tokens])  # [T, C]
    if patch is not None and patch.cls is not None:
        x[[at for at, token in enumerate(tokens) if token == CLS]] = patch.cls
    for number, block in enumerate(backbone.blocks):
        assert isinstance(block, ResidualBlock)
        y = x
        halves = (block.conv1, block.norm1), (block.conv2, block.norm2)
        for conv, (layer, norm) in enumerate(halves):
            out = torch.stack([_position(y, layer, t, spec.is_causal) for t in range(len(y))])
            if patch is not None:
                out = _patched(y, out, patch, number, conv)
            own = patch.norm(number) if patch is not None and conv else None
            weight, bias = own or (norm.weight, norm.bias)
            out = functional.layer_norm(out, out.shape[1:], weight, bias, spec.layer_norm_eps)
            y = out.relu()
        x = x + y
    user = x[-1] if spec.is_causal else x[0] + x[-1]
    return user if patch is None or patch.query is None else user + _read(backbone, patch, newest)


def _position(x: Tensor, layer: DilatedConv, t: int, is_causal: bool) -> Tensor:
    taps = layer.weight.shape[2]
    centre = taps - 1 if is_causal else (taps - 1) // 2
    out: Tensor = layer.bias
    for tap in range(taps):
        source = t + (tap - centre) * layer.dilation
        if 0 <= source < len(x):
            out = out + layer.weight[:, :, tap] @ x[source]
    return out


def _patched(y: Tensor, out: Tensor, patch: PatchWeights, block: int, conv: int) -> Tensor:
    name = patch.geometry.insertion
    assert name in PLACES, f"state in PLACES what the bottlenecks of {name} read"
    read = PLACES[name]
    if read[conv] is None or block not in patch.geometry.blocks:
        return out
    place = patch.geometry.blocks.index(block)
    at = 2 * place + conv if read[0] else place
    source = y if read[conv] == "input" else out
    hidden = functional.gelu(source @ patch.down[at] + patch.down_bias[at], approximate="tanh")
    branches = out + hidden @ patch.up[at] + patch.up_bias[at]
    return branches + source if patch.geometry.has_inner_skip else branches


def _read(backbone: Backbone, patch: PatchWeights, items: list[int]) -> Tensor:
    def normal(x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], eps=backbone.spec.layer_norm_eps)

    parts = patch.query, patch.read_down, patch.read_down_bias, patch.read_up, patch.read_up_bias
    query, down, down_bias, up, up_bias = (part for part in parts if part is not None)
    vectors = normal(backbone.embedding.weight[items])  # [T, C]
    pooled = normal((vectors @ query).softmax(0).T @ vectors)  # [K, C]
    hidden = functional.gelu(pooled.flatten() @ down + down_bias, approximate="tanh")
    return hidden @ up + up_bias


def reference(case: Case) -> Tensor:
    vectors = [case.backbone.user_vectors(case.tokens, patch) for patch in case.patches]
    return torch.cat(vectors)


def one_task_training(case: Case) -> Tensor:
    return torch.cat([user_vectors(case.backbone, case.tokens, patch) for patch in case.patches])


def many_task_training(case: Case) -> Tensor:
    tokens = case.tokens.repeat(len(case.patches), 1)
    return FieldBlocks(case.backbone, tokens.shape[1]).token_vectors(tokens, stack_of(case))


def cached_training(case: Case) -> Tensor:
    """Only the patched blocks and those above them are computed; what they read is cached."""
    spec, lowest = case.backbone.spec, case.geometry.blocks[0]
    cache = ActivationCache(case.backbone, lowest, len(case.histories))
    rows = [torch.tensor(history, dtype=torch.int64).numpy() for history in case.histories]
    slots = cache.slots(rows).repeat(len(case.patches))
    blocks = FieldBlocks(case.backbone, spec.max_input_len, lowest)
    return blocks.user_vectors(cache.states(slots), stack_of(case))


def stack_of(case: Case) -> PatchStack:
    named = [patch.named() for patch in case.patches]
    stacked = {n.removeprefix("patch."): torch.stack([p[n] for p in named]) for n in named[0]}
    for name in ("down", "down_bias", "up", "up_bias"):
        stacked[name] = stacked[name].unsqueeze(2)  # one branch: [G, P, ..] -> [G, P, 1, ..]
    return PatchStack.of_branches(case.geometry, stacked)


def cpu_float32(case: Case) -> Tensor:
    return _served(case, PackedForward(case.backbone, torch.float32), torch.float32)


def cpu_bfloat16(case: Case) -> Tensor:
    """Where there are no matrix units, the same products number by number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peterrec.model.inference.cpu.forward.may_use_tiles", lambda: True)
        forward = PackedForward(case.backbone, torch.bfloat16)
    return _served(case, forward, torch.bfloat16)


def gpu(case: Case) -> Tensor:
    """Without a GPU the kernels run in Triton's interpreter."""
    backbone = random_backbone(case.backbone.spec).to(GPU)
    return _served(case, FusedForward(backbone, torch.float32), torch.float32, GPU).cpu()


def cpu_of_all(case: Case) -> Tensor:
    return _served_of_all(case, PackedForward(case.backbone, torch.float32))


def gpu_of_all(case: Case) -> Tensor:
    """A chunk has three rows: some begin inside a history's, some have neighbours of another."""
    backbone = random_backbone(case.backbone.spec).to(GPU)
    return _served_of_all(case, FusedForward(backbone, torch.float32, chunk_rows=3), GPU).cpu()


def _served_of_all(case: Case, forward: MixedForward, device: torch.device = CPU) -> Tensor:
    pool = WeightPool(case.geometry.shapes(case.backbone.spec.channels), device)
    refs = [SlotRef(case.geometry, pool, pool.write(patch.named())) for patch in case.patches]
    histories = packed(case.histories)
    rows = forward.user_vectors(
        [history for _, history in case.rows()], [refs[0]] * 3 + [refs[1]] * 3
    )
    found = forward.user_vectors_of_all(histories, refs).transpose(0, 1).flatten(0, 1)
    assert torch.equal(found, rows)
    return found


def _served(
    case: Case,
    forward: MixedForward,
    dtype: torch.dtype,
    device: torch.device = torch.device("cpu"),  # a constant
) -> Tensor:
    shapes = case.geometry.shapes(case.backbone.spec.channels)
    pool = WeightPool(shapes, device, dtype, capacity=len(case.patches))
    slots = {id(patch): pool.write(patch.named()) for patch in case.patches}
    rows = list(case.rows())
    refs = [SlotRef(case.geometry, pool, slots[id(patch)]) for patch, _ in rows]
    return forward.user_vectors([history for _, history in rows], refs)


CACHED = "training on cached activations"
CACHED_BELOW_THE_TOP = "training on cached activations, patches in the top block only"
SHARING = "GPU, every history by every patch in the top block only"

FORWARDS: dict[str, Callable[[Case], Tensor]] = {
    "reference": reference,
    "one-task training": one_task_training,
    "many-task training": many_task_training,
    CACHED: cached_training,
    CACHED_BELOW_THE_TOP: cached_training,
    "CPU float32": cpu_float32,
    "CPU bfloat16": cpu_bfloat16,
    "GPU": gpu,
    "CPU, every history by every patch": cpu_of_all,
    "GPU, every history by every patch": gpu_of_all,
    SHARING: gpu_of_all,
}

TOLERANCES = {"CPU bfloat16": 0.02}
TOLERANCE = 1e-5

SETTINGS: list[tuple[bool, Padding, bool, bool]] = [
    (True, "exact", False, True),
    (True, "embedded", True, False),
    (False, "exact", True, True),
    (False, "embedded", False, False),
]
"""is_causal, padding, has_reader, has_extras: every pair of values of two of the first three."""

PADDINGS: tuple[Padding, ...] = ("exact", "embedded")
BOTH = (False, True)
OTHER_SETTINGS = [s for s in product(BOTH, PADDINGS, BOTH, BOTH) if s not in SETTINGS]


def covered(settings: Sequence[tuple[bool, Padding, bool, bool]]) -> list[tuple[object, ...]]:
    """Forwards by insertions by settings; only a causal backbone's activations are cached."""
    return [
        (forward, name, *setting)
        for forward, name, setting in product(FORWARDS, NAMES, settings)
        if forward not in (CACHED, CACHED_BELOW_THE_TOP) or setting[0]
    ]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


@torch.no_grad()
def check(
    forward: str, name: str, is_causal: bool, padding: Padding, has_reader: bool, has_extras: bool
) -> None:
    blocks = (1,) if forward in (CACHED_BELOW_THE_TOP, SHARING) else (0, 1)
    case = make_case(name, is_causal, padding, has_reader, has_extras, blocks)
    expected = torch.stack([by_hand(case.backbone, *row) for row in case.rows()])
    error = relative_error(FORWARDS[forward](case), expected)
    limit = TOLERANCES.get(forward, TOLERANCE)
    assert error <= limit, f"{forward} computes {name} wrongly: relative error {error:.2g}"


FIELDS = ("forward", "name", "is_causal", "padding", "has_reader", "has_extras")


@pytest.mark.parametrize(FIELDS, covered(SETTINGS))
def test_every_forward_computes_every_insertion(
    forward: str, name: str, is_causal: bool, padding: Padding, has_reader: bool, has_extras: bool
) -> None:
    check(forward, name, is_causal, padding, has_reader, has_extras)


@pytest.mark.slow
@pytest.mark.parametrize(FIELDS, covered(OTHER_SETTINGS))
def test_every_forward_computes_every_insertion_at_all_settings(
    forward: str, name: str, is_causal: bool, padding: Padding, has_reader: bool, has_extras: bool
) -> None:
    check(forward, name, is_causal, padding, has_reader, has_extras)


@torch.no_grad()
@pytest.mark.parametrize(("is_causal", "padding"), list(product(BOTH, PADDINGS)))
def test_the_packed_forward_of_pretraining_computes_the_plain_network(
    is_causal: bool, padding: Padding
) -> None:
    case = make_case("serial2", is_causal, padding, has_reader=False, has_extras=False)
    packing = pack(case.tokens, case.backbone.spec)
    embedded = case.backbone.embedding(case.tokens.flatten()[packing.places])
    states = packed_states(case.backbone, embedded, packing)
    found = packed_users(states, packing, case.backbone.spec)
    expected = torch.stack([by_hand(case.backbone, None, history) for history in case.histories])
    assert relative_error(found, expected) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize(
    ("one", "other"),
    [(a, b) for a, b in combinations(NAMES, 2) if PLACES.get(a, a) != PLACES.get(b, b)],
)
def test_a_forward_that_took_one_insertion_for_another_would_be_seen(one: str, other: str) -> None:
    cases = [make_case(name, True, "exact", False, False) for name in (one, other)]
    vectors = [torch.stack([by_hand(c.backbone, *row) for row in c.rows()]) for c in cases]
    assert relative_error(*vectors) > 10 * max(TOLERANCES.values())


def test_every_insertion_is_stated_a_second_time() -> None:
    assert set(PLACES) == set(INSERTIONS)


TABLE_SPEC = BackboneSpec(item_count=90, channels=16, dilations=(1, 2), max_len=6)
TABLE_FORMS: list[TableSpec | None] = [
    None,
    TableSpec(1),
    TableSpec(1, bits=4, counting="count", exponent=0.0),
    TableSpec(1, counting="count", exponent=1.0),
]
HEADS = [
    HeadSpec("classification", 3),
    HeadSpec("tags", 19),
    HeadSpec("value", 1),
    HeadSpec("ranking", 70),
]
HISTORIES = [
    [],
    [UNK, UNK],
    [FIRST_ITEM + 7] * 3 + [UNK, FIRST_ITEM + 89],
    *(random_history(TABLE_SPEC, length, length) for length in (1, 6, 7, 40, 300)),
]
"""Histories that item tables read whole; the network reads the newest six items."""


def table_tasks() -> list[RandomTask]:
    """A task of each kind of head, with each form of a table and without."""
    backbone, geometry = random_backbone(TABLE_SPEC), PatchGeometry("serial2", 5, (1,), queries=2)
    tasks = []
    for seed, (head, form) in enumerate(product(HEADS, TABLE_FORMS)):
        task = random_task(backbone, geometry, head, seed)
        share = 0.05 if seed % 2 else 0.7
        width = KINDS[head.kind].table_width(head.outputs, TABLE_SPEC.channels)
        table = random_table(TABLE_SPEC, width, seed, form, share) if form else None
        tasks.append(RandomTask(task.backbone, task.patch, task.head, table))
    return tasks


def table_by_hand(table: ItemTable | None, history: Sequence[int], outputs: int) -> Tensor:
    """What a table adds, item by item, in whole numbers and float64: no shared code."""
    sums, counted = [0] * outputs, 0
    if table is None:
        return torch.zeros(outputs, dtype=torch.float64)
    rows = dict(zip(table.items.tolist(), table.codes.tolist(), strict=True))
    items = [token for token in history if token >= FIRST_ITEM]
    for token in items if table.spec.counting == "count" else set(items):
        counted += 1
        sums = [a + b for a, b in zip(sums, rows.get(token, [0] * outputs), strict=True)]
    scale = [float(value) for value in table.scale]
    divisor = max(counted, 1) ** table.spec.exponent
    return torch.tensor([a * b / divisor for a, b in zip(sums, scale, strict=True)]).double()


def expected_scores(task: RandomTask, history: list[int]) -> Tensor:
    user = by_hand(task.backbone, task.patch, history).unsqueeze(0)  # [1, C]
    if task.head.spec.kind == "ranking":
        added = table_by_hand(task.table, history, TABLE_SPEC.channels)
        return task.head.logits((user + added).float())[0]
    logits = task.head.logits(user) + table_by_hand(task.table, history, task.head.spec.outputs)
    return KINDS[task.head.spec.kind].scores(logits)[0].float()


def reference_scores(tasks: Sequence[RandomTask]) -> list[Tensor]:
    return [
        KINDS[task.head.spec.kind].scores(task.logits(history).unsqueeze(0))[0]
        for history in HISTORIES
        for task in tasks
    ]


def cpu_scores(tasks: Sequence[RandomTask]) -> list[Tensor]:
    return mixed_scores(tasks, PackedForward(tasks[0].backbone, torch.float32), CPU)


def cpu_bfloat16_scores(tasks: Sequence[RandomTask]) -> list[Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peterrec.model.inference.cpu.forward.may_use_tiles", lambda: True)
        forward = PackedForward(tasks[0].backbone, torch.bfloat16)
    return mixed_scores(tasks, forward, CPU, torch.bfloat16)


def gpu_scores(tasks: Sequence[RandomTask]) -> list[Tensor]:
    """Without a GPU the kernels run in Triton's interpreter."""
    backbone = random_backbone(TABLE_SPEC).to(GPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peterrec.model.inference.heads.table_forward", FusedTables)
        return mixed_scores(tasks, FusedForward(backbone, torch.float32), GPU)


def mixed_scores(
    tasks: Sequence[RandomTask],
    forward: MixedForward,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Scores of all tasks for all histories in one batch; rows of one history share it."""
    geometry = tasks[0].patch.geometry
    pool = WeightPool(geometry.shapes(TABLE_SPEC.channels), device, dtype, capacity=len(tasks))
    heads = MixedHeads(TABLE_SPEC.channels, device, TABLE_SPEC.token_count)
    slots = [SlotRef(geometry, pool, pool.write(task.patch.named())) for task in tasks]
    refs = [heads.add(task.head.spec, task.head.named(), 1.0, task.table) for task in tasks]
    histories = [history for history in HISTORIES for _ in tasks]
    users = forward.user_vectors(histories, slots * len(HISTORIES))
    own = [Selection(ref.spec.outputs if ref.catalog else 0) for ref in refs]
    found = heads.scores(users, refs * len(HISTORIES), own * len(HISTORIES), histories)
    return [torch.from_numpy(in_catalog_order(scores)) for scores in found]


def in_catalog_order(scores: RowScores) -> np.ndarray:
    """The scores of all outputs; those of a ranking come best first."""
    is_ranking = len(scores.indices) > 0
    return np.array(scores.values[scores.indices.argsort()] if is_ranking else scores.values)


SCORES: dict[str, Callable[[Sequence[RandomTask]], list[Tensor]]] = {
    "reference": reference_scores,
    "CPU float32": cpu_scores,
    "CPU bfloat16": cpu_bfloat16_scores,
    "GPU": gpu_scores,
}


@torch.no_grad()
@pytest.mark.parametrize("forward", SCORES)
def test_every_forward_adds_item_tables_over_whole_histories_in_a_mixed_batch(forward: str) -> None:
    tasks = table_tasks()
    found = SCORES[forward](tasks)
    asked = [(task, history) for history in HISTORIES for task in tasks]
    limit = TOLERANCES.get(forward, TOLERANCE)
    for (task, history), scores in zip(asked, found, strict=True):
        torch.testing.assert_close(scores, expected_scores(task, history), rtol=limit, atol=limit)
