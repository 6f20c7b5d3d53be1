"""Spec, item vocabulary and fingerprint of a backbone folder, read without torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peterrec.model.disk import refusal
from peterrec.model.errors import BackboneFolderInvalid, BackboneGivenTwice
from peterrec.model.spec import BackboneSpec

SPEC = "spec.json"
VOCABULARY = "vocabulary.json"


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """Spec, items and fingerprint of a backbone, for processes without torch."""

    spec: BackboneSpec
    items: list[str]
    fingerprint: str


def read_info(folder: Path) -> BackboneInfo:
    """Read spec, vocabulary and recorded fingerprint without opening the weights."""
    document = read_json(folder / SPEC)
    items = read_json(folder / VOCABULARY)
    try:
        spec = BackboneSpec.from_json(document["backbone"])
        fingerprint = str(document["fingerprint"])
    except (KeyError, TypeError) as error:
        raise BackboneFolderInvalid(f"{folder / SPEC} lacks {error}.") from error
    if not isinstance(items, list):
        raise BackboneFolderInvalid(f"{folder / VOCABULARY} is not a list of items.")
    if len(items) != spec.item_count:
        raise BackboneFolderInvalid(
            f"{folder / VOCABULARY} lists {len(items)} items, the spec {spec.item_count}."
        )
    return BackboneInfo(spec, [str(item) for item in items], fingerprint)


def read_backbones(folders: Sequence[Path]) -> list[BackboneInfo]:
    """Read several folders; BackboneGivenTwice if two have the same backbone."""
    found: dict[str, Path] = {}
    infos: list[BackboneInfo] = []
    for folder in folders:
        info = read_info(folder)
        if info.fingerprint in found:
            raise BackboneGivenTwice(found[info.fingerprint], folder)
        found[info.fingerprint] = folder
        infos.append(info)
    return infos


def read_json(path: Path) -> Any:  # Any: a JSON document
    """Read a JSON file of a backbone folder."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "does not exist" if path.parent.is_dir() else "can't be read: there is no folder"
        raise BackboneFolderInvalid(
            f"{path} {what}.", hint="Give a folder written by `peterrec pretrain`."
        ) from error
    except OSError as error:
        raise refusal(error, path, doing="read") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BackboneFolderInvalid(f"{path} is not a JSON file: {error}.") from error
