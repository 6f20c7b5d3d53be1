"""Commands that read bundle files: inspect, verify, diff."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from peterrec.model.disk import read_bytes
from peterrec.model.errors import PeterRecError
from peterrec.model.kinds import KINDS
from peterrec.model.progress import OnProgress, Progress
from peterrec.patches.bundle.bundle import BundleLimits, open_bundle, read_manifest
from peterrec.patches.bundle.diff import BundleMetadata, OpenedBundle, compare_bundles
from peterrec.patches.bundle.signatures import TrustedKeys, check_signatures
from peterrec.patches.bundle.verify import BackboneIdentity, VerifiedBundle, verify_bundle
from peterrec.patches.errors import Findings
from peterrec.patches.identity import digest_of, format_digest
from peterrec.service.cli.bundle_text import (
    bundle_document,
    content_rows,
    difference_document,
    difference_rows,
    manifest_rows,
    print_rows,
    refusal_document,
    tensor_table,
)
from peterrec.service.cli.shared_options import AsJson, Quiet
from peterrec.service.jobs.progress_bar import ProgressBars
from peterrec.service.predict.kinds import ANSWERS
from peterrec.service.system.texts import printable

if TYPE_CHECKING:
    from peterrec.model.files.backbone_folder import LoadedBackbone
    from peterrec.service.jobs.reference_answers import Disagreement

File = Annotated[Path, typer.Argument(help="Bundle file.")]
Backbone = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Backbone folder to check the bundle with.",
    ),
]
Trusted = Annotated[
    list[Path] | None,
    typer.Option(
        "--trusted-key",
        help="Public key or folder of *.pub files; one of the keys must have signed. Repeatable.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(inspect)
    app.command()(verify)
    app.command()(diff)


def inspect(file: File, as_json: AsJson = False) -> None:
    """Show a bundle's contents; exit 1 with every reason if it is damaged or inconsistent."""
    if as_json:
        print(json.dumps(bundle_document(_open(file)), ensure_ascii=False, indent=1))
        return
    console = Console(highlight=False)
    print_rows(console, manifest_rows(read_manifest(file)))
    opened = _open(file)
    print_rows(console, content_rows(opened))
    console.print(tensor_table(opened.contents))


def verify(
    file: File,
    backbone: Backbone = None,
    trusted_key: Trusted = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check a bundle as a server does; exit 1 with every reason if a server would refuse it.

    With --backbone, the bundle's probes are computed too, by the plain forward.
    """
    trusted = TrustedKeys.read(trusted_key) if trusted_key else None
    try:
        with ProgressBars(quiet) as bars:
            signed_by = _check(file, backbone, trusted, bars)
    except PeterRecError as error:
        _print_refusal(file, error, as_json)
        raise typer.Exit(1) from error
    digest = format_digest(digest_of(read_bytes(file)))
    if as_json:
        document = {"file": str(file), "is_accepted": True, "digest": digest, "reasons": []}
        print(json.dumps({**document, "signed_by": list(signed_by)}, indent=1))
        return
    fits = f" and fits the backbone in {backbone}, its probes too" if backbone else ""
    print(f"{file} is sound{fits}.")
    print(f"  {digest}")
    for key_id in signed_by:
        print(f"  signed by trusted key {key_id}")


def diff(
    first: File,
    second: File,
    backbone: Backbone = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show the differences between two bundles.

    With --backbone, also how their answers to the probes of both bundles differ.
    """
    with ProgressBars(quiet) as bars:
        bars(Progress("comparing weights"))
        difference = compare_bundles(_open(first), _open(second))
        measured = None if backbone is None else _measure(first, second, backbone, bars)
    if as_json:
        answers = None if measured is None else asdict(measured)
        document = {**difference_document(difference), "disagreement": answers}
        print(json.dumps(document, ensure_ascii=False, indent=1))
        return
    console = Console(highlight=False)
    print_rows(console, difference_rows(difference))
    if measured is not None:
        print_rows(console, _disagreement_rows(measured))
    elif backbone is not None:
        print_rows(console, [("disagreement", "not measured: the kinds differ")])


def _open(file: Path) -> OpenedBundle:
    data = read_bytes(file)
    contents = open_bundle(data)
    return OpenedBundle(contents, BundleMetadata.of(contents, digest_of(data), len(data)))


def _check(
    file: Path, backbone: Path | None, trusted: TrustedKeys | None, on_progress: OnProgress
) -> tuple[str, ...]:
    """The trusted keys that signed the bundle; BundleRejected or ProbeFailed if a check fails."""
    on_progress(Progress("verifying the bundle"))
    if backbone is None:
        contents = open_bundle(read_bytes(file), trusted_keys=trusted)
        return check_signatures(contents, trusted, Findings())
    from peterrec.model.files.backbone_folder import load_backbone
    from peterrec.service.jobs.reference_answers import check_probes

    on_progress(Progress("loading the backbone"))
    loaded = load_backbone(backbone)
    on_progress(Progress("verifying the bundle"))
    bundle = _verified(file, loaded, trusted)
    on_progress(Progress("computing the probes"))
    check_probes(bundle, loaded.backbone)
    return bundle.signed_by


def _measure(
    first: Path, second: Path, backbone: Path, on_progress: OnProgress
) -> "Disagreement | None":
    from peterrec.model.files.backbone_folder import load_backbone
    from peterrec.service.jobs.reference_answers import disagreement

    on_progress(Progress("loading the backbone"))
    loaded = load_backbone(backbone)
    on_progress(Progress("computing the probes of both bundles"))
    one, two = (_verified(file, loaded) for file in (first, second))
    return disagreement(one, two, loaded.backbone)


def _verified(
    file: Path, loaded: "LoadedBackbone", trusted: TrustedKeys | None = None
) -> VerifiedBundle:
    identity = BackboneIdentity(loaded.fingerprint, loaded.backbone.spec)
    return verify_bundle(file, backbone=identity, limits=BundleLimits(), trusted_keys=trusted)


def _print_refusal(file: Path, error: PeterRecError, as_json: bool) -> None:
    reasons = refusal_document(error)
    if as_json:
        print(json.dumps({"file": str(file), "is_accepted": False, "reasons": reasons}, indent=1))
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"{file} is refused:", markup=False)
    for reason in reasons:
        line = printable(" ".join(filter(None, (reason["message"], reason["hint"]))))
        console.print(f"  {reason['code']}: {line}", markup=False)


def _compared(kind: str) -> str:
    return "value" if KINDS[kind].outputs == "number" else "logit"


def _disagreement_rows(measured: "Disagreement") -> list[tuple[str, str]]:
    return [
        ("disagreement", f"{measured.divergence:.4g} ({ANSWERS[measured.kind].divergence_text})"),
        ("  on", f"{measured.histories} histories of both bundles' probes"),
        ("  largest change", f"{measured.largest_change:.4g} of a {_compared(measured.kind)}"),
        ("  compared", f"{measured.common_outputs} outputs that both have"),
    ]
