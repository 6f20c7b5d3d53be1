# mypy: ignore-errors
# What follows is numba's to type.
"""The counted items of histories, which the host lists for item tables on any device.

A GPU would take a launch for it, which costs the host more than the list itself: 50 items take a
tenth of a microsecond.
"""

import numpy as np

from peterrec.model.inference.batch_plan import Indices
from peterrec.model.inference.cpu.compiled import compiled
from peterrec.model.inference.item_tables import Histories
from peterrec.model.spec import FIRST_ITEM


@compiled
def list_items(tokens, starts, marks, items, ends):
    """List the items of histories: each once from its start on, repetitions from its end back.

    ``ends`` int32 [histories, 2] are where the distinct items end and where the repetitions begin.
    ``marks`` has a byte of 0 for each token id, and is left so. False if there is another token.
    """
    largest = np.int32(0)
    for token in tokens:
        largest = max(largest, token if token >= 0 else np.int32(len(marks)))
    if largest >= len(marks):
        return False
    for history in range(len(ends)):
        begin, stop = starts[history], starts[history + 1]
        front, back = begin, stop
        for at in range(begin, stop):
            token = tokens[at]
            if token < FIRST_ITEM:
                continue
            if marks[token]:
                back -= 1
                items[back] = token
            else:
                marks[token] = 1
                items[front] = token
                front += 1
        for at in range(begin, front):
            marks[items[at]] = 0
        ends[history, 0], ends[history, 1] = front, back
    return True


class ItemLister:
    """Lists items of a backbone with so many token ids. Used by one thread."""

    def __init__(self, token_count: int) -> None:
        self._marks = np.zeros(token_count, dtype=np.int8)

    def list(self, histories: Histories, items: Indices, ends: Indices) -> None:
        """Write the counted items int32 [T] of histories, and where they end int32 [n, 2]."""
        if not list_items(histories.tokens, histories.starts, self._marks, items, ends):
            raise IndexError(f"a history has a token outside 0..{len(self._marks) - 1}")
