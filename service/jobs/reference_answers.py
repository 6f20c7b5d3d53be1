"""The answers of a bundle through the plain reference forward, for inspection, not for serving."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from peterrec.model.network.backbone import Backbone
from peterrec.model.network.collate import frame_histories
from peterrec.model.network.heads import Head
from peterrec.model.network.item_table import logits_of
from peterrec.model.network.patch import PatchWeights
from peterrec.model.spec import PAD
from peterrec.patches.bundle.verify import VerifiedBundle
from peterrec.service.device.slots import PROBE_TOLERANCES, probe_error
from peterrec.service.errors import ProbeFailed
from peterrec.service.jobs.packing import unpack_table
from peterrec.service.predict.item_ids import MappedHistory, map_selection
from peterrec.service.predict.kinds import ANSWERS, Prediction, Ranked, Subject, divergence
from peterrec.service.predict.schemas import DEFAULT_TOP_K
from peterrec.service.protocol.messages import BundleEntry, Handle, RowResult

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """How two bundles of one kind answer the same histories.

    ``divergence`` is the mean over the histories, as the kind defines it. ``largest_change`` is the
    largest difference of a logit, or of a value, over the outputs that both bundles have.
    """

    kind: str
    histories: int
    divergence: float
    largest_change: float
    common_outputs: int


def reference_logits(
    bundle: VerifiedBundle, backbone: Backbone, histories: Sequence[NDArray[np.int32]]
) -> Logits:
    """Logits float32 [n, K], before the temperature, of histories (token ids, oldest first)."""
    return _reference(bundle, backbone, histories)[1]


@torch.inference_mode()
def _reference(
    bundle: VerifiedBundle, backbone: Backbone, histories: Sequence[NDArray[np.int32]]
) -> tuple[Logits, Logits]:
    """User vectors [n, C] and logits [n, K] of histories."""
    tensors = {
        name: torch.from_numpy(np.array(tensor))
        for name, tensor in bundle.tensors.items()
        if name.startswith(("patch.", "head."))
    }
    patch = PatchWeights.from_named(bundle.manifest.patch.geometry(), tensors)
    head = Head(bundle.manifest.head.spec(), backbone.spec.channels)
    weights = {name.removeprefix("head."): t for name, t in tensors.items() if "head." in name}
    head.load_state_dict(weights)
    users = backbone.user_vectors(frame_histories(histories, backbone.spec), patch)  # [n, C]
    logits = logits_of(head, users, unpack_table(bundle), histories)
    return users.numpy(), logits.numpy()


def check_probes(bundle: VerifiedBundle, backbone: Backbone) -> None:
    """Run the bundle's probes through the reference; ProbeFailed if its logits differ."""
    users, logits = _reference(bundle, backbone, probe_histories([bundle]))
    found = logits[:, bundle.tensors["probe.columns"]]
    expected = bundle.tensors["probe.logits"]
    error = probe_error(bundle, users, found - expected)
    tolerance = PROBE_TOLERANCES[torch.float32]
    if not error <= tolerance:
        raise ProbeFailed(error, tolerance)


def probe_histories(bundles: Sequence[VerifiedBundle]) -> list[NDArray[np.int32]]:
    """The histories of the bundles' probes, without padding.

    Several bundles often share histories; each history is then returned once.
    """
    rows = [row[row != PAD] for bundle in bundles for row in bundle.tensors["probe.histories"]]
    return rows if len(bundles) == 1 else list({row.tobytes(): row for row in rows}.values())


def disagreement(
    first: VerifiedBundle, second: VerifiedBundle, backbone: Backbone
) -> Disagreement | None:
    """Compare two bundles' answers to the probes of both bundles; None if the kinds differ."""
    if first.manifest.kind != second.manifest.kind:
        return None
    histories = probe_histories([first, second])
    one, two = (_scaled(bundle, backbone, histories) for bundle in (first, second))
    names_one, names_two = _outputs(first), _outputs(second)
    common = [name for name in names_one if name in names_two]
    left = _comparable(first, one[:, [names_one[name] for name in common]])
    right = _comparable(second, two[:, [names_two[name] for name in common]])
    answers = zip(_answers(first, one), _answers(second, two), strict=True)
    return Disagreement(
        kind=first.manifest.kind,
        histories=len(histories),
        divergence=float(np.mean([divergence(a, b) for a, b in answers])),
        largest_change=float(np.abs(left - right).max()) if common else 0.0,
        common_outputs=len(common),
    )


def _scaled(
    bundle: VerifiedBundle, backbone: Backbone, histories: Sequence[NDArray[np.int32]]
) -> Logits:
    return reference_logits(bundle, backbone, histories) / np.float32(
        bundle.manifest.head.temperature
    )


def _comparable(bundle: VerifiedBundle, logits: Logits) -> NDArray[np.float64]:
    """Logits, or the values that are made of them, since each bundle has its own scale."""
    line = bundle.manifest.head.value_scale
    return logits.astype(np.float64) * line.scale + line.shift


def _outputs(bundle: VerifiedBundle) -> Mapping[str, int]:
    """Column of each output by its name."""
    names = bundle.catalog or bundle.manifest.head.labels or ("the number",)
    return {name: column for column, name in enumerate(names)}


def _answers(bundle: VerifiedBundle, logits: Logits) -> list[Prediction]:
    """Each history's answer, as a worker decodes it, from logits [n, K]."""
    kind, decode = bundle.manifest.described_kind, ANSWERS[bundle.manifest.kind].decode
    subject = _subject(bundle)
    scores = kind.scores(torch.from_numpy(logits)).numpy()
    return [decode(subject, _result(row, is_ranked=kind.has_catalog)) for row in scores]


def _subject(bundle: VerifiedBundle) -> Subject:
    head, catalog = bundle.manifest.head, bundle.catalog
    entry = BundleEntry(
        handle=Handle(0),
        digest=bundle.digest,
        kind=head.kind,
        outputs=head.outputs,
        labels=head.labels or (),
        threshold=head.threshold,
        catalog_path="",
        scale=head.scale,
        shift=head.shift,
    )
    history = MappedHistory(b"", 0, 0, [], is_truncated=False, is_cold=True)
    ranked = None if catalog is None else Ranked(catalog, map_selection(catalog, (), None))
    return Subject(entry, history, None, ranked)


def _result(scores: Logits, *, is_ranked: bool) -> RowResult:
    """Scores [K] in the form in which the device sends them to a worker."""
    if not is_ranked:
        return RowResult(0, 0, scores.tobytes())
    best = np.argsort(-scores, kind="stable")[:DEFAULT_TOP_K]
    return RowResult(0, 0, scores[best].tobytes(), best.astype(np.int64).tobytes())
