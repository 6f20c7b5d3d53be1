"""What protocols that answer in tensors show of an answer: named columns with a row per user."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

P = TypeVar("P")

Datatype = Literal["BOOL", "INT64", "FP32", "FP64", "BYTES"]
"""Types of elements, by their names in the Open Inference Protocol."""

Axis = Literal["", "labels", "ranks"]


@dataclass(frozen=True, slots=True)
class Column(Generic[P]):
    """One column of the answers of a kind.

    ``read`` gives what an answer has in it. Along no axis this is one value; along ``labels`` it is
    a mapping with the value of every label; along ``ranks`` it is a list, best first.
    """

    name: str
    datatype: Datatype
    read: Callable[[P], Any]  # Any: a value, a mapping or a list, as the axis says
    about: str
    axis: Axis = ""
