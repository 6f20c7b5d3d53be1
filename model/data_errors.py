"""What can be wrong with the data we are given: one leaf per cause, each naming its place."""

from model.errors import DataError


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
