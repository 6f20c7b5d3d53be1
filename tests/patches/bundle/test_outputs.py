"""What bundles can answer, and how that differs."""

import pytest

from peterrec.patches.bundle.bundle import Catalog, open_bundle
from peterrec.patches.bundle.outputs import Outputs, output_differences
from tests.patches.bundles import make_bundle

ABC = Outputs("classification", ("a", "b", "c"))


def ranking(*items: str) -> Outputs:
    return Outputs("ranking", catalog=Catalog.pack(items))


def outputs_of(bundle: bytes) -> Outputs:
    contents = open_bundle(bundle)
    return Outputs.of(contents.manifest, contents.tensors)


@pytest.mark.parametrize("kind", ["classification", "tags", "ranking", "value"])
def test_weights_play_no_part(kind):
    one, other = (outputs_of(make_bundle(kind, seed=seed)) for seed in (1, 2))
    assert one.digest == other.digest
    assert output_differences(one, other) == []


@pytest.mark.parametrize(
    ("after", "line"),
    [
        (Outputs("value"), "kind: classification → value"),
        (Outputs("tags", ABC.labels), "kind: classification → tags"),
        (Outputs("classification", ("a", "c", "b")), "labels: order differs at 2 ('b' → 'c')"),
        (Outputs("classification", ("a", "b", "c", "d")), "labels: + 'd'"),
        (Outputs("classification", ("a", "x", "c")), "labels: + 'x', − 'b'"),
        (
            Outputs("classification", ("x", "c", "a")),
            "labels: + 'x', − 'b', order differs at 2 ('a' → 'c')",
        ),
        (Outputs("classification", ("A", "b", "c")), "labels: + 'A', − 'a'"),
    ],
)
def test_another_kind_or_other_labels_differ(after, line):
    assert ABC.digest != after.digest
    assert output_differences(ABC, after) == [line]


def test_a_value_in_another_unit_differs():
    days, hours, none = (Outputs("value", unit=unit) for unit in ("days", "hours", None))
    assert len({days.digest, hours.digest, none.digest}) == 3
    assert output_differences(days, hours) == ["unit: 'days' → 'hours'"]
    assert output_differences(none, hours) == ["unit: 'none' → 'hours'"]


def test_a_catalog_is_a_set_of_items():
    one, other = ranking("a", "b", "c"), ranking("c", "a", "b")
    assert one.digest == other.digest
    assert output_differences(one, other) == []


def test_the_items_that_a_catalog_lost_and_got_are_counted_and_a_few_are_named():
    before = ranking(*(f"item-{number}" for number in range(3000)))
    after = ranking(*(f"item-{number}" for number in range(12, 3040)))
    assert before.digest != after.digest
    (line,) = output_differences(before, after)
    assert line == (
        "catalog: 12 items gone ('item-0', 'item-1', 'item-2', 'item-3', 'item-4' and 7 more), "
        "40 new ('item-3000', 'item-3001', 'item-3002', 'item-3003', 'item-3004' and 35 more) "
        "of 3,000"
    )


def test_a_difference_stays_short_however_much_differs():
    long = Outputs("tags", tuple(f"{'x' * 250}{number}" for number in range(500)))
    (line,) = output_differences(long, Outputs("tags", tuple(map(str, range(500)))))
    assert len(line) < 1000
    assert "and 495 more" in line


def test_names_that_look_alike_when_joined_do_not_count_as_equal():
    one, other = (Outputs("tags", labels) for labels in (("a,b", "c"), ("a", "b,c")))
    assert one.digest != other.digest
    assert ranking("ab", "c").digest != ranking("a", "bc").digest
