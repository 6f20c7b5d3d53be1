"""What can be wrong with a comparison."""

from model.errors import Category, DataError, PeterRecError


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
