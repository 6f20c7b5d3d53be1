"""Only a bundle whose probes come out right on this device becomes resident."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from peterrec.model.kinds import KINDS as model_kinds
from peterrec.model.spec import PAD, HeadKind, PatchGeometry, TableSpec
from peterrec.patches.bundle.bundle import build_bundle
from peterrec.patches.bundle.verify import BundleLimits, VerifiedBundle, verify_bundle
from peterrec.service.device.slots import Residency, SlotStore
from peterrec.service.errors import HeadBudgetExceeded, ProbeFailed
from peterrec.service.protocol.messages import Row
from tests.model.random_tasks import random_history
from tests.service.random_bundles import SPEC, Workshop

KINDS: list[HeadKind] = ["classification", "tags", "ranking", "value"]
TABLES = [None, TableSpec(1), TableSpec(1, bits=4, counting="count"), TableSpec(1, exponent=1.0)]
"""Forms of item tables; the number of items is that of the random table."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def store(workshop: Workshop) -> SlotStore:
    return SlotStore(workshop.loaded.backbone, head_limit_bytes=1 << 20)


def verified(workshop: Workshop, data: bytes) -> VerifiedBundle:
    return verify_bundle(data, backbone=workshop.identity, limits=BundleLimits())


def test_rows_of_all_kinds_in_one_batch_equal_the_reference(
    workshop: Workshop, store: SlotStore
) -> None:
    tasks = [(kind, seed) for seed in range(3) for kind in KINDS]
    residencies = [store.load(verified(workshop, workshop.bundle(*task))) for task in tasks]
    histories = [random_history(SPEC, 2 * n, n) for n in range(len(tasks))]
    rows = [
        Row(residency.handle, np.array(history, np.int32).tobytes(), top_k=3)
        for residency, history in zip(residencies, histories, strict=True)
    ]
    for scores, task, history in zip(store.score(rows), tasks, histories, strict=True):
        logits = workshop.task(*task).logits(history).double().numpy()
        expected = {
            "classification": np.exp(logits) / np.exp(logits).sum(),
            "tags": 1 / (1 + np.exp(-logits)),
            "ranking": np.sort(logits)[::-1],
            "value": logits,
        }[task[0]]
        np.testing.assert_allclose(scores.values, expected, rtol=1e-5, atol=1e-5)


READERS = [
    PatchGeometry("serial2", 4, (), queries=3),
    PatchGeometry("serial1", 4, (1,), has_norms=True, queries=1),
]


@pytest.mark.parametrize("geometry", READERS)
def test_a_reader_is_validated_and_answers_beside_patches(
    geometry: PatchGeometry, workshop: Workshop, store: SlotStore
) -> None:
    reader = store.load(verified(workshop, workshop.bundle("value", 1, geometry=geometry)))
    patch = store.load(verified(workshop, workshop.bundle("value", 2)))
    history = random_history(SPEC, 9, 1)
    tokens = np.array(history, np.int32).tobytes()
    rows = [Row(each.handle, tokens) for each in (patch, reader)]
    found = [scores.values[0] for scores in store.score(rows)]
    tasks = [workshop.task("value", 2), workshop.task("value", 1, geometry=geometry)]
    expected = [task.logits(history).item() for task in tasks]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_reader_whose_weights_do_not_give_its_probes_is_refused(
    workshop: Workshop, store: SlotStore
) -> None:
    good = verified(workshop, workshop.bundle("value", 1, geometry=READERS[0]))
    tensors = {name: np.array(tensor) for name, tensor in good.tensors.items()}
    tensors["patch.query"] *= 1.1
    with pytest.raises(ProbeFailed):
        store.load(verified(workshop, build_bundle(good.manifest, tensors)))


def rows_of(residency: Residency, history: list[int]) -> Row:
    tokens = np.array(history, np.int32)
    older, newest = tokens[: -SPEC.max_len], tokens[-SPEC.max_len :]
    return Row(residency.handle, newest.tobytes(), older=older.tobytes())


def test_rows_with_and_without_item_tables_of_all_kinds_equal_the_reference(
    workshop: Workshop, store: SlotStore
) -> None:
    kinds: list[HeadKind] = ["classification", "tags", "value"]
    tasks = [(kind, seed, table) for kind in kinds for seed, table in enumerate(TABLES)]
    residencies = [
        store.load(verified(workshop, workshop.bundle(kind, seed, table=table)))
        for kind, seed, table in tasks
    ]
    histories = [random_history(SPEC, length, length) for length in (0, 3, SPEC.max_len, 25, 300)]
    asked = [(n, history) for n in range(len(tasks)) for history in histories]
    found = store.score([rows_of(residencies[n], history) for n, history in asked])
    for (n, history), scores in zip(asked, found, strict=True):
        kind, seed, table = tasks[n]
        logits = workshop.task(kind, seed, table=table).logits(history)
        expected = model_kinds[kind].scores(logits.unsqueeze(0))[0].numpy()
        np.testing.assert_allclose(scores.values, expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("read", ["none", "newest"])
def test_a_bundle_whose_probes_do_not_show_its_item_table_over_whole_histories_is_refused(
    read: str, workshop: Workshop, store: SlotStore
) -> None:
    table = TableSpec(1, exponent=0.0)
    good = verified(workshop, workshop.bundle("value", 1, table=table))
    task = workshop.task("value", 1, table=table)
    histories = [row[row != PAD] for row in good.tensors["probe.histories"]]
    newest = histories if read == "none" else [history[-SPEC.max_len :] for history in histories]
    known = replace(task, table=None) if read == "none" else task
    logits = torch.stack([known.logits(history.tolist()) for history in newest])
    tensors = {**good.tensors, "probe.logits": logits.numpy()}
    with pytest.raises(ProbeFailed):
        store.load(verified(workshop, build_bundle(good.manifest, tensors)))
    assert (store.resident, store.head_bytes) == ({}, 0)


def test_a_bundle_whose_weights_do_not_give_its_probes_is_refused_and_leaves_nothing(
    workshop: Workshop, store: SlotStore
) -> None:
    good = verified(workshop, workshop.bundle("classification", 1))
    tensors = {name: np.array(tensor) for name, tensor in good.tensors.items()}
    tensors["patch.down"] *= 1.01
    bad = verified(workshop, build_bundle(good.manifest, tensors))
    with pytest.raises(ProbeFailed):
        store.load(bad)
    assert (store.resident, store.by_digest) == ({}, {})
    assert (store.patch_bytes, store.head_bytes) == (0, 0)


def test_an_output_with_large_weights_hides_no_error_of_the_others(
    workshop: Workshop, store: SlotStore
) -> None:
    good = verified(workshop, workshop.bundle("tags", 1))
    tensors = {name: np.array(tensor) for name, tensor in good.tensors.items()}
    tensors["head.weight"][0] *= 1e4
    tensors["head.bias"][0] *= 1e4
    tensors["probe.logits"][:, 0] *= 1e4
    store.load(verified(workshop, build_bundle(good.manifest, tensors)))  # it is a right bundle
    tensors["probe.logits"][:, 1] += 0.05
    with pytest.raises(ProbeFailed):
        store.load(verified(workshop, build_bundle(good.manifest, tensors)))


def test_freeing_a_residency_gives_all_its_bytes_back(workshop: Workshop, store: SlotStore) -> None:
    geometries = [PatchGeometry("serial1", 2, (1,)), PatchGeometry("parallel2", 4, (0, 1))]
    loaded = [
        store.load(verified(workshop, workshop.bundle(kind, 1, geometry=geometry)))
        for kind in KINDS
        for geometry in geometries
    ]
    assert store.patch_bytes > 0
    assert store.head_bytes > 0
    for residency in loaded:
        store.free(residency)
    assert (store.patch_bytes, store.head_bytes) == (0, 0)


def test_a_head_beyond_the_budget_is_refused_with_the_bytes_it_wants(workshop: Workshop) -> None:
    store = SlotStore(workshop.loaded.backbone, head_limit_bytes=1000)
    store.load(verified(workshop, workshop.bundle("value", 1)))
    with pytest.raises(HeadBudgetExceeded, match="6800 bytes"):
        store.load(verified(workshop, workshop.bundle("ranking", 1, outputs=100)))
    assert len(store.resident) == 1
