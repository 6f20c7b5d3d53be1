"""A message goes to the address that was looked at, and to the host that proves itself there."""

import base64
import datetime
import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from peterrec.patches.identity import TenantId
from peterrec.patches.registry.webhooks import Webhook, new_secret
from peterrec.service.errors import WebhookFailed
from peterrec.service.system.reachable import Reachable
from peterrec.service.webhooks.sender import HookSender, signed

NOW = datetime.datetime(2026, 1, 1, tzinfo=UTC)


def hook(url: str, secret: str = "") -> Webhook:
    return Webhook(TenantId("acme"), "ci", url, secret or new_secret(), 1, NOW, NOW)


def test_the_signature_is_that_of_the_specifications_example() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    headers = signed(hook("", secret), "msg_p5jXN8AQM9LWM0D4loKWxJek", body, 1614265330)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


class Certified(http.server.ThreadingHTTPServer):
    """An HTTPS server; ``hosts`` are the names that were asked for."""

    hosts: list[str]


@contextmanager
def https_server(folder: Path, name: str) -> Iterator[Certified]:
    """A server on this machine with a certificate of its own for a name."""
    hosts: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hosts.append(self.headers["host"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    _certify(folder, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server = Certified(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.hosts = hosts
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _certify(folder: Path, name: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(UTC)
    day = datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


async def test_a_host_proves_its_name_although_its_address_is_connected_to(tmp_path: Path) -> None:
    with https_server(tmp_path, "localhost") as server:
        port = server.server_address[1]
        trusted = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        sender = HookSender(Reachable(("127.0.0.0/8", "::1/128")), trusted)
        await sender.send(hook(f"https://localhost:{port}/"), "1", b"{}")
        assert server.hosts == [f"localhost:{port}"]
        with pytest.raises(WebhookFailed, match="tls_failed"):  # it is not proved for the address
            await sender.send(hook(f"https://127.0.0.1:{port}/"), "1", b"{}")
        await sender.close()
        stranger = HookSender(Reachable(("127.0.0.0/8", "::1/128")))
        with pytest.raises(WebhookFailed, match="tls_failed"):
            await stranger.send(hook(f"https://localhost:{port}/"), "1", b"{}")
        await stranger.close()


async def test_a_receiver_that_is_not_there_fails_at_once() -> None:
    sender = HookSender(Reachable(("127.0.0.0/8",)))
    with pytest.raises(WebhookFailed, match="connect_failed"):
        await sender.send(hook("http://127.0.0.1:1/"), "1", b"{}")
    await sender.close()


def test_a_new_secret_has_enough_bytes_and_is_not_shown() -> None:
    one, other = new_secret(), new_secret()
    assert one != other
    assert len(base64.b64decode(one.removeprefix("whsec_"))) == 32
    assert one not in repr(hook("https://example.com/", one))
