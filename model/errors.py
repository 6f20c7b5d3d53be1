"""The one error hierarchy: every refusal has a stable code, a category, a message and a hint."""

from enum import StrEnum
from typing import ClassVar


class Category(StrEnum):
    """What kind of refusal it is; ``service/errors.py`` maps each to an HTTP status."""

    MALFORMED = "malformed"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    GONE = "gone"
    STALE = "stale"
    TOO_LARGE = "too_large"
    UNSAFE_FORMAT = "unsafe_format"
    INCOMPATIBLE = "incompatible"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline"
    NO_ROOM = "no_room"
    INTERNAL = "internal"


RETRYABLE = frozenset({Category.OVERLOADED, Category.UNAVAILABLE, Category.DEADLINE})


class PeterRecError(Exception):
    """Root of every error we raise on purpose.

    ``code`` is part of the API: rename one only with a changelog entry. ``hint`` says what to do.
    """

    code: ClassVar[str] = "internal"
    category: ClassVar[Category] = Category.INTERNAL

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def is_retryable(self) -> bool:
        """True if the same call may succeed later without a change by the caller."""
        return self.category in RETRYABLE

    def __str__(self) -> str:
        text = f"{self.code}: {self.message}"
        return f"{text} {self.hint}" if self.hint else text


class InvalidSpec(PeterRecError):
    code = "invalid_spec"
    category = Category.INCOMPATIBLE


class TensorFileInvalid(PeterRecError):
    """A weights file that is no readable safetensors file or holds other tensors than expected."""

    code = "tensor_file_invalid"
    category = Category.INCOMPATIBLE


class BackboneFolderInvalid(PeterRecError):
    code = "backbone_folder_invalid"
    category = Category.INCOMPATIBLE


class DataError(PeterRecError):
    """Bad input data; the message names the file, and the line and column where there is one."""

    code = "data_invalid"
    category = Category.MALFORMED


class TrainingDiverged(PeterRecError):
    code = "training_diverged"
    category = Category.INTERNAL
