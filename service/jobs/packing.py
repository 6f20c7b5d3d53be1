"""Pack a fine-tuned task into a bundle, and unpack a bundle into a model to evaluate."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from peterrec.model.data.examples import Examples
from peterrec.model.documents import Document
from peterrec.model.files.backbone_folder import LoadedBackbone
from peterrec.model.files.probes import probe_tensors
from peterrec.model.kinds import KINDS
from peterrec.model.network.backbone import Backbone
from peterrec.model.network.heads import Head
from peterrec.model.network.item_gaps import pack_gaps
from peterrec.model.network.item_table import ItemTable
from peterrec.model.network.patch import PatchWeights
from peterrec.model.training.evaluation import TaskModel
from peterrec.model.training.finetune.finetune import FinetunedTask
from peterrec.model.training.objectives import OBJECTIVES, Objective, ScaledObjective
from peterrec.patches.bundle.bundle import Catalog, Manifest, build_bundle
from peterrec.patches.bundle.manifest import (
    MOST_NOTES,
    ManifestHead,
    ManifestInput,
    ManifestPatch,
    ManifestProbes,
    ManifestTable,
    Provenance,
)
from peterrec.patches.bundle.packed_table import pack_codes
from peterrec.patches.bundle.verify import (
    BackboneIdentity,
    BundleLimits,
    VerifiedBundle,
    verify_bundle,
)
from peterrec.patches.identity import NAME_PATTERN
from peterrec.service.device.head_file import item_table
from peterrec.service.errors import TaskUnpackable
from peterrec.service.jobs.prior import prior_of

PROBE_USERS = 7
"""Number of test users whose answers are stored as probes, in addition to an empty history."""

TABLE_PROBE_USERS = 3
"""The same for a task with an item table, whose bundles have some ten kilobytes: the users with the
shortest, a medium and the longest history, of which the last one is made to show the table."""

OLDER_PROBED = 4
"""Items before the newest ``max_len`` of a probe that an item table still sees. Whole histories
were two thirds of a bundle: every probe takes the space of the longest."""


@dataclass(frozen=True, slots=True)
class UnpackedTask:
    """A verified bundle's model, and the names of its outputs; a value task has none."""

    bundle: VerifiedBundle
    model: TaskModel
    outputs: tuple[str, ...]

    def objective(self, examples: Examples) -> Objective:
        """What the bundle's answers to these examples are measured by."""
        head = self.bundle.manifest.head
        objective = OBJECTIVES[head.kind].of(self.outputs, examples)
        if isinstance(objective, ScaledObjective):
            objective.scale = head.value_scale
        return objective


def require_name(name: str) -> None:
    """Refuse a task's name that a manifest does not take, before anything is trained."""
    if re.fullmatch(NAME_PATTERN.strip("^$"), name) is None:
        raise TaskUnpackable(
            f"{name!r:.150} is no name for a bundle: it has other characters than A-Z, a-z, 0-9, "
            "'.', '_' and '-', does not begin with a letter or digit, or is longer than 128.",
            hint="Give another name to the file. Or give `name`.",
        )


def pack_task(
    task: FinetunedTask, loaded: LoadedBackbone, name: str, reading: Document | None = None
) -> bytes:
    """The bundle of a fine-tuned task, with its probes.

    ``reading`` says how its data were read, for a training that repeats this one.
    """
    rows = _probe_rows(task, PROBE_USERS if task.table is None else TABLE_PROBE_USERS)
    if task.table is not None:
        length = loaded.backbone.spec.max_len + OLDER_PROBED
        rows = [row[-length:] for row in rows]
        rows[-1] = _showing(task.table, rows[-1], length)
    probes = probe_tensors(loaded.backbone, task.patch_weights, task.head, rows, task.table)
    tensors = {k: v.numpy() for k, v in {**task.patch, **task.head.named()}.items()} | probes
    if KINDS[task.head.spec.kind].has_catalog:
        tensors |= Catalog.pack(task.outputs).tensors()
    if task.table is not None:
        tensors |= table_tensors(task.table)
    try:
        manifest = _manifest(task, loaded, name, probes, _provenance(task, reading))
    except ValidationError as error:
        reasons = "; ".join(f"{e['loc'][-1]}: {e['msg']}" for e in error.errors())
        raise TaskUnpackable(f"the task does not fit a bundle: {reasons}.") from error
    return build_bundle(manifest, tensors)


def unpack_task(data: bytes, loaded: LoadedBackbone) -> UnpackedTask:
    """Verify a bundle against this backbone; BundleRejected names every reason."""
    identity = BackboneIdentity(loaded.fingerprint, loaded.backbone.spec)
    bundle = verify_bundle(data, backbone=identity, limits=BundleLimits())
    manifest = bundle.manifest
    tensors = {name: torch.from_numpy(np.array(t)) for name, t in bundle.tensors.items()}
    patch = PatchWeights.from_named(manifest.patch.geometry(), tensors)
    head, table = _head(manifest, loaded.backbone, tensors), unpack_table(bundle)
    model = TaskModel(loaded.backbone, patch, head, table)
    return UnpackedTask(bundle, model, tuple(bundle.catalog or manifest.head.labels or ()))


def _head(manifest: Manifest, backbone: Backbone, tensors: dict[str, Tensor]) -> Head:
    head = Head(manifest.head.spec(), backbone.spec.channels)
    names = {"weight": "head.weight", "bias": "head.bias"}
    head.load_state_dict({ours: tensors[n] for ours, n in names.items() if n in tensors})
    return head.requires_grad_(False)


def unpack_table(bundle: VerifiedBundle) -> ItemTable | None:
    """The bundle's item table; None if it has none."""
    return item_table(bundle.manifest, bundle.tensors)


def table_tensors(table: ItemTable) -> dict[str, np.ndarray]:
    """The ``table.`` tensors of a bundle."""
    return {
        "table.items": pack_gaps(table.items.numpy()),
        "table.weight": pack_codes(table.codes.numpy(), table.spec),
        "table.scale": table.scale.numpy(),
    }


def _showing(table: ItemTable, history: np.ndarray, length: int) -> np.ndarray:
    """A history of this length whose oldest item, which only the table sees, weighs the most in it.

    Its newest items are those of the given one; items of the table fill it up.
    """
    strongest = int(table.weights().abs().amax(1).argmax())
    items = table.items.numpy()
    newest = history[-length + 1 :]
    filling = np.resize(items, length - 1 - len(newest))
    return np.concatenate([items[strongest : strongest + 1], filling, newest])


def _probe_rows(task: FinetunedTask, users: int) -> list[np.ndarray]:
    """The probes' histories: an empty one, then test users' from the shortest to the longest."""
    rows = [task.examples.rows[i] for i in task.split.test.tolist()]
    rows.sort(key=len)
    chosen = np.unique(np.linspace(0, len(rows) - 1, users).astype(int))
    return [np.empty(0, dtype=np.int64), *(rows[i] for i in chosen.tolist())]


def _manifest(
    task: FinetunedTask,
    loaded: LoadedBackbone,
    name: str,
    probes: Mapping[str, np.ndarray],
    provenance: Provenance,
) -> Manifest:
    spec, table = task.head.spec, task.table
    count, length = probes["probe.histories"].shape
    return Manifest(
        name=name,
        backbone=loaded.fingerprint,
        input=ManifestInput.of(loaded.backbone.spec),
        patch=ManifestPatch.of(task.geometry),
        head=ManifestHead(
            kind=spec.kind,
            outputs=spec.outputs,
            has_bias=spec.has_bias,
            labels=task.outputs if KINDS[spec.kind].has_labels else None,
            temperature=task.temperature,
            scale=task.scale.scale,
            shift=task.scale.shift,
            unit=task.record["settings"]["unit"],
        ),
        table=ManifestTable.of(table.spec) if table else None,
        probes=ManifestProbes(
            count=count, columns=len(probes["probe.columns"]), length=length if table else None
        ),
        metrics=task.metrics,
        prior=prior_of(task, loaded),
        provenance=provenance,
    )


def _provenance(task: FinetunedTask, reading: Document | None) -> Provenance:
    data = task.record["data"]
    digest = sha256(f"{data['histories_digest']}/{data['labels_digest']}".encode()).hexdigest()
    return Provenance(
        data_digest=digest,
        seed=task.record["settings"]["seed"],
        software=f"peterrec-serving {version('peterrec-serving')}, torch {torch.__version__}",
        created_at=datetime.now(UTC),
        notes=_notes(task, reading),
    )


def _notes(task: FinetunedTask, reading: Document | None) -> str:
    """The record of the training as JSON, without what does not fit: texts go first."""
    kept = ("settings", "data", "parts", "best_epoch", "seconds")
    notes = {key: task.record[key] for key in kept if key in task.record}
    notes["data"] = dict(notes["data"])
    if reading is not None:
        notes["reading"] = reading
    for part, too_long in (("data", "answers"), ("data", "warnings"), ("", "reading")):
        text = json.dumps(notes)
        if len(text) <= MOST_NOTES:
            break
        (notes[part] if part else notes).pop(too_long, None)
    return json.dumps(notes)
