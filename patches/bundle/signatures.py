"""Who vouches for a bundle: Ed25519 signatures over its content, judged by a server's keys.

What is signed is the manifest and the tensors, not the file: so a second signature can be added
without spoiling the first. The signatures lie in the file, so whoever fetches a bundle by its
digest gets them too, and no replica has to believe the registry.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from peterrec.patches.bundle.contents import Contents
from peterrec.patches.bundle.header import SIGNATURES_KEY
from peterrec.patches.bundle.manifest import SCHEMA, parse_json
from peterrec.patches.errors import Findings, KeyFileInvalid, ReasonCode

MAX_SIGNATURES = 16
PUBLIC_SUFFIX = ".pub"

_KEY_ID = re.compile(r"[0-9a-f]{64}\Z")
_SIGNATURE = re.compile(r"[0-9a-f]{128}\Z")
_PUBLIC_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)

Signatures = Mapping[str, bytes]
"""Signatures (64 bytes) by the id of the key that made them."""


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """The public keys whose signature a server demands, by key id."""

    keys: Mapping[str, Ed25519PublicKey]

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Self:
        """Keys from PEM files, each with one or more, and from the ``*.pub`` files of folders.

        Raises KeyFileInvalid if any of them is unreadable or holds none: a server that was to
        demand signatures must not start without.
        """
        keys = [key for path in paths for key in _public_keys(path)]
        return cls({key_id_of(key): key for key in keys})


def key_id_of(key: Ed25519PublicKey) -> str:
    """A key's name: the sha256 of its 32 raw bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def content_digest(contents: Contents) -> str:
    """sha256 of what the bundle says, the same however often it was signed (the format's page)."""
    entries = contents.header.entries
    tensors = {
        name: {
            "dtype": entries[name].dtype,
            "shape": list(entries[name].shape),
            "sha256": hashlib.sha256(tensor.reshape(-1).view("u1").data).hexdigest(),
        }
        for name, tensor in contents.tensors.items()
    }
    manifest = hashlib.sha256(contents.header.metadata["manifest"].encode()).hexdigest()
    document = {"manifest": manifest, "tensors": tensors}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def signed_message(content: str) -> bytes:
    """The bytes that a signature is made over."""
    return f"{SCHEMA} content sha256:{content}".encode()


def format_signatures(signatures: Signatures) -> str:
    """The text in the header, in its canonical form."""
    listed = [{"key": key, "signature": signatures[key].hex()} for key in sorted(signatures)]
    return json.dumps(listed, separators=(",", ":"))


def signatures_of(contents: Contents, findings: Findings) -> Signatures | None:
    """The signatures that a bundle carries, unchecked; None, and noted, if they can't be read."""
    text = contents.header.metadata.get(SIGNATURES_KEY)
    if text is None:
        return {}
    try:
        listed = parse_json(text.encode())
        signatures = dict(map(_entry, _bounded(listed)))
        if len(signatures) != len(_bounded(listed)):
            raise ValueError("a key signs twice")
    except ValueError as error:
        findings.add(ReasonCode.SIGNATURE_INVALID, f"the signatures can't be read: {error}")
        return None
    return signatures


def check_signatures(
    contents: Contents, trusted: TrustedKeys | None, findings: Findings
) -> tuple[str, ...]:
    """The ids of the trusted keys that signed; why not is noted if a signature is demanded."""
    signatures = signatures_of(contents, findings)
    if trusted is None or signatures is None:
        return ()
    known = sorted(signatures.keys() & trusted.keys.keys())
    message = signed_message(content_digest(contents)) if known else b""
    forged = [key for key in known if not _is_valid(trusted.keys[key], signatures[key], message)]
    if forged:
        findings.add(
            ReasonCode.SIGNATURE_INVALID,
            f"the signature by key {forged[0]} does not fit the bundle's content",
            "The bundle was changed after it was signed; fetch it from its maker again.",
        )
    elif not signatures:
        findings.add(
            ReasonCode.SIGNATURE_MISSING,
            "the bundle is not signed, and this server demands a signature",
            "Sign it: peterrec sign FILE --key KEY.",
        )
    elif not known:
        findings.add(
            ReasonCode.SIGNATURE_UNTRUSTED,
            f"no trusted key has signed the bundle; it is signed by {', '.join(signatures)}",
            "Sign it with a trusted key, or let the server trust this one.",
        )
    return tuple(key for key in known if key not in forged)


def _is_valid(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _bounded(listed: object) -> list[object]:
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_SIGNATURES:
        raise ValueError(f"a list of 1 to {MAX_SIGNATURES} is needed")
    return listed


def _entry(found: object) -> tuple[str, bytes]:
    if not isinstance(found, dict) or set(found) != {"key", "signature"}:
        raise ValueError("each needs exactly key and signature")
    key, signature = found["key"], found["signature"]
    if not isinstance(key, str) or not _KEY_ID.match(key):
        raise ValueError("key is not 64 hex digits")
    if not isinstance(signature, str) or not _SIGNATURE.match(signature):
        raise ValueError("signature is not 128 hex digits")
    return key, bytes.fromhex(signature)


def _public_keys(path: Path) -> list[Ed25519PublicKey]:
    try:
        files = sorted(path.glob(f"*{PUBLIC_SUFFIX}")) if path.is_dir() else [path]
        blocks = [block for file in files for block in _PUBLIC_PEM.findall(file.read_bytes())]
        keys = [load_pem_public_key(block) for block in blocks]
    except (OSError, ValueError) as error:
        raise KeyFileInvalid(f"{path} can't be read as public keys: {error}.") from error
    ed25519 = [key for key in keys if isinstance(key, Ed25519PublicKey)]
    if not ed25519 or len(ed25519) != len(keys):
        raise KeyFileInvalid(
            f"{path} holds {len(keys)} public keys, {len(ed25519)} of them Ed25519.",
            hint="Give the .pub file that peterrec keygen wrote, or a folder of them.",
        )
    return ed25519
