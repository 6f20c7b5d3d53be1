"""A row's price is known before it runs: it follows its history, its patch, its head and table."""

from pathlib import Path

import pytest

from peterrec.model.spec import TableSpec
from peterrec.patches.bundle.verify import BundleLimits, verify_bundle
from peterrec.service.device.pricing import Price
from peterrec.service.protocol.messages import ITEM_BYTES, Row
from tests.service.random_bundles import Workshop


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder: Path = tmp_path_factory.mktemp("backbone")
    return Workshop(folder)


def price(workshop: Workshop, kind: str, outputs: int = 3, table: TableSpec | None = None) -> Price:
    data = workshop.bundle(kind, 1, outputs=outputs, table=table)
    bundle = verify_bundle(data, backbone=workshop.identity, limits=BundleLimits())
    return Price.of(bundle.cost, bundle.manifest.head.outputs, workshop.spec)


def items(count: int) -> bytes:
    return bytes(ITEM_BYTES * count)


def test_each_item_that_the_network_reads_takes_a_position(workshop: Workshop) -> None:
    plain = price(workshop, "value")
    (less, more) = (plain.work(Row(1, items(count))) for count in (5, 15))
    assert more - less == pytest.approx(40 * plain.token)
    assert plain.token * ITEM_BYTES > 1  # the backbone, and the patch


def test_items_that_only_a_table_reads_take_less(workshop: Workshop) -> None:
    table = price(workshop, "value", table=TableSpec(1))
    older = table.work(Row(1, items(5), older=items(100))) - table.work(Row(1, items(5)))
    assert older > 0
    assert table.item < table.token
    assert price(workshop, "value").work(Row(1, items(5), older=items(100))) == price(
        workshop, "value"
    ).work(Row(1, items(5)))


def test_a_ranking_of_candidates_takes_work_for_these_alone(workshop: Workshop) -> None:
    ranking = price(workshop, "ranking", outputs=100)
    whole = ranking.work(Row(1, b"", top_k=5))
    few = ranking.work(Row(1, b"", top_k=5, candidates=bytes(8)))
    assert few < whole


def test_many_labels_take_work_and_bytes(workshop: Workshop) -> None:
    few, many = (price(workshop, "tags", outputs=outputs) for outputs in (2, 200))
    assert many.work(Row(1, b"")) > few.work(Row(1, b""))
    assert many.bytes_of(Row(1, b"")) == 100 * few.bytes_of(Row(1, b""))


def test_a_row_that_only_a_table_answers_takes_no_positions(workshop: Workshop) -> None:
    table = price(workshop, "classification", table=TableSpec(1))
    row = Row(1, items(10), left_out=items(10))
    assert table.work(row) < table.work(Row(1, items(10)))
    assert table.bytes_of(row) == 11 * 3 * 4
