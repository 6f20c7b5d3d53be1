"""A task with an item table is packed into a bundle, and answers from it as before."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.network.item_table import ItemTable
from peterrec.model.spec import FIRST_ITEM, TableSpec
from peterrec.model.training.finetune.finetune import FinetunedTask, FinetuneSettings, finetune
from peterrec.patches.bundle.bundle import build_bundle
from peterrec.service.errors import ProbeFailed
from peterrec.service.jobs.packing import pack_task, unpack_task
from peterrec.service.jobs.reference_answers import check_probes
from tests.model.small_shop import TINY, groups, shop_histories, small_backbone


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedBackbone:
    return small_backbone(tmp_path_factory.mktemp("backbone"), replace(TINY, epochs=1))


@pytest.fixture(scope="module")
def task(loaded: LoadedBackbone) -> FinetunedTask:
    settings = FinetuneSettings(
        kind="classification", parts="blocks,reader", bottleneck=4, epochs=1, batch_size=16
    )
    return finetune(loaded, shop_histories(), groups(), settings)


def random_table(loaded: LoadedBackbone, outputs: int, bits: int) -> ItemTable:
    items = loaded.backbone.spec.item_count
    weight = torch.randn(items, outputs, generator=torch.Generator().manual_seed(1))
    return ItemTable.quantized(weight, TableSpec(items, bits))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_table_comes_back_from_its_bundle_and_reads_whole_histories(
    bits: int, loaded: LoadedBackbone, task: FinetunedTask
) -> None:
    table = random_table(loaded, len(task.outputs), bits)
    plain = unpack_task(pack_task(task, loaded, "plain"), loaded).model
    model = unpack_task(pack_task(replace(task, table=table), loaded, "table"), loaded).model
    spec = loaded.backbone.spec
    random = np.random.default_rng(0)
    rows = [random.integers(FIRST_ITEM, spec.token_count, n) for n in (0, 3, 5 * spec.max_len)]
    with torch.no_grad():
        torch.testing.assert_close(model.logits(rows), plain.logits(rows) + table.logits(rows))


def test_the_probes_of_a_table_are_what_the_reference_answers(
    loaded: LoadedBackbone, task: FinetunedTask
) -> None:
    table = random_table(loaded, len(task.outputs), bits=8)
    bundle = unpack_task(pack_task(replace(task, table=table), loaded, "table"), loaded).bundle
    check_probes(bundle, loaded.backbone)
    tensors = dict(bundle.tensors) | {"table.scale": bundle.tensors["table.scale"] * 1.01}
    wrong = unpack_task(build_bundle(bundle.manifest, tensors), loaded).bundle
    with pytest.raises(ProbeFailed):
        check_probes(wrong, loaded.backbone)


def test_a_bundle_without_a_table_has_none(loaded: LoadedBackbone, task: FinetunedTask) -> None:
    unpacked = unpack_task(pack_task(task, loaded, "plain"), loaded)
    assert unpacked.model.table is None
    assert unpacked.bundle.table_bytes == 0
