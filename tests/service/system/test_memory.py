"""What lives since the start is not walked by garbage collection while a process serves."""

import gc

from peterrec.service.system.memory import give_back_memory, sparing_the_collector


def test_what_was_there_is_walked_again_only_after_serving() -> None:
    there = [[number] for number in range(10)]
    with sparing_the_collector():
        assert gc.get_freeze_count() >= len(there)
        assert not any(found is there for found in gc.get_objects())
    assert gc.get_freeze_count() == 0
    assert any(found is there for found in gc.get_objects())


def test_giving_memory_back_leaves_what_is_in_use() -> None:
    kept = [bytes([number % 256]) * 5000 for number in range(1000)]
    give_back_memory()
    assert all(data == bytes([number % 256]) * 5000 for number, data in enumerate(kept))
