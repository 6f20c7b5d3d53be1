"""What every part of the bundle format shares: its id, its size limits and its JSON."""

import json
from dataclasses import dataclass
from typing import Final

SCHEMA: Final = "peterrec.bundle/1"
"""The format's id. It stands in the file's metadata, in the manifest and in signed messages."""

MAX_KEYS = 1000
"""Most keys that one JSON object may have. Problems are reported per key, so this bounds them."""


@dataclass(frozen=True, slots=True)
class BundleLimits:
    """The largest bundles that are accepted.

    The sizes of the file and its header are checked before anything is allocated. The others bound
    what a bundle costs to run, see ``BundleCost``.
    """

    max_bytes: int = 1 << 30
    max_header_bytes: int = 8 << 20
    max_patch_work: float = 8.0
    max_answer_bytes: int = 4 << 20


def parse_json(text: bytes) -> object:
    """Parse UTF-8 JSON without repeated keys; raise ValueError for anything else."""
    try:
        document: object = json.loads(
            text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return document


def compact_json(document: object, *, sort_keys: bool = False) -> str:
    """Encode a document in the format's canonical form: no spaces, non-ASCII text unescaped."""
    return json.dumps(document, sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=False)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    if len(document) > MAX_KEYS:
        raise ValueError(f"an object has {len(document)} keys, at most {MAX_KEYS} are read")
    return document


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
