"""Trunk states stay within their bytes; the least recently used leave first."""

import torch

from peterrec.model.inference.activation_cache import ActivationCache

STATES = torch.ones(4, 8)  # 128 bytes


def test_the_oldest_leave_when_the_bytes_are_used_up() -> None:
    cache = ActivationCache(300)
    for name in (b"a", b"b"):
        cache.put((name, 2), STATES)
    assert cache.get((b"a", 2)) is not None
    cache.put((b"c", 2), STATES)
    assert cache.get((b"b", 2)) is None
    assert cache.get((b"a", 2)) is not None
    assert cache.size_bytes == 256


def test_states_of_one_history_at_two_blocks_are_apart() -> None:
    cache = ActivationCache(1000)
    cache.put((b"a", 2), STATES)
    assert cache.get((b"a", 3)) is None


def test_states_that_can_never_fit_are_not_kept() -> None:
    cache = ActivationCache(100)
    cache.put((b"a", 2), STATES)
    assert cache.get((b"a", 2)) is None
    assert cache.size_bytes == 0


def test_nothing_is_kept_without_bytes() -> None:
    assert not ActivationCache(0).is_on
    assert ActivationCache(1).is_on
