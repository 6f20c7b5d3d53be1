"""Ed25519 keys, and signatures over a bundle's content that a server checks with its trusted keys.

The manifest and the tensors are signed, not the file, so that a second signature can be added
without invalidating the first. The signatures are stored in the file, so a replica that fetches a
bundle by its digest also fetches them and does not have to trust the registry.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from peterrec.model.disk import (
    matching_files,
    read_bytes,
    refusals,
    require_writable_file,
    write_bytes,
)
from peterrec.model.errors import FileSystemRefusal
from peterrec.patches.bundle.contents import Contents
from peterrec.patches.bundle.format import SCHEMA, compact_json, parse_json
from peterrec.patches.bundle.header import SIGNATURES_KEY
from peterrec.patches.errors import Findings, KeyFileExists, KeyFileInvalid, ReasonCode

MAX_SIGNATURES = 16
"""Most signatures that one bundle may carry."""

PUBLIC_SUFFIX = ".pub"
PRIVATE_SUFFIX = ".key"

_KEY_ID = re.compile(r"[0-9a-f]{64}\Z")
_SIGNATURE = re.compile(r"[0-9a-f]{128}\Z")
_PUBLIC_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)

Signatures = Mapping[str, bytes]
"""Signatures of 64 bytes each, by the id of the key that made them."""


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """The public keys whose signatures a server accepts, by key id."""

    keys: Mapping[str, Ed25519PublicKey]

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Self:
        """Read keys from PEM files with one or more keys, and from the ``*.pub`` files of folders.

        Raises KeyFileInvalid if a path is unreadable or holds no key, so that a server that should
        demand signatures does not start without demanding them.
        """
        keys = [key for path in paths for key in _public_keys(path)]
        return cls({key_id_of(key): key for key in keys})


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key that signs bundles."""

    private: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> Self:
        """Make a new random key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an unencrypted PKCS #8 PEM file; KeyFileInvalid unless it holds an Ed25519 key."""
        try:
            key = load_pem_private_key(read_bytes(path), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise KeyFileInvalid(f"{path} can't be read as a private key: {error}.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFileInvalid(f"{path} holds a {type(key).__name__}, not an Ed25519 key.")
        return cls(key)

    @property
    def key_id(self) -> str:
        """The id of the public half, by which servers know the key."""
        return key_id_of(self.private.public_key())

    def write(self, private: Path, public: Path) -> None:
        """Write both halves as PEM files, or none; only the owner may read the private one.

        KeyFileExists if either file exists; FileSystemRefusal if they cannot be written.
        """
        secret = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        known = self.private.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        for path in (private, public):
            require_writable_file(path)
            if path.exists():
                raise KeyFileExists(str(path))
        write_bytes(private, secret, mode=0o600, replaces=False)
        try:
            write_bytes(public, known, mode=0o644, replaces=False)
        except FileSystemRefusal:
            private.unlink()  # half a pair is of no use
            raise


def key_paths(name: Path) -> tuple[Path, Path]:
    """Return the paths to which ``keygen --out NAME`` writes the private and the public half."""
    return (
        name.with_name(name.name + PRIVATE_SUFFIX),
        name.with_name(name.name + PUBLIC_SUFFIX),
    )


def key_id_of(key: Ed25519PublicKey) -> str:
    """Return a key's id, which is the sha256 of its 32 raw bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def content_digest(contents: Contents) -> str:
    """Return the sha256 of the manifest and tensors, which does not depend on the signatures.

    ``docs/bundle-format.md`` defines it under "Signatures".
    """
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
    return hashlib.sha256(compact_json(document, sort_keys=True).encode()).hexdigest()


def signed_message(content: str) -> bytes:
    """Return the bytes that are signed."""
    return f"{SCHEMA} content sha256:{content}".encode()


def format_signatures(signatures: Signatures) -> str:
    """Encode signatures as the header's text, in its canonical form."""
    listed = [{"key": key, "signature": signatures[key].hex()} for key in sorted(signatures)]
    return compact_json(listed)


def signatures_of(contents: Contents, findings: Findings) -> Signatures | None:
    """Read a bundle's signatures without checking them; None, and a finding, if unreadable."""
    text = contents.header.metadata.get(SIGNATURES_KEY)
    if text is None:
        return {}
    try:
        listed = parse_json(text.encode())
        signatures = dict(map(_entry, _bounded(listed)))
        if len(signatures) != len(_bounded(listed)):
            raise ValueError("a key occurs twice")
    except ValueError as error:
        findings.add(ReasonCode.SIGNATURE_INVALID, f"the signatures can't be read: {error}")
        return None
    return signatures


def check_signatures(
    contents: Contents, trusted: TrustedKeys | None, findings: Findings
) -> tuple[str, ...]:
    """Return the ids of the trusted keys that signed the bundle.

    With trusted keys, a missing, untrusted or wrong signature is added to ``findings``.
    """
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
            "The bundle was changed after it was signed; fetch it from its producer again.",
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
            "Sign it with a trusted key, or add its key to the server's trusted keys.",
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
        raise ValueError(f"they must be a list of 1 to {MAX_SIGNATURES}")
    return listed


def _entry(found: object) -> tuple[str, bytes]:
    if not isinstance(found, dict) or set(found) != {"key", "signature"}:
        raise ValueError("each must have exactly the fields key and signature")
    key, signature = found["key"], found["signature"]
    if not isinstance(key, str) or not _KEY_ID.match(key):
        raise ValueError("key is not 64 hex digits")
    if not isinstance(signature, str) or not _SIGNATURE.match(signature):
        raise ValueError("signature is not 128 hex digits")
    return key, bytes.fromhex(signature)


def _public_keys(path: Path) -> list[Ed25519PublicKey]:
    with refusals(path, doing="read"):
        files = matching_files(path, f"*{PUBLIC_SUFFIX}") if path.is_dir() else [path]
    try:
        blocks = [block for file in files for block in _PUBLIC_PEM.findall(read_bytes(file))]
        keys = [load_pem_public_key(block) for block in blocks]
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileInvalid(f"{path} can't be read as public keys: {error}.") from error
    ed25519 = [key for key in keys if isinstance(key, Ed25519PublicKey)]
    if not ed25519 or len(ed25519) != len(keys):
        raise KeyFileInvalid(
            f"{path} holds {len(keys)} public keys, {len(ed25519)} of them Ed25519.",
            hint="Give the .pub file that peterrec keygen wrote, or a folder of them.",
        )
    return ed25519
