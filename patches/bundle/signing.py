"""Making keys and signatures; judging them is in ``signatures``."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from peterrec.patches.bundle.bundle import open_bundle
from peterrec.patches.bundle.contents import BundleLimits
from peterrec.patches.bundle.header import encode_file
from peterrec.patches.bundle.signatures import (
    PUBLIC_SUFFIX,
    content_digest,
    format_signatures,
    key_id_of,
    signatures_of,
    signed_message,
)
from peterrec.patches.errors import Findings, KeyFileExists, KeyFileInvalid

PRIVATE_SUFFIX = ".key"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, named by the id of its public half."""

    private: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> Self:
        """A new random key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, path: Path) -> Self:
        """A key from an unencrypted PKCS #8 PEM file; KeyFileInvalid otherwise."""
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise KeyFileInvalid(f"{path} can't be read as a private key: {error}.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFileInvalid(f"{path} holds a {type(key).__name__}, no Ed25519 key.")
        return cls(key)

    @property
    def key_id(self) -> str:
        """What servers know it by."""
        return key_id_of(self.private.public_key())

    def write(self, private: Path, public: Path) -> None:
        """Write both halves as PEM, the private one for its owner alone; KeyFileExists."""
        secret = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        known = self.private.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        for path in (private, public):
            if path.exists():
                raise KeyFileExists(str(path))
        _write_new(private, secret, 0o600)
        _write_new(public, known, 0o644)


def key_paths(name: Path) -> tuple[Path, Path]:
    """Where ``keygen --out NAME`` writes the private and the public half."""
    return (
        name.with_name(name.name + PRIVATE_SUFFIX),
        name.with_name(name.name + PUBLIC_SUFFIX),
    )


def sign_bundle(
    data: bytes, keys: Sequence[SigningKey], limits: BundleLimits | None = None
) -> bytes:
    """The bundle with signatures by these keys added; those it has stay, the same key's once.

    Another file with another version id, but the same content digest. BundleRejected if the
    bundle is damaged.
    """
    contents = open_bundle(data, limits)
    findings = Findings()
    present = signatures_of(contents, findings)
    findings.raise_if_any()
    message = signed_message(content_digest(contents))
    made = {key.key_id: key.private.sign(message) for key in keys}
    signatures = {**(present or {}), **made}
    signed = encode_file(
        contents.header.metadata["manifest"], contents.tensors, format_signatures(signatures)
    )
    open_bundle(signed, limits)
    return signed


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise KeyFileExists(str(path)) from error
    except OSError as error:
        raise KeyFileInvalid(f"{path} can't be written: {error}.") from error
    with os.fdopen(number, "wb") as file:
        file.write(data)
