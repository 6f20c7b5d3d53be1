"""Certificates for servers that tests run on this machine."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"


def _key_usage(is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def make_certificates(folder: Path) -> None:
    """A certificate authority and a server certificate for the loopback address."""
    authority, server = (Ed25519PrivateKey.generate() for _ in range(2))
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in ("ca", "redis")]
    now = datetime.now(UTC)

    def certificate(name: x509.Name, key: Ed25519PrivateKey, is_ca: bool) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False
            )
            .add_extension(  # Python 3.13 asks for the identifiers of both keys and the CA's use
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
                critical=False,
            )
            .add_extension(_key_usage(is_ca), critical=True)
            .sign(authority, None)
        )

    secret = server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    signed = certificate(names[1], server, False).public_bytes(Encoding.PEM)
    (folder / "server.pem").write_bytes(secret + signed)
    (folder / "ca.pem").write_bytes(
        certificate(names[0], authority, True).public_bytes(Encoding.PEM)
    )
