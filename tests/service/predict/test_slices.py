"""Slices of streams are as large as takes a millisecond, whatever the machine."""

import asyncio
import math

from peterrec.service.predict.slices import Slices


class Machine:
    """A machine on which a row takes so many seconds."""

    def __init__(self, row_s: float) -> None:
        self.row_s = row_s
        self.now = 0.0
        self.slices = Slices(lambda: self.now)

    async def run(self, many: int) -> list[int]:
        """Run so many slices, as large as they may be."""
        ran = []
        for _ in range(many):
            rows = self.slices.rows
            async with self.slices.turn("acme", rows, math.inf):
                self.now += rows * self.row_s
            ran.append(rows)
        return ran


def test_a_slice_takes_about_a_millisecond_on_any_machine():
    for row_s, expected in ((0.00025, 4), (0.0001, 10), (0.005, 1)):
        ran = asyncio.run(Machine(row_s).run(20))
        assert ran[0] == 1
        assert abs(ran[-1] - expected) <= 1


def test_slices_grow_step_by_step_and_shrink_at_once():
    machine = Machine(0.00001)
    assert asyncio.run(machine.run(5)) == [1, 2, 4, 8, 16]
    machine.row_s = 0.001
    assert asyncio.run(machine.run(2)) == [32, 1]
