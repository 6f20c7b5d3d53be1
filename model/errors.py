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


class DataFileMissing(DataError):
    code = "data_file_missing"


class DataFileUnreadable(DataError):
    """Neither CSV nor Parquet as told by its name, or broken inside."""

    code = "data_file_unreadable"


class DataFileEmpty(DataError):
    code = "data_file_empty"


class ColumnMissing(DataError):
    code = "data_column_missing"


class ValueMissing(DataError):
    """A row without a user or an item."""

    code = "data_value_missing"


class OrderUnreadable(DataError):
    """A time or position that is missing or is neither a number nor a timestamp."""

    code = "data_order_unreadable"


class NumberUnreadable(DataError):
    """A label of a value task that is no finite number."""

    code = "data_number_unreadable"


class FilterMatchesNothing(DataError):
    code = "data_filter_matches_nothing"


class FilterUnreadable(DataError):
    code = "data_filter_unreadable"


class PictureUnwritable(DataError):
    """A picture's file name that says neither PNG nor SVG."""

    code = "data_picture_unwritable"


class LabelDuplicate(DataError):
    code = "data_label_duplicate"


class LabelSeenOnce(DataError):
    """A label too rare to be both learned and checked."""

    code = "data_label_seen_once"


class LabelUnknown(DataError):
    """A label that a trained task does not have."""

    code = "data_label_unknown"


class TooFewClasses(DataError):
    code = "data_too_few_classes"


class SplitEmpty(DataError):
    code = "data_split_empty"


class UnknownItems(DataError):
    """Histories made of items that the backbone has never seen."""

    code = "data_unknown_items"


class HistoriesMissing(DataError):
    """Labels and histories that have (almost) no user in common."""

    code = "data_histories_missing"


class CheckpointMismatch(PeterRecError):
    """A checkpoint of another run."""

    code = "checkpoint_mismatch"
    category = Category.INCOMPATIBLE


class TasksDiffer(PeterRecError):
    """Tasks that cannot be trained in one run."""

    code = "tasks_differ"
    category = Category.INCOMPATIBLE


class TrunkTooLarge(PeterRecError):
    """More histories than the memory for trunk states holds."""

    code = "trunk_too_large"
    category = Category.TOO_LARGE


class GoldenFolderInvalid(PeterRecError):
    """A folder that holds no case, or lacks the case that one of its files belongs to."""

    code = "golden_folder_invalid"
    category = Category.MALFORMED


class GoldenCaseInvalid(PeterRecError):
    """A case with a missing, misshapen or unreadable array, or settings we cannot follow."""

    code = "golden_case_invalid"
    category = Category.MALFORMED


class ReferenceVariablesInvalid(PeterRecError):
    """A checkpoint whose variables are not those of the published network."""

    code = "reference_variables_invalid"
    category = Category.INCOMPATIBLE


class TensorFlowMissing(PeterRecError):
    code = "tensorflow_missing"
    category = Category.UNAVAILABLE


class VocabularyMismatch(PeterRecError):
    """A vocabulary file that does not name each of the checkpoint's items once."""

    code = "reference_vocabulary_mismatch"
    category = Category.INCOMPATIBLE


class FutureItem(DataError):
    """The input holds something that happened when the answer was already known."""

    code = "data_future_item"


class PreparedFolderInvalid(PeterRecError):
    code = "prepared_folder_invalid"
    category = Category.MALFORMED


class ComparisonSettingsInvalid(PeterRecError):
    code = "comparison_settings_invalid"
    category = Category.MALFORMED


class MethodUnknown(PeterRecError):
    code = "comparison_method_unknown"
    category = Category.NOT_FOUND


class TaskUnknown(PeterRecError):
    code = "comparison_task_unknown"
    category = Category.NOT_FOUND


class PlottingMissing(PeterRecError):
    """Matplotlib is not installed."""

    code = "plotting_missing"
    category = Category.UNAVAILABLE
