"""An issuer of tokens: its keys, an HTTP server that publishes them, and tokens that it signs."""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER, AUDIENCE = "https://login.example", "peterrec"
RSA = {name: rsa.generate_private_key(65537, 2048) for name in ("one", "two")}
WEAK = rsa.generate_private_key(65537, 1024)
CURVE = ec.generate_private_key(ec.SECP256R1())
EDWARDS = ed25519.Ed25519PrivateKey.generate()


def public(key: Any, name: str, algorithm: str, **more: str) -> dict[str, Any]:
    """A public key as an issuer publishes it."""
    kind = jwt.get_algorithm_by_name(algorithm)
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": name, "use": "sig", **more}


class JwksServer:
    """An issuer's HTTP server: what it answers, and how often it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.body: bytes = b""
        self.calls = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.calls += 1
                self.send_response(server.status)
                self.send_header("content-length", str(len(server.body)))
                self.end_headers()
                self.wfile.write(server.body)

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/keys"
        self._thread = Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def publish(self, *keys: dict[str, Any]) -> None:
        self.body = json.dumps({"keys": keys}).encode()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def payload(**claims: Any) -> dict[str, Any]:
    given = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ann",
        "exp": int(time.time()) + 60,
        "tenant": "acme",
        "scope": "openid predict:cold-* admin:films",
        **claims,
    }
    return {name: value for name, value in given.items() if value is not None}


def token(
    key: Any = RSA["one"], name: str | None = "one", algorithm: str = "RS256", **claims: Any
) -> bytes:
    headers = {} if name is None else {"kid": name}
    return b"Bearer " + jwt.encode(payload(**claims), key, algorithm, headers).encode()
