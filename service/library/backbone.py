"""A pretrained backbone as a Python object."""

import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Self, Unpack, get_args

import numpy as np
import numpy.typing as npt
import torch

from peterrec.model.data.interactions import read_histories
from peterrec.model.data.observer import ReadingObserver
from peterrec.model.data.vocabulary import Vocabulary
from peterrec.model.documents import Document
from peterrec.model.files import backbone_folder
from peterrec.model.files.backbone_folder import LoadedBackbone, save_backbone
from peterrec.model.files.backbone_info import SPEC
from peterrec.model.network.collate import frame_histories
from peterrec.model.progress import Progress
from peterrec.model.spec import UNK, BackboneSpec
from peterrec.model.training.next_items import HeldOutPart
from peterrec.model.training.pretrain.pretrain import PretrainedBackbone
from peterrec.service.errors import OutputExists
from peterrec.service.jobs.evaluate_backbone import (
    EvaluateBackboneJob,
    read_output_layer,
    run_evaluate_backbone,
)
from peterrec.service.jobs.options import EventOptions
from peterrec.service.jobs.train import OUTPUT_LAYER, write_backbone
from peterrec.service.library.inputs import Histories, as_path, is_table, listed
from peterrec.service.library.keywords import require_one_of, takes
from peterrec.service.library.local_device import LocalDevice
from peterrec.service.library.option_types import EventKeywords
from peterrec.service.library.shown import watched
from peterrec.service.library.sources import event_options
from peterrec.service.pages.page import Cell, Table, fragment

DeviceName = Literal["auto", "cpu", "cuda"]
"""Where answers are computed; ``auto`` takes the GPU if there is one, as a server does."""

AT_ONCE = 256
"""Histories in one forward."""


class Backbone:
    """A pretrained backbone: it never changes, and tasks are fine-tuned on it."""

    def __init__(self, loaded: LoadedBackbone, origin: PretrainedBackbone | Path) -> None:
        """The origin is the training in this process, or the folder that was read."""
        self._loaded = loaded
        self._origin = origin
        self._devices: dict[str, LocalDevice] = {}
        self._lock = Lock()

    @property
    def fingerprint(self) -> str:
        """sha256 over architecture, items and weights; bundles name the backbone by it."""
        return self._loaded.fingerprint

    @property
    def items(self) -> tuple[str, ...]:
        """The items that it knows, the most frequent first."""
        return tuple(self._loaded.items)

    @property
    def spec(self) -> BackboneSpec:
        """Its architecture."""
        return self._loaded.backbone.spec

    @property
    def record(self) -> Document:
        """Settings, data and epochs of its training, as in ``training.json``."""
        return self._loaded.record

    @property
    def loaded(self) -> LoadedBackbone:
        """The backbone in the form that training jobs take; not part of the public interface."""
        return self._loaded

    def save(self, out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the folder that ``peterrec serve --backbone`` and ``load_backbone`` take."""
        folder = Path(out)
        if (folder / SPEC).exists() and not overwrite:
            raise OutputExists(
                f"{folder} holds a finished backbone.",
                hint="Give another folder, or overwrite=True.",
            )
        if isinstance(self._origin, PretrainedBackbone):
            write_backbone(folder, self._origin)
        else:
            loaded, has_output = self._loaded, (self._origin / OUTPUT_LAYER).exists()
            layer = {OUTPUT_LAYER: self._output()} if has_output else {}
            save_backbone(folder, loaded.backbone, loaded.items, loaded.record, layer)
        return folder

    @takes(EventOptions)
    def vectors(
        self,
        histories: Histories,
        *,
        progress: bool | None = None,
        **options: Unpack[EventKeywords],
    ) -> npt.NDArray[np.float32]:
        """User vectors float32 [users, channels], without any task's patch, in the users' order.

        Items that the backbone does not know are left out, and only the newest ``max_len`` are
        read.
        """
        vocabulary, spec = Vocabulary(tuple(self._loaded.items)), self.spec
        with watched(progress) as seen, torch.inference_mode():
            texts = _item_texts(histories, options, seen)
            tokens = [vocabulary.tokens(items) for items in texts]
            known = [row[row != UNK] for row in tokens]
            found = np.empty((len(known), spec.channels), dtype=np.float32)
            for at in range(0, len(known), AT_ONCE):
                rows = frame_histories(known[at : at + AT_ONCE], spec)  # [B, T]
                found[at : at + AT_ONCE] = self._loaded.backbone.user_vectors(rows).numpy()
                seen.progress(Progress("computing user vectors", at, len(known), unit="users"))
        return found

    @takes(EventOptions)
    def evaluate(
        self,
        interactions: Histories,
        *,
        part: HeldOutPart = "test",
        without_seen: bool = False,
        max_users: int | None = None,
        progress: bool | None = None,
        **options: Unpack[EventKeywords],
    ) -> Document:
        """How well it predicts users' next items, as ``peterrec evaluate-backbone --json`` says.

        Of each user with three events or more, the newest is to be predicted (``part="test"``) or
        the one before it (``"validation"``). Pretrain with ``leave_out_last=2``, so that training
        has seen neither.
        """
        require_one_of("part", part, get_args(HeldOutPart))
        events = event_options(interactions, dict(options))
        job = EvaluateBackboneJob(events.source(), part, without_seen, max_users)
        with watched(progress) as seen:
            return run_evaluate_backbone(self._loaded, self._output(), job, seen).to_json()

    def _output(self) -> Mapping[str, torch.Tensor]:
        """The layer that scores items."""
        if isinstance(self._origin, PretrainedBackbone):
            return self._origin.output.state_dict()
        return read_output_layer(self._origin, self._loaded)

    def local_device(self, name: DeviceName = "auto") -> LocalDevice:
        """Where this process computes answers with it; not part of the public interface."""
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        with self._lock:
            if name not in self._devices:
                self._devices[name] = LocalDevice(self._loaded, torch.device(name))
            return self._devices[name]

    def __repr__(self) -> str:
        spec = self.spec
        size = f"{spec.item_count} items, {spec.channels} channels"
        return f"<peterrec.Backbone {self.fingerprint[:12]}: {size}>"

    def _repr_html_(self) -> str:
        return fragment([Table("Backbone", ("", ""), self._description())], title="Backbone")

    def _description(self) -> list[tuple[Cell, ...]]:
        spec, record = self.spec, self.record
        facts: list[tuple[Cell, ...]] = [
            ("fingerprint", self.fingerprint[:12] + "…"),
            ("items", spec.item_count),
            ("channels", spec.channels),
            ("blocks", len(spec.dilations)),
            ("dilations", ", ".join(map(str, spec.dilations))),
            ("newest items read", spec.max_len),
            ("predicts", "the next item" if spec.is_causal else "hidden items"),
        ]
        if record.get("epochs"):
            best = record["epochs"][record["best_epoch"]]
            facts.append(("best epoch", best["epoch"] + 1))
            facts.append(("validation loss", best["validation_loss"]))
            facts += list(best["validation_metrics"].items())
        return facts

    def __getstate__(self) -> dict[str, Any]:  # Any: the parts that pickle keeps
        return {"loaded": self._loaded, "origin": self._origin}

    def __setstate__(self, state: dict[str, Any]) -> None:  # Any: as above
        Backbone.__init__(self, state["loaded"], state["origin"])

    def __deepcopy__(self, memo: Mapping[int, object]) -> Self:
        """The object itself, since it never changes: a copy would only take memory."""
        return self


BackboneOrPath = Backbone | str | os.PathLike[str]


def load_backbone(path: str | os.PathLike[str]) -> Backbone:
    """Open a backbone folder, written by ``pretrain``, ``Backbone.save`` or the command."""
    folder = as_path(path, "path")
    return Backbone(backbone_folder.load_backbone(folder), folder)


def as_backbone(backbone: BackboneOrPath) -> Backbone:
    """The backbone itself, or the one in a folder."""
    if isinstance(backbone, Backbone):
        return backbone
    return load_backbone(as_path(backbone, "backbone"))


def _item_texts(
    histories: Histories, options: EventKeywords, observer: ReadingObserver
) -> list[list[str]]:
    if not is_table(histories):
        return [[str(item) for item in row] for row in listed(histories).rows]
    found = read_histories(event_options(histories, options).source(), observer)
    return [list(found.items_of(user)) for user in range(len(found.users))]
