"""Real stores of bundles on this machine: HTTPS, S3 (moto), a registry of images, MLflow."""

import importlib.util
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from tests.certificates import make_certificates
from tests.waiting import eventually

START_TIMEOUT_S = 200
"""Seconds for a store's start: MLflow's takes ten, and many more on a machine that is busy."""

USER, PASSWORD = "reader", "open sesame"
HTPASSWD = "reader:$2b$04$a3hWf.w7559JMWAPN5KkEeiwVdbwrVhSxWKsEn2w7W5WWHt6Qp3Ta\n"


@dataclass
class HttpsServer:
    """What is answered by path: bytes; or a path's redirect, cut answer, status or slowness."""

    port: int
    authority: Path
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    statuses: dict[str, int] = field(default_factory=dict)
    endless: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"


@contextmanager
def https_server(folder: Path) -> Iterator[HttpsServer]:
    """Serve over TLS with a certificate of an authority that only this test knows."""
    make_certificates(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            store.asked.append(self.path)
            if path in store.endless:
                self.send_response(200)
                self.end_headers()
                self._drip()
                return
            status = 302 if path in store.redirects else store.statuses.get(path, 200)
            content = store.files.get(path)
            if status == 200 and content is None:
                status = 404
            self.send_response(status)
            if path in store.redirects:
                self.send_header("location", store.redirects[path])
            content = content or b""
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            with suppress(OSError):  # a reader may leave before the end
                self.wfile.write(content[: len(content) // 2] if path in store.cut else content)

        def _drip(self) -> None:
            """Send a byte now and then until the reader leaves: no reader's own timeout ends it."""
            with suppress(OSError):
                while not stopping:
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.02)

        def log_message(self, *args: object) -> None:
            pass

    stopping: list[bool] = []
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
    store = HttpsServer(http.server_port, folder / "ca.pem")
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield store
    finally:
        stopping.append(True)
        http.shutdown()
        http.server_close()
        thread.join()


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def _running(command: list[str], folder: Path, ready: str, **env: str) -> Iterator[None]:
    """Run a server until the block ends; ``ready`` is a URL that answers when it does."""
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env={**os.environ, **env}
        )

    def answers() -> bool:
        assert process.poll() is None, (folder / "log.txt").read_text()
        try:
            return httpx.get(ready, trust_env=False).status_code < 500
        except httpx.TransportError:
            return False

    try:
        eventually(answers, START_TIMEOUT_S)
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Run moto's server in a process of its own, and return its URL."""
    port = free_port()
    program = "import sys; from moto.server import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, folder, f"http://127.0.0.1:{port}/moto-api/data.json"):
        yield f"http://127.0.0.1:{port}"


@dataclass(frozen=True)
class OciRegistry:
    """A registry of images on the loopback; ``auth`` is what it asks for."""

    place: str
    auth: tuple[str, str] | None = None

    def put(self, repository: str, tag: str, files: dict[str, bytes]) -> str:
        """Store an artifact of some files, and return the digest of its manifest."""
        with httpx.Client(base_url=f"http://{self.place}", auth=self.auth, trust_env=False) as http:
            layers = [self._put_blob(http, repository, n, c) for n, c in files.items()]
            config = self._put_blob(http, repository, "config", b"{}")
            manifest = {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config,
                "layers": layers,
            }
            answer = http.put(
                f"/v2/{repository}/manifests/{tag}",
                content=json.dumps(manifest).encode(),
                headers={"content-type": manifest["mediaType"]},
            )
            assert answer.status_code == 201, answer.text
            return answer.headers["docker-content-digest"]

    def _put_blob(self, http: httpx.Client, repository: str, name: str, content: bytes):
        digest = f"sha256:{sha256(content).hexdigest()}"
        begun = http.post(f"/v2/{repository}/blobs/uploads/")
        url = httpx.URL(begun.headers["location"]).copy_merge_params({"digest": digest})
        put = http.put(url, content=content)
        assert put.status_code == 201, put.text
        return {
            "mediaType": "application/octet-stream",
            "digest": digest,
            "size": len(content),
            "annotations": {"org.opencontainers.image.title": name},
        }


@contextmanager
def oci_registry(folder: Path, *, is_closed: bool = False) -> Iterator[OciRegistry]:
    """Run Debian's docker-registry; one that ``is_closed`` wants USER and PASSWORD."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    port = free_port()
    auth = ""
    if is_closed:
        (folder / "htpasswd").write_text(HTPASSWD)
        auth = f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}\n"
    (folder / "config.yml").write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'images'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{auth}"
    )
    place = f"127.0.0.1:{port}"
    command = [program, "serve", str(folder / "config.yml")]
    with _running(command, folder, f"http://{place}/v2/"):
        yield OciRegistry(place, (USER, PASSWORD) if is_closed else None)


def python_with_mlflow() -> str:
    """A Python that has all of MLflow; the test is skipped if there is none."""
    if importlib.util.find_spec("mlflow.pyfunc") and importlib.util.find_spec("skops"):
        return sys.executable
    named = os.environ.get("MLFLOW_PYTHON")
    if not named:
        pytest.skip("no `mlflow server`: MLFLOW_PYTHON names a Python that has all of MLflow")
    return named


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run a real tracking server that keeps artifacts itself, and return its URL."""
    port = free_port()
    command = [python_with_mlflow(), "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--serve-artifacts"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'runs.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with _running(command, folder, f"http://127.0.0.1:{port}/health", PYTHONPATH=""):
        yield f"http://127.0.0.1:{port}"
