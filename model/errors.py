"""The hierarchy of all errors: each has a stable code, a category, a message and a hint.

The errors of this package follow by subject: the file system, files, tables, training data,
training, the published code, and comparisons.
"""

from enum import StrEnum
from pathlib import Path
from typing import ClassVar


class Category(StrEnum):
    """Kinds of errors; ``service/errors.py`` maps each to an HTTP status."""

    MALFORMED = "malformed"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    GONE = "gone"
    STALE = "stale"
    TOO_SLOW = "too_slow"
    TOO_LARGE = "too_large"
    HEAD_TOO_LARGE = "head_too_large"
    UNSUPPORTED = "unsupported"
    UNSAFE_FORMAT = "unsafe_format"
    INCOMPATIBLE = "incompatible"
    OVERLOADED = "overloaded"
    OVER_QUOTA = "over_quota"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline"
    NO_ROOM = "no_room"
    INTERNAL = "internal"


RETRYABLE = frozenset(
    {
        Category.TOO_SLOW,
        Category.OVERLOADED,
        Category.OVER_QUOTA,
        Category.UNAVAILABLE,
        Category.DEADLINE,
    }
)
"""Categories whose errors may disappear when the same call is repeated later."""


class PeterRecError(Exception):
    """The base of every error that we raise on purpose.

    ``code`` is part of the API: rename one only with a changelog entry. ``hint`` says what
    the user can do. It names settings in backticks, as Python and task files spell them, such as
    `order_column`. The command line shows those that the command has as its options, and leaves
    out sentences about those of other commands; so each sentence must be complete without the next.
    """

    code: ClassVar[str] = "internal"
    category: ClassVar[Category] = Category.INTERNAL

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> "tuple[object, ...]":
        """Let other processes get the error as it is, whatever its class is made of."""
        return _error_of, (type(self), self.args, self.__dict__)

    @property
    def is_retryable(self) -> bool:
        """Whether the same call may succeed later without a change by the caller."""
        return self.category in RETRYABLE

    def __str__(self) -> str:
        text = f"{self.code}: {self.message}"
        return f"{text} {self.hint}" if self.hint else text


def _error_of(
    kind: type[PeterRecError], arguments: tuple[object, ...], fields: dict[str, object]
) -> PeterRecError:
    error = kind.__new__(kind)
    error.args = arguments
    error.__dict__.update(fields)
    return error


class FileSystemRefusal(PeterRecError):
    """The operating system refuses to read or write a path, for a reason without its own class."""

    code = "file_system_failed"
    category = Category.INTERNAL


class PathNotPermitted(FileSystemRefusal):
    """This user may not read or write a path, or its file system is read-only."""

    code = "path_not_permitted"


class PathUnusable(FileSystemRefusal):
    """A path is a folder where a file is needed or the reverse, or a name that cannot be used."""

    code = "path_unusable"
    category = Category.MALFORMED


class PathMissing(FileSystemRefusal):
    """A path does not exist, or no longer."""

    code = "path_missing"
    category = Category.NOT_FOUND


class DiskFull(FileSystemRefusal):
    """A file system, a quota or a limit of the process has no room for what must be written."""

    code = "disk_full"
    category = Category.NO_ROOM


class InvalidSpec(PeterRecError):
    """A backbone, patch or head specification contradicts itself or a limit."""

    code = "invalid_spec"
    category = Category.INCOMPATIBLE


class TensorFileInvalid(PeterRecError):
    """A weights file cannot be read, or does not hold exactly the expected tensors."""

    code = "tensor_file_invalid"
    category = Category.INCOMPATIBLE


class BackboneFolderInvalid(PeterRecError):
    """A backbone folder lacks a file, or its files do not belong together."""

    code = "backbone_folder_invalid"
    category = Category.INCOMPATIBLE


class BackboneGivenTwice(PeterRecError):
    """Two of the folders that are to be served have the same backbone."""

    code = "backbone_given_twice"
    category = Category.MALFORMED

    def __init__(self, first: Path, second: Path) -> None:
        super().__init__(
            f"{first} and {second} have the same backbone.", hint="Give each backbone once."
        )


class DataError(PeterRecError):
    """Input data are bad; the message names the file and, if known, line and column."""

    code = "data_invalid"
    category = Category.MALFORMED


class DataFileMissing(DataError):
    """A data file or folder does not exist, or the folder has no data file."""

    code = "data_file_missing"


class DataFileUnreadable(DataError):
    """A data file is damaged, or is not of the format that its name says."""

    code = "data_file_unreadable"


class DataFileChanged(DataError):
    """A data file changed or vanished while it was read."""

    code = "data_file_changed"


class TableInvalid(DataError):
    """An object that was given as a table gives no Arrow stream, or breaks off."""

    code = "data_table_invalid"


class ScratchFull(PeterRecError):
    """The folder for what does not fit into memory has no room, or cannot be used."""

    code = "scratch_full"
    category = Category.NO_ROOM


class DataFileEmpty(DataError):
    """A data file has no rows, or a column of answers has no values."""

    code = "data_file_empty"


class ColumnMissing(DataError):
    """A table lacks a column that was named."""

    code = "data_column_missing"


class ColumnsInvalid(DataError):
    """Names were given for the columns of a table, but do not fit it."""

    code = "data_columns_invalid"


class DelimiterInvalid(DataError):
    """A delimiter is not one character that can stand between fields."""

    code = "data_delimiter_invalid"


class ListsInvalid(DataError):
    """A column of lists does not fit another one, or its lists are not sequences of events."""

    code = "data_lists_invalid"


class ValueMissing(DataError):
    """A row has no user or no item."""

    code = "data_value_missing"


class MissingText(DataError):
    """A text such as NaN or NULL stands where a value is expected; nobody said what it means."""

    code = "data_missing_text"


class ValueTypeInvalid(DataError):
    """A column's type, or one of its values, cannot be written exactly as an id or a label."""

    code = "data_value_type_invalid"


class OrderUnreadable(DataError):
    """A time or position is missing, or is neither a number nor a timestamp."""

    code = "data_order_unreadable"


class NumberUnreadable(DataError):
    """A value that must be a finite number is not one."""

    code = "data_number_unreadable"


class FilterUnreadable(DataError):
    """A row filter is not of the form COLUMN=VALUE."""

    code = "data_filter_unreadable"


class FilterMatchesNothing(DataError):
    """A row filter or a cut-off leaves no row."""

    code = "data_filter_matches_nothing"


class PictureUnwritable(DataError):
    """A picture's file name ends neither in .png nor in .svg."""

    code = "data_picture_unwritable"


class LabelDuplicate(DataError):
    """A user has a second label in a task with one label per user."""

    code = "data_label_duplicate"


class ItemRepeated(DataError):
    """A table of items says two things of one item."""

    code = "data_item_repeated"


class TimeUnreadable(DataError):
    """A value is not a time."""

    code = "data_time_unreadable"


class LabelSeenOnce(DataError):
    """A label is too rare to be both learned and tested."""

    code = "data_label_seen_once"


class LabelsTooRare(DataError):
    """No label has as many users as the smallest number that was asked for."""

    code = "data_labels_too_rare"


class LabelsContinuous(DataError):
    """A column of classes has about as many different labels as users."""

    code = "data_labels_continuous"


class ValuesUnresolved(DataError):
    """Beside the largest of the values, float32 cannot tell the others apart."""

    code = "data_values_unresolved"


class LabelTooLong(DataError):
    """A label has more characters than a bundle can carry."""

    code = "data_label_too_long"


class LabelUnknown(DataError):
    """A label is not one of a trained task's labels."""

    code = "data_label_unknown"


class TooFewClasses(DataError):
    """The answers of a task do not vary: there is one class, or one value."""

    code = "data_too_few_classes"


class TooFewItems(DataError):
    """All histories consist of one item, so there is nothing to predict."""

    code = "data_too_few_items"


class SplitEmpty(DataError):
    """A part of the split has no users, or the training part lacks a label."""

    code = "data_split_empty"


class UnknownItems(DataError):
    """Too many items of the histories are not in the backbone's vocabulary."""

    code = "data_unknown_items"


class HistoriesMissing(DataError):
    """Labels and histories have no users, or hardly any, in common."""

    code = "data_histories_missing"


class FutureItem(DataError):
    """A history holds an event from a time when the answer was already known."""

    code = "data_future_item"


class TrainingDiverged(PeterRecError):
    """The loss of a training run is no longer a finite number."""

    code = "training_diverged"
    category = Category.INTERNAL


class CheckpointMismatch(PeterRecError):
    """A checkpoint belongs to a run with other settings or other data."""

    code = "checkpoint_mismatch"
    category = Category.INCOMPATIBLE


class TrainingFileInvalid(PeterRecError):
    """A ``training.jsonl`` can't be read, or is not of the form that this version knows."""

    code = "training_file_invalid"
    category = Category.MALFORMED


class TasksDiffer(PeterRecError):
    """Tasks cannot be trained in one run, for example because their patches differ."""

    code = "tasks_differ"
    category = Category.INCOMPATIBLE


class TrunkTooLarge(PeterRecError):
    """The activation cache has no room for all histories."""

    code = "trunk_too_large"
    category = Category.TOO_LARGE


class GoldenFolderInvalid(PeterRecError):
    """A folder has no recorded case, or lacks the case that one of its files belongs to."""

    code = "golden_folder_invalid"
    category = Category.MALFORMED


class GoldenCaseInvalid(PeterRecError):
    """A recorded case has a bad array, or settings that we do not support."""

    code = "golden_case_invalid"
    category = Category.MALFORMED


class ReferenceVariablesInvalid(PeterRecError):
    """The variables of a checkpoint are not those of the published network."""

    code = "reference_variables_invalid"
    category = Category.INCOMPATIBLE


class VocabularyMismatch(PeterRecError):
    """A vocabulary file does not name each of the checkpoint's items exactly once."""

    code = "reference_vocabulary_mismatch"
    category = Category.INCOMPATIBLE


class TensorFlowMissing(PeterRecError):
    """TensorFlow is needed to read a checkpoint and is not installed."""

    code = "tensorflow_missing"
    category = Category.UNAVAILABLE


class BaselineTooLarge(PeterRecError):
    """A baseline of a comparison would need more memory than it may use."""

    code = "comparison_baseline_too_large"
    category = Category.TOO_LARGE


class ItemTableTooLarge(PeterRecError):
    """An item table would need more memory to train than it may use."""

    code = "item_table_too_large"
    category = Category.TOO_LARGE


class PreparedFolderInvalid(PeterRecError):
    """A prepared folder is incomplete, or was changed after it was written."""

    code = "prepared_folder_invalid"
    category = Category.MALFORMED


class ComparisonSettingsInvalid(PeterRecError):
    """Settings or task list of a comparison are contradictory or incomplete."""

    code = "comparison_settings_invalid"
    category = Category.MALFORMED


class MethodUnknown(PeterRecError):
    """A comparison names a method that does not exist."""

    code = "comparison_method_unknown"
    category = Category.NOT_FOUND


class TaskUnknown(PeterRecError):
    """A comparison names a task that its data do not have."""

    code = "comparison_task_unknown"
    category = Category.NOT_FOUND
