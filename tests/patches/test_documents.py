"""The specification says what the code does, and its writer is one."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.spec import HeadKind
from patches import contents, scripts
from patches.bundle import build_bundle, digest_of, format_digest
from patches.errors import MAX_REASONS, ReasonCode
from patches.manifest import MAX_KEYS, Manifest
from patches.verify import verify_bundle
from tests.patches.bundles import LIMITS, TINY, BundleRecipe, make_parts

DOCS = Path(__file__).parent.parent.parent / "docs"
FORMAT = (DOCS / "bundle-format.md").read_text(encoding="utf-8")
REGISTRY = (DOCS / "registry.md").read_text(encoding="utf-8")


def published_writer() -> Callable[[Path, dict[str, object], dict[str, np.ndarray]], str]:
    (code,) = re.findall(r"```python\n(.*?)```", FORMAT, re.DOTALL)
    namespace: dict[str, Callable[[Path, dict[str, object], dict[str, np.ndarray]], str]] = {}
    exec(code, namespace)  # the document's own example
    return namespace["write_bundle"]


@pytest.mark.parametrize("kind", ["classification", "tags", "ranking", "value"])
def test_the_documents_writer_writes_what_we_write(kind: HeadKind, tmp_path: Path) -> None:
    parts = make_parts(BundleRecipe(kind=kind))
    manifest = json.loads(parts.manifest.model_dump_json(by_alias=True))
    version = published_writer()(tmp_path / "x.bundle", manifest, parts.tensors)
    written = (tmp_path / "x.bundle").read_bytes()
    assert written == build_bundle(parts.manifest, parts.tensors)
    assert version == format_digest(digest_of(written))
    verify_bundle(written, backbone=TINY, limits=LIMITS)


def test_every_reason_for_a_refusal_is_documented() -> None:
    table = FORMAT.partition("## Refusals")[2].partition("##")[0]
    assert set(re.findall(r"`([a-z_]+)`", table)) == set(ReasonCode)


def test_every_field_of_the_manifest_is_documented() -> None:
    fields = {field.alias or name for name, field in Manifest.model_fields.items()}
    for part in ("input", "patch", "head", "probes", "provenance"):
        model = Manifest.model_fields[part].annotation
        fields |= set(model.model_fields) if model is not None else set()
    documented = set(re.findall(r"`([a-z_]+)`", FORMAT))
    assert fields <= documented


def test_the_documented_limits_are_the_code_s() -> None:
    limits = contents.BundleLimits()
    assert f"{limits.max_bytes >> 30} GiB" in FORMAT
    assert f"{limits.max_header_bytes >> 20} MiB" in FORMAT
    assert f"at most {MAX_KEYS} keys" in FORMAT
    assert f"over {MAX_REASONS} reasons" in FORMAT


def test_every_key_of_the_registry_is_documented() -> None:
    documented = set(re.findall(r"^\| `\{P\}:([a-z]+)", REGISTRY, re.MULTILINE))
    assert documented == set(scripts.KEY_NAMES)
