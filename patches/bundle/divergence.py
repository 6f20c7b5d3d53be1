"""How far two versions' answers to one history lie apart, from 0 (the same) to 1.

One definition for ``peterrec diff`` and for the guard of a canary.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

OVERLAP_AT = 10
"""Items of a ranking that are compared."""


def class_divergence(first: str, second: str) -> float:
    """1 if the classes differ."""
    return float(first != second)


def tag_divergence(first: AbstractSet[str], second: AbstractSet[str], tag_count: int) -> float:
    """Share of ``tag_count`` tags that one answer has and the other has not."""
    return len(first ^ second) / max(1, tag_count)


def ranking_divergence(first: Sequence[str], second: Sequence[str]) -> float:
    """1 - overlap@k of two lists of the k best items, whatever their order."""
    longest = max(len(first), len(second))
    return 1 - len(set(first) & set(second)) / longest if longest else 0.0


def value_divergence(first: float, second: float) -> float:
    """Difference in relation to the larger number; at most 1, also for opposite signs."""
    largest = max(abs(first), abs(second))
    return min(1.0, abs(first - second) / largest) if largest else 0.0
