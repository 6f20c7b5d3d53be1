"""The divergence of two versions' answers to one history, from 0 (equal) to 1.

``peterrec diff`` and the guard of a canary use this one definition.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

OVERLAP_AT = 10
"""Best items of a ranking that are compared."""


def class_divergence(first: str, second: str) -> float:
    """Return 1 if the classes differ, otherwise 0."""
    return float(first != second)


def tag_divergence(first: AbstractSet[str], second: AbstractSet[str], tag_count: int) -> float:
    """Return the share of ``tag_count`` tags that only one of the answers has."""
    return len(first ^ second) / max(1, tag_count)


def ranking_divergence(first: Sequence[str], second: Sequence[str]) -> float:
    """Return 1 - overlap@k of two lists of the k best items; the order does not matter."""
    longest = max(len(first), len(second))
    return 1 - len(set(first) & set(second)) / longest if longest else 0.0


def value_divergence(first: float, second: float) -> float:
    """Return the difference relative to the larger magnitude, at most 1 even for opposite signs."""
    largest = max(abs(first), abs(second))
    return min(1.0, abs(first - second) / largest) if largest else 0.0
