"""Thousands of records hold equal parts once."""

from peterrec.patches.identity import DEFAULT_TENANT, Digest, TaskId, TaskRef
from peterrec.patches.interning import shared, shared_digest, shared_mapping
from peterrec.patches.registry.records import TaskEntry


def entry(task: str) -> TaskEntry:
    """An entry whose parts are new objects, as they are after decoding."""
    versions = {3: shared_digest(Digest("".join(["a"] * 64)))}
    return TaskEntry.of(TaskRef(DEFAULT_TENANT, TaskId(task)), 7, {"prod": int("3")}, versions)


def test_tasks_with_equal_aliases_numbers_and_bundles_hold_them_once() -> None:
    first, second = entry("gender"), entry("age")
    assert first.aliases is second.aliases
    assert first.numbers is second.numbers
    assert first.digests[0] is second.digests[0] is first.packed


def test_what_is_shared_equals_what_was_given_in_value_and_type() -> None:
    assert [shared(value) for value in (1, 1.0, True)] == [1, 1.0, True]
    assert [type(shared(value)) for value in (1, 1.0, True)] == [int, float, bool]
    assert shared_mapping({"b": 1, "a": 2}) == {"a": 2, "b": 1}


def test_an_entry_knows_the_digest_of_each_number_and_of_no_other() -> None:
    versions = {2: Digest("b" * 64), 1: Digest("a" * 64)}
    task = TaskEntry.of(TaskRef(DEFAULT_TENANT, TaskId("gender")), 7, {"prod": 2}, versions)
    assert task.versions == versions
    assert [task.digest_of(number) for number in (1, 2, 3)] == ["a" * 64, "b" * 64, None]
