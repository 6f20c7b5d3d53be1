"""What a kind of head is, and how the modules of a folder that describe kinds are found."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Outputs = Literal["labels", "catalog", "number"]
AnswerForm = Literal["label", "tags", "number", "items"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of head: its outputs, its training answers and its scores. Nothing here needs torch.

    ``outputs`` says how the rows of the head are named: ``labels`` (the manifest has one label per
    output), ``catalog`` (the bundle has a catalog of items, and an answer is the best of them) or
    ``number`` (one output without a name). ``answers`` says what the training data has for each
    user: one ``label``, any number of ``tags``, a ``number``, or target ``items``. ``scores``
    turns logits [B, K] into what a prediction reports, of the same shape; it uses only methods of
    the tensor, so that HTTP workers can read this table without torch. ``has_threshold``: an
    output counts as present from the manifest's threshold on.
    """

    outputs: Outputs
    answers: AnswerForm
    scores: Callable[["Tensor"], "Tensor"]
    has_threshold: bool = False

    @property
    def has_labels(self) -> bool:
        """True if the manifest names every output."""
        return self.outputs == "labels"

    @property
    def has_catalog(self) -> bool:
        """True if the head ranks the items of a catalog that its bundle carries."""
        return self.outputs == "catalog"

    def table_width(self, outputs: int, channels: int) -> int:
        """Weights of an item in an item table: one per output, or per channel before a catalog."""
        return channels if self.has_catalog else outputs


def kinds_in(package: str, folder: Iterable[str]) -> dict[str, Any]:  # Any: each side's own form
    """The ``KIND`` of every module in a package that has one, by the module's name.

    A new kind is therefore one new file in the folder; no table has to be edited.
    """
    names = sorted(module.name for module in iter_modules(folder))
    modules = {name: import_module(f"{package}.{name}") for name in names}
    return {name: module.KIND for name, module in modules.items() if hasattr(module, "KIND")}
