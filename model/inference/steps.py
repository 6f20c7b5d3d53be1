"""Work in steps, between which its thread may do something else.

Such work is a generator that yields after each step, which takes a few milliseconds at most. What
it returns is its result.
"""

from collections.abc import Generator
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
Steps = Generator[None, None, Result]

COPIED_AT_ONCE = 1 << 18
"""Numbers that one step copies: a megabyte, about a millisecond where memory is touched first."""


def finish(steps: Steps[Result]) -> Result:
    """Take all steps, one after the other, and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: Result = done.value
            return result


def moved(tensor: Tensor, device: torch.device) -> Steps[Tensor]:
    """Copy a tensor to a device in steps; returns the tensor itself if it is there already."""
    if tensor.device == device:
        return tensor
    out = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    target, source = out.view(-1), tensor.reshape(-1)
    for start in range(0, len(source), COPIED_AT_ONCE):
        part = slice(start, start + COPIED_AT_ONCE)
        target[part].copy_(source[part])
        yield
    return out
