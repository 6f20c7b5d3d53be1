"""What the training commands refuse beyond what the model refuses."""

from model.errors import Category, PeterRecError


class OutputExists(PeterRecError):
    """A result that would be overwritten without being asked to."""

    code = "output_exists"
    category = Category.CONFLICT


class TaskUnpackable(PeterRecError):
    """A task whose names or metrics the bundle format does not take."""

    code = "task_unpackable"
    category = Category.INCOMPATIBLE


class DownloadFailed(PeterRecError):
    code = "download_failed"
    category = Category.UNAVAILABLE


class TaskFileInvalid(PeterRecError):
    """A file of tasks that cannot be read as one."""

    code = "task_file_invalid"
    category = Category.MALFORMED
