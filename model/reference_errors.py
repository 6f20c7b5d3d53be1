"""What can be wrong with recordings and checkpoints of the published code."""

from model.errors import Category, PeterRecError


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
